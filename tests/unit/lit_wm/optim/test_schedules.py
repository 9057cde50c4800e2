"""Learning-rate schedules: ends, monotony, and what an optimizer receives."""

import itertools

import pytest
import torch

from lit_wm.optim.schedules import (
    warmup_constant,
    warmup_constant_factor,
    warmup_cosine,
    warmup_cosine_factor,
    warmup_linear,
    warmup_linear_factor,
)


def test_warm_up_is_linear_and_starts_above_zero():
    assert [warmup_constant_factor(s, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup_constant_factor(0, 0) == 1


def test_cosine_ends():
    factors = [warmup_cosine_factor(s, 10, 110, 0.1) for s in range(130)]
    assert factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.55)  # half way, half of the fall
    assert factors[110:] == pytest.approx([0.1] * 20)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_linear_holds_before_it_falls():
    factors = [warmup_linear_factor(s, 10, 100, 0.2, decay_steps=40) for s in range(110)]
    assert factors[10:61] == [1] * 51
    assert factors[80] == pytest.approx(0.6)
    assert factors[100:] == pytest.approx([0.2] * 10)
    assert warmup_linear_factor(55, 10, 100, 0.0) == pytest.approx(0.5)  # without decay_steps the fall is all the rest


@pytest.mark.parametrize("last", [0.0, 0.3])
def test_factories_multiply_the_optimizers_lr(last):
    for make in (lambda o: warmup_cosine(o, 2, 6, last), lambda o: warmup_linear(o, 2, 6, last)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        scheduler = make(optimizer)
        seen = []
        for _ in range(8):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert seen[:3] == [1.0, 2.0, 2.0]
        assert seen[6:] == pytest.approx([2 * last] * 2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    assert warmup_constant(optimizer, 4).get_last_lr() == [0.5]
