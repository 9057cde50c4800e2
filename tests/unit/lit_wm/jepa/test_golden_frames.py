"""V-JEPA 2-AC and LeWM against the numbers of their released code."""

import pytest
import torch
from jepa_golden import DTYPES, close, fill, fill_module, same_tensor, section, values
from test_golden_masked import norm_of_gradients

from lit_wm.jepa.conditional_predictor import ConditionalPredictor
from lit_wm.jepa.encoders import Projector
from lit_wm.jepa.objective import l1, l2, mean_where
from lit_wm.jepa.predictor import FrameCausalPredictor, frame_mask, normalise, roll_out
from lit_wm.jepa.regularizers import sigreg

both = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def token_predictor(dtype):
    c = section("vjepa2ac")["config"]
    predictor = FrameCausalPredictor(
        tuple(c["grid"]), c["dim"], c["pdim"], c["depth"], c["heads"], {"action": 7, "state": 7}
    ).to(dtype)
    fill_module(predictor, "A.vjepa2ac.predictor")
    z = normalise(fill("A.vjepa2ac.tokens", (2, 24, 24), 1.5, 0.3).to(dtype)).unflatten(1, (4, 6))
    conditions = {
        "action": fill("A.vjepa2ac.actions", (2, 3, 7), 0.5).to(dtype),
        "state": fill("A.vjepa2ac.states", (2, 4, 7), 0.5).to(dtype)[:, :3],
    }
    return predictor, z, conditions


def action_conditioned(dtype, rows=slice(None)):
    """Teacher forcing over 3 transitions and a rollout of 2, as ``auto_steps`` 2: from the true frame 0."""
    predictor, z, conditions = token_predictor(dtype)
    z, conditions = z[rows], {name: x[rows] for name, x in conditions.items()}
    mask = frame_mask(torch.zeros(len(z), 3))
    raw, past = predictor(z[:, :3], conditions, mask)
    forced = normalise(raw)

    def step(z_b1nd, t, past):
        now = {name: x[:, t : t + 1] for name, x in conditions.items()}
        predicted, past = predictor(z_b1nd, now, mask[:, t : t + 1, : t + 1], past)
        return normalise(predicted), past

    rolled = roll_out(step, forced[:, 0], predictor.first_frames(past, 1), 1, 2)
    everywhere = torch.ones(len(z), 4, dtype=torch.bool)
    losses = {
        "teacher_forcing_loss": mean_where(l1(forced, z[:, 1:]), everywhere[:, :3]),
        "rollout_loss": mean_where(l1(rolled, z[:, 1:3]), everywhere[:, :2]),
    }
    return predictor, {"out_raw": raw, "forced": forced, "rolled": rolled}, losses


@both
def test_v_jepa_2_ac(dtype):
    golden = values("vjepa2ac", dtype)["rope"]
    predictor, found, losses = action_conditioned(dtype)
    for name, tensor in (
        ("predictor.out_raw", found["out_raw"]),
        ("teacher_forced", found["forced"]),
        ("rollout", found["rolled"]),
    ):
        assert same_tensor(tensor.flatten(1, 2), golden["tensors"][name], dtype), name
    for name, loss in losses.items():
        assert close(loss.item(), golden[name], dtype), name
    sum(losses.values()).backward()
    for name, parameter in predictor.named_parameters():
        assert close(parameter.grad.norm().item(), golden["per_tensor_grad_norm"][name], dtype, 5), name
    for rows, wanted in zip((slice(0, 1), slice(1, 2)), golden["halves"], strict=True):
        half, _, losses = action_conditioned(dtype, rows)
        sum(losses.values()).backward()
        assert close(losses["rollout_loss"].item(), wanted["rollout_loss"], dtype)
        assert close(norm_of_gradients(half), wanted["grad_norm"], dtype, 5)


class LeWM:
    """The tiny networks of the file behind the encoder, whose output it replaces by noise."""

    def __init__(self, dtype):
        c = self.config = section("lewm")["config"]
        self.projector = Projector(c["feat"], c["proj_hidden"], c["dim"])
        self.predictor = ConditionalPredictor(
            c["dim"], c["hidden"], c["depth"], c["heads"], c["dim_head"], c["mlp"], c["history"], c["action"], c["proj_hidden"], 0.0
        )  # fmt: skip
        fill_module(self.projector, "A.lewm.projector")
        fill_module(self.predictor.action_encoder, "A.lewm.action_encoder")
        fill_module(self.predictor.pred_proj, "A.lewm.pred_proj")
        fill_module(self.predictor.transformer, "A.lewm.predictor.transformer")
        with torch.no_grad():
            self.predictor.pos_embedding.copy_(fill("A.lewm.predictor.pos_embedding", (1, c["history"], c["dim"]), 0.5))
        for module in (self.projector, self.predictor):
            module.to(dtype)
        self.features = fill("A.lewm.features", (6, 4, c["feat"])).to(dtype).requires_grad_()
        self.actions = fill("A.lewm.actions", (6, 4, c["action"])).to(dtype)
        a = fill("A.lewm.directions", (c["dim"], c["M"]))
        self.directions = (a / a.norm(dim=0)).to(dtype)

    def evaluate(self, detach=False):
        z = self.projector(self.features)
        mask = frame_mask(torch.zeros(6, 3))
        predicted, _ = self.predictor(z[:, :3].unsqueeze(2), {"action": self.actions[:, :3]}, mask)
        predicted = predicted.squeeze(2)
        target = z[:, 1:].detach() if detach else z[:, 1:]
        prediction = 2 * l2(predicted, target).mean()
        regulariser = sigreg(z.transpose(0, 1), self.directions)
        return z, predicted, prediction, regulariser, prediction + self.config["lam"] * regulariser

    def named_parameters(self):
        yield from ((f"projector.{name}", p) for name, p in self.projector.named_parameters())
        for name, p in self.predictor.named_parameters():
            own = name.startswith(("action_encoder", "pred_proj"))
            yield (name if own else f"predictor.{name}"), p


LOOSE = {torch.float64: 1e3, torch.float32: 5}  # the reference keeps SIGReg's tables in float32


@both
def test_lewm(dtype):
    golden, model = values("lewm", dtype), LeWM(dtype)
    z, predicted, prediction, regulariser, loss = model.evaluate()
    assert same_tensor(z, golden["tensors"]["emb"], dtype)
    assert same_tensor(model.predictor.action_encoder(model.actions), golden["tensors"]["act_emb"], dtype)
    assert same_tensor(predicted, golden["tensors"]["pred_emb"], dtype)
    assert close(prediction.item(), golden["pred_loss"], dtype)
    assert close(regulariser.item(), golden["sigreg_loss"], dtype, LOOSE[dtype])
    assert close(loss.item(), golden["loss"], dtype, LOOSE[dtype])
    loss.backward()
    for name, parameter in model.named_parameters():
        found, wanted = parameter.grad.norm().item(), golden["per_tensor_grad_norm"][name]
        assert close(found, wanted, dtype, LOOSE[dtype]) or max(found, wanted) < 1e-6, name
    assert close(model.features.grad.norm().item(), golden["grad_norm"]["features"], dtype, LOOSE[dtype])
    for name, norm in (("projector", model.projector.net[1]), ("pred_proj", model.predictor.pred_proj.net[1])):
        assert close(norm.running_mean.norm().item(), golden["bn_running"][f"{name}_mean"], dtype, 5)
        assert close(norm.running_var.norm().item(), golden["bn_running"][f"{name}_var"], dtype, 5)


def test_lewm_sends_gradients_into_the_target():
    golden, model = values("lewm", torch.float64), LeWM(torch.float64)
    model.evaluate(detach=True)[2].backward()  # the prediction alone
    norm = norm_of_gradients(model.projector)
    assert close(norm, golden["if_target_were_detached"]["grad_norm_projector"], torch.float64, 1e3)
    assert not close(norm, golden["grad_norm"]["projector"], torch.float64, 1e5)


@both
def test_lewm_before_any_batch_was_seen(dtype):
    golden, model = values("lewm", dtype)["eval_mode_fresh_bn"], LeWM(dtype)
    model.projector.eval(), model.predictor.eval()
    _, predicted, prediction, _, _ = model.evaluate()
    assert same_tensor(predicted, golden["pred_emb"], dtype)
    assert close(prediction.item(), golden["pred_loss"], dtype)
