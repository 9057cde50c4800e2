"""LaProp with adaptive clipping against its equations, written out for one tensor."""

import copy

import torch

from lit_wm.optim.laprop import LaProp


def test_three_updates_equal_the_equations():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    x, m, v = p.detach().clone(), torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    optimizer = LaProp([p], lr=0.1)
    for t in range(1, 4):
        g = torch.randn(4, 3, dtype=torch.float64) * 10 ** (t - 2)
        p.grad = g.clone()
        optimizer.step()
        g = g * min(1.0, float(0.3 * max(1e-3, x.norm()) / g.norm()))
        v = 0.999 * v + 0.001 * g**2
        m = 0.9 * m + 0.1 * g / ((v / (1 - 0.999**t)).sqrt() + 1e-20)
        x = x - 0.1 * m / (1 - 0.9**t)
        torch.testing.assert_close(p.detach(), x)


def test_zero_gradients_move_nothing_and_none_is_skipped():
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = LaProp([a, b], lr=0.1)
    a.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(a, torch.ones(3)) and torch.equal(b, torch.ones(3)) and not optimizer.state[b]


def test_the_state_survives_a_round_trip():
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    one, two = LaProp([a], lr=0.1), LaProp([b], lr=0.1)
    a.grad = torch.randn(5)
    one.step()
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        b.copy_(a)
    a.grad = torch.randn(5)
    b.grad = a.grad.clone()
    one.step(), two.step()
    assert torch.equal(a, b)
