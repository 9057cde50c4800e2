"""Latent actions: invariances of the measures, and the true effect."""

import numpy as np
import pytest
import torch

from datamodules.experience import ActionSpace, Factor
from lit_wm.evaluation.codes import ami, label_numbers, majority_hits, perplexity
from lit_wm.evaluation.effects import UNDEFINED, true_effect
from lit_wm.evaluation.statistics import episode_draws
from lit_wm.evaluation.steering import action_classes, fit_code_of_action

RNG = np.random.default_rng(0)


def test_ami_does_not_care_for_names_and_shuffled_codes_score_nothing():
    label = RNG.integers(0, 5, 2000)
    assert ami(np.array([7, 1, 4, 0, 2])[label], label) == pytest.approx(1)
    assert abs(ami(RNG.permutation(label), label)) < 0.01
    assert abs(ami(RNG.integers(0, 500, 2000), label)) < 0.05, "many random codes must not score by number"


def test_majority_accuracy_cannot_memorise():
    label_train, label_test = RNG.integers(0, 2, 3000), RNG.integers(0, 2, 3000)
    own_code_each = np.arange(3000)
    assert majority_hits(own_code_each, label_train, own_code_each + 3000, label_test).mean() == 0
    many = RNG.integers(0, 1000, 3000), RNG.integers(0, 1000, 3000)
    assert majority_hits(many[0], label_train, many[1], label_test).mean() < 0.6
    assert majority_hits(label_train, label_train, label_test, label_test).all()


def test_perplexity_counts_evenly_used_codes():
    assert perplexity(np.array([0, 1, 2, 3] * 5)) == pytest.approx(4)
    assert perplexity(np.zeros(9)) == 1


def test_codes_stand_beside_their_floors():
    label = (RNG.random(1000) < 0.3).astype(int)
    draws = episode_draws(np.arange(1000) // 10, 50)
    numbers = label_numbers("effect", (label, label), (label, label), draws, 0)
    assert numbers["codes/effect_accuracy"].value == 1
    assert numbers["codes/effect_accuracy_majority_class"].value == pytest.approx(1 - label.mean())
    assert abs(numbers["codes/effect_ami_shuffled"].value) < 0.02
    assert numbers["codes/effect_accuracy"].n == 1000


def test_effect_on_pong_is_the_sign_of_the_paddles_movement():
    factors = (Factor("ball_x"), Factor("player_y"))
    state = torch.tensor([[[9.0, 5.0], [8.0, 7.0], [7.0, 7.0], [6.0, 3.0], [5.0, torch.nan]]])
    effect, meaning = true_effect(state, factors)
    assert effect.tolist() == [[2, 1, 0, UNDEFINED]] and "paddle" in meaning


def test_effect_on_sprites_is_the_executed_move_and_not_the_command():
    factors = (Factor("agent_x"), Factor("agent_y"))
    state = torch.tensor([[[0.0, 0], [1, 0], [1, 0], [1, 1], [0, 1], [0, 0]]])
    effect, _ = true_effect(state, factors)
    assert len(effect.unique()) == 5 and effect.shape == (1, 5)
    assert true_effect(state, (Factor("ball_x"), Factor("ball_y"))) is None


def test_map_from_actions_to_codes_counts_and_leaves_void_actions_out():
    action, code = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([4, 4, 3, 3, 3, 0])
    valid = torch.tensor([True, True, True, True, True, False])
    table = fit_code_of_action(action, code, valid)
    assert table[0] == 4 and table[1] == 3 and 2 not in table and table[-1] == 3


def test_actions_as_classes():
    several = ActionSpace("multi_discrete", (3, 2))
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(2))[None]
    assert action_classes(grid, several).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert action_classes(torch.zeros(1, 4, 2), ActionSpace("continuous", (2,))) is None
