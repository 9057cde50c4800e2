"""The exact single pass over held-out episodes, and fixed sets of clips."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.episodes import EpisodeDataModule, fixed_clips
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec
from datamodules.index import read_index
from datamodules.loader import ClipSettings, Place
from datamodules.windows import WindowLoader

TINY = ExperienceSpec({"vector": (1,)}, ActionSpace("discrete", (2,)))
LENGTHS = [12, 25, 9, 5, 5, 5, 5, 5, 5, 5, 5, 4, 31, 5, 5, 5, 5, 5, 5, 5, 5, 17, 23]  # val: 1, 11, 21; test: 2, 12, 22


def one_pass(root, length, batch_size, place, cross_episodes=False):
    batches = WindowLoader(read_index(root), "val", ClipSettings(length, batch_size, cross_episodes), place)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def places(batch):
    return list(zip(batch["episode"].tolist(), batch["start"].tolist(), strict=True))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 9), batch_size=st.integers(1, 6), world_size=st.integers(1, 5), cross_episodes=st.booleans()
)
def test_every_window_occurs_exactly_once_over_all_ranks(recorded, length, batch_size, world_size, cross_episodes):
    ranks = [one_pass(recorded, length, batch_size, Place(r, world_size), cross_episodes) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = Counter()
    for batch in (batch for batches in ranks for batch in batches):
        assert set(batch["weight"].tolist()) <= {0.0, 1.0} and len(batch["weight"]) <= batch_size
        seen.update(place for place, weight in zip(places(batch), batch["weight"], strict=True) if weight)
    if cross_episodes:
        (shard,) = read_index(recorded).of("val")
        assert len(seen) == shard.steps // length
    else:
        expected = {(n, start) for n in (1, 11, 21) for start in range(0, LENGTHS[n] - length + 1, length)}
        assert seen.keys() == expected
    assert set(seen.values()) == {1}


@pytest.fixture
def recorded(make_recording, tmp_path):
    if not (tmp_path / "data").exists():
        make_recording(LENGTHS, TINY)
    return tmp_path / "data"


def test_the_order_is_fixed_whatever_the_number_of_workers(recorded):
    none, two = (one_pass(recorded, 4, 2, Place(workers=workers)) for workers in (0, 2))
    assert [places(batch) for batch in none] == [places(batch) for batch in two]
    assert [places(batch) for batch in none] == sorted(places(batch) for batch in none)


@pytest.mark.parametrize("workers", [0, 1])
def test_anything_corrupt_is_an_error(make_recording, workers):
    root = make_recording([28] * 3)
    path = root / "val-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"WEBPVP8L", b"WEBPXXXX", 1))
    with pytest.raises(ExperienceError, match=r"val-000000\.tar: chunk 000001-000000: member frames\.webp") as error:
        one_pass(root, 4, 2, Place(workers=workers))
    assert "\n" not in str(error.value)


def test_a_chunk_that_is_not_there_is_an_error(make_recording):
    root = make_recording([28] * 3, TINY)
    path = root / "val-000000.tar"
    data = path.read_bytes()
    size = data.index(b"000001-000014.meta.json") - data.index(b"000001-000007.meta.json")
    cut = data.index(b"000001-000007.meta.json")
    path.write_bytes(data[:cut] + data[cut + size :] + bytes(size))
    with pytest.raises(ExperienceError, match="val-000000"):
        one_pass(root, 8, 2, Place())


def test_an_empty_split_says_what_to_do(make_recording):
    data = EpisodeDataModule(str(make_recording([28])), clip_length=4)
    with pytest.raises(ExperienceError, match="holds no val episodes: record more"):
        data.val_dataloader()
    with pytest.raises(ExperienceError, match="holds no test episodes: record more"):
        data.predict_dataloader()


def test_fixed_clips_are_the_same_again_spread_out_and_do_not_overlap(make_recording, make_episode, made_spec):
    root = make_recording(LENGTHS)
    clips, again = (fixed_clips(root, "test", 4, 9) for _ in range(2))
    assert clips["frames"].shape == (9, 4, 3, 8, 8)
    assert all(torch.equal(torch.nan_to_num(clips[key]), torch.nan_to_num(again[key])) for key in clips)
    per_episode = Counter(clips["episode"].tolist())
    assert per_episode.keys() == {2, 12, 22} and max(per_episode.values()) <= 4 and min(per_episode.values()) == 2
    for i, (episode, start) in enumerate(places(clips)):
        rows = make_episode(made_spec, episode, LENGTHS[episode])
        assert torch.equal(clips["action"][i], torch.from_numpy(rows["action"][start : start + 4]))
        assert clips["state"][i, :, 0].tolist() == list(range(start, start + 4))
    for episode in per_episode:
        starts = sorted(start for number, start in places(clips) if number == episode)
        assert all(later - earlier >= 4 for earlier, later in pairwise(starts))


def test_fixed_clips_give_what_there_is(recorded):
    assert len(fixed_clips(recorded, "test", 9, 100)["start"]) == 1 + 3 + 2
    with pytest.raises(ExperienceError, match="clip_length=40"):
        fixed_clips(recorded, "test", 40, 5)
    assert len(fixed_clips(recorded, "test", 40, 5, cross_episodes=True)["start"]) == 1


def spoil(path, count):
    """Break the pictures of the first ``count`` chunks of a shard."""
    path.write_bytes(path.read_bytes().replace(b"WEBPVP8L", b"WEBPXXXX", count))


def test_fixed_clips_of_the_train_split_skip_what_training_skips(make_recording, caplog):
    root = make_recording([28] * 6, holdout=0)
    whole = places(fixed_clips(root, "train", 7, 24))
    spoil(root / "train-000000.tar", 1)  # rows 0 to 6 of episode 0
    with caplog.at_level(logging.WARNING):
        clips = fixed_clips(root, "train", 7, 24)
    assert places(clips) == [(episode, start) for episode, start in whole if (episode, start // 7) != (0, 0)]
    (message,) = caplog.messages
    assert "1 of 24 training chunks" in message and "train-000000.tar: chunk 000000-000000" in message
    spoil(root / "train-000000.tar", 2)
    with pytest.raises(ExperienceError, match=r"3 of 24 training chunks .* max_corrupt allows 1: .*frames\.webp"):
        fixed_clips(root, "train", 7, 24)
    assert places(fixed_clips(root, "train", 7, 24, max_corrupt=0.2))


@pytest.mark.parametrize("split", ["val", "test"])
def test_fixed_clips_of_held_out_splits_are_strict(make_recording, split):
    root = make_recording([28] * 3)
    spoil(root / f"{split}-000000.tar", 1)
    with pytest.raises(ExperienceError, match=rf"{split}-000000\.tar: chunk .* member frames\.webp"):
        fixed_clips(root, split, 7, 24)


def test_fixed_clips_of_which_none_is_whole_are_an_error(make_recording):
    root = make_recording([7], holdout=0)
    spoil(root / "train-000000.tar", 1)
    with pytest.raises(ExperienceError, match="nothing in the training shards"):
        fixed_clips(root, "train", 7, 24)
