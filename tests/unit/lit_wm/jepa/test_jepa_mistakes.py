"""Mistakes made on purpose, those of ports and readers among them: the golden numbers must miss each."""

import pytest
import torch
import torch.nn.functional as F
from jepa_golden import close, same_tensor, values
from test_golden_frames import LeWM, action_conditioned
from test_golden_masked import Reference, block_first, image_loss, video_loss
from test_golden_training import image_model, training_misses
from torch import nn

from lit_wm.jepa import conditional_predictor, masked_predictor, predictor, vit
from lit_wm.jepa.masks import Mask
from lit_wm.nn import attention
from lit_wm.nn.patches import sincos_2d

DOUBLE = torch.float64


def image_is_met():
    reference = Reference("ijepa", DOUBLE)
    found, errors = reference.evaluate()
    outputs = same_tensor(block_first(found["predicted0"]), reference.golden["tensors"]["predictor.out"], DOUBLE)
    return outputs and close(image_loss(errors).item(), reference.golden["loss"], DOUBLE)


def video_is_met():
    reference = Reference("vjepa", DOUBLE)
    return close(video_loss(reference.evaluate()[1]).item(), reference.golden["loss"], DOUBLE)


def actions_are_met():
    golden = values("vjepa2ac", DOUBLE)["rope"]
    losses = action_conditioned(DOUBLE)[2]
    return all(close(loss.item(), golden[name], DOUBLE) for name, loss in losses.items())


def lewm_is_met():
    return close(LeWM(DOUBLE).evaluate()[2].item(), values("lewm", DOUBLE)["pred_loss"], DOUBLE)


MET = {"image": image_is_met, "video": video_is_met, "actions": actions_are_met, "lewm": lewm_is_met}


@pytest.mark.parametrize("name", MET)
def test_without_a_mistake_the_numbers_are_met(name):
    assert MET[name]()


def row_before_column(rows, columns, dim):
    return sincos_2d(columns, rows, dim).view(columns, rows, dim).transpose(0, 1).reshape(-1, dim)


def tanh_gelu(self, x):
    return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def post_norm(self, x, rotary=None, mask=None, past=None, wanted=None):
    attended, past = self.attn(x, rotary, mask, past, wanted)
    x = self.norm1((x if wanted is None else x[:, -wanted:]) + attended)
    return self.norm2(x + self.mlp(x)), past


def all_targets_at_once(self, z_bkd, mask, kind=0):
    b, m, n = mask.targets_bml.shape
    return one_pass(self, z_bkd, Mask(mask.context_bk, mask.targets_bml.flatten(1)[:, None]), kind).view(b, m, n, -1)


def without_target_positions(self, z_bkd, mask, kind=0):
    return one_pass(self, z_bkd, Mask(mask.context_bk, torch.zeros_like(mask.targets_bml)), kind)


def first_mask_token(self, z_bkd, mask, kind=0):
    return one_pass(self, z_bkd, mask, 0)


one_pass = masked_predictor.MaskedPredictor.forward


def without_last_norm(self, x, keep_mk=None):
    x = self.patch_embed(x) + self.pos_embed
    x = x if keep_mk is None else vit.take(x, keep_mk)
    for block in self.blocks:
        x, _ = block(x)
    return x


def context_from_all(self, x, keep_mk=None):
    """Masks what comes out of the encoder instead of what goes in: the context has seen the targets."""
    tokens = whole_picture(self, x)
    return tokens if keep_mk is None else vit.take(tokens, keep_mk)


whole_picture = vit.VisionTransformer.forward
MASKED_MISTAKES = {
    "positions: rows first": (vit, "sincos_2d", row_before_column),
    "approximate GELU": (attention.MLP, "forward", tanh_gelu),
    "norms behind the branches": (vit.Block, "forward", post_norm),
    "all targets in one pass": (masked_predictor.MaskedPredictor, "forward", all_targets_at_once),
    "targets without their place": (masked_predictor.MaskedPredictor, "forward", without_target_positions),
    "no last norm": (vit.VisionTransformer, "forward", without_last_norm),
    "context that has seen the targets": (vit.VisionTransformer, "forward", context_from_all),
}


@pytest.mark.parametrize("mistake", MASKED_MISTAKES.values(), ids=MASKED_MISTAKES.keys())
def test_mistakes_of_masked_prediction(monkeypatch, mistake):
    monkeypatch.setattr(*mistake)
    assert not image_is_met()


def test_targets_that_are_not_normalised(monkeypatch):
    monkeypatch.setattr("test_golden_masked.normalise", lambda h: h)
    assert not image_is_met() and not video_is_met()


def test_one_mask_token_for_short_and_long_masks(monkeypatch):
    monkeypatch.setattr(masked_predictor.MaskedPredictor, "forward", first_mask_token)
    assert image_is_met() and not video_is_met()


def test_decay_on_biases_and_norms():
    model = image_model(DOUBLE)
    configure = model.configure_optimizers

    def decays_all():
        configured = configure()
        for group in configured["optimizer"].param_groups:
            group["weight_decay"] = 0.04
        return configured

    model.configure_optimizers = decays_all
    assert training_misses(DOUBLE, model) != []


def test_a_momentum_that_is_one_update_late(monkeypatch):
    monkeypatch.setattr("test_golden_training.momentum", lambda i, total, start: start + (i + 1) * (1 - start) / total)
    assert training_misses(DOUBLE) != []


def halves_rotated(x, rotary):
    """The usual form, of which the released code is not."""
    a, b = x.chunk(2, -1)
    return x * rotary[0] + torch.cat([-b, a], -1) * rotary[1]


def token_causal(episode_bt):
    return frames_seen(episode_bt) & torch.eye(episode_bt.shape[1], dtype=torch.bool)


def shifted_rollout(step, first, past, start, stop):
    return rolled(lambda z, t, p: step(z, t, past), first, past, start, stop)[:, [0, 0]]


frames_seen, rolled = predictor.frame_mask, predictor.roll_out
ACTION_MISTAKES = {
    "halves rotated": (vit, "rotate", halves_rotated),
    "frames that see themselves alone": ("test_golden_frames.frame_mask", token_causal),
    "predictions not normalised": ("test_golden_frames.normalise", lambda z: z),
    "a rollout that repeats itself": ("test_golden_frames.roll_out", shifted_rollout),
}


@pytest.mark.parametrize("mistake", ACTION_MISTAKES.values(), ids=ACTION_MISTAKES.keys())
def test_mistakes_of_action_conditioned_prediction(monkeypatch, mistake):
    monkeypatch.setattr(*mistake)
    assert not actions_are_met()


def scale_before_shift(self, x, c, mask, past):
    scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.adaLN_modulation(c).chunk(6, -1)
    attended, past = self.attn(self.norm1(x) * (1 + scale_a) + shift_a, mask, past)
    x = x + gate_a * attended
    return x + gate_m * self.mlp.net(self.norm2(x) * (1 + scale_m) + shift_m), past


def no_gates(self, x, c, mask, past):
    shift_a, scale_a, _, shift_m, scale_m, _ = self.adaLN_modulation(c).chunk(6, -1)
    attended, past = self.attn(self.norm1(x) * (1 + scale_a) + shift_a, mask, past)
    x = x + attended
    return x + self.mlp.net(self.norm2(x) * (1 + scale_m) + shift_m), past


def scale_alone(self, x, c, mask, past):
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, -1)
    attended, past = self.attn(self.norm1(x) * scale_a + shift_a, mask, past)
    x = x + gate_a * attended
    return x + gate_m * self.mlp.net(self.norm2(x) * scale_m + shift_m), past


def without_second_norm(self, x, mask, past):
    self.norm = nn.Identity()
    return attends(self, x, mask, past)


attends = conditional_predictor.ConditionalAttention.forward
LEWM_MISTAKES = {
    "scale before shift": (conditional_predictor.ConditionalBlock, "forward", scale_before_shift),
    "no gates": (conditional_predictor.ConditionalBlock, "forward", no_gates),
    "scale without the one": (conditional_predictor.ConditionalBlock, "forward", scale_alone),
    "normalised once": (conditional_predictor.ConditionalAttention, "forward", without_second_norm),
}


@pytest.mark.parametrize("mistake", LEWM_MISTAKES.values(), ids=LEWM_MISTAKES.keys())
def test_mistakes_of_lewm(monkeypatch, mistake):
    monkeypatch.setattr(*mistake)
    assert not lewm_is_met()


def test_the_future_changes_nothing_of_earlier_predictions():
    model = LeWM(DOUBLE)
    model.projector.eval(), model.predictor.pred_proj.eval()  # batch statistics would tell
    before = model.evaluate()[1]
    with torch.no_grad():
        model.features[:, 2] += 1
    after = model.evaluate()[1]
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2], after[:, 2])
