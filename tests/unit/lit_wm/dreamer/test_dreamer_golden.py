"""DreamerModule against numbers of the official implementation: every loss term, and the gradient of every tensor."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.experience import ActionSpace, ExperienceSpec, action_vectors
from lit_wm.dreamer import DreamerModule
from lit_wm.dreamer.rssm import feature

GOLDEN = Path(__file__).parents[5] / "shared" / "golden" / "dreamer.json"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="golden numbers not at hand")

LAYERS = {
    **{f"enc/cnn{i}": f"encoder.convs.{i}" for i in range(4)},
    **{f"enc/cnn{i}norm": f"encoder.norms.{i}.norm" for i in range(4)},
    **{f"enc/mlp{i}": f"encoder.mlp.{2 * i}" for i in range(3)},
    **{f"enc/mlp{i}norm": f"encoder.mlp.{2 * i + 1}.norm" for i in range(3)},
    **{f"dyn/dynin{i}": f"rssm.in_{name}" for i, name in enumerate(("deter", "stoch", "action"))},
    **{f"dyn/dynin{i}norm": f"rssm.in_{name}_norm.norm" for i, name in enumerate(("deter", "stoch", "action"))},
    "dyn/dynhid0": "rssm.hidden",
    "dyn/dynhid0norm": "rssm.hidden_norm.norm",
    "dyn/dyngru": "rssm.gates",
    **{f"dyn/prior{i}": f"rssm.prior.0.{2 * i}" for i in range(2)},
    **{f"dyn/prior{i}norm": f"rssm.prior.0.{2 * i + 1}.norm" for i in range(2)},
    "dyn/priorlogit": "rssm.prior.1",
    "dyn/obs0": "rssm.posterior_in",
    "dyn/obs0norm": "rssm.posterior_norm.norm",
    "dyn/obslogit": "rssm.posterior_out",
    **{f"dec/conv{2 - i}": f"decoder.convs.{i}" for i in range(3)},
    **{f"dec/conv{2 - i}norm": f"decoder.norms.{i}.norm" for i in range(3)},
    "dec/imgout": "decoder.out",
    "dec/sp0": "decoder.from_deter",
    "dec/sp1": "decoder.from_stoch.0",
    "dec/sp1norm": "decoder.from_stoch.1.norm",
    "dec/sp2": "decoder.from_stoch.2",
    "dec/spnorm": "decoder.grid_norm.norm",
    **{f"dec/mlp/linear{i}": f"decoder.mlp.{2 * i}" for i in range(3)},
    **{f"dec/mlp/norm{i}": f"decoder.mlp.{2 * i + 1}.norm" for i in range(3)},
    "dec/vec/vector/pred": "decoder.vectors.vector",
    "rew/head/logits": "reward.out",
    "con/head/logit": "cont.out",
    "pol/head/action/logits": "actor.out",
    "val/head/logits": "critic.out",
    "slowval/head/logits": "slow_critic.out",
    **{
        f"{theirs}/mlp/{kind}{i}": f"{ours}.mlp.{2 * i}" if kind == "linear" else f"{ours}.mlp.{2 * i + 1}.norm"
        for theirs, ours, n in (("rew", "reward", 1), ("con", "cont", 1), ("pol", "actor", 3), ("val", "critic", 3), ("slowval", "slow_critic", 3))
        for kind in ("linear", "norm")
        for i in range(n)
    },
}  # fmt: skip


class Reference:
    """The golden file's own model and batch, rebuilt from its fill rules in our layout."""

    def __init__(self, dtype: torch.dtype) -> None:
        golden = json.loads(GOLDEN.read_text())
        self.config, self.run, self.dtype = golden["config"], golden["runs"]["argmax"]["float64"], dtype
        c = self.config
        spec = ExperienceSpec({"image": (64, 64, 3), "vector": (c["vector"],)}, ActionSpace("discrete", (5,)))
        widths = {"deter": c["deter"], "hidden": c["hidden"], "classes": c["classes"], "depth": c["cnn_depth"]}
        self.model = DreamerModule(
            spec.to_dict(),
            size_overrides={**widths, "units": c["units"], "stoch": c["stoch"]},
            imagination_length=c["imagination_horizon"],
        ).to(dtype)
        for head in (self.model.reward, self.model.critic, self.model.slow_critic):
            head.bins.copy_(twohot_bins_in(dtype))
        self.names = dict(self._fill(golden["param_shapes"]))
        self.model.normalizer.low.fill_(c["retnorm_start"]["lo"])
        self.model.normalizer.high.fill_(c["retnorm_start"]["hi"])
        self.batch, self.previous, self.carry = self._data()

    def fill(self, name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
        random = np.random.RandomState(zlib.crc32((self.config["salt"] + name).encode()))
        return (random.randn(*shape) * scale).astype(np.float32)

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> np.ndarray:
        random = np.random.RandomState(zlib.crc32((self.config["salt"] + name).encode()))
        return random.randint(0, high, shape, np.int64)

    def _fill(self, shapes: dict):
        ours = dict(self.model.named_parameters())
        for name, shape in shapes.items():
            layer, kind = name.rsplit("/", 1)
            if kind == "kernel":
                fan = int(np.prod(shape[:-1])) if len(shape) != 3 else shape[1]
                value = self.fill(name, shape, 1 / np.sqrt(fan))
                value = value.T if len(shape) == 2 else value.transpose(3, 2, 0, 1) if len(shape) == 4 else value
            elif kind == "scale":
                value = np.float32(1) + self.fill(name, shape, 0.1)
            else:
                value = self.fill(name, shape, 0.1)
                module = layer.split("/")[0]
                if layer in ("rew/head/logits", "val/head/logits", "slowval/head/logits"):
                    away = np.abs(np.arange(255) - self.config["centre"][module])
                    value = (value - 0.25 * away).astype(np.float32)
                if layer == "con/head/logit":
                    value = (value + 2.0).astype(np.float32)
            mine = LAYERS[layer] + (".bias" if kind == "bias" else ".weight")
            with torch.no_grad():
                ours[mine].copy_(torch.from_numpy(np.ascontiguousarray(value)))
            yield name, mine
            ours.pop(mine)
        assert not ours, f"the reference has no {sorted(ours)}"

    def _data(self):
        c, fill = self.config, self.fill
        b, t, r = c["batch"], c["length"], c["raw_rows"]
        batch = {
            "vector": torch.from_numpy(fill("data/vector", (b, r, c["vector"]), 1.5)).to(self.dtype)[:, 1:],
            "reward": torch.from_numpy(fill("data/reward", (b, r), 2.0)).to(self.dtype)[:, 1:],
            "image": torch.from_numpy(self.integers("data/image", 256, (b, r, 64, 64, 3))).to(torch.uint8)[:, 1:],
        }
        batch["image"] = batch["image"].permute(0, 1, 4, 2, 3)
        for key in ("is_first", "is_last", "is_terminal"):
            batch[key] = torch.zeros(b, t, dtype=torch.bool)
            for row, step in c[key]:
                batch[key][row, step] = True
        action = torch.from_numpy(self.integers("data/action", 5, (b, r)))[:, :t]
        previous = action_vectors(action, torch.zeros_like(action, dtype=torch.bool), self.model.spec.action)
        stoch = self.integers("data/dyn/stoch", c["classes"], (b, r, c["stoch"]))[:, 0]
        deter = torch.from_numpy(fill("data/dyn/deter", (b, r, c["deter"]), 0.5)[:, 0]).to(self.dtype)
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(stoch), c["classes"]).to(self.dtype)
        return batch, previous.to(self.dtype), (deter, one_hot)

    def losses(self) -> dict[str, torch.Tensor]:
        """(B,T) terms under the reference's names, every sample a mode."""
        model = self.model
        post = model.rssm.observe(model.encoder(self.batch), self.previous, self.batch["is_first"], self.carry, False)
        losses = model.world_model_losses(post, self.batch)
        losses |= model.behavior_losses(post, self.batch, sample=False)[0]
        return {name.removeprefix("rec_"): value for name, value in losses.items()}

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(self.config["scales"][name] * value.mean() for name, value in losses.items())


def twohot_bins_in(dtype: torch.dtype) -> torch.Tensor:
    from lit_wm.dreamer.distributions import twohot_bins

    return twohot_bins(dtype)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def reference(request):
    reference = Reference(request.param)
    reference.terms = reference.losses()
    reference.total(reference.terms).backward()
    return reference


def test_every_tensor_of_the_reference_is_ours(reference):
    assert len(reference.names) == 121


def test_every_loss_term(reference):
    tolerance = 1e-8 if reference.dtype == torch.float64 else 2e-5
    expected = reference.run["loss_terms_unscaled"]
    found = {name: value.mean().item() for name, value in reference.terms.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance), name


def test_the_return_normaliser_moves_before_it_is_used(reference):
    expected = reference.run["retnorm_after_update"]
    tolerance = 1e-8 if reference.dtype == torch.float64 else 2e-5
    assert reference.model.normalizer.low.item() == pytest.approx(expected["lo"], rel=tolerance)
    assert reference.model.normalizer.high.item() == pytest.approx(expected["hi"], rel=tolerance)


def test_the_gradient_norm_of_every_tensor(reference):
    tolerance = 1e-8 if reference.dtype == torch.float64 else 1e-4
    ours = dict(reference.model.named_parameters())
    for name, value in reference.run["grad_norm_per_tensor"].items():
        assert ours[reference.names[name]].grad.norm().item() == pytest.approx(value, rel=tolerance, abs=1e-12), name


def test_three_updates_without_warm_up():
    """Loss, clipping, LaProp and the slow critic together."""
    from lit_wm.distributed import ema_update
    from lit_wm.optim.laprop import LaProp

    reference = Reference(torch.float64)
    model = reference.model
    optimizer = LaProp([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for expected in reference.run["updates_nowarmup_lr1e-3"]:
        loss = reference.total(reference.losses())
        assert loss.item() == pytest.approx(expected["loss_seen_by_this_update"], rel=1e-8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(model.slow_critic, model.critic, 1 - 0.02)
        slow = torch.stack([p.norm() for p in model.slow_critic.parameters()]).norm().item()
        assert slow == pytest.approx(expected["slowval_norm_after"], rel=1e-8)


def test_features_are_deter_first():
    assert feature(torch.zeros(1, 2), torch.ones(1, 1, 3)).tolist() == [[0, 0, 1, 1, 1]]
