"""Replay: what is drawn is what was put in, uniformly; latents are replaced by place; a saved replay goes on as if never stopped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.experience import ExperienceError
from datamodules.replay_memory import Replay

LAYOUT = {
    "frames": ((2, 2, 3), np.dtype(np.uint8)),
    "number": ((), np.dtype(np.float32)),
    "is_last": ((), np.dtype(bool)),
}
LATENTS = {"deter": ((3,), np.dtype(np.float32)), "stoch": ((2,), np.dtype(np.int16))}


def row(stream, number):
    """A row that tells where it is from."""
    values = {"frames": np.full((2, 2, 3), number % 251), "number": 1000 * stream + number, "is_last": False}
    return values, {"deter": np.full(3, number), "stoch": np.full(2, stream)}


def filled(rows, length=4, capacity=10_000, **options):
    """A replay with as many rows in each stream as listed."""
    replay = Replay(LAYOUT, LATENTS, len(rows), length, capacity, **({"block": 8, "online": False} | options))
    for stream, count in enumerate(rows):
        for number in range(count):
            replay.add(stream, *row(stream, number))
    return replay


def starts(drawn):
    return list(zip(drawn["stream"].tolist(), drawn["step"].tolist(), strict=True))


@given(
    rows=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    length=st.integers(1, 9),
    capacity=st.integers(1, 120),
    block=st.integers(1, 16),
)
@settings(max_examples=60, deadline=None)
def test_what_is_drawn_is_what_was_put_in(rows, length, capacity, block):
    replay = filled(rows, length, capacity, block=block)
    held = [stream.held for stream in replay.streams]
    assert len(replay) <= capacity + block * len(rows) and all(h <= r for h, r in zip(held, rows, strict=True))
    assert replay.sequences == sum(max(0, h - length + 1) for h in held)
    if not replay.sequences:
        with pytest.raises(ValueError, match="no stream holds"):
            replay.sample(1)
        return
    drawn = replay.sample(20)
    for b, (stream, step) in enumerate(starts(drawn)):
        assert replay.streams[stream].dropped <= step <= rows[stream] - length
        expected = np.arange(step, step + length)
        np.testing.assert_array_equal(drawn["number"][b], 1000 * stream + expected)
        np.testing.assert_array_equal(drawn["frames"][b, :, 0, 0, 0], expected % 251)
        assert drawn["latent_deter"][b].tolist() == [step] * 3 and drawn["latent_stoch"][b].tolist() == [stream] * 2


def test_every_start_is_equally_likely():
    replay = filled([13, 9], length=4, seed=1)  # 10 and 6 starts
    places, counts = np.unique([1000 * s + t for s, t in starts(replay.sample(16_000))], return_counts=True)
    assert len(places) == 16 and np.abs(counts - 1000).max() < 150  # five standard deviations


def test_each_new_sequence_is_served_once_before_sampling():
    replay = filled([13, 9], length=4, online=True)
    assert starts(replay.sample(5)) == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4)]
    assert not replay.queue
    for number in range(13, 17):
        replay.add(0, *row(0, number))
    assert starts(replay.sample(1)) == [(0, 12)]


def test_a_queued_sequence_that_was_dropped_is_passed_over():
    replay = filled([40], length=4, capacity=16, online=True)
    assert starts(replay.sample(1))[0][1] >= replay.streams[0].dropped == 24


def test_latents_are_replaced_by_place_and_dropped_rows_passed_over():
    replay = filled([40], length=4, capacity=16)  # rows 24 to 39 are held
    new = {"deter": -np.arange(24, dtype=np.float32).reshape(2, 4, 3) - 1, "stoch": np.full((2, 4, 2), 7, np.int16)}
    replay.write_back([0, 0], [30, 22], new)  # across two blocks; and half of it dropped
    drawn = replay.sample(300)
    latents = {step: drawn["latent_deter"][b].tolist() for b, (_, step) in enumerate(starts(drawn))}
    assert [latents[30 + t] for t in range(4)] == new["deter"][0].tolist()
    assert [latents[24 + t] for t in range(2)] == new["deter"][1, 2:].tolist()
    assert latents[26] == [26] * 3 and latents[34] == [34] * 3


def test_the_newest_row_can_be_corrected():
    replay = filled([5])
    replay.change_last(0, {"is_last": True})
    drawn = replay.sample(50)
    assert {bool(drawn["is_last"][b, -1]) for b, (_, step) in enumerate(starts(drawn)) if step == 1} == {True}


def test_a_saved_replay_goes_on_as_if_never_stopped(tmp_path):
    one, two = filled([30, 21], online=True), filled([0, 0], online=True)
    one.sample(3)
    first = one.save(tmp_path, "100")
    one.write_back([0], [3], {"deter": np.ones((1, 4, 3), np.float32), "stoch": np.zeros((1, 4, 2), np.int16)})
    one.add(1, *row(1, 21))
    second = one.save(tmp_path, "200")
    assert len(list(tmp_path.iterdir())) == 14 + 1 + 2, "only what changed is written again"
    two.load(tmp_path, second)
    for _ in range(3):
        a, b = one.sample(4), two.sample(4)
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        one.add(0, *row(0, 30)), two.add(0, *row(0, 30))
    Replay.tidy(tmp_path, [first, second])
    assert len(list(tmp_path.iterdir())) == 17
    (tmp_path / "rows-0-0-300.npz.part").touch()
    Replay.tidy(tmp_path, [second])
    assert len(list(tmp_path.iterdir())) == 14
    two.load(tmp_path, second)


def test_a_replay_that_cannot_be_read_is_said_in_one_line(tmp_path):
    replay = filled([30, 21])
    state = replay.save(tmp_path, "1")
    with pytest.raises(ExperienceError, match="is of 2 environments, not of 3"):
        filled([0, 0, 0]).load(tmp_path, state)
    path = tmp_path / "latents-1-2-1.npz"
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:50]), path.unlink):
        spoil()
        with pytest.raises(ExperienceError, match=r"latents-1-2-1\.npz cannot be read") as error:
            filled([0, 0]).load(tmp_path, state)
        assert "\n" not in str(error.value)


def test_longer_sequences_than_before_never_run_past_the_newest_row(tmp_path):
    """The queue of a saved replay names starts of the sequences it had."""
    state = filled([8], length=4, online=True).save(tmp_path, "a")
    longer = Replay(LAYOUT, LATENTS, 1, 6, 10_000, block=8)
    longer.load(tmp_path, state)
    assert all(step <= 2 for _, step in starts(longer.sample(5)))


def test_what_is_listed_as_kept_stays_until_the_list_is_gone(tmp_path):
    replay = filled([30, 21])
    first = replay.save(tmp_path, "100")
    Replay.keep(tmp_path, first)
    replay.add(0, *row(0, 30))
    second = replay.save(tmp_path, "200")
    (tmp_path / "rows-0-0-300.npz.part").touch()
    Replay.tidy(tmp_path, [second])
    assert Replay.is_complete(tmp_path, first) and Replay.is_complete(tmp_path, second)
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "kept-100.txt").unlink()
    Replay.tidy(tmp_path, [second])
    assert not Replay.is_complete(tmp_path, first) and Replay.is_complete(tmp_path, second)
