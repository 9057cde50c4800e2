"""Encoder, predictor, target schedule and objective as plain functions and networks."""

import copy

import pytest
import torch
from torch import nn

from lit_wm.distributed import ema_update
from lit_wm.jepa.objective import DISTANCES, collapse_numbers, in_windows, mean_where
from lit_wm.jepa.predictor import FrameCausalPredictor, frame_mask, normalise, roll_out
from lit_wm.jepa.schedules import momentum
from lit_wm.jepa.vit import VisionTransformer, rotary_table, rotate


def block_parameters(d: int) -> int:
    """Two LayerNorms, joint and output projection, MLP of four times the width, all with biases."""
    return 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)


@pytest.mark.parametrize(("patch", "dim", "depth"), [(8, 32, 2), (4, 16, 3)])
def test_encoder_parameters_by_closed_form(patch, dim, depth):
    encoder = VisionTransformer((16, 24), 3, patch, dim, depth, 2)
    expected = (3 * patch * patch * dim + dim) + depth * block_parameters(dim) + 2 * dim
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert encoder(torch.randn(5, 3, 16, 24)).shape == (5, 16 * 24 // patch**2, dim)


@pytest.mark.parametrize("conditions", [{}, {"action": 5}, {"action": 7, "state": 7}])
def test_predictor_parameters_by_closed_form(conditions):
    predictor = FrameCausalPredictor((2, 3), 24, 32, 2, 2, conditions)
    expected = (24 * 32 + 32) + sum(32 * n + 32 for n in conditions.values())
    expected += 2 * block_parameters(32) + 2 * 32 + (32 * 24 + 24)
    assert sum(p.numel() for p in predictor.parameters()) == expected


def test_parameter_names_are_those_of_the_reference_code():
    encoder = VisionTransformer((16, 16), 3, 8, 16, 1, 2)
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = ["patch_embed.proj", *(f"blocks.0.{name}" for name in block), "norm"]
    assert set(encoder.state_dict()) == {"pos_embed"} | {f"{m}.{x}" for m in modules for x in ("weight", "bias")}
    predictor = FrameCausalPredictor((2, 2), 16, 16, 1, 2, {"action": 3})
    modules = ["predictor_embed", "action_encoder", *(f"predictor_blocks.0.{name}" for name in block)]
    modules += ["predictor_norm", "predictor_proj"]
    assert set(predictor.state_dict()) == {f"{m}.{x}" for m in modules for x in ("weight", "bias")}


def test_every_patch_is_seen_at_its_own_place():
    encoder = VisionTransformer((16, 24), 1, 8, 16, 0, 2)  # without blocks nothing mixes
    picture = torch.zeros(1, 1, 16, 24)
    picture[..., 8:, 16:] = 1.0  # the last of 2 x 3 patches
    changed = (encoder(picture) - encoder(torch.zeros_like(picture))).abs().amax(-1)[0] > 0
    assert changed.tolist() == [False] * 5 + [True]


def test_rotary_attention_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 8, 16, generator=torch.Generator().manual_seed(0)).double()
    t, r, c = torch.arange(8) // 4, torch.arange(8) % 4 // 2, torch.arange(8) % 2

    def scores(shift: int) -> torch.Tensor:
        rotary = tuple(x.double() for x in rotary_table(t + shift, r + shift, c + shift, 16))
        return rotate(q, rotary) @ rotate(k, rotary).transpose(-1, -2)

    assert not torch.allclose(scores(0), q @ k.transpose(-1, -2), atol=1e-2)
    # the reference's mixed frequencies are no exact rotation pair by pair: only equal shifts of equal pairs agree
    cos, sin = rotary_table(t, r, c, 16)
    assert torch.equal(cos[:, 12:], torch.ones(8, 4)) and torch.equal(sin[:, 12:], torch.zeros(8, 4))


def test_rotary_needs_room_for_three_axes():
    with pytest.raises(ValueError, match="at least 6"):
        rotary_table(torch.zeros(1), torch.zeros(1), torch.zeros(1), 4)


def test_frames_see_the_past_of_their_own_episode():
    mask = frame_mask(torch.tensor([[0, 0, 1, 1]]))[0]
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask.int().tolist() == expected


def predictor_and_inputs(frames: int = 4, tile: bool = False):
    torch.manual_seed(0)
    predictor = FrameCausalPredictor((2, 2), 8, 16, 2, 2, {"action": 3}, tile).eval()
    for part in predictor.modules():  # away from the small initial weights, so that every dependence shows
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.5)
    z, a = normalise(torch.randn(2, frames, 4, 8)), torch.randn(2, frames, 3)
    return predictor, z, a, frame_mask(torch.zeros(1, frames))


@pytest.mark.parametrize("what", ["frame", "action"])
@pytest.mark.parametrize("tile", [False, True])
def test_predictor_is_causal_and_uses_the_action(what, tile):
    predictor, z, a, mask = predictor_and_inputs(tile=tile)
    before, _ = predictor(z, {"action": a}, mask)
    z, a = z.clone(), a.clone()
    (z if what == "frame" else a)[:, 2] += 1.0
    after, _ = predictor(z, {"action": a}, mask)
    assert torch.equal(before[:, :2], after[:, :2])  # what was predicted before frame 2 or its action existed
    assert ((before - after)[:, 2].abs() > 1e-4).all()  # the prediction of frame 3 sees both, at every place


def test_tiling_adds_the_actions_token_to_every_patch_of_its_frame():
    """Without blocks nothing mixes: each patch alone says what entered it."""
    plain, tiled = (FrameCausalPredictor((2, 2), 8, 16, 0, 2, {"action": 3}, tile) for tile in (False, True))
    tiled.load_state_dict(plain.state_dict())
    z, a = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 3)
    mask = frame_mask(torch.zeros(1, 3))
    inside = plain.predictor_embed(z) + plain.action_encoder(a).unsqueeze(2)
    expected = plain.predictor_proj(plain.predictor_norm(inside))
    torch.testing.assert_close(tiled(z, {"action": a}, mask)[0], expected)
    assert not torch.allclose(plain(z, {"action": a}, mask)[0], expected)


def test_one_frame_after_its_past_is_the_same_computation():
    predictor, z, a, mask = predictor_and_inputs()
    whole, past = predictor(z, {"action": a}, mask)
    past = predictor.first_frames(past, 2)
    for t in (2, 3):
        now, past = predictor(z[:, t : t + 1], {"action": a[:, t : t + 1]}, mask[:, t : t + 1, : t + 1], past)
        torch.testing.assert_close(now[:, 0], whole[:, t], rtol=1e-5, atol=1e-5)


def test_roll_out_equals_feeding_back_without_a_cache():
    predictor, z, a, mask = predictor_and_inputs(5)
    forced, past = predictor(z, {"action": a}, mask)

    def step(z_b1nd, t, past):
        return predictor(z_b1nd, {"action": a[:, t : t + 1]}, mask[:, t : t + 1, : t + 1], past)

    rolled = roll_out(step, forced[:, 1], predictor.first_frames(past, 2), 2, 5)
    frames = z[:, :2]
    for t in range(2, 6):
        predicted, _ = predictor(frames, {"action": a[:, :t]}, mask[:, :t, :t])
        torch.testing.assert_close(rolled[:, t - 2], predicted[:, -1], rtol=1e-4, atol=1e-4)
        frames = torch.cat([frames, predicted[:, -1:]], 1)


def test_momentum_schedule():
    assert momentum(0, 100, 0.996) == 0.996
    assert momentum(50, 100, 0.996) == pytest.approx(0.998)
    assert momentum(100, 100, 0.996) == 1.0 == momentum(10**6, 100, 0.996)
    assert momentum(7, 100, 0.99925, 0.99925) == pytest.approx(0.99925)


def test_target_follows_in_closed_form():
    online, total, start = nn.Linear(3, 2).double(), 6, 0.5
    target = copy.deepcopy(online)
    expected = target.weight.clone()
    for i in range(total):
        with torch.no_grad():
            online.weight.add_(torch.randn_like(online.weight))
        m = momentum(i, total, start)
        ema_update(target, online, m)
        expected = m * expected + (1 - m) * online.weight.detach()
    torch.testing.assert_close(target.weight, expected)


def test_normalised_tokens_have_mean_0_and_variance_1():
    z = normalise(3 + 5 * torch.randn(2, 3, 4, 64))
    assert z.mean(-1).abs().max() < 1e-5
    assert (z.var(-1, unbiased=False) - 1).abs().max() < 1e-4


def test_windows_share_their_end_frames():
    x = torch.arange(10).view(1, 10)
    assert in_windows(x, 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert in_windows(x, 4).tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]  # frame 9 is left over


@pytest.mark.parametrize(("name", "expected"), [("l1", 2.0), ("l2", 2.0), ("smooth_l1", 1.5)])
def test_loss_counts_valid_transitions_alone(name, expected):
    prediction, target = torch.full((1, 2, 3, 4), 2.0), torch.zeros(1, 2, 3, 4)
    prediction[:, 1] = 100.0
    error = DISTANCES[name](prediction, target)
    assert mean_where(error, torch.tensor([[True, False]])) == expected
    assert mean_where(error, torch.tensor([[False, False]])) == 0


def test_collapse_numbers_know_constant_tokens():
    torch.manual_seed(0)
    target = torch.randn(64, 1, 4, 8)
    perfect, mean = (collapse_numbers(p, target) for p in (target, target.mean(0, keepdim=True).expand_as(target)))
    assert perfect["_nmse"] == 0 and perfect["_target_std"] == pytest.approx(1, abs=0.1)
    assert mean["_nmse"] == pytest.approx(1, abs=1e-4) and mean["_prediction_std"] < 1e-6
    everywhere_else = torch.randn(1, 1, 4, 8).expand(64, 1, 4, 8)  # tokens that tell places apart, but no pictures
    assert collapse_numbers(everywhere_else, everywhere_else)["_target_std"] < 1e-6
