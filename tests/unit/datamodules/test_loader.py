"""The training loader: every start equally likely, equal on all ranks, the same again, and going on in mid-epoch."""

from __future__ import annotations

import json
import logging
import pickle
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from datamodules.episodes import EpisodeDataModule
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec
from datamodules.index import read_index
from datamodules.loader import ClipSettings, Place, TrainClips, TrainLoader, deal_shards

TINY = ExperienceSpec({"vector": (1,)}, ActionSpace("discrete", (2,)))


def loader(root, length=5, batch_size=4, place=None, cross_episodes=False, **options):
    options = {"seed": 0, "shuffle_buffer": 16, "max_corrupt": 0.01, "epoch_batches": None} | options
    settings = ClipSettings(length, batch_size, cross_episodes)
    return TrainLoader(read_index(root), settings, place or Place(), **options)


def places(batch):
    return list(zip(batch["episode"].tolist(), batch["start"].tolist(), strict=True))


def epoch(batches):
    return [places(batch) for batch in batches]


def test_a_batch_keeps_the_contract_and_holds_consecutive_steps(make_recording, made_spec, make_episode):
    lengths = [20, 7, 7, 33, 12]
    for batch in loader(make_recording(lengths), length=6, batch_size=3):
        assert batch["frames"].shape == (3, 6, 3, 8, 8) and batch["frames"].dtype == torch.uint8
        for i, (episode, start) in enumerate(places(batch)):
            rows = make_episode(made_spec, episode, lengths[episode])
            for key in rows.keys() - {"frames"}:
                np.testing.assert_array_equal(batch[key][i].numpy(), rows[key][start : start + 6])
            frames = batch["frames"][i].permute(0, 2, 3, 1).numpy()
            np.testing.assert_array_equal(frames, rows["frames"][start : start + 6])


@pytest.mark.parametrize("cross_episodes", [False, True])
def test_every_start_is_equally_likely(make_recording, cross_episodes):
    """Chunks of 7 steps, clips of 5: starts on both sides of every chunk border and at the ends of episodes."""
    root = make_recording([5, 18, 11, 26, 9, 14, 3], TINY, shard_steps=40, holdout=0)
    batches = loader(root, batch_size=3, cross_episodes=cross_episodes)
    counts = Counter(place for _ in range(150) for batch in epoch(batches) for place in batch)
    index = read_index(root)
    if cross_episodes:  # in each shard all rows but the last four
        expected = sum(shard.steps - 4 for shard in index.shards)
    else:
        expected = sum(steps - 4 for shard in index.shards for _, steps in shard.episodes if steps >= 5)
    assert len(counts) == expected
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_shards_are_read_evenly_by_many_readers(make_recording):
    """Five shards, one of them short, for four readers: no row is favoured by the way shards are dealt."""
    root = make_recording([30, 30, 30, 30, 12], TINY, shard_steps=1, holdout=0)
    counts = Counter()
    for rank in range(4):
        batches = loader(root, batch_size=1, place=Place(rank, 4))
        counts.update(batch["episode"].item() for _ in range(100) for batch in batches)
    rates = [counts[episode] / (steps - 4) for episode, steps in enumerate([30, 30, 30, 30, 12])]
    assert max(rates) / min(rates) < 1.3


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 9))
def test_every_reader_is_dealt_something_and_every_shard_is_dealt(weights, readers):
    hands = deal_shards(weights, readers, np.random.default_rng(0))
    assert len(hands) == readers and all(hands)
    assert {shard for hand in hands for shard in hand} == set(range(len(weights)))
    if len(weights) >= readers:
        assert sorted(shard for hand in hands for shard in hand) == list(range(len(weights)))
        load = [sum(weights[shard] for shard in hand) for hand in hands]
        assert max(load) - min(load) <= max(weights)


@pytest.mark.parametrize(("world_size", "workers"), product([1, 2, 3], [0, 1, 2]))
def test_every_rank_gets_the_same_number_of_batches(make_recording, world_size, workers):
    root = make_recording([25, 14, 31, 8], TINY, holdout=0)
    loaders = [loader(root, batch_size=2, place=Place(rank, world_size, workers)) for rank in range(world_size)]
    batches = [epoch(one) for one in loaders]
    assert {len(found) for found in batches} == {len(loaders[0])}
    assert len({str(found) for found in batches}) == world_size  # and not the same ones


def test_an_epoch_is_the_same_again_and_the_next_is_another(make_recording):
    root = make_recording([25, 14, 31, 8], TINY, holdout=0)
    one, two, other = loader(root), loader(root), loader(root, seed=1)
    first, second = epoch(one), epoch(one)
    assert (first, second) == (epoch(two), epoch(two))
    assert len({str(first), str(second), str(epoch(other))}) == 3


def test_epoch_batches_sets_the_length(make_recording):
    root = make_recording([25, 14], TINY, holdout=0)
    assert len(loader(root)) == 1  # 39 steps hold 7.8 clips of 5, batches hold four
    assert len(loader(root, batch_size=100)) == 1
    assert len(epoch(loader(root, epoch_batches=50))) == 50


def test_the_global_generators_are_left_alone(make_recording):
    root = make_recording([25, 14, 31, 8], TINY)
    for workers in (0, 1):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        expected = torch.rand(()).item(), np.random.rand(), random.random()
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        epoch(loader(root, place=Place(workers=workers)))
        assert (torch.rand(()).item(), np.random.rand(), random.random()) == expected


def test_what_goes_to_a_worker_can_be_pickled(make_recording):
    clips = TrainClips(
        read_index(make_recording([25, 14], TINY)),
        ClipSettings(5, 2),
        Place(),
        seed=0,
        epoch=0,
        batches=2,
        skip=0,
        shuffle_buffer=4,
    )
    copies = [places(batch) for batch, _ in pickle.loads(pickle.dumps(clips))]
    assert copies == [places(batch) for batch, _ in clips]


def test_episodes_that_are_too_short_are_left_out_or_crossed(make_recording):
    root = make_recording([4, 4, 4, 9, 4, 4], TINY, holdout=0)
    assert {episode for batch in epoch(loader(root)) for episode, _ in batch} == {3}
    crossing = list(loader(root, cross_episodes=True, epoch_batches=20))
    assert any(batch["is_first"][:, 1:].any() for batch in crossing)
    for batch in crossing:  # a border is marked on both of its sides
        assert torch.equal(batch["is_first"][:, 1:], batch["is_last"][:, :-1])


def test_a_clip_that_fits_nowhere_is_an_error_that_says_what_to_do(make_recording):
    root = make_recording([4, 4, 6], TINY, holdout=0)
    with pytest.raises(ExperienceError, match=r"clip_length=7.*longest.*6.*lower clip_length or set cross_episodes"):
        loader(root, length=7)
    with pytest.raises(ExperienceError, match=r"lower clip_length$"):
        loader(root, length=70, cross_episodes=True)


# ---- resume ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_epoch_goes_on_with_the_same_batches(make_recording, workers):
    root = make_recording([40, 25, 14, 31, 8, 50], TINY, holdout=0)

    def fresh():
        return loader(root, batch_size=2, place=Place(workers=workers), epoch_batches=7)

    whole = fresh()
    expected = epoch(whole) + epoch(whole)
    for done in (1, 3, 6, 7):
        stopped, resumed = fresh(), fresh()
        begun = [places(batch) for batch, _ in zip(stopped, range(done), strict=False)][:done]
        state = stopped.state_dict() | {"batches_done": done}  # zip took one more than it gave
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        rest = epoch(resumed) + ([] if done == 7 else epoch(resumed))
        assert begun + rest == expected


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("num_workers", {"place": Place(workers=2)}),
        ("world_size", {"place": Place(world_size=2)}),
        ("batch_size", {"batch_size": 3}),
        ("clip_length", {"length": 4}),
        ("cross_episodes", {"cross_episodes": True}),
        ("shuffle_buffer", {"shuffle_buffer": 8}),
        ("seed", {"seed": 5}),
    ],
)
def test_a_change_in_mid_epoch_is_refused_and_between_epochs_allowed(make_recording, key, change):
    root = make_recording([25, 14, 31, 8], TINY, holdout=0)
    state = loader(root, epoch_batches=5).state_dict() | {"batches_done": 2}
    changed = loader(root, epoch_batches=5, **change)
    with pytest.raises(ExperienceError, match=f"mid-epoch: {key} was"):
        changed.load_state_dict(state)
    changed.load_state_dict(state | {"batches_done": 5})
    next(iter(changed))
    assert changed.state_dict()["epoch"] == 1


def test_other_data_in_mid_epoch_is_refused(make_recording):
    state = loader(make_recording([25, 14], TINY, name="a"), epoch_batches=5).state_dict() | {"batches_done": 2}
    with pytest.raises(ExperienceError, match="data_hash was"):
        loader(make_recording([25, 15], TINY, name="b"), epoch_batches=5).load_state_dict(state)


def test_an_abandoned_epoch_is_followed_by_the_next(make_recording):
    root = make_recording([25, 14, 31, 8], TINY, holdout=0)
    one, two = loader(root), loader(root)
    next(iter(one))
    epoch(two)
    assert epoch(one) == epoch(two)


# ---- corrupt data ---------------------------------------------------------------------------------------------


def spoil(path, count):
    """Break the pictures of the first ``count`` chunks of a shard, sizes unchanged."""
    data = path.read_bytes()
    assert data.count(b"WEBPVP8L") >= count
    path.write_bytes(data.replace(b"WEBPVP8L", b"WEBPXXXX", count))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_chunks_are_skipped_counted_and_logged_once(make_recording, caplog, workers):
    root = make_recording([28] * 6, holdout=0, shard_steps=200)
    spoil(root / "train-000000.tar", 2)  # rows 0 to 13 of episode 0
    batches = loader(root, max_corrupt=0.1, place=Place(workers=workers), epoch_batches=20)
    with caplog.at_level(logging.WARNING):
        seen = {place for _ in range(3) for batch in epoch(batches) for place in batch}
    assert not any(episode == 0 and start < 14 for episode, start in seen)
    assert any(episode == 0 and start == 14 for episode, start in seen)
    assert sum(batches.corrupt.values()) == 2
    (message,) = caplog.messages
    assert "train-000000.tar: chunk 000000-0000" in message and "frames.webp" in message


@pytest.mark.parametrize(("old", "new"), [(b'"episode": 0', b'"episode": 4'), (b'"start": 7', b'"start": 3')])
def test_a_chunk_whose_meta_contradicts_its_name_is_corrupt(make_recording, old, new):
    root = make_recording([28] * 6, holdout=0, shard_steps=200)
    path = root / "train-000000.tar"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    batches = loader(root, max_corrupt=0.1, epoch_batches=50)
    assert len(epoch(batches)) == 50 and sum(batches.corrupt.values()) == 1
    with pytest.raises(
        ExperienceError, match=r"max_corrupt allows 0.*chunk 000000-00000\d: member meta.json says step"
    ):
        epoch(loader(root, max_corrupt=0, epoch_batches=50))


def test_too_much_corrupt_data_is_an_error(make_recording):
    root = make_recording([28] * 6, holdout=0, shard_steps=200)
    spoil(root / "train-000000.tar", 4)
    with pytest.raises(ExperienceError, match=r"of 24 training chunks .* max_corrupt allows 2: .*frames.webp") as error:
        epoch(loader(root, max_corrupt=0.1, epoch_batches=50))
    assert "\n" not in str(error.value)


def test_one_corrupt_chunk_is_forgiven_unless_none_may_be(make_recording):
    root = make_recording([28] * 6, holdout=0, shard_steps=200)
    spoil(root / "train-000000.tar", 1)
    assert len(epoch(loader(root, epoch_batches=30))) == 30
    with pytest.raises(ExperienceError, match="max_corrupt allows 0"):
        epoch(loader(root, max_corrupt=0, epoch_batches=30))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_cut_or_gone_while_training_counts_with_all_its_chunks(make_recording, workers):
    root = make_recording([28] * 8, TINY, holdout=0, shard_steps=50)
    place = Place(workers=workers)
    generous, strict = (loader(root, max_corrupt=share, epoch_batches=40, place=place) for share in (0.5, 0.01))
    path = root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-5000])
    (root / "train-000002.tar").unlink()
    assert len(epoch(generous)) == 40
    assert 8 < sum(generous.corrupt.values()) < 16
    with pytest.raises(ExperienceError, match="training chunks"):
        epoch(strict)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "episodes",
    [[(1, 28), (0, 28)], [(0, 28), (2, 28)], [(0, 21), (1, 35)], [(0, 35), (1, 21)], [(0, 28), (1, 49)]],
    ids=["order", "number", "shorter", "longer", "last longer"],
)
def test_an_index_that_tells_of_other_episodes_is_no_damage_but_an_error(make_recording, workers, episodes):
    root = make_recording([28] * 2, holdout=0)
    batches = loader(root, max_corrupt=1, epoch_batches=20, place=Place(workers=workers))
    (shard,) = batches._index.shards
    object.__setattr__(shard, "episodes", tuple(episodes))
    object.__setattr__(shard, "steps", sum(steps for _, steps in episodes))
    said = r"train-000000\.tar(: chunk 00000\d-.*index\.json disagrees| ends at step 56, .*index\.json says 77)"
    with pytest.raises(ExperienceError, match=said) as error:
        epoch(batches)
    assert "\n" not in str(error.value)


def test_if_nothing_can_be_read_it_ends(make_recording):
    root = make_recording([28] * 2, TINY, holdout=0)
    batches = loader(root, max_corrupt=1)
    for path in root.glob("*.tar"):
        path.unlink()
    with pytest.raises(ExperienceError, match="nothing in the training shards"):
        epoch(batches)


# ---- the data module ------------------------------------------------------------------------------------------


def test_withheld_keys_are_in_no_batch_and_not_in_the_spec(make_recording):
    data = EpisodeDataModule(str(make_recording([28] * 6)), clip_length=5, without=["state", "action", "reward"])
    for batches in (data.train_dataloader(), data.val_dataloader()):
        assert not {"state", "action", "reward"} & next(iter(batches)).keys()
    spec = ExperienceSpec({"frames": (8, 8, 3), "vector": (2,)}, ActionSpace("discrete", (2,)))
    blind = EpisodeDataModule(str(make_recording([9] * 6, spec, name="two")), clip_length=5, without=["frames"])
    assert list(blind.spec["observations"]) == ["vector"]
    assert "frames" not in next(iter(blind.train_dataloader()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"without": ["stat"]}, "without names 'stat'"),
        ({"without": ["is_first"]}, "without names 'is_first'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epoch_batches": 0}, "epoch_batches is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_recording, settings, message):
    with pytest.raises(ExperienceError, match=message):
        EpisodeDataModule(str(make_recording([28] * 3)), **settings)


def test_training_on_an_interrupted_recording_is_said(make_recording, recwarn):
    root = make_recording([28] * 3)
    EpisodeDataModule(str(root)).setup("fit")
    assert not recwarn
    index = json.loads((root / "index.json").read_text()) | {"complete": False}
    (root / "index.json").write_text(json.dumps(index))
    with pytest.warns(UserWarning, match=r"data holds 84 steps of a recording that was interrupted"):
        EpisodeDataModule(str(root)).setup("fit")


def test_a_missing_folder_says_how_to_record(tmp_path):
    with pytest.raises(ExperienceError, match="lit-wm record --env"):
        EpisodeDataModule(str(tmp_path / "nothing"))
