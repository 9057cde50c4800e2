"""What commands usually do, which steps are blocked, and where there is room."""

import dataclasses

import pytest
import torch
from fake_worlds import SIZE, SPEC, make_clips

from datamodules.experience import ActionSpace
from lit_wm.evaluation.effects import UNDEFINED, effect_class, still_class
from lit_wm.evaluation.obedience import learn_obedience, usual_effects
from lit_wm.evaluation.steering import transitions

CLIPS = make_clips(range(40))
LAW = learn_obedience(CLIPS, SPEC)
STAY, LEFT, RIGHT, UP, DOWN = (
    int(effect_class(torch.tensor([m]))) for m in ((0.0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
)


def test_still_is_the_middle_class():
    assert still_class(1) == int(effect_class(torch.zeros(1, 1))) == 1
    assert still_class(2) == STAY == 4


def test_commands_do_what_they_do_where_nothing_is_in_the_way():
    assert LAW.usual == {0: STAY, 1: LEFT, 2: RIGHT, 3: UP, 4: DOWN}
    assert LAW.displacement[RIGHT].tolist() == [1, 0] and LAW.displacement[STAY].tolist() == [0, 0]
    assert LAW.low_a.tolist() == [0, 0] and LAW.high_a.tolist() == [SIZE - 1, SIZE - 1]


def test_blocked_are_the_steps_whose_command_moves_and_whose_agent_did_not():
    x, y = CLIPS["state"][:, :-1, 0], CLIPS["state"][:, :-1, 1]
    action = CLIPS["action"][:, :-1]
    last = SIZE - 1
    at_wall = (
        ((action == 1) & (x == 0))
        | ((action == 2) & (x == last))
        | ((action == 3) & (y == 0))
        | ((action == 4) & (y == last))
    )
    effect = LAW.effects(CLIPS, SPEC)
    seen = transitions(CLIPS)
    assert at_wall[seen].sum() > 20
    assert (effect[at_wall] == UNDEFINED).all() and (effect[seen & ~at_wall] != UNDEFINED).all()


def test_steps_across_the_end_of_an_episode_have_no_effect():
    clips = {**CLIPS, "is_last": CLIPS["is_last"].clone()}
    clips["is_last"][0, 3] = True
    assert LAW.effects(clips, SPEC)[0, 3] == UNDEFINED


def test_there_is_room_inside_and_none_at_a_wall():
    places = torch.tensor([[0.0, 5], [5, 5], [SIZE - 1, 5], [torch.nan, 5]])
    assert LAW.room_for(LEFT, places).tolist() == [False, True, True, False]
    assert LAW.room_for(RIGHT, places).tolist() == [True, True, False, False]
    assert LAW.room_for(STAY, places).tolist() == [True, True, True, False]
    assert not LAW.room_for(8, places).any(), "nobody ever saw that effect"


def test_a_wall_within_the_range_is_kept_off():
    stopped = dataclasses.replace(LAW, stopped={RIGHT: torch.tensor([[5.0, 5.0]])})
    assert stopped.room_for(RIGHT, torch.tensor([[5.0, 5], [5, 6], [5, 7], [3, 5]])).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_in_a_world_that_does_not_obey_at_once_nothing_is_called_blocked():
    action, effect = torch.tensor([0, 1] * 50), torch.tensor([4, 7] * 50)
    assert usual_effects(action, effect, 4) == {0: 4, 1: 7}
    effect[1::20] = 4
    assert usual_effects(action, effect, 4) == {0: 4, 1: 7}, "blocked now and then"
    effect[3::20] = 1
    assert (
        usual_effects(action, effect, 4)
        == "this world does not obey at once: 5% of the steps move otherwise than usual"
    )
    drifting = dataclasses.replace(LAW, usual="it drifts")
    assert not drifting.blocked(torch.tensor([4, 7]), torch.tensor([2, 2])).any()


@pytest.mark.parametrize(
    ("clips", "spec", "reason"),
    [
        ({k: v for k, v in CLIPS.items() if k != "state"}, SPEC, "the data holds no true state"),
        (CLIPS, dataclasses.replace(SPEC, factors=SPEC.factors[1:]), "no factor of the data tells where an agent is"),
        ({**CLIPS, "state": CLIPS["state"] * torch.nan}, SPEC, "the agent is to be seen in no training clip"),
    ],
)
def test_what_cannot_be_told_says_why(clips, spec, reason):
    assert learn_obedience(clips, spec) == reason


def test_without_commands_there_are_effects_but_no_usual_one():
    law = learn_obedience({k: v for k, v in CLIPS.items() if k != "action"}, SPEC)
    assert law.usual == "the commands are continuous, or there are none"


def test_continuous_commands_have_effects_but_no_usual_one():
    spec = dataclasses.replace(SPEC, action=ActionSpace("continuous", (2,)))
    clips = {**CLIPS, "action": torch.zeros(*CLIPS["action"].shape, 2)}
    law = learn_obedience(clips, spec)
    assert law.usual == "the commands are continuous, or there are none"
    assert (law.effects(clips, spec) != UNDEFINED).equal(transitions(clips))
