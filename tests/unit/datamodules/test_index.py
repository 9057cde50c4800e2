"""``index.json``: what is broken is refused with one line, and what was interrupted is not called complete."""

from __future__ import annotations

import json
import os

import pytest

from datamodules.experience import ExperienceError
from datamodules.shards import ShardWriter, iter_episodes, read_index


def edit_index(root, change):
    plain = json.loads((root / "index.json").read_text())
    change(plain)
    (root / "index.json").write_text(json.dumps(plain))


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


FAULTS = {
    "no folder": (lambda root: os.rename(root, root.with_name("gone")), "lit-wm record --env"),
    "empty folder": (lambda root: [path.unlink() for path in root.iterdir()], "is empty"),
    "no index": (lambda root: (root / "index.json").unlink(), "index.json is missing: restore it, or choose another"),
    "index is not JSON": (lambda root: cut(root / "index.json", 100), "index.json cannot be read"),
    "index is a list": (lambda root: (root / "index.json").write_text("[]"), "has format None"),
    "unknown format": (lambda root: edit_index(root, lambda plain: plain.update(format=99)), "has format 99"),
    "key missing": (lambda root: edit_index(root, lambda plain: plain.pop("codec")), "broken at 'codec'"),
    "shard outside": (
        lambda root: edit_index(root, lambda plain: plain["shards"][0].update(path="../train-000000.tar")),
        "is not the name of a train shard",
    ),
    "sums disagree": (
        lambda root: edit_index(root, lambda plain: plain["splits"]["train"].update(steps=1)),
        "contradicts itself",
    ),
    "episodes out of order": (
        lambda root: edit_index(root, lambda plain: plain["shards"][0]["episodes"].reverse()),
        r"index.json: train-000000.tar: .*ascending",
    ),
    "shard missing": (lambda root: (root / "train-000000.tar").unlink(), "train-000000.tar is missing"),
    "shard truncated": (lambda root: cut(root / "train-000000.tar", 2048), "train-000000.tar is truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_read_index_names_what_is_broken(make_recording, fault):
    root = make_recording([20] * 6)
    harm, message = FAULTS[fault]
    harm(root)
    with pytest.raises(ExperienceError, match=message) as error:
        read_index(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(("shards", 0, key), "x") for key in ("samples", "steps", "bytes", "episodes")],
        *[(("shards", 0, key), 3) for key in ("path", "split", "sha256")],
        *[(("shards", 0, "episodes"), value) for value in ([["x", 20]], [[0]], [[0, None]], [3], [[0, 0]], [[-1, 20]])],
        *[(("shards", 0), value) for value in (3, {"colour": "red"})],
        *[((key,), "x") for key in ("shards", "chunk_steps", "environment", "seed", "complete", "spec")],
        *[((key,), 3) for key in ("policy", "codec", "shards")],
        (("spec", "action", "sizes"), ["x"]),
    ],
)
def test_a_field_of_a_wrong_type_is_named(make_recording, field, value):
    root = make_recording([20] * 6)

    def change(plain):
        for key in field[:-1]:
            plain = plain[key]
        plain[field[-1]] = value

    edit_index(root, change)
    name = {0: "shards|path", "sizes": "experience", "spec": "experience|spec"}.get(field[-1], field[-1])
    with pytest.raises(ExperienceError, match=rf"index\.json.*({name})") as error:
        read_index(root)
    assert "\n" not in str(error.value)


def test_frames_of_another_size_than_the_index_says_are_refused(make_recording):
    root = make_recording([20] * 6)
    edit_index(root, lambda plain: plain["spec"]["observations"].update(frames=[4, 8, 3]))
    with pytest.raises(ExperienceError, match=r"frames.webp cannot be decoded .*56x8, expected 7 frames of 4x8"):
        list(iter_episodes(root))


def test_a_recording_is_complete_only_after_a_normal_end(make_recording, tmp_path, made_spec, make_episode):
    root = make_recording([20] * 6)
    assert read_index(root).complete
    with ShardWriter(tmp_path / "cut", made_spec, environment={}, policy="x", seed=0, shard_steps=20) as writer:
        for number in range(4):
            writer.write_episode(make_episode(made_spec, number, 20))
            assert not read_index(tmp_path / "cut").complete
    assert writer.close().complete and read_index(tmp_path / "cut").complete
    edit_index(root, lambda plain: plain.pop("complete"))  # as versions before this one wrote it
    assert read_index(root).complete


def test_a_recording_that_takes_the_place_of_another_is_complete(make_recording):
    make_recording([20] * 6)
    assert read_index(make_recording([5] * 3, overwrite=True)).complete
