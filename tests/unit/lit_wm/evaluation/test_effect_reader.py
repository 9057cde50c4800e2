"""A network that tells what the agent did between two pictures."""

import pytest
import torch
from fake_worlds import SPEC, make_clips

from lit_wm.evaluation.effect_reader import LARGEST, EffectNetwork, fit_reader, small
from lit_wm.evaluation.effects import UNDEFINED
from lit_wm.evaluation.obedience import learn_obedience

TRAIN, TEST = make_clips(range(40)), make_clips(range(40, 60))
LAW = learn_obedience(TRAIN, SPEC)


def pairs(clips):
    effect = LAW.effects(clips, SPEC)
    known = effect != UNDEFINED
    return clips["frames"][:, :-1][known], clips["frames"][:, 1:][known], effect[known]


@pytest.fixture(scope="module")
def reader():
    return fit_reader(TRAIN, LAW.effects(TRAIN, SPEC), 0)


def test_effects_are_read_off_frames_of_other_episodes(reader):
    before, after, effect = pairs(TEST)
    assert (reader(before, after) == effect).float().mean() > 0.99
    assert torch.equal(reader(before.float() / 255, after.float() / 255), reader(before, after)), "bytes equal floats"
    assert (reader(after, before) == effect).float().mean() < 0.4, "backwards in time it reads the opposite"


def test_it_is_repeatable_and_leaves_the_random_state_alone(reader):
    before = torch.get_rng_state()
    again = fit_reader(TRAIN, LAW.effects(TRAIN, SPEC), 0)
    assert torch.equal(torch.get_rng_state(), before)
    weights = zip(reader.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_a_movement_is_the_same_wherever_it_is_seen():
    network = EffectNetwork(3, 5)
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 8:11, 8:11] = 1
    moved = [network(picture.roll(by, -1), picture.roll(by + 1, -1)) for by in (0, 4, 10)]
    assert torch.allclose(moved[0], moved[1], atol=1e-5) and torch.allclose(moved[0], moved[2], atol=1e-5)


def test_large_pictures_are_averaged_down():
    assert small(torch.zeros(2, 3, 2 * LARGEST, 20, dtype=torch.uint8)).shape == (2, 3, LARGEST, 20)


def test_too_little_to_learn_from_says_so():
    effect = torch.full((160, 11), UNDEFINED)
    assert (
        fit_reader(TRAIN, effect, 0)
        == "the training clips hold 0 defined effects, of 0 kinds: too few to learn to read them"
    )
    effect[:] = 4
    assert "of 1 kinds" in fit_reader(TRAIN, effect, 0)
    assert fit_reader(TRAIN, "there is no agent", 0) == "there is no agent"
