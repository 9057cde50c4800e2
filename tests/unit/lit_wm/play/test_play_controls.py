"""Words of a player as what a model takes."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.experience import ActionSpace
from lit_wm.errors import UserError
from lit_wm.play.controls import by_number, check_numbers, choices, numbers_of, one_world, repeated, world_for_each

MOVES = ActionSpace("discrete", (3,), ("stay", "left", "right"))
CODED = SimpleNamespace(action_space="codes", codes=4)
ACTING = SimpleNamespace(action_space="environment", codes=None)


@given(items=st.lists(st.integers(), min_size=1), steps=st.integers(1, 50))
def test_a_list_is_repeated_from_its_beginning_and_cut(items, steps):
    found = repeated(items, steps)
    assert len(found) == steps and all(item == items[i % len(items)] for i, item in enumerate(found))


def test_codes_go_as_they_are_and_actions_as_vectors():
    assert choices(CODED, MOVES) == ["code 0", "code 1", "code 2", "code 3"]
    assert choices(ACTING, MOVES) == ["stay", "left", "right"]
    codes = one_world(["3", "1"], [3, 1], by_number(CODED, MOVES), choices(CODED, MOVES), 3)
    assert codes.values.tolist() == [[3, 1, 3]] and codes.values.dtype == torch.int64
    assert codes.titles == ["3 1"] and codes.steps == ["code 3", "code 1", "code 3"]
    actions = one_world(["left"], [1], by_number(ACTING, MOVES), choices(ACTING, MOVES), 2)
    assert actions.values.tolist() == [[[0, 1, 0], [0, 1, 0]]] and actions.steps == ["left", "left"]


def test_actions_of_several_entries_are_numbered_through():
    space = ActionSpace("multi_discrete", (2, 3))
    assert choices(ACTING, space) == [f"action {i}" for i in range(6)]
    vectors = torch.stack(list(by_number(ACTING, space).values()))
    assert len(vectors.unique(dim=0)) == 6 and (vectors[:, :2].sum(1) == 1).all() and (vectors[:, 2:].sum(1) == 1).all()


def test_each_has_a_world_in_which_nothing_else_is_done():
    each = world_for_each(by_number(CODED, MOVES), choices(CODED, MOVES), 5)
    assert each.values.tolist() == [[i] * 5 for i in range(4)] and each.steps is None
    assert each.titles == choices(CODED, MOVES)
    assert world_for_each(by_number(ACTING, MOVES), choices(ACTING, MOVES), 5).values.shape == (3, 5, 3)


def test_long_lists_have_short_titles():
    title = one_world(["0"] * 100, [0] * 100, by_number(CODED, MOVES), choices(CODED, MOVES), 2).titles[0]
    assert title.endswith("...") and len(title) < 40


def test_names_and_numbers_mean_the_same_and_a_name_goes_first():
    assert numbers_of(["right", "0", "left", "2"], MOVES.names) == [2, 0, 1, 2]
    assert numbers_of(["1", "0"], ["1", "0"]) == [0, 1]


@pytest.mark.parametrize("word", ["up", "3", "-1", "Right", "1.0", ""])
def test_unknown_words_are_refused_with_the_known_ones(word):
    with pytest.raises(UserError, match=f"there is no action '{word}': stay, left, right, or 0 to 2"):
        numbers_of(["left", word], MOVES.names)


def test_numbers_out_of_range_are_refused_with_the_range():
    check_numbers([0, 3], choices(CODED, MOVES), "code")
    for number in (4, -1, 10**30):
        with pytest.raises(UserError, match=f"there is no code {number}: the model's are numbered 0 to 3"):
            check_numbers([0, number], choices(CODED, MOVES), "code")


@pytest.mark.parametrize(
    ("model", "space", "message"),
    [
        (SimpleNamespace(action_space="none", codes=None), MOVES, "takes no actions"),
        (SimpleNamespace(action_space="codes", codes=None), MOVES, "vectors and have no numbers: steer it by --labels"),
        (ACTING, ActionSpace("continuous", (2,)), "continuous and have no numbers"),
    ],
)
def test_what_has_no_numbers_is_refused(model, space, message):
    with pytest.raises(UserError, match=message):
        by_number(model, space)
