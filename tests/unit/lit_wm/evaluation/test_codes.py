"""Latent actions: invariances of the measures, and the true effect."""

import numpy as np
import pytest
import torch

from datamodules.experience import ActionSpace, Factor
from lit_wm.evaluation.codes import (
    ami,
    code_vectors,
    hungarian_hits,
    label_numbers,
    logistic_hits,
    majority_hits,
    perplexity,
)
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


def test_hungarian_gives_one_code_to_one_label_and_is_fitted_in_training_alone():
    label = RNG.integers(0, 4, 2000)
    names = np.array([9, 3, 7, 1])
    assert hungarian_hits(names[label], label, names[label], label).all()
    split = names[label] + 10 * RNG.integers(0, 2, 2000)
    hits = hungarian_hits(split, label, split, label)
    assert hits.mean() == pytest.approx(0.5, abs=0.05) and majority_hits(split, label, split, label).all()
    merged = label // 2
    assert hungarian_hits(merged, label, merged, label).mean() == pytest.approx(0.5, abs=0.05)
    assert not hungarian_hits(names[label], label, np.full(9, 77), label[:9]).any(), "a code never seen"
    own_code_each = np.arange(2000)
    assert hungarian_hits(own_code_each, label, own_code_each, label).sum() == 4, "as many codes as labels count"
    many = RNG.integers(0, 500, (2, 2000)), RNG.integers(0, 4, 2000)
    assert hungarian_hits(many[0][0], label, many[0][1], many[1]).mean() < 0.05


def test_hungarian_takes_the_matching_with_most_hits_and_not_each_codes_favourite():
    code = np.repeat([0, 0, 1, 1], [5, 4, 6, 0])
    label = np.repeat([0, 1, 0, 1], [5, 4, 6, 0])
    assert hungarian_hits(code, label, code, label).sum() == 10, "code 1 gets label 0, and code 0 is left with label 1"


def test_logistic_accuracy_reads_vectors_and_equals_the_majority_for_codes():
    label = RNG.integers(0, 3, 1200)
    vector = np.stack([np.cos(2 * label), np.sin(2 * label)], 1) + 0.1 * RNG.normal(size=(1200, 2))
    train, test = code_vectors(vector[:600] * 50 + 7, vector[600:] * 50 + 7)
    assert train.mean(0) == pytest.approx([0, 0], abs=1e-9) and train.std(0) == pytest.approx([1, 1])
    assert logistic_hits(train, label[:600], test, label[600:]).mean() > 0.99
    code = np.where(RNG.random(1200) < 0.8, label, RNG.integers(0, 3, 1200)) + 4
    x_train, x_test = code_vectors(code[:600], code[600:])
    assert set(x_train.sum(1)) == {1}
    logistic = logistic_hits(x_train, label[:600], x_test, label[600:])
    assert (logistic == majority_hits(code[:600], label[:600], code[600:], label[600:])).all()
    assert code_vectors(code, np.array([99]))[1].sum() == 0, "a code never seen is zeros"
    assert logistic_hits(x_train, np.ones(600), x_test, np.ones(600)).all(), "one label needs no regression"


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
    for measure in ("hungarian", "logistic"):
        assert numbers[f"codes/effect_{measure}"].value == 1
        assert numbers[f"codes/effect_{measure}_shuffled"].value < 0.7


def test_vectors_have_no_names_to_match():
    label = RNG.integers(0, 2, 400)
    vector = np.stack([label, 1 - label], 1) + 0.1 * RNG.normal(size=(400, 2))
    numbers = label_numbers("effect", (vector, label), (vector, label), episode_draws(np.arange(400) // 10, 20), 0)
    assert numbers["codes/effect_logistic"].value == 1
    assert numbers["codes/effect_ami"].reason == numbers["codes/effect_hungarian"].reason == "the codes are continuous"


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


def test_vectors_are_mapped_by_their_means():
    action, vector = torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0], [3, 0], [0, 8]])
    table = fit_code_of_action(action, vector, torch.tensor([True, True, True]))
    assert table[0].tolist() == [2, 0] and table[1].tolist() == [0, 8]
    assert table[-1].tolist() == pytest.approx([4 / 3, 8 / 3])


def test_actions_as_classes():
    several = ActionSpace("multi_discrete", (3, 2))
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(2))[None]
    assert action_classes(grid, several).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert action_classes(torch.zeros(1, 4, 2), ActionSpace("continuous", (2,))) is None
