"""Do actions do in imagination what they do in the world? On models of which it is known."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from fake_codes import Deaf, Distracted, Elsewhere, Merged, Noisy, Renamed, Scribbler, Split, Vectored
from fake_worlds import MOVES, QUICK, SPEC, Aimless, Coded, CopyLast, Oracle, splits

from datamodules.experience import ActionSpace, action_vectors
from lit_wm.contract import map_state
from lit_wm.evaluation.code_scores import code_numbers
from lit_wm.evaluation.control_scores import (
    ACTIONS,
    COUNTERFACTUAL,
    TRANSFER,
    control_numbers,
    counterfactual_trial,
    transfer_trial,
)
from lit_wm.evaluation.delta_psnr import delta_psnr_numbers
from lit_wm.evaluation.effect_readings import ByFrames, readings_of
from lit_wm.evaluation.judge import fit_effect_reader, judge
from lit_wm.evaluation.leak import leak_numbers
from lit_wm.evaluation.obedience import learn_obedience
from lit_wm.evaluation.probe_decoder import FittedDecoder
from lit_wm.evaluation.rollouts import closed_loop_features
from lit_wm.evaluation.statistics import episode_draws
from lit_wm.evaluation.steering import Steering, action_classes, action_of_class

FAST = dataclasses.replace(QUICK, decoder_steps=2, draws=50)
CLIPS = splits(32, 4, 32)
LAW = learn_obedience(CLIPS["train"], SPEC)
CHANCE = 1 / 5


@pytest.fixture(scope="module")
def reader():
    return fit_effect_reader(CLIPS["train"], SPEC, FAST)


@pytest.fixture(scope="module")
def scores(reader):
    """name -> numbers, each model asked once."""
    found = {}

    def of(model, clips=CLIPS):
        key = (type(model).__name__, *vars(model).values(), id(clips))
        if key not in found:
            found[key] = measured(model, clips, reader)
        return found[key]

    return of


def measured(model, clips, reader):
    steering = Steering(model, clips, SPEC, FAST)
    draws = episode_draws(clips["test"]["episode"].numpy(), FAST.draws, 0)
    features = closed_loop_features(model, clips["train"], FAST)
    decoder = FittedDecoder(features.flatten(0, 1), clips["train"]["frames"].flatten(0, 1), FAST.decoder_steps, 0)
    numbers = code_numbers(steering.codes, clips, SPEC, LAW, FAST) | leak_numbers(steering.codes, clips, SPEC, FAST)
    numbers |= delta_psnr_numbers(model, clips, steering, SPEC, decoder, FAST, draws)
    readings = readings_of(model, decoder, reader, features, clips["train"], LAW)
    return numbers | control_numbers(model, clips["test"], steering, SPEC, LAW, readings, FAST, draws)


def test_a_world_that_obeys_its_codes_scores_full_marks(scores):
    n = scores(Coded())
    for tag in (TRANSFER, COUNTERFACTUAL, "control/ceiling_real_frames", "control/ceiling_frames"):
        assert n[tag].value == 1, tag
    for tag in (TRANSFER, COUNTERFACTUAL):
        assert n[f"{tag}_shuffled"].value == pytest.approx(CHANCE, abs=0.05)
        assert n[tag].n > 300
    assert n["delta_psnr/k4/codes"].low > 1
    difference = n["delta_psnr_true/k4/codes"].value - n["delta_psnr_random/k4/codes"].value
    assert n["delta_psnr/k4/codes"].value == pytest.approx(difference)
    assert abs(n["codes/leak_r2"].value) < 0.02


def test_a_world_that_ignores_its_codes_is_at_the_floors(scores):
    n = scores(Deaf())
    assert n["codes/effect_ami"].value == pytest.approx(1), "codes can be right and do nothing"
    for tag in (TRANSFER, COUNTERFACTUAL):
        assert n[tag].value == pytest.approx(CHANCE, abs=0.03)
    number = n["delta_psnr/k4/codes"]
    assert (number.value, number.low, number.high) == (0, 0, 0), "the noise of both rollouts is the same"


def test_codes_that_carry_a_distractor_have_a_delta_psnr_and_nothing_else(scores):
    n = scores(Distracted())
    assert n["delta_psnr/k4/codes"].low > 1, "the misleading case"
    assert abs(n["codes/effect_ami"].value) < 0.02
    assert n[TRANSFER].value == pytest.approx(CHANCE, abs=0.03)
    assert n["codes/leak_r2"].value > 0.8 and n["codes/leak_r2_shuffled"].value < 0.05
    assert n["codes/movement_r2/agent_x"].value < 0.05


def test_codes_that_match_and_mean_something_else_elsewhere_are_caught_by_transfer(scores):
    n = scores(Elsewhere())
    assert n["codes/effect_ami"].value == pytest.approx(1)
    assert 0.4 < n[TRANSFER].value < 0.8 and 0.4 < n[COUNTERFACTUAL].value < 0.8


def test_merging_and_splitting_are_told_apart(scores):
    merged, split = scores(Merged()), scores(Split())
    assert merged["codes/effect_accuracy"].value == pytest.approx(0.6, abs=0.05)
    assert merged["codes/effect_hungarian"].value == pytest.approx(0.6, abs=0.05)
    assert merged[TRANSFER].value == pytest.approx(0.6, abs=0.05) == merged[COUNTERFACTUAL].value
    assert split["codes/effect_accuracy"].value == 1 == split[TRANSFER].value == split[COUNTERFACTUAL].value
    assert split["codes/effect_hungarian"].value == pytest.approx(0.5, abs=0.05)
    assert split["codes/effect_ami"].value < 0.9


def test_other_names_for_the_codes_change_nothing(scores):
    named, renamed = scores(Coded()), scores(Renamed())
    assert named.keys() == renamed.keys() and len(named) > 50
    for tag, number in named.items():
        assert renamed[tag].value == pytest.approx(number.value, abs=1e-6), tag


def test_the_more_codes_are_noise_the_worse_everything_is(scores):
    ladder = [scores(Noisy(share)) for share in (0.0, 0.2, 0.5, 1.0)]
    falling = ("codes/effect_ami", "codes/effect_accuracy", "codes/effect_hungarian", "codes/effect_logistic")
    for tag in (*falling, TRANSFER, "delta_psnr/k4/codes", "codes/movement_r2/agent_x"):
        assert all(a[tag].value > b[tag].value + 0.05 for a, b in pairwise(ladder)), tag
    assert all(a[COUNTERFACTUAL].value >= b[COUNTERFACTUAL].value for a, b in pairwise(ladder))
    assert ladder[-1][COUNTERFACTUAL].value < 0.5


def test_vectors_are_judged_by_what_they_allow(scores):
    n = scores(Vectored())
    assert n["codes/effect_logistic"].value == 1 and n["codes/effect_logistic_shuffled"].value < 0.3
    for tag in ("used", "perplexity", "effect_ami", "effect_accuracy", "effect_hungarian", "command_ami"):
        assert n[f"codes/{tag}"].reason == "the codes are continuous"
    assert n[TRANSFER].value == 1 == n[COUNTERFACTUAL].value
    assert n["delta_psnr/k4/codes"].low > 1
    assert abs(n["codes/leak_r2"].value) < 0.02
    leaky = scores(Vectored(leaky=True))
    assert leaky["codes/leak_r2/noise_x"].value > 0.98 and leaky["codes/leak_r2"].value > 0.5
    assert leaky[TRANSFER].value == 1, "leaking costs nothing here"


def test_environment_actions_are_tried_too(scores):
    n = scores(Oracle())
    assert n[COUNTERFACTUAL].value == 1 and n["delta_psnr/k4/actions"].low > 1
    for tag in (TRANSFER, "codes/leak_r2", "delta_psnr/k4/codes"):
        assert n[tag].reason == "the model has no codes"
    copied = scores(CopyLast())
    for tag in (COUNTERFACTUAL, "delta_psnr/k4/actions", "delta_psnr/k4/codes"):
        assert copied[tag].reason == "the model takes no actions"


def test_without_a_decoder_of_its_own_a_run_is_read_by_its_features(scores):
    class Blind(Oracle):
        def decode(self, state):
            return None

    n = scores(Blind())
    assert n["delta_psnr/k4/actions"].reason == "the model has no decoder of its own"
    assert n["delta_psnr/k4/actions_common"].value is not None
    assert n["control/ceiling_frames"].value < 0.5, "two steps teach the common decoder nothing"
    assert n["control/ceiling_features"].value > 0.99 and n[COUNTERFACTUAL].value > 0.99


def test_features_that_hold_the_action_and_a_place_that_never_moves_fool_nobody(scores):
    class Knows(Oracle):
        def decode(self, state):
            return None

        def observe(self, batch):
            state = super().observe(batch)
            moved = torch.zeros_like(state["xy"][:, :, 0])
            moved[:, 1:] = state["xy"][:, :, 0].diff(dim=1)
            return state | {"moved": moved}

        def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
            future = map_state(state, lambda x: x[:, None, None].expand(-1, samples, actions.shape[1], *x.shape[1:]))
            return future | {"moved": MOVES[self.displacement(actions)][:, None]}

        def features(self, state):
            return torch.cat([super().features(state), 9.0 * state["moved"]], -1)

    n = scores(Knows())
    assert n["control/ceiling_features"].value > 0.99
    assert n[COUNTERFACTUAL].value == pytest.approx(CHANCE, abs=0.03)


def test_what_cannot_be_read_is_no_verdict(scores):
    n = scores(Scribbler(noise=32.0))
    assert n["control/ceiling_real_frames"].value == 1
    assert n["control/ceiling_frames"].value < 0.5 and n["control/ceiling_features"].value < 0.5
    assert n[TRANSFER].reason == n[COUNTERFACTUAL].reason
    assert n[TRANSFER].reason == "effects cannot be read reliably even off states that were seen"


def test_in_a_world_that_does_not_obey_at_once_codes_are_transferred_and_commands_not_tried(reader):
    drifting = dataclasses.replace(LAW, usual="it drifts", stopped={})
    steering = Steering(Coded(), CLIPS, SPEC, FAST)
    draws = episode_draws(CLIPS["test"]["episode"].numpy(), FAST.draws, 0)
    readings = {"frames": ByFrames(Coded(), lambda x: x, reader)}
    n = control_numbers(Coded(), CLIPS["test"], steering, SPEC, drifting, readings, FAST, draws)
    assert n[TRANSFER].value > 0.95 and n[COUNTERFACTUAL].reason == "it drifts"


def test_a_code_is_taken_from_another_clip_and_only_where_there_is_room():
    test = CLIPS["test"]
    effect, places = LAW.effects(test, SPEC), LAW.places(test)[:, 3]
    clip = torch.arange(len(effect))[:, None].expand_as(effect)
    codes = 10 * clip + effect  # says whence it comes and what it did there
    trial = transfer_trial(codes, effect, places, LAW, np.random.default_rng(0))
    assert (trial.controls // 10 != trial.rows).all() and (trial.controls % 10 == trial.effect).all()
    assert len(set(zip(trial.rows.tolist(), trial.effect.tolist(), strict=True))) == len(trial.rows)
    for kind in LAW.displacement:
        assert torch.equal(trial.rows[trial.effect == kind].sort().values, LAW.room_for(kind, places).nonzero()[:, 0])
    alone = transfer_trial(codes[:1], effect[:1], places[:1], LAW, np.random.default_rng(0))
    assert alone == "there is room for an effect in 0 cases only"


def test_of_many_actions_some_are_tried():
    law = dataclasses.replace(LAW, usual=dict.fromkeys(range(30), 4))
    wide = dataclasses.replace(SPEC, action=ActionSpace("discrete", (30,)))
    steering = Steering(Oracle(), CLIPS, SPEC, FAST)
    places = LAW.places(CLIPS["test"])[:, 3]
    trial = counterfactual_trial(Oracle(), steering, wide, places, law, np.random.default_rng(0))
    assert (torch.bincount(trial.rows) == ACTIONS).all() and trial.controls.shape[1] == 30
    assert len(trial.controls.argmax(1).unique()) == 30


def test_without_true_state_nothing_is_read_but_frames_are_still_compared():
    blind = {split: {k: v for k, v in batch.items() if k != "state"} for split, batch in CLIPS.items()}
    n = judge(Coded(), Aimless(), blind, SPEC, FAST).numbers
    for tag in (TRANSFER, COUNTERFACTUAL, "codes/leak_r2", "codes/effect_hungarian"):
        assert n[tag].reason == "the data holds no true state"
    assert n["delta_psnr/k4/codes"].value > 1


@pytest.mark.parametrize("space", [ActionSpace("discrete", (5,)), ActionSpace("multi_discrete", (3, 2))])
def test_an_action_is_found_again_by_its_number(space):
    count = 5 if space.kind == "discrete" else 6
    parts = torch.arange(5) if space.kind == "discrete" else torch.cartesian_prod(torch.arange(3), torch.arange(2))
    assert action_classes(parts[None], space)[0].tolist() == list(range(count))
    vectors = torch.stack([action_of_class(i, space) for i in range(count)])
    assert torch.equal(vectors, action_vectors(parts, torch.zeros(count, dtype=torch.bool), space))
