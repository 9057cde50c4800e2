"""Episodes that come chunk by chunk, from files, without actions: what :meth:`ShardWriter.write_chunks` promises."""

from __future__ import annotations

import json

import numpy as np
import pytest

import datamodules.shards
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, check_rows
from datamodules.index import Source, read_index
from datamodules.shards import ShardWriter, iter_episodes, verify

FILMED = ExperienceSpec({"frames": (8, 8, 3)}, ActionSpace("none", ()))
MADE = {"environment": {"id": "video"}, "policy": "none", "seed": 0, "chunk_steps": 7}


def chunks(rows, size=7):
    for start in range(0, len(rows["is_first"]), size):
        yield {key: values[start : start + size] for key, values in rows.items()}


def test_what_comes_in_chunks_is_the_same_recording_as_what_comes_whole(tmp_path, make_episode):
    episodes = [make_episode(FILMED, number, length) for number, length in enumerate([20, 7, 3, 31])]
    with ShardWriter(tmp_path / "whole", FILMED, **MADE, holdout=3) as writer:
        for episode in episodes:
            writer.write_episode(episode)
    with ShardWriter(tmp_path / "chunks", FILMED, **MADE, holdout=3) as writer:
        for number, episode in enumerate(episodes):
            steps = writer.write_chunks(chunks(episode), Source("a.mp4", float(number)), number)
            assert steps == len(episode["is_first"])
    assert verify(tmp_path / "whole").data_hash == verify(tmp_path / "chunks").data_hash


def test_equal_groups_are_on_one_side_of_the_split(tmp_path, make_episode):
    with ShardWriter(tmp_path / "data", FILMED, **MADE, holdout=3) as writer:
        for number, group in enumerate([0, 0, 1, 1, 2, 3]):
            writer.write_chunks(chunks(make_episode(FILMED, number, 9)), Source(f"{group}.mp4", 0.0), group)
    index = verify(tmp_path / "data")
    found = {split: [n for shard in index.of(split) for n, _ in shard.episodes] for split in ("train", "val", "test")}
    assert found == {"train": [0, 1, 5], "val": [2, 3], "test": [4]}
    assert [source.file for source in index.of("train")[0].sources] == ["0.mp4", "0.mp4", "3.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_an_episode_that_is_cut_short_leaves_no_trace(tmp_path, make_episode, error):
    def torn(rows):
        yield from list(chunks(rows))[:2]
        raise error("the disk that is read from is gone")

    first, second = make_episode(FILMED, 0, 20), make_episode(FILMED, 1, 30)
    with ShardWriter(tmp_path / "data", FILMED, **MADE, holdout=0) as writer:
        for rows in (first, second):
            with pytest.raises(error):
                writer.write_chunks(torn(rows), Source("torn.mp4", 0.0), 0)
            writer.write_chunks(chunks(rows), Source("whole.mp4", 0.0), 0)
    found = list(iter_episodes(tmp_path / "data"))
    assert [len(rows["frames"]) for rows in found] == [20, 30]
    np.testing.assert_array_equal(found[1]["frames"], second["frames"])
    with pytest.raises(error), ShardWriter(tmp_path / "none", FILMED, **MADE) as writer:
        writer.write_chunks(torn(first), Source("torn.mp4", 0.0), 0)
    assert list((tmp_path / "none").iterdir()) == []


def test_a_full_disk_keeps_the_episodes_before(tmp_path, make_episode, monkeypatch):
    count, write_all = 0, datamodules.shards._write_all

    def limited(file, data):
        nonlocal count
        count += 1
        if count == 5:
            write_all(file, data[:100])
            raise OSError(28, "No space left on device")
        write_all(file, data)

    monkeypatch.setattr(datamodules.shards, "_write_all", limited)
    with (
        pytest.raises(ExperienceError, match=r"No space left.*20 steps are safe"),
        ShardWriter(tmp_path / "data", FILMED, **MADE, holdout=0) as writer,
    ):
        for number in range(3):
            writer.write_chunks(chunks(make_episode(FILMED, number, 20)), Source("a.mp4", 0.0), 0)
    assert verify(tmp_path / "data").shards[0].episodes == ((0, 20),)


def spoil(rows, change):
    whole = list(chunks(rows))
    change(whole)
    return whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole.pop(0), "'is_first' and 'is_last' must be set at its ends"),
        (lambda whole: whole.pop(), "'is_last' on its last row"),
        (lambda whole: whole.clear(), "'is_last' on its last row"),
        (lambda whole: whole.append(whole[1]), "'is_first' and 'is_last' must be set at its ends"),
        (lambda whole: whole[1].update(frames=whole[1]["frames"][:, :4]), "'frames' is uint8"),
        (lambda whole: whole[1].update(reward=np.zeros(7, np.float32)), "'reward' is not described"),
    ],
)
def test_chunks_that_make_no_episode_are_refused(tmp_path, make_episode, change, message):
    with ShardWriter(tmp_path / "data", FILMED, **MADE) as writer:
        with pytest.raises(ExperienceError, match=rf"episode 0 \(a\.mp4\): .*{message}"):
            writer.write_chunks(spoil(make_episode(FILMED, 0, 20), change), Source("a.mp4", 0.0), 0)
        writer.write_chunks(chunks(make_episode(FILMED, 0, 20)), Source("a.mp4", 0.0), 0)
    assert verify(tmp_path / "data").splits["train"]["steps"] == 20


def test_a_chunk_that_is_too_long_is_refused(tmp_path, make_episode):
    with (
        pytest.raises(ExperienceError, match="a chunk of 9 steps, at most 7 fit"),
        ShardWriter(tmp_path / "data", FILMED, **MADE) as writer,
    ):
        writer.write_chunks(chunks(make_episode(FILMED, 0, 20), 9), Source("a.mp4", 0.0), 0)


def test_sources_survive_a_writer_that_is_taken_up_again(tmp_path, make_episode):
    writer = ShardWriter(tmp_path / "data", FILMED, **MADE, holdout=0)
    writer.write_chunks(chunks(make_episode(FILMED, 0, 20)), Source("a.mp4", 1.5), 0)
    state = json.loads(json.dumps(writer.state()))
    with ShardWriter(tmp_path / "data", FILMED, **MADE, holdout=0, resume=state) as again:
        again.write_chunks(chunks(make_episode(FILMED, 1, 20)), Source("b.mp4", 2.5), 0)
    assert read_index(tmp_path / "data").shards[0].sources == (Source("a.mp4", 1.5), Source("b.mp4", 2.5))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([3], "'sources' of train-000000.tar holds 3, expected an object"),
        ([{"file": 3, "seconds": 0.0}], "'file' is 3, expected str"),
        ([{"file": "a.mp4", "seconds": "soon"}], "'seconds' is 'soon', expected float"),
        ([{"file": "a.mp4"}], "broken at 'seconds'"),
        ([{"file": "a.mp4", "seconds": 0.0}] * 2, "2 sources of 1 episodes"),
        (3, "broken at"),
    ],
)
def test_broken_sources_are_named(tmp_path, make_episode, sources, message):
    with ShardWriter(tmp_path / "data", FILMED, **MADE) as writer:
        writer.write_chunks(chunks(make_episode(FILMED, 0, 20)), Source("a.mp4", 0.0), 0)
    plain = json.loads((tmp_path / "data" / "index.json").read_text())
    plain["shards"][0]["sources"] = sources
    (tmp_path / "data" / "index.json").write_text(json.dumps(plain))
    with pytest.raises(ExperienceError, match=message) as error:
        read_index(tmp_path / "data")
    assert "\n" not in str(error.value)


def test_an_index_of_played_episodes_says_nothing_of_sources(make_recording):
    assert "sources" not in json.loads((make_recording([20] * 3) / "index.json").read_text())["shards"][0]


def test_a_space_without_actions_has_no_sizes_and_returns_from_json():
    assert ExperienceSpec.from_dict(json.loads(json.dumps(FILMED.to_dict()))) == FILMED
    assert not FILMED.acted and FILMED.action.width == 0
    with pytest.raises(ExperienceError, match="kind none has neither sizes"):
        ActionSpace("none", (2,))
    with pytest.raises(ExperienceError, match=r"sizes \(\) must be positive"):
        ActionSpace("discrete", ())


def test_zeros_are_not_taken_for_actions(make_episode):
    rows = make_episode(FILMED, 0, 5)
    assert check_rows(rows, FILMED) == 5
    with pytest.raises(ExperienceError, match="'action' is not described by the index"):
        check_rows(rows | {"action": np.zeros(5, np.int64)}, FILMED)
    acted = ExperienceSpec(FILMED.observations, ActionSpace("discrete", (2,)))
    with pytest.raises(ExperienceError, match="'action' is missing"):
        check_rows(rows, acted)
