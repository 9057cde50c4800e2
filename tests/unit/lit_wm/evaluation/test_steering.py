"""Rollouts are steered by the right actions at the right time."""

import dataclasses

import torch
from fake_codes import Vectored
from fake_worlds import QUICK, SPEC, Aimless, Coded, Oracle, make_clips, splits

from datamodules.experience import ActionSpace, action_vectors
from lit_wm.evaluation import rollouts
from lit_wm.evaluation.steering import Steering, environment_controls

CLIPS = splits(8, 8, 8)


def test_the_first_control_is_the_action_after_the_last_seen_frame():
    controls = environment_controls(CLIPS["test"], SPEC.action, QUICK)
    vectors = action_vectors(CLIPS["test"]["action"], CLIPS["test"]["is_last"], SPEC.action)
    assert torch.equal(controls, vectors[:, 3:11])


def test_mapped_codes_use_the_past_alone_and_oracle_codes_the_future():
    changed = {**CLIPS["test"], "frames": CLIPS["test"]["frames"].clone()}
    changed["frames"][:, 4:] = changed["frames"][:, :1]
    kept, other = (Steering(Coded(), {**CLIPS, "test": test}, SPEC, QUICK) for test in (CLIPS["test"], changed))
    assert torch.equal(kept.fair["test"], other.fair["test"])
    assert not torch.equal(kept.oracle, other.oracle)
    assert torch.equal(kept.fair["test"], Coded.PERMUTATION[CLIPS["test"]["action"][:, 3:11]])


def test_codes_that_are_vectors_are_mapped_by_their_means():
    steering = Steering(Vectored(), CLIPS, SPEC, QUICK)
    assert steering.name == "mapped codes" and steering.fair["test"].shape == (len(CLIPS["test"]["episode"]), 8, 2)
    means = torch.stack([steering.table[a] for a in range(5)])
    assert torch.equal(steering.fair["test"], means[CLIPS["test"]["action"][:, 3:11]])
    assert torch.equal(steering.oracle, steering.codes["test"][:, 3:11])


def test_models_without_actions_and_the_floor():
    nothing = Steering(Aimless(), CLIPS, SPEC, QUICK)
    assert nothing.name == "nothing" and nothing.fair["val"].shape == (len(CLIPS["val"]["episode"]), 8)
    assert not nothing.codes and nothing.oracle is None
    assert Steering(Coded(), CLIPS, SPEC, QUICK, judged=False).oracle is None


def test_codes_cannot_be_mapped_from_continuous_actions_and_say_so():
    space = dataclasses.replace(SPEC, action=ActionSpace("continuous", (2,)))
    clips = {s: {**batch, "action": torch.zeros(*batch["action"].shape, 2)} for s, batch in CLIPS.items()}
    steering = Steering(Coded(), clips, space, QUICK)
    assert steering.name == "oracle codes" and steering.oracle is None
    assert torch.equal(steering.fair["test"], steering.codes["test"][:, 3:11])


def test_a_rollout_holds_the_asked_horizons_whatever_the_batch_size():
    clips = make_clips(range(6))
    controls = environment_controls(clips, SPEC.action, QUICK)
    many, few = (
        rollouts.roll(Oracle(), clips, controls, dataclasses.replace(QUICK, batch_size=size), decode=True)
        for size in (64, 5)
    )
    assert torch.equal(many.features_bhd, few.features_bhd) and many.features_bhd.shape[:2] == (24, 4)
    agent = clips["state"][:, [3, 4, 7, 11], :2]
    assert torch.equal(many.features_bhd[..., :2], agent)
    red = (clips["frames"][:, [3, 4, 7, 11], 0] / 255).float()
    assert torch.equal(many.frames_bhchw[:, :, 0], red)
