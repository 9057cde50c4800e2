"""Code -> real action: lists of labelled steps, and draws from them."""

import numpy as np
import pytest

from lit_wm.genie.imitation.dictionary import code_dictionary, draw_actions, labelled_steps

CODES, ACTIONS = np.array([3, 3, 1, 3, 1]), np.array([0, 2, 4, 2, 4])


def test_a_code_has_the_actions_of_its_labelled_steps_as_often_as_they_occur():
    dictionary = code_dictionary(CODES, ACTIONS, actions=5)
    assert {code: sorted(found.tolist()) for code, found in dictionary.of_code.items()} == {3: [0, 2, 2], 1: [4, 4]}
    assert sorted(dictionary.pooled) == sorted(ACTIONS)


def test_actions_are_drawn_as_often_as_they_stand_in_the_list():
    drawn = draw_actions(code_dictionary(CODES, ACTIONS, 5), np.full(3000, 3), np.random.default_rng(0))
    assert set(drawn) == {0, 2} and (drawn == 2).mean() == pytest.approx(2 / 3, abs=0.03)


def test_a_code_without_a_label_is_drawn_from_all_labels():
    drawn = draw_actions(code_dictionary(CODES, ACTIONS, 5), np.full(3000, 7), np.random.default_rng(0))
    share = np.bincount(drawn, minlength=5) / len(drawn)
    assert share == pytest.approx([0.2, 0, 0.4, 0, 0.4], abs=0.03)


def test_without_any_label_all_actions_are_equally_likely():
    nothing = np.empty(0, np.int64)
    drawn = draw_actions(code_dictionary(nothing, nothing, 5), np.arange(5000) % 3, np.random.default_rng(0))
    assert np.bincount(drawn) / len(drawn) == pytest.approx(np.full(5, 0.2), abs=0.03)


def test_equal_seeds_draw_equal_actions():
    dictionary, codes = code_dictionary(CODES, ACTIONS, 5), np.arange(50) % 4
    first, again, other = (draw_actions(dictionary, codes, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_more_labels_add_to_fewer():
    assert (labelled_steps(100, 40, 3)[:10] == labelled_steps(100, 10, 3)).all()
    assert sorted(labelled_steps(100, 100, 3)) == list(range(100)), "each step at most once"
    assert (labelled_steps(100, 40, 3) != labelled_steps(100, 40, 4)).any()
    with pytest.raises(ValueError, match="101 labelled steps of 100"):
        labelled_steps(100, 101, 3)
