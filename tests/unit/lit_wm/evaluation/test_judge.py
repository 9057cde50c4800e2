"""The whole judgement, on models whose worth is known."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from fake_worlds import (
    QUICK,
    SPEC,
    Aimless,
    Coded,
    Collapsed,
    CopyLast,
    MeanPredictor,
    Oracle,
    make_clips,
    splits,
)

from datamodules.experience import ActionSpace
from lit_wm.errors import UserError
from lit_wm.evaluation.judge import judge

FAST = dataclasses.replace(QUICK, decoder_steps=2, draws=50)
CLIPS = splits()
KS = (0, 1, 4, 8)


def scores_of(model, clips=CLIPS, settings=FAST, random=None):
    return judge(model, random or Aimless(), clips, SPEC, settings)


def values(scores, prefix):
    return {tag: number.value for tag, number in scores.numbers.items() if tag.startswith(prefix)}


@pytest.fixture(scope="module")
def oracle():
    return scores_of(Oracle())


@pytest.fixture(scope="module")
def copy_last():
    return scores_of(CopyLast())


def test_identical_models_score_identically(oracle):
    again = scores_of(Oracle())
    same = {tag: n for tag, n in oracle.numbers.items() if not tag.startswith("cost/")}
    assert len(same) > 300
    assert same == {tag: again.numbers[tag] for tag in same}


def test_oracle_is_near_one_everywhere_and_reads_no_noise(oracle):
    for k in KS:
        for group in ("task", "velocity"):
            assert oracle.numbers[f"state_skill/k{k}/{group}"].value > 0.99
        assert oracle.numbers[f"state_r2/k{k}/distractor"].value < 0.1
        assert oracle.numbers[f"state_r2_ceiling/k{k}/distractor"].value > 0.999
    assert oracle.numbers["collapse/nmse"].value < 1e-6
    assert oracle.numbers["psnr_native/k0"].value == 100
    assert oracle.steering == "actions" and oracle.labels == ("frames", "actions")


def test_copying_the_last_frame_is_the_persistence_floor(copy_last):
    for k in KS:
        own, floor = (values(copy_last, f"{measure}/k{k}/") for measure in ("state_r2", "state_r2_persistence"))
        assert list(own.values()) == list(floor.values())
        number = copy_last.numbers[f"state_minus_persistence/k{k}/task"]
        assert (number.value, number.low, number.high) == (0, 0, 0)
        if k:
            assert copy_last.numbers[f"psnr_native_minus_copy/k{k}"].value == pytest.approx(0, abs=1e-4)
    assert copy_last.steering == "nothing"


def test_oracle_beats_persistence_by_more_the_further_it_looks(oracle):
    gains = [oracle.numbers[f"state_minus_persistence/k{k}/task"] for k in (1, 4, 8)]
    assert 0 < gains[0].value < gains[1].value < gains[2].value
    assert gains[2].low > 0


def test_predicting_the_mean_is_caught():
    caught = scores_of(MeanPredictor())
    assert caught.numbers["state_r2/k0/task"].value > 0.99
    for k in KS[1:]:
        assert caught.numbers[f"state_skill/k{k}/task"].value <= 0.02
        assert caught.numbers[f"state_minus_persistence/k{k}/task"].high < 0
    assert caught.numbers["collapse/nmse"].value >= 0.99
    assert caught.numbers["collapse/retrieval"].value < 0.05
    assert caught.numbers["psnr_native/k4"].reason == "the model has no decoder of its own"


def test_collapse_is_caught():
    caught = scores_of(Collapsed())
    assert caught.numbers["state_skill/k4/task"].value < 0.1
    assert caught.numbers["collapse/nmse"].value >= 1
    assert caught.numbers["collapse/retrieval"].value < 0.05
    assert caught.numbers["collapse/std"].value < 1e-3


def test_noisier_features_score_lower(oracle):
    ladder = [oracle, *(scores_of(Oracle(noise=noise)) for noise in (4.0, 32.0))]
    r2 = [scores.numbers["state_r2/k4/task"].value for scores in ladder]
    assert all(a > b for a, b in pairwise(r2))


def test_more_blurred_frames_score_lower(oracle):
    ladder = [oracle, *(scores_of(Oracle(blur=blur)) for blur in (1, 3))]
    for tag in ("psnr_native/k0", "ssim_native/k0", "psnr_native/k4"):
        value = [scores.numbers[tag].value for scores in ladder]
        assert value[0] > value[1] > value[2]


def test_random_weights_have_no_skill_over_themselves():
    own_floor = scores_of(Aimless())
    assert set(values(own_floor, "state_minus_random/k4/").values()) == {0}


def test_codes_are_judged_and_steer_fairly_and_with_privilege():
    coded = scores_of(Coded())
    assert coded.steering == "mapped codes"
    assert coded.numbers["codes/effect_ami"].value == pytest.approx(1)
    assert coded.numbers["codes/used"].value == 5
    walls = coded.numbers["codes/command_ami"].value
    assert 0.5 < walls < 0.99, "at a wall the command does nothing, so codes of what happened differ from it"
    assert coded.numbers["state_r2/k8/task/agent_x"].value > 0.99
    assert coded.numbers["state_r2_oracle_codes/k8/task/agent_x"].value > 0.99
    assert coded.numbers["psnr_native_oracle_codes/k4"].value > coded.numbers["psnr_copy/k4"].value


class Shuffled(Coded):
    """Codes that mean nothing."""

    def infer_actions(self, batch):
        codes = super().infer_actions(batch)
        order = torch.randperm(codes.numel(), generator=torch.Generator().manual_seed(0))
        return codes.flatten()[order].view_as(codes)


def test_meaningless_codes_are_caught():
    caught = scores_of(Shuffled())
    assert abs(caught.numbers["codes/effect_ami"].value) < 0.02
    assert caught.numbers["state_r2/k8/task/agent_x"].value < 0.9


def test_a_factor_that_is_seldom_defined_says_how_often(oracle):
    number, always = (oracle.numbers[f"state_r2/k4/task/{name}"] for name in ("seldom", "ball_x"))
    assert number.value > 0.99 and number.n < always.n == len(CLIPS["test"]["episode"])


def test_splits_that_share_an_episode_are_refused():
    leaky = {**CLIPS, "test": make_clips(range(47, 60))}
    with pytest.raises(UserError, match="episode 47 is in the train and in the test clips"):
        scores_of(Oracle(), leaky)


def test_short_clips_are_refused():
    short = {split: {k: v[:, :10] if v.ndim > 1 else v for k, v in batch.items()} for split, batch in CLIPS.items()}
    with pytest.raises(UserError, match="10 frames, 12 are needed"):
        scores_of(Oracle(), short)


def test_without_true_state_the_rest_is_still_judged():
    blind = {split: {k: v for k, v in batch.items() if k != "state"} for split, batch in CLIPS.items()}
    numbers = scores_of(Coded(), blind).numbers
    assert numbers["state_skill/k4/task"].reason == "the data holds no true state"
    assert numbers["codes/effect_ami"].reason == "the data holds no true state"
    assert numbers["codes/command_ami"].value > 0.5 and numbers["psnr_native/k4"].value > 20


def test_without_actions_codes_can_only_be_read_off_the_future_and_labels_are_not_applicable():
    filmed = {
        split: {k: v for k, v in b.items() if k not in ("state", "action", "reward")} for split, b in CLIPS.items()
    }
    spec = dataclasses.replace(SPEC, action=ActionSpace("none", ()), factors=())
    scores = judge(Coded(), Aimless(), filmed, spec, FAST)
    assert scores.steering == "oracle codes", "privileged, and called so"
    assert scores.numbers["codes/command_ami"].reason == "the data holds no actions"
    assert scores.numbers["codes/effect_ami"].reason == "the data holds no true state"
    assert scores.numbers["codes/used"].value == 5 and scores.numbers["psnr_native/k4"].value > 20
    assert judge(CopyLast(), Aimless(), filmed, spec, FAST).steering == "nothing"


def test_a_model_never_sees_beyond_the_context(oracle):
    """Frames after the context are replaced: open-loop numbers of the features must not move."""
    changed = dict(CLIPS["test"])
    changed["frames"] = changed["frames"].clone()
    changed["frames"][:, QUICK.context :] = changed["frames"][:, :1]
    other = scores_of(Oracle(), {**CLIPS, "test": changed})
    assert values(other, "state_r2/") == values(oracle, "state_r2/")
