"""Autoregressive dynamics: the order of tokens is the order of knowledge, and sampling with a cache is the same law."""

from dataclasses import replace

import pytest
import torch
from test_genie_dynamics import check_temperature

from lit_wm.errors import UserError
from lit_wm.genie.autoregressive import AutoregressiveDynamics
from lit_wm.genie.dynamics_settings import DynamicsSettings
from lit_wm.genie.latent_action import LatentActionSettings
from lit_wm.genie.maskgit import draw_tokens
from lit_wm.genie.rollout import kept_frames, make_dynamics, rollout
from lit_wm.genie.settings import check_parts
from lit_wm.genie.tokenizer import TokenizerSettings

SETTINGS = DynamicsSettings(kind="autoregressive", dim=16, heads=2, ffn=32, blocks=3, temperature=1.0)
VOCABULARY, N, W = 12, 6, 4


@pytest.fixture(
    params=[{}, {"action": "prepend"}, {"know_codes": True, "neighbours": True}], ids=["add", "prepend", "switches"]
)
def model(request):
    torch.manual_seed(0)
    m = make_dynamics((2, 3), W, torch.randn(VOCABULARY, 5), 4, replace(SETTINGS, **request.param)).eval()
    assert isinstance(m, AutoregressiveDynamics)
    torch.nn.init.normal_(m.input.head.weight)  # decided opinions, so that a wrong input would show
    return m


def inputs(t=W, b=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (b, t, N), generator=g), torch.randn(b, t - 1, 4, generator=g)


def test_a_token_sees_the_past_the_action_and_the_tokens_before_it(model):
    tokens, actions = inputs()
    logits = model(tokens, actions)
    assert logits.shape == (2, W - 1, N, VOCABULARY)
    for n in range(N):  # token n of frame 2, whose logits are row 1
        changed = tokens.clone()
        changed[:, 2, n] = (tokens[:, 2, n] + 1) % VOCABULARY
        changed[:, 3] = (tokens[:, 3] + 1) % VOCABULARY
        other = model(changed, actions)
        assert torch.equal(other[:, 0], logits[:, 0])
        torch.testing.assert_close(other[:, 1, : n + 1], logits[:, 1, : n + 1])
        assert n == N - 1 or (other[:, 1, n + 1 :] != logits[:, 1, n + 1 :]).any(-1).all()
    changed = tokens.clone()
    changed[:, 1, N - 1] = (tokens[:, 1, N - 1] + 1) % VOCABULARY
    assert (model(changed, actions)[:, 1, 0] != logits[:, 1, 0]).any(-1).all()  # the whole frame before, at once
    actions[:, 1] += 1
    moved = model(tokens, actions)
    assert torch.equal(moved[:, 0], logits[:, 0])
    assert (moved[:, 1] != logits[:, 1]).any()


def test_the_loss_is_the_negative_log_likelihood(model):
    tokens, actions = inputs()
    nats, right = model.loss(tokens, actions)
    law = model(tokens, actions).log_softmax(-1)
    expected = -law.gather(-1, tokens[:, 1:, :, None])[..., 0]
    torch.testing.assert_close(nats, expected.flatten())
    assert torch.equal(right, (law.argmax(-1) == tokens[:, 1:]).flatten())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_rollout_equals_the_uncached_one(model, temperature):
    """Also beyond the window, where old frames are dropped and the rest is read anew."""
    tokens, past = inputs(3)
    actions = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        cached = rollout(model, tokens, past, actions, temperature, torch.Generator().manual_seed(4))
        generator, clip = torch.Generator().manual_seed(4), tokens
        drawn = []
        for k in range(actions.shape[1]):
            led = torch.cat([past, actions[:, : k + 1]], 1)
            clip = clip[:, -kept_frames(clip.shape[1], W) :]
            frame = torch.zeros(2, 1, N, dtype=torch.int64)
            for n in range(N):
                logits = model(torch.cat([clip, frame], 1), led[:, -clip.shape[1] :])[:, -1, n]
                frame[:, 0, n] = draw_tokens(logits[:, None], temperature, generator)[0][:, 0]
            clip = torch.cat([clip, frame], 1)
            drawn.append(frame[:, 0])
    assert torch.equal(cached, torch.stack(drawn, 1))


def test_the_settings_temperature_multiplies_what_is_asked_for(model):
    check_temperature(model)


def test_every_part_learns(model):
    nats, _ = model.train().loss(*inputs())
    nats.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"whole_frames": 0.5}, "whole_frames of the genie model's dynamics is 0.5, but kind is autoregressive"),
        ({"sampling_steps": 8}, "sampling_steps .* kind is autoregressive: leave it out"),
        ({"blocks": 1}, "blocks of the genie model's autoregressive dynamics is 1, it must be at least 2"),
        ({"kind": "diffusion"}, "'diffusion' is not one of maskgit, autoregressive"),
        ({"action": "append"}, "'append' is not one of add, prepend"),
    ],
)
def test_settings_that_nothing_reads(options, message):
    with pytest.raises(UserError, match=message):
        check_parts(TokenizerSettings(), LatentActionSettings(), replace(SETTINGS, **options))
