"""Shards: what goes in comes out, and nothing that happens while writing harms what is there."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datamodules.shards
from datamodules import measure_codecs
from datamodules.codec import ChunkMeta, check_codec, decode_chunk, encode_chunk
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, Factor, check_rows
from datamodules.shards import ShardWriter, iter_episodes, read_index, verify


def write(root, spec, episodes, **options):
    options = {"environment": {"id": "made"}, "policy": "random", "seed": 3} | options
    with ShardWriter(root, spec, **options) as writer:
        for rows in episodes:
            writer.write_episode(rows)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


SPECS = st.builds(
    ExperienceSpec,
    st.dictionaries(
        st.sampled_from(["frames", "wrist", "vector", "touch"]),
        st.one_of(
            st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])), st.tuples(st.integers(1, 3))
        ),
        min_size=1,
    ),
    st.sampled_from(
        [
            ActionSpace("discrete", (3,)),
            ActionSpace("multi_discrete", (2, 5)),
            ActionSpace("continuous", (2,)),
            ActionSpace("none", ()),
        ]
    ),
    st.sampled_from([(), (Factor("x"), Factor("y", "velocity"))]),
)


@settings(max_examples=20, deadline=None)
@given(
    spec=SPECS,
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7),
    chunk_steps=st.integers(1, 12),
    shard_steps=st.integers(1, 40),
    codec=st.sampled_from(["webp", "npz"]),
)
def test_episodes_return_as_they_were_written(make_episode, spec, lengths, chunk_steps, shard_steps, codec):
    episodes = [make_episode(spec, number, length) for number, length in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        write(folder, spec, episodes, codec=codec, chunk_steps=chunk_steps, shard_steps=shard_steps, holdout=3)
        index = verify(folder)
        for split, rest in {"train": 0, "val": 1, "test": 2}.items():
            mine = episodes[rest::3]
            found = list(iter_episodes(folder, split))
            assert len(found) == len(mine) == index.splits[split]["episodes"]
            for rows, expected in zip(found, mine, strict=True):
                assert_equal(rows, expected)
            assert index.splits[split]["steps"] == sum(len(rows["is_first"]) for rows in mine)
            assert index.splits[split]["samples"] == sum(-(-len(rows["is_first"]) // chunk_steps) for rows in mine)
        assert index.spec == spec


def test_splits_are_by_episode(make_recording):
    index = read_index(make_recording([20] * 25))
    numbers = {split: {n for shard in index.of(split) for n, _ in shard.episodes} for split in ("train", "val", "test")}
    assert numbers["val"] == {1, 11, 21} and numbers["test"] == {2, 12, 22}
    assert numbers["train"] == set(range(25)) - numbers["val"] - numbers["test"]


def test_the_same_episodes_give_the_same_hash_and_others_another(make_recording):
    first = read_index(make_recording([20, 9, 30], name="a"))
    again = read_index(make_recording([20, 9, 30], name="b"))
    other = read_index(make_recording([20, 9, 31], name="c"))
    assert first.data_hash == again.data_hash != other.data_hash


def test_a_webp_strip_caps_the_chunk(made_spec):
    high = replace(made_spec, observations={"frames": (128, 4, 3)})
    assert check_codec(high, "webp", 128) == 127
    assert check_codec(high, "npz", 128) == 128


@pytest.mark.parametrize(
    ("shape", "codec", "message"),
    [((8, 8, 2), "webp", "codec 'npz'"), ((20000, 1, 3), "webp", "codec 'npz'"), ((8, 8, 3), "jpg", "'jpg'")],
)
def test_pictures_that_a_codec_cannot_hold_are_refused(shape, codec, message):
    with pytest.raises(ExperienceError, match=message):
        check_codec(ExperienceSpec({"frames": shape}, ActionSpace("discrete", (2,))), codec, 16)


def test_an_episode_that_breaks_the_contract_is_refused_and_the_others_are_kept(tmp_path, made_spec, make_episode):
    good, bad = make_episode(made_spec, 0, 9), make_episode(made_spec, 1, 9)
    bad["frames"] = bad["frames"][:, :4]
    with pytest.raises(ExperienceError, match="episode 1: 'frames'"):
        write(tmp_path / "data", made_spec, [good, bad])
    assert verify(tmp_path / "data").splits["train"]["steps"] == 9


# ---- a folder that is broken is refused with one line -----------------------------------------------------------


def replace_bytes(path, old, new):
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"WEBPVP8L", b"WEBPXXXX", ": chunk 000000-000000: member frames.webp cannot be decoded"),
        (b"action.npy", b"auction.np", ": chunk 000000-000000: member steps.npz cannot be decoded"),
        (b'"start": 0', b'"start": 9', ": chunk 000000-000000 is step 9 of episode 0, the index disagrees"),
        (b'"length": 7', b'"length": 8', ": chunk 000000-000000: member steps.npz|: member frames.webp"),
        (b'{"episode"', b'("episode"', ": chunk 000000-000000: member meta.json is broken"),
        (b"000000-000007.frames.webp", b"000000-000007.frames.jpeg", " holds 1 chunks, index.json says 9"),
    ],
)
def test_verify_and_iteration_find_a_broken_member(make_recording, old, new, message):
    root = make_recording([20] * 6)
    replace_bytes(root / "train-000000.tar", old, new)
    with pytest.raises(ExperienceError, match=rf"train-000000.tar{message}"):
        list(iter_episodes(root))
    with pytest.raises(ExperienceError, match=r"train-000000\.tar is not the file that was recorded"):
        verify(root)


@pytest.mark.parametrize("name", ["frames.webp", "steps.npz", "meta.json"])
def test_a_missing_member_is_named(made_spec, make_episode, name):
    members = encode_chunk(make_episode(made_spec, 0, 5), ChunkMeta(0, 0, 5), made_spec, "webp")
    del members[name]
    with pytest.raises(ExperienceError, match=f"^here: member {name} is missing$"):
        decode_chunk(members, made_spec, "webp", "here")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_broken_bytes_never_escape_as_another_exception(made_spec, make_episode, data):
    codec = data.draw(st.sampled_from(["webp", "npz"]))
    members = encode_chunk(make_episode(made_spec, 0, 5), ChunkMeta(0, 0, 5), made_spec, codec)
    name = data.draw(st.sampled_from(sorted(members)))
    broken = bytearray(members[name])
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    members[name] = bytes(broken[: data.draw(st.integers(0, len(broken)))])
    try:
        rows = decode_chunk(members, made_spec, codec, "here")
    except ExperienceError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
    else:
        assert check_rows(rows, made_spec) == 5


def test_a_pickle_is_never_opened(made_spec, make_episode):
    members = encode_chunk(make_episode(made_spec, 0, 5), ChunkMeta(0, 0, 5), made_spec, "webp")
    file = io.BytesIO()
    np.savez(file, reward=np.array([print], dtype=object))
    with pytest.raises(ExperienceError, match=r"member steps\.npz cannot be decoded .*allow_pickle=False"):
        decode_chunk(members | {"steps.npz": file.getvalue()}, made_spec, "webp", "here")


# ---- writing --------------------------------------------------------------------------------------------------


def test_a_recording_is_not_written_over_by_accident(make_recording):
    root = make_recording([20] * 3)
    with pytest.raises(ExperienceError, match="already holds a recording"):
        make_recording([5] * 3)
    assert verify(root).splits["train"]["steps"] == 20


def test_overwrite_replaces_only_when_the_new_recording_is_complete(make_recording, tmp_path, made_spec, make_episode):
    root = make_recording([20] * 3)
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with ShardWriter(root, made_spec, environment={}, policy="x", seed=0, overwrite=True) as writer:
            writer.write_episode(make_episode(made_spec, 0, 5))
            raise KeyboardInterrupt
    assert verify(root).splits["train"]["steps"] == 20
    make_recording([5] * 3, overwrite=True)
    assert verify(root).splits["train"]["steps"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_anything_else_in_it_is_refused(make_recording):
    root = make_recording([20] * 3)
    (root / "thesis.tex").touch()
    with pytest.raises(ExperienceError, match=r"thesis\.tex"):
        make_recording([5], overwrite=True)
    assert (root / "thesis.tex").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_shards_without_an_index_are_never_deleted(make_recording, overwrite):
    root = make_recording([20] * 6)
    (root / "index.json").unlink()
    before = sorted(root.iterdir())
    with pytest.raises(ExperienceError, match=r"index\.json is missing: restore it, or choose another folder") as error:
        make_recording([5] * 3, overwrite=overwrite)
    assert sorted(root.iterdir()) == before and "\n" not in str(error.value)


def test_an_interrupt_keeps_every_whole_episode(tmp_path, made_spec, make_episode):
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with ShardWriter(tmp_path / "data", made_spec, environment={}, policy="x", seed=0) as writer:
            for number in range(5):
                writer.write_episode(make_episode(made_spec, number, 10))
            raise KeyboardInterrupt
    index = verify(tmp_path / "data")
    assert sum(split["steps"] for split in index.splits.values()) == 50 and not index.complete


@pytest.fixture
def full_disk(monkeypatch):
    """``full_disk(space)``: so many bytes can be written to shards, then there is no space left on the device."""

    def limit(space):
        def limited_write(file, data):
            nonlocal space
            fits = data[:space]
            space -= len(fits)
            write_all(file, fits)
            if len(fits) < len(data):
                raise OSError(errno.ENOSPC, "No space left on device")

        write_all = datamodules.shards._write_all
        monkeypatch.setattr(datamodules.shards, "_write_all", limited_write)

    return limit


@pytest.mark.parametrize("space", [0, 3000, 60000, 200000])
def test_a_full_disk_leaves_what_is_safe_and_says_how_much(tmp_path, made_spec, make_episode, full_disk, space):
    full_disk(space)
    episodes = (make_episode(made_spec, number, 10) for number in range(1000))
    with pytest.raises(ExperienceError, match="No space left on device") as error:
        write(tmp_path / "data", made_spec, episodes, shard_steps=60)
    kept = 0
    if (tmp_path / "data" / "index.json").exists():
        kept = sum(split["steps"] for split in verify(tmp_path / "data").splits.values())
    assert f"{kept} steps are safe" in str(error.value)
    assert bool(kept) == (space > 10000)
    assert not list((tmp_path / "data").glob(".*.part"))


def test_a_full_disk_costs_only_the_episode_that_did_not_fit(tmp_path, made_spec, make_episode, monkeypatch):
    def write_all_but_one(file, data):
        nonlocal calls
        calls += 1
        write_all(file, data if calls != 9 else data[:3000])
        if calls == 9:
            raise OSError(errno.ENOSPC, "No space left on device")

    calls, write_all = 0, datamodules.shards._write_all
    monkeypatch.setattr(datamodules.shards, "_write_all", write_all_but_one)
    with pytest.raises(ExperienceError, match="80 steps are safe"):
        write(tmp_path / "data", made_spec, [make_episode(made_spec, i, 10) for i in range(12)])
    assert sum(split["steps"] for split in verify(tmp_path / "data").splits.values()) == 80


def test_a_full_disk_while_overwriting_keeps_the_old_recording(make_recording, tmp_path, full_disk):
    root = make_recording([20] * 3)
    full_disk(5000)
    with pytest.raises(ExperienceError, match=r"No space left on device.*untouched"):
        make_recording([10] * 40, overwrite=True)
    assert verify(root).splits["train"]["steps"] == 20
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_index_that_cannot_be_written_leaves_the_old_one(tmp_path, made_spec, make_episode, monkeypatch):
    def full(source, target):
        if str(target).endswith("index.json") and os.path.exists(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ExperienceError, match="10 steps are safe"):
        write(tmp_path / "data", made_spec, [make_episode(made_spec, i, 10) for i in range(9)], shard_steps=1)
    assert verify(tmp_path / "data").splits["train"]["steps"] == 10
    assert [path.name for path in (tmp_path / "data").glob("*.tar")] == ["train-000000.tar"]


WRITE_FOREVER = """
import sys, numpy as np
from datamodules.experience import ActionSpace, ExperienceSpec
from datamodules.shards import ShardWriter
spec = ExperienceSpec({"vector": (2,)}, ActionSpace("discrete", (2,)))
step = np.arange(9)
rows = dict(vector=np.ones((9, 2), np.float32), action=np.zeros(9, np.int64), reward=np.zeros(9, np.float32),
            is_first=step == 0, is_last=step == 8, is_terminal=step == 8)
with ShardWriter(sys.argv[1], spec, environment={}, policy="x", seed=0, shard_steps=20) as writer:
    while True:
        writer.write_episode(rows)
        print(writer.safe_steps, flush=True)
"""


def test_a_killed_writer_leaves_a_folder_that_reads(tmp_path, made_spec):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True
    )
    promised = 0
    while promised < 200:
        promised = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    promised = max([promised, *(int(line) for line in writer.stdout.read().splitlines() if line)])
    writer.wait()
    index = verify(tmp_path / "data")
    assert sum(split["steps"] for split in index.splits.values()) >= promised and not index.complete
    assert len(list(iter_episodes(tmp_path / "data"))) == sum(split["episodes"] for split in index.splits.values())


def test_a_folder_whose_writer_died_before_its_first_shard_can_be_used(tmp_path, make_recording):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".train-000000.tar.part").write_bytes(b"torn")
    root = make_recording([20] * 3)
    assert verify(root) and not list(root.glob(".*.part"))


def test_the_table_of_codecs_is_printed_from_a_recording(make_recording, capsys):
    measure_codecs.measure(str(make_recording([20] * 4)), frames=21, repeats=1)
    printed = capsys.readouterr().out
    assert "20 frames of 8x8x3 in chunks of 7" in printed and "| webp, method 0, quality 80 |" in printed


def test_a_writer_goes_on_from_any_of_its_states_as_if_nothing_had_been_written_since(
    tmp_path, made_spec, make_episode
):
    """Killed after n episodes and taken up from its state after k: the folder in the end is that of one that never stopped."""
    episodes = [make_episode(made_spec, number, 9 + 5 * (number % 4)) for number in range(14)]
    options = {"environment": {"id": "made"}, "policy": "agent", "seed": 0, "shard_steps": 40, "holdout": 3}

    def files(root):
        return {path.name: path.read_bytes() for path in root.iterdir()}

    with ShardWriter(tmp_path / "whole", made_spec, **options) as writer:
        for episode in episodes:
            writer.write_episode(episode)
    for k, n in ((0, 0), (0, 8), (3, 3), (3, 14), (7, 9), (11, 14)):
        root = tmp_path / f"{k}-{n}"
        writer = ShardWriter(root, made_spec, **options)
        for number in range(n):
            if number == k:
                state = writer.state()
            writer.write_episode(episodes[number])
        state = writer.state() if k == n else json.loads(json.dumps(state))
        if n == 14:
            writer.close()  # it had even come to its end
        with ShardWriter(root, made_spec, **options, resume=state) as again:
            assert again.episodes == k
            for episode in episodes[k:]:
                again.write_episode(episode)
        assert files(root) == files(tmp_path / "whole")


def test_a_state_whose_files_are_gone_is_refused(tmp_path, made_spec, make_episode):
    options = {"environment": {"id": "made"}, "policy": "agent", "seed": 0, "shard_steps": 40, "holdout": 0}
    writer = ShardWriter(tmp_path / "data", made_spec, **options)
    for number in range(4):
        writer.write_episode(make_episode(made_spec, number, 15))
    state = writer.state()
    (tmp_path / "data" / ".train-000001.tar.part").unlink()
    with pytest.raises(ExperienceError, match=r"train-000001\.tar\.part is missing or too short"):
        ShardWriter(tmp_path / "data", made_spec, **options, resume=state)
    (tmp_path / "data" / "index.json").unlink()
    with pytest.raises(ExperienceError, match=r"train-000000\.tar is missing"):
        ShardWriter(tmp_path / "data", made_spec, **options, resume=state)
