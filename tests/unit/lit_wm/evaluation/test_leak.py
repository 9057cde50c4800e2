"""How much of what moves by itself the codes tell."""

import numpy as np
import pytest
import torch
from fake_worlds import QUICK, SPEC, splits

from datamodules.experience import Factor
from lit_wm.evaluation.leak import decisions, innovation, is_exogenous, leak_numbers, movement, pooled_r2
from lit_wm.evaluation.statistics import episode_draws

CLIPS = splits(24, 2, 12)
RNG = np.random.default_rng(0)


def alike(track):
    return {"train": track, "test": track}


def codes_that(function):
    """split -> codes of transitions, from the states before and after them."""
    return {s: function(CLIPS[s]["state"][:, :-1], CLIPS[s]["state"][:, 1:]) for s in ("train", "test")}


def test_what_moves_by_itself():
    names = [f.name for f in SPEC.factors if is_exogenous(f)]
    assert names == ["ball_x", "ball_y", "noise_x", "noise_y"]
    assert is_exogenous(Factor("fork", "event", "discrete")) and not is_exogenous(Factor("ball_vx", "velocity"))


def test_movement_begins_with_the_second_frame():
    track = torch.tensor([[0.0, 1, 3, 6]])
    assert movement(alike(track)).train.tolist() == [[2, 3]]


def test_a_straight_flight_holds_nothing_new_and_a_jump_is_all_new():
    start, speed = torch.randn(200, 1), torch.randn(200, 1)
    assert innovation(alike(start + speed * torch.arange(5.0))) == "its movement can be told from the past"
    jumps = torch.randn(500, 8)
    new = innovation(alike(jumps)).train
    assert np.corrcoef(new.flatten(), jumps[:, 2:].flatten())[0, 1] > 0.99, "the next place, and not whence it came"


def test_undefined_places_leave_their_neighbours_out():
    track = torch.randn(40, 6)
    track[0, 3] = torch.nan
    new = innovation(alike(track)).train
    assert new[0].isfinite().tolist() == [True, False, False, False] and new[1:].isfinite().all()
    track[:, :] = torch.nan
    assert innovation(alike(track)) == "its movement is defined in 0 training transitions only"


def test_an_event_is_new_in_the_step_that_decides_it():
    nan = torch.nan
    track = torch.tensor([[nan, nan, 1, 1, nan, 0]])
    assert torch.nan_to_num(decisions(alike(track)).train, -1).tolist() == [[1, -1, -1, 0]]


def test_codes_that_say_where_the_dot_jumps_leak_and_others_do_not():
    leaky = codes_that(lambda before, after: (after[..., 6] // 2).long())
    n = leak_numbers(leaky, CLIPS, SPEC, QUICK)
    assert n["codes/leak_r2/noise_x"].value > 0.95 and abs(n["codes/leak_r2/noise_y"].value) < 0.05
    assert 0.3 < n["codes/leak_r2"].value < 0.6, "one of two things that jump far, the ball's turns being small"
    assert abs(n["codes/leak_r2_shuffled/noise_x"].value) < 0.05
    assert n["codes/leak_r2/noise_x"].low < n["codes/leak_r2/noise_x"].value <= n["codes/leak_r2/noise_x"].high
    moves = codes_that(lambda before, after: (after[..., 0] - before[..., 0]).long())
    n = leak_numbers(moves, CLIPS, SPEC, QUICK)
    assert n["codes/movement_r2/agent_x"].value > 0.99 and n["codes/movement_r2/agent_y"].value < 0.05
    assert abs(n["codes/leak_r2"].value) < 0.05


def test_the_more_noise_the_less_leaks():
    def noisy(sigma):
        return codes_that(lambda before, after: after[..., 6:7] + sigma * torch.randn(after[..., 6:7].shape))

    values = [leak_numbers(noisy(s), CLIPS, SPEC, QUICK)["codes/leak_r2/noise_x"].value for s in (0, 3, 9, 50)]
    assert values[0] > 0.99 > values[1] > values[2] > values[3] > -0.05


def test_codes_never_seen_in_training_say_nothing():
    codes = codes_that(lambda before, after: (after[..., 6] // 2).long())
    codes["test"] = codes["test"] + 100
    assert leak_numbers(codes, CLIPS, SPEC, QUICK)["codes/leak_r2/noise_x"].value < 0.05


@pytest.mark.parametrize(
    ("codes", "drop", "reason"),
    [
        ({}, False, "the model has no codes"),
        (codes_that(lambda a, b: a[..., 0].long()), True, "the data holds no true state"),
    ],
)
def test_what_cannot_be_told_says_why(codes, drop, reason):
    clips = {s: {k: v for k, v in b.items() if not (drop and k == "state")} for s, b in CLIPS.items()}
    assert leak_numbers(codes, clips, SPEC, QUICK)["codes/leak_r2"].reason == reason


def test_pooled_r2_is_r2_for_one_target_and_weighs_by_variation_for_two():
    y = RNG.normal(size=(1, 400))
    guess = y + 0.5 * RNG.normal(size=y.shape)
    draws = episode_draws(np.arange(400) // 10, 50)
    exact = 1 - ((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert pooled_r2(y, guess, draws).value == pytest.approx(exact)
    assert pooled_r2(y + 7, guess + 7, draws).value == pytest.approx(exact)
    both = np.concatenate([10 * y, RNG.normal(size=y.shape)])
    assert pooled_r2(both, np.concatenate([10 * y, 0 * y]), draws).value > 0.98
    means = np.array([[0.0], [50.0]])
    assert abs(pooled_r2(both + means, 0 * both + means, draws).value) < 0.02, "naming each thing's mean tells nothing"
    y[0, ::2] = np.nan
    assert pooled_r2(y, guess, draws).n == 200
