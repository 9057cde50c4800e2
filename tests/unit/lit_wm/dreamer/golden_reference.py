"""The tiny model and batch behind the golden numbers, rebuilt from the file's fill rules in our layout.

Nothing but numbers is stored in the golden file: both sides make the same weights and inputs from seeded noise whose seed
is a checksum of the tensor's name. Here the reference's names and layouts meet ours.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.dreamer import DreamerModule
from lit_wm.dreamer.distributions import twohot_bins
from lit_wm.dreamer.module import after_context

FOLDER = Path(__file__).parents[3] / "data" / "dreamer"
GOLDEN = FOLDER / "dreamer.json"
GOLDEN_FUNCTIONS = FOLDER / "dreamer_functions.json"

# The reference's modules -> ours.
MODULES = {
    "enc": "encoder",
    "dyn": "rssm",
    "dec": "decoder",
    "rew": "reward",
    "con": "cont",
    "pol": "actor",
    "val": "critic",
}

# The reference's layers -> ours.
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


def seeded(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def fill(name: str, shape: tuple[int, ...] | list[int], scale: float) -> np.ndarray:
    """The files' noise: normal numbers seeded by the name, in float32."""
    return (seeded(name).randn(*shape) * scale).astype(np.float32)


def watch(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[tuple, Any]]:
    """(arguments, result) of every call of a function or method, while it goes on working."""
    calls, original = [], getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    patch.setattr(owner, name, watched)
    return calls


def since_reset(is_first: Tensor) -> Tensor:
    """(B,T) bool: where the state no longer depends on what came before the clip."""
    return is_first.cumsum(1) > 0


@dataclass
class Losses:
    """What one call of ``DreamerModule.losses`` computes, under the reference's names.

    Attributes:
        terms: (B,T) or (N,H), before the module takes their mean and scales it.
        scaled: the scalars that the module returns, whose sum is minimised.
    """

    terms: dict[str, Tensor]
    scaled: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.scaled.values())).sum()


class Reference:
    """The model and batch of ``dreamer.json``; the model's every sample is a mode.

    Args:
        dtype: that everything is computed in; weights and inputs are the same float32 numbers in both.
        options: of the module, beside the file's own widths; the defaults are the reference's.

    Attributes:
        run: the golden numbers (always the float64 column, also for a float32 model), and two sections made of them: the
            scaled terms, and the posterior where a recording gives it too, which has no state to begin from.
        filled: the reference's name -> tensor, in the reference's layout.
        names: the reference's name of every tensor -> ours.
        batch: as the replay gives it, a context row with its stored latents before the trained ones.
        recording: the trained rows alone, as an offline clip.
    """

    def __init__(self, dtype: torch.dtype, **options: Any) -> None:
        self.golden = json.loads(GOLDEN.read_text())
        self.config, self.dtype = self.golden["config"], dtype
        c = self.config
        spec = ExperienceSpec({"image": c["image"], "vector": (c["vector"],)}, ActionSpace("discrete", (5,)))
        widths = {key: c[key] for key in ("deter", "hidden", "classes", "units", "stoch")} | {"depth": c["cnn_depth"]}
        horizon = c["imagination_horizon"]
        self.model = DreamerModule(spec.to_dict(), size_overrides=widths, imagination_length=horizon, **options)
        self.model.to(dtype)
        for head in (self.model.reward, self.model.critic, self.model.slow_critic):
            head.bins.copy_(twohot_bins(dtype))  # computed in that type, as the reference does, not widened
        self.filled = {name: self._fill(name, shape) for name, shape in self.golden["param_shapes"].items()}
        self.names = {name: self._load(name, value) for name, value in self.filled.items()}
        self.model.normalizer.low.fill_(c["retnorm_start"]["lo"])
        self.model.normalizer.high.fill_(c["retnorm_start"]["hi"])
        self._take_modes()
        self.raw = self._rows()
        self.batch = self._replayed()
        self.recording = after_context(self.batch)
        self.run = self._golden_numbers()

    def parameters(self, module: str) -> list[nn.Parameter]:
        """Ours, of the reference's module ``enc``, ``dyn``, ... or ``slowval``."""
        ours = "slow_critic" if module == "slowval" else MODULES[module]
        return list(getattr(self.model, ours).parameters())

    def _fill(self, name: str, shape: list[int]) -> np.ndarray:
        layer, kind = name.rsplit("/", 1)
        salted = self.config["salt"] + name
        if kind == "kernel":
            fan = int(np.prod(shape[:-1])) if len(shape) != 3 else shape[1]
            return fill(salted, shape, 1 / np.sqrt(fan))
        if kind == "scale":
            return np.float32(1) + fill(salted, shape, 0.1)
        value = fill(salted, shape, 0.1)
        if layer in ("rew/head/logits", "val/head/logits", "slowval/head/logits"):
            away = np.abs(np.arange(255) - self.config["centre"][layer.split("/")[0]])
            return (value - 0.25 * away).astype(np.float32)
        return (value + 2.0).astype(np.float32) if layer == "con/head/logit" else value

    def _load(self, name: str, value: np.ndarray) -> str:
        """Put a tensor of the reference where we keep it: (in, out) -> (out, in), (h, w, in, out) -> (out, in, h, w)."""
        layer, kind = name.rsplit("/", 1)
        mine = LAYERS[layer] + (".bias" if kind == "bias" else ".weight")
        value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        with torch.no_grad():
            self.model.get_parameter(mine).copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return mine

    def _rows(self) -> dict[str, np.ndarray]:
        """The file's raw rows; row 0 is the context before the first trained step."""
        c, salt = self.config, self.config["salt"]
        b, r = c["batch"], c["raw_rows"]

        def integers(name: str, high: int, shape: tuple[int, ...]) -> np.ndarray:
            return seeded(salt + name).randint(0, high, shape, np.int64)

        rows = {
            "image": integers("data/image", 256, (b, r, *c["image"])),
            "vector": fill(salt + "data/vector", (b, r, c["vector"]), 1.5),
            "reward": fill(salt + "data/reward", (b, r), 2.0),
            "action": integers("data/action", 5, (b, r)),
            "dyn/deter": fill(salt + "data/dyn/deter", (b, r, c["deter"]), 0.5),
            "dyn/stoch": np.eye(c["classes"])[integers("data/dyn/stoch", c["classes"], (b, r, c["stoch"]))],
        }
        for key in ("is_first", "is_last", "is_terminal"):
            rows[key] = np.zeros((b, r), bool)
            for row, step in c[key]:
                rows[key][row, step + 1] = True
        return rows

    def _replayed(self) -> dict[str, Tensor]:
        rows = {key: torch.from_numpy(value) for key, value in self.raw.items()}
        batch = {key: rows[key].to(self.dtype) for key in ("vector", "reward")}
        batch |= {key: rows[key] for key in ("action", "is_first", "is_last", "is_terminal")}
        batch["image"] = rows["image"].to(torch.uint8).permute(0, 1, 4, 2, 3)
        batch["latent_deter"] = rows["dyn/deter"][:, 0].to(self.dtype)
        return batch | {"latent_stoch": rows["dyn/stoch"][:, 0].argmax(-1).to(torch.int16)}

    def _take_modes(self) -> None:
        """The module samples when it trains; the reference was made deterministic, see its rules."""
        latents, actor = self.model.rssm.latents, self.model.actor
        sample, act = latents.sample, actor.sample
        latents.sample = lambda law, noise: sample(law, None)
        actor.sample = lambda parameters, generator=None, mode=False: act(parameters, mode=True)

    def _golden_numbers(self) -> dict[str, Any]:
        run, scales = self.golden["runs"]["argmax"]["float64"], self.config["scales"]
        seen, posterior = since_reset(self.recording["is_first"]), run["world_model"]
        return run | {
            "loss_terms_scaled": {name: scales[name] * term for name, term in run["loss_terms_unscaled"].items()},
            "recording_since_reset": {
                "kl_before_free_bits": np.asarray(posterior["kl_before_free_bits"])[seen],
                "posterior_argmax": np.asarray(posterior["posterior_argmax_all"])[seen],
            },
        }

    def losses(self) -> Losses:
        """Of the module's own path, from the replay's batch to what is minimised."""
        with pytest.MonkeyPatch.context() as patch:
            world_model = watch(patch, self.model, "world_model_losses")
            behavior = watch(patch, self.model, "behavior_losses")
            scaled = self.model.losses(self.batch)
        terms = world_model[0][1] | behavior[0][1][0]
        return Losses(
            {name.removeprefix("rec_"): value for name, value in terms.items()},
            {name.removeprefix("rec_"): value for name, value in scaled.items() if not name.startswith("_")},
        )
