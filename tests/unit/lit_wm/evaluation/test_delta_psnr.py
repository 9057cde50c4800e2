"""The protocol of delta-PSNR: one frame, four actions, random ones against true ones."""

import dataclasses

import torch
from fake_codes import Renamed
from fake_worlds import QUICK, SPEC, Coded, Oracle, splits

from datamodules.experience import ActionSpace, action_vectors
from lit_wm.evaluation.delta_psnr import T, delta_psnr_numbers, random_actions, random_codes
from lit_wm.evaluation.frames import psnr
from lit_wm.evaluation.statistics import episode_draws
from lit_wm.evaluation.steering import Steering

CLIPS = splits(12, 2, 12)
TEST = CLIPS["test"]
SEEN = {key: value for key, value in TEST.items() if key != "state"}
DRAWS = episode_draws(TEST["episode"].numpy(), 50)


class Watched(Coded):
    """Notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        self.asked.append((state["xy"], actions, samples, temperature, generator.initial_seed()))
        return super().imagine(state, actions, samples, temperature, generator)


def numbers(model, clips=CLIPS, spec=SPEC):
    steering = Steering(model, clips, spec, QUICK)
    grey = torch.full((1, 3, 16, 16), 0.5)
    return delta_psnr_numbers(model, clips, steering, spec, lambda x: grey.expand(len(x), -1, -1, -1), QUICK, DRAWS)


def test_the_first_frame_prompts_and_four_actions_follow_at_the_models_own_temperature():
    model = Watched()
    codes = model.infer_actions(SEEN)
    numbers(model)
    first = model.observe(SEEN)["xy"][:, 0]
    (seen, inferred, samples, temperature, seed), (seen_too, random, *same) = model.asked
    assert torch.equal(seen, first) and torch.equal(seen_too, first)
    assert torch.equal(inferred, codes[:, :T]) and random.shape == inferred.shape
    assert (samples, temperature) == (1, 1.0) and same == [samples, temperature, seed], "the noise is paired"


def test_the_fourth_frame_after_the_prompt_is_compared():
    n = numbers(Oracle())
    model = Oracle()
    first = {key: value[:, 0] for key, value in model.observe(SEEN).items()}
    actions = action_vectors(TEST["action"], TEST["is_last"], SPEC.action)[:, :T]
    drawn = model.decode(model.imagine(first, actions))[:, 0, -1]
    assert n["delta_psnr_true/k4/actions"].value == psnr(drawn, TEST["frames"][:, 4]).double().mean()
    assert n["delta_psnr/k4/actions_common"].value == 0, (
        "a grey picture is as wrong with true actions as with random ones"
    )


def test_random_codes_are_uniform_over_the_codes_in_use():
    codes = {
        "train": torch.tensor([[7, 7, 7, 7, 7, 7, 7, 7, 7, 2, 5]]).repeat(48, 1),
        "test": torch.zeros(4000, 11).long(),
    }
    drawn = random_codes(codes, CLIPS, 0)
    assert drawn.shape == (4000, T)
    share = torch.stack([(drawn == c).float().mean(0) for c in (7, 2, 5)])
    assert torch.allclose(share, torch.full((3, T), 1 / 3), atol=0.03), "how often a code is used does not count"
    assert torch.equal(random_codes(codes, CLIPS, 0), drawn) and not torch.equal(random_codes(codes, CLIPS, 1), drawn)


def test_other_names_draw_the_same_codes():
    named, renamed = (Steering(model, CLIPS, SPEC, QUICK).codes for model in (Coded(), Renamed()))
    drawn = random_codes(named, CLIPS, 0)
    assert torch.equal(Renamed.PERMUTATION[Coded.PERMUTATION.argsort()[drawn]], random_codes(renamed, CLIPS, 0))


def test_random_vectors_are_vectors_that_were_inferred():
    vectors = {s: torch.randn(len(CLIPS[s]["episode"]), 11, 3) for s in ("train", "test")}
    drawn = random_codes(vectors, CLIPS, 0)
    assert drawn.shape == (48, T, 3)
    known = {tuple(v) for v in vectors["test"].flatten(0, 1).tolist()}
    assert all(tuple(v) in known for v in drawn.flatten(0, 1).tolist())


def test_random_actions_of_every_kind():
    uniform = random_actions({"action": torch.zeros(3000, 12).long()}, SPEC.action, 0)
    assert uniform.shape == (3000, T, 5) and torch.allclose(uniform.mean((0, 1)), torch.full((5,), 0.2), atol=0.02)
    several = random_actions({"action": torch.zeros(9, 12, 2).long()}, ActionSpace("multi_discrete", (3, 2)), 0)
    assert several.shape == (9, T, 5) and (several.sum(-1) == 2).all()
    clips = {**TEST, "action": torch.randn(*TEST["action"].shape, 2)}
    continuous = random_actions(clips, ActionSpace("continuous", (2,)), 0)
    assert torch.isin(continuous, clips["action"]).all() and continuous.shape == (48, T, 2)


def test_steered_by_continuous_actions_a_model_has_the_number_too():
    class Free(Oracle):
        def displacement(self, actions):
            return (actions[..., 0] > 0).long()

    spec = dataclasses.replace(SPEC, action=ActionSpace("continuous", (2,)))
    clips = {s: {**b, "action": torch.randn(*b["action"].shape, 2)} for s, b in CLIPS.items()}
    assert numbers(Free(), clips, spec)["delta_psnr/k4/actions"].value is not None
