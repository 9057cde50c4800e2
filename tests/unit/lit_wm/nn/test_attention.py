"""Attention: every way of computing it is the same function."""

import pytest
import torch
import torch.nn.functional as F

from lit_wm.nn import attention
from lit_wm.nn.attention import Attention, TimeAttention, attend, joined


def qkv(n, seed=0, b=3, heads=2, d=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, b, heads, n, d, generator=g, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("m", [0, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_short_and_fused_attention_are_equal_with_their_gradients(n, m, causal, monkeypatch):
    (q, k, v), past = qkv(n), None if m == 0 else tuple(qkv(m, 1)[:2])
    keys, values = joined(past, (k, v))
    allowed = torch.ones(n, m + n, dtype=torch.bool).tril(m) if causal else None
    expected = F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)
    for short in (attention.SHORT, 0):
        monkeypatch.setattr(attention, "SHORT", short)
        found = attend(q, k, v, past, causal=causal)
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(
            torch.autograd.grad(found.square().sum(), (q, k, v)),
            torch.autograd.grad(expected.square().sum(), (q, k, v), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


def test_a_mask_overrides_causality():
    q, k, v = qkv(4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask=mask, causal=True), expected)


@pytest.mark.parametrize("t", [6, 40])
def test_attention_along_time_is_attention_of_each_place(t):
    torch.manual_seed(0)
    time = TimeAttention(16, 4)
    plain = Attention(16, 4, causal=True)
    plain.load_state_dict(time.state_dict())
    x_btnd = torch.randn(2, t, 5, 16)
    each = plain(x_btnd.transpose(1, 2).flatten(0, 1))[0].unflatten(0, (2, 5)).transpose(1, 2)
    torch.testing.assert_close(time(x_btnd)[0], each)
    first, past = time(x_btnd[:, : t - 2])
    then, new = time(x_btnd[:, t - 2 :], past)
    torch.testing.assert_close(torch.cat([first, then], 1), each)
    assert joined(past, new)[0].shape == (2, 5 * 4, t, 4)
