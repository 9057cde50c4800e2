"""DreamerModule: the world model, and an actor and a critic that learn inside it. One loss, one optimizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from datamodules.experience import action_vectors, previous_actions
from lit_wm.contract import Batch, State, repeat_samples
from lit_wm.distributed import ema_update
from lit_wm.dreamer.behavior import (
    BehaviorSettings,
    ReturnNormalizer,
    imagination_losses,
    imagine,
    in_pieces,
    replay_value_loss,
)
from lit_wm.dreamer.decoder import Decoder
from lit_wm.dreamer.distributions import categorical_kl
from lit_wm.dreamer.encoder import Encoder
from lit_wm.dreamer.heads import Actor, ContinueHead, TwohotHead
from lit_wm.dreamer.rssm import RSSM, Posterior, feature
from lit_wm.dreamer.sizes import named_size
from lit_wm.errors import UserError, check_bounds
from lit_wm.optim.laprop import LaProp
from lit_wm.world_model import WorldModel

LOSS_SCALES = {"rec": 1.0, "rew": 1.0, "con": 1.0, "dyn": 1.0, "rep": 0.1, "policy": 1.0, "value": 1.0, "repval": 0.3}


class DreamerModule(WorldModel):
    """DreamerV3 (Hafner et al. 2023, v2 2024), trained from recorded shards.

    Offline, a clip starts from the zero state. Defaults are those of the reference code (danijar/dreamerv3).

    Args:
        experience: description of the data; linked by the command line.
        size: preset, ``size1m`` ... ``size400m`` (the reference's own default is size200m; a laptop's is not).
        size_overrides: single widths that replace the preset's, for example ``{deter: 256}``.
        lr: learning rate.
        warmup_steps: updates over which it rises from 0.
        beta2: decay of LaProp's mean square of gradients. The reference's .999 remembers about a thousand updates.
        agc: adaptive gradient clipping factor.
        free_nats: KL below which neither term has a gradient.
        loss_scales: scales that replace the reference's, for example ``{rep: 0.5}``.
        imagination_length: H, imagined steps.
        imagination_last: start imagination from the last n steps of each clip only; 0 means from all of them.
        horizon: effective length of the discount, 1 - 1/horizon.
        lam: lambda of the lambda-return.
        entropy: weight of the actor's entropy.
        slow_rate: rate of the slow critic's moving average.

    Raises:
        UserError: an unknown size, width or loss scale, or pictures that do not fit the encoder.
    """

    route = "dreamer"
    action_space = "environment"
    labels = ("frames", "actions", "rewards")

    def __init__(
        self,
        experience: dict[str, Any],
        size: str = "size1m",
        size_overrides: dict[str, int] | None = None,
        lr: float = 4e-5,
        warmup_steps: int = 1000,
        beta2: float = 0.999,
        agc: float = 0.3,
        free_nats: float = 1.0,
        loss_scales: dict[str, float] | None = None,
        imagination_length: int = 15,
        imagination_last: int = 0,
        horizon: int = 333,
        lam: float = 0.95,
        entropy: float = 3e-4,
        slow_rate: float = 0.02,
    ) -> None:
        super().__init__(experience)
        self.save_hyperparameters()
        least = {"imagination_length": 1, "horizon": 2, "imagination_last": 0, "warmup_steps": 0, "free_nats": 0}
        check_bounds("dreamer model", self.hparams, least, positive=("lr", "agc"))
        if unknown := set(loss_scales or {}) - set(LOSS_SCALES):
            raise UserError(f"loss_scales: '{sorted(unknown)[0]}' is not one of {', '.join(LOSS_SCALES)}")
        self.scales = {**LOSS_SCALES, **(loss_scales or {})}
        self.settings = BehaviorSettings(horizon, lam, entropy)
        widths = named_size(size, size_overrides)
        self.encoder = Encoder(self.spec, widths)
        self.rssm = RSSM(widths, self.spec.action.width, self.encoder.width)
        self.decoder = Decoder(self.spec, widths)
        self.reward = TwohotHead(widths, layers=1)
        self.cont = ContinueHead(widths)
        self.actor = Actor(widths, self.spec.action)
        self.critic = TwohotHead(widths, layers=3)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.normalizer = ReturnNormalizer()

    # ---- learning ------------------------------------------------------------------------------------------------

    def filter(self, batch: Batch, sample: bool = True) -> Posterior:
        """Posterior states of a clip from the zero state; the clip's own actions, shifted to the frame they led to."""
        vectors = action_vectors(batch["action"], batch["is_last"], self.spec.action)
        actions = previous_actions(vectors, batch["is_first"])
        return self.rssm.observe(self.encoder(batch), actions.to(self.dtype), batch["is_first"], sample=sample)

    def world_model_losses(self, post: Posterior, batch: Batch) -> dict[str, Tensor]:
        """(B,T) losses of the world model, unscaled: ``rec_KEY``, ``rew``, ``con``, ``dyn``, ``rep``."""
        x = feature(post.deter, post.stoch)
        free = self.hparams.free_nats
        losses = {f"rec_{k}": v for k, v in self.decoder.losses(post.deter, post.stoch, batch).items()}
        losses["rew"] = self.reward.loss(self.reward(x), batch["reward"])
        target = (~batch["is_terminal"]).to(x.dtype) * (1 - 1 / self.settings.horizon)
        logit = self.cont(x)
        losses["con"] = F.binary_cross_entropy_with_logits(logit, target.to(logit.dtype), reduction="none")
        losses["dyn"] = categorical_kl(post.log_q.detach(), post.log_p).clamp_min(free)
        losses["rep"] = categorical_kl(post.log_q, post.log_p.detach()).clamp_min(free)
        return losses

    def behavior_losses(
        self, post: Posterior, batch: Batch, sample: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of actor and critic, unscaled: ``policy``, ``value``, ``repval``; and quantities to log."""
        batch_size, steps = batch["is_first"].shape
        last = self.hparams.imagination_last or steps
        if last > steps:
            raise UserError(
                f"imagination_last = {last} exceeds the clip's {steps} steps; lower it or raise clip_length"
            )
        starts = [x[:, -last:].detach().flatten(0, 1) for x in (post.deter, post.stoch)]
        dream = imagine(self.rssm, self.actor, *starts, self.hparams.imagination_length, sample)
        with torch.no_grad():
            reward = in_pieces(lambda rows: self.reward.mean(self.reward(rows)), dream.feature)
            cont = in_pieces(self.cont, dream.feature).sigmoid()
        losses, returns, logged = imagination_losses(
            dream,
            reward,
            cont,
            self.actor,
            self.critic,
            self.slow_critic,
            self.normalizer,
            self.settings,
            self.training,
        )
        boot = returns[:, 0].view(batch_size, last)
        recent = {key: batch[key][:, -last:] for key in ("reward", "is_last", "is_terminal")}
        x = feature(post.deter, post.stoch)[:, -last:]
        losses["repval"] = replay_value_loss(
            x,
            boot,
            recent["reward"],
            recent["is_last"],
            recent["is_terminal"],
            self.critic,
            self.slow_critic,
            self.settings,
        )
        return losses, logged

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        post = self.filter(batch)
        losses = self.world_model_losses(post, batch)
        behavior, logged = self.behavior_losses(post, batch)
        scaled = {
            k: self.scales["rec" if k.startswith("rec_") else k] * v.mean() for k, v in (losses | behavior).items()
        }
        with torch.no_grad():
            logged["kl"] = categorical_kl(post.log_q, post.log_p).mean()
            logged["return_scale"] = self.normalizer.scale
        return scaled | {f"_{key}": value for key, value in logged.items()}

    def configure_optimizers(self) -> dict[str, Any]:
        params = [p for p in self.parameters() if p.requires_grad]
        hp = self.hparams
        optimizer = LaProp(params, lr=hp.lr, betas=(0.9, hp.beta2), clip=hp.agc)
        warmup = max(hp.warmup_steps, 1)
        schedule = LambdaLR(
            optimizer, lambda step: min(1.0, step / warmup)
        )  # the first update has rate 0, as in the reference
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The slow critic follows after the step (and so once per update under gradient accumulation)."""
        super().optimizer_step(*args, **kwargs)
        ema_update(self.slow_critic, self.critic, 1 - self.hparams.slow_rate)

    # ---- the contract ------------------------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> State:
        """Modes of the posterior, so that the same clip always gives the same states."""
        post = self.filter(batch, sample=False)
        return {"deter": post.deter, "stoch": post.stoch}

    def imagine(
        self,
        state: State,
        actions: Tensor,
        samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> State:
        wide = repeat_samples(state, samples)
        deter, stoch = wide["deter"], wide["stoch"]
        states: dict[str, list[Tensor]] = {"deter": [], "stoch": []}
        for action in actions.to(deter.dtype).repeat_interleave(samples, 0).unbind(1):
            deter, stoch = self.rssm.imagine_step(deter, stoch, action, temperature, generator)
            states["deter"].append(deter), states["stoch"].append(stoch)
        return {key: torch.stack(xs, 1).unflatten(0, (-1, samples)) for key, xs in states.items()}

    def features(self, state: State) -> Tensor:
        """concat(deter, flat stoch)."""
        return feature(state["deter"], state["stoch"])

    def targets(self, batch: Batch) -> Tensor:
        """Features of the posterior: what the prior is trained towards."""
        return self.features(self.observe(batch))

    def decode(self, state: State) -> Tensor | None:
        """(..., C,H,W) the picture ``frames`` in (0, 1), of all pictures the one that routes are compared by; None where there
        is none of that name. ``log_prob`` stays None: the squared error is no density."""
        keys = self.spec.pictures
        if "frames" not in keys:
            return None
        widths = [self.spec.observations[key][2] for key in keys]
        stacked = self.decoder.pictures(state["deter"], state["stoch"])
        return stacked.split(widths, -3)[keys.index("frames")]
