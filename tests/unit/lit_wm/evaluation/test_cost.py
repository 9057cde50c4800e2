"""Costs: what is counted, and that measuring leaves the model as it was."""

import copy
from typing import ClassVar

import torch
from fake_worlds import QUICK, SPEC, Oracle, make_clips
from lightning import LightningModule
from torch import nn

from lit_wm.contract import at
from lit_wm.errors import UserError
from lit_wm.evaluation.cost import imagined_frames_per_second, parameter_numbers, train_step_ms
from lit_wm.evaluation.rollouts import chunks
from lit_wm.evaluation.steering import environment_controls


class Trainable(LightningModule):
    """Notes at which updates it was trained; refuses where it is told to."""

    steps: ClassVar[list[int]] = []

    def __init__(self, refuses: str = "") -> None:
        super().__init__()
        self.learns, self.frozen = nn.Linear(4, 3), nn.Linear(2, 1).requires_grad_(False)
        self.refuses = refuses

    def training_step(self, batch, batch_idx):
        if self.refuses:
            raise UserError(self.refuses)
        self.steps.append(self.global_step)
        return self.learns(batch["x"]).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.learns.parameters(), 0.1)


def test_parameters_count_frozen_ones_apart():
    numbers = parameter_numbers(Trainable())
    assert numbers["cost/parameters"].value == 4 * 3 + 3 + 2 + 1
    assert numbers["cost/parameters_trained"].value == 4 * 3 + 3
    assert parameter_numbers(Oracle())["cost/parameters"].reason == "not a torch module"


def test_a_training_step_is_timed_in_its_phase_on_a_copy():
    model, batch = Trainable(), {"x": torch.ones(5, 4)}
    before = copy.deepcopy(model.state_dict())
    for at_step in (0, 70):
        Trainable.steps.clear()
        number = train_step_ms(model, batch, at_step, repeats=3)
        assert number.value > 0 and number.n == 3
        assert Trainable.steps == [at_step + i for i in range(4)], "one step warms up"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_timed_says_why():
    batch = {"x": torch.ones(5, 4)}
    assert train_step_ms(Oracle(), batch, 0, 1).reason == "not a LightningModule"
    assert train_step_ms(Trainable(), None, 0, 1).reason == "no training step to measure"
    assert train_step_ms(Trainable("the tokenizer is gone"), batch, 0, 1).reason == "the tokenizer is gone"


def test_imagination_is_asked_for_the_batch_that_is_stated():
    asked = []

    class Watched(Oracle):
        def imagine(self, state, actions, *rest):
            asked.append((len(state["xy"]), actions.shape[:2]))
            return super().imagine(state, actions, *rest)

    clips = make_clips(range(2))
    model = Watched()
    state = at(model.observe(next(chunks(clips, 64, QUICK.context))), QUICK.context - 1)
    controls = environment_controls(clips, SPEC.action, QUICK)
    number = imagined_frames_per_second(model, state, controls, 64, 0.0, 2)
    assert set(asked) == {(64, (64, 8))} and len(asked) == 3
    assert number.value > 0 and number.n == 2
