"""DreamerModule: the world model, and an actor and a critic that learn inside it. One loss, one optimizer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from datamodules.experience import action_vectors, previous_actions
from lit_wm.contract import Batch, State, repeat_samples
from lit_wm.distributed import ema_update
from lit_wm.dreamer.behavior import (
    RETURN_RATE,
    BehaviorSettings,
    ReturnNormalizer,
    imagination_losses,
    imagine,
    predict,
    replay_value_loss,
    room,
)
from lit_wm.dreamer.capture import CapturedUpdate
from lit_wm.dreamer.decoder import Decoder
from lit_wm.dreamer.encoder import Encoder
from lit_wm.dreamer.heads import REGRESSION, Actor, ContinueHead
from lit_wm.dreamer.latents import CategoricalLatents, GaussianLatents
from lit_wm.dreamer.policy import DreamerPolicy
from lit_wm.dreamer.rssm import RSSM, Posterior, feature
from lit_wm.dreamer.sizes import named_size
from lit_wm.errors import UserError, check_bounds, check_choice
from lit_wm.optim.laprop import LaProp
from lit_wm.optim.schedules import warmup_from_zero
from lit_wm.world_model import WorldModel

LOSS_SCALES = {"rec": 1.0, "rew": 1.0, "con": 1.0, "dyn": 1.0, "rep": 0.1, "policy": 1.0, "value": 1.0, "repval": 0.3}


class DreamerModule(WorldModel):
    """DreamerV3 (Hafner et al. 2023, v2 2024), trained online by a ReplayDataModule or offline from recorded shards.

    Online, a sequence starts from the state that was stored when it was collected or last trained on; offline, a clip
    starts from the zero state. Defaults are those of the reference code (danijar/dreamerv3).

    Args:
        experience: description of the data; linked by the command line.
        size: preset, ``size1m`` ... ``size400m`` (the reference's own default is size200m; a laptop's is not).
        size_overrides: single widths that replace the preset's, for example ``{deter: 256}``.
        lr: learning rate.
        warmup_steps: updates over which it rises from 0; with 0 of them it is constant.
        decay_steps: updates over which it falls to 0 at the end of the run, by a straight line; the paper's 0 leaves it.
        beta2: decay of LaProp's mean square of gradients. The reference's .999 remembers about a thousand updates.
        agc: adaptive gradient clipping factor.
        free_nats: KL below which neither term has a gradient.
        loss_scales: scales that replace the reference's, for example ``{rep: 0.5}``.
        imagination_length: H, imagined steps.
        imagination_last: start imagination from the last n >= 2 steps of each clip only; 0 means from all of them.
        horizon: effective length of the discount, 1 - 1/horizon.
        lam: lambda of the lambda-return.
        entropy: weight of the actor's entropy.
        slow_rate: rate of the slow critic's moving average.
        kl: ``balanced``, the two KL terms of the paper; ``plain``, one KL[q || p] with gradient to both sides, scaled by ``dyn``.
        unimix: share of the uniform law in every categorical latent; 0 leaves it out.
        latents: ``categorical``, or ``gaussian`` with as many numbers as there would be categoricals.
        symlog: squash vector observations; False feeds and reconstructs them as they are.
        regression: of reward and value, ``twohot`` or ``mse``.
        normalize_returns: scale advantages by the range of returns.
        reconstruction_gradient: False keeps the decoder's gradient out of the world model.
        value_gradient: False keeps that of reward, continue and value out of it.
        foreground_weight: how much more a pixel counts that differs from the median picture of the batch; the paper's 0
            draws small things that are seldom at one place only after very many updates.
        compile: the same numbers faster: on a CPU the recurrent steps are compiled by ``torch.compile`` (which takes a
            minute first); on a GPU the losses and their gradients are recorded as CUDA graphs (not yet run on one).

    Raises:
        UserError: an unknown size, width, loss scale or choice, or pictures that do not fit the encoder.
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
        decay_steps: int = 0,
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
        kl: str = "balanced",
        unimix: float = 0.01,
        latents: str = "categorical",
        symlog: bool = True,
        regression: str = "twohot",
        normalize_returns: bool = True,
        reconstruction_gradient: bool = True,
        value_gradient: bool = True,
        foreground_weight: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__(experience)
        self.save_hyperparameters()
        least = {"imagination_length": 1, "horizon": 2, "imagination_last": 0, "warmup_steps": 0, "free_nats": 0}
        least |= {"foreground_weight": 0, "decay_steps": 0}
        check_bounds("dreamer model", self.hparams, least | {"entropy": 0}, positive=("lr", "agc"))
        for name, top in (("beta2", 1), ("lam", 1 + 1e-9), ("slow_rate", 1 + 1e-9), ("unimix", 1)):
            if not 0 <= self.hparams[name] < top:
                raise UserError(f"{name} of the dreamer model is {self.hparams[name]}, it must lie between 0 and 1")
        if unknown := set(loss_scales or {}) - set(LOSS_SCALES):
            raise UserError(f"loss_scales: '{sorted(unknown)[0]}' is not one of {', '.join(LOSS_SCALES)}")
        if imagination_last == 1:
            raise UserError("imagination_last is 1: the critic on real steps needs 2 or more, or 0 for all of them")
        check_choice("kl", kl, ("balanced", "plain"))
        check_choice("latents", latents, ("categorical", "gaussian"))
        check_choice("regression", regression, tuple(REGRESSION))
        self.scales = {**LOSS_SCALES, **(loss_scales or {})}
        self.settings = BehaviorSettings(horizon, lam, entropy, normalize_returns=normalize_returns)
        widths = named_size(size, size_overrides)
        law = CategoricalLatents(widths.stoch, widths.classes, unimix)
        if latents == "gaussian":
            widths, law = replace(widths, classes=1), GaussianLatents(widths.stoch)
        self.encoder = Encoder(self.spec, widths, symlog)
        self.rssm = RSSM(widths, self.spec.action.width, self.encoder.width, law)
        self.decoder = Decoder(self.spec, widths, symlog, foreground_weight)
        self.reward = REGRESSION[regression](widths, layers=1)
        self.cont = ContinueHead(widths)
        self.actor = Actor(widths, self.spec.action)
        self.critic = REGRESSION[regression](widths, layers=3)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.normalizer = ReturnNormalizer()
        self._room: Tensor | None = None  # memory of imagined states, from training step to training step
        self._in_training_step = False
        self._newer: dict[str, Tensor] = {}  # states of the last batch, for the replay
        self._captured = CapturedUpdate(self, self.update) if compile else None

    def configure_model(self) -> None:
        """Where the device is known. What is compiled for a CPU would only be in the way of recording on a GPU."""
        device = self.trainer.strategy.root_device.type
        self.rssm.compiled = self.hparams.compile and device == "cpu"
        if self.hparams.compile and device == "cuda" and self.trainer.accumulate_grad_batches > 1:
            raise UserError("compile and accumulate_grad_batches: a recorded update overwrites gradients, choose one")

    def on_train_epoch_start(self) -> None:
        """Several batches that make one update move the range of returns as far as one does; a schedule may change how many."""
        self.normalizer.rate = RETURN_RATE / self.trainer.accumulate_grad_batches

    # ---- learning ------------------------------------------------------------------------------------------------

    def filter(self, batch: Batch, sample: bool = True) -> Posterior:
        """Posterior states of a clip; its own actions, shifted to the frame they led to.

        A batch of the replay has one row more than is trained, whose stored latents are the state before the first.
        """
        vectors = action_vectors(batch["action"], batch["is_last"], self.spec.action).to(self.dtype)
        if "latent_deter" not in batch:
            actions = previous_actions(vectors, batch["is_first"])
            return self.rssm.observe(self.encoder(batch), actions, batch["is_first"], sample=sample)
        deter = batch["latent_deter"].to(self.dtype)
        carry = deter, self.rssm.latents.unpack(batch["latent_stoch"], deter)
        trained = after_context(batch)
        return self.rssm.observe(self.encoder(trained), vectors[:, :-1], trained["is_first"], carry, sample)

    def world_model_losses(self, post: Posterior, batch: Batch) -> dict[str, Tensor]:
        """(B,T) losses of the world model, unscaled: ``rec_KEY``, ``rew``, ``con``, ``dyn``, ``rep``."""
        hp, kl = self.hparams, self.rssm.latents.kl
        seen = (post.deter, post.stoch)
        if not hp.reconstruction_gradient:
            seen = tuple(x.detach() for x in seen)
        losses = {f"rec_{key}": value for key, value in self.decoder.losses(*seen, batch).items()}
        x = self.read_by_heads(post)
        losses["rew"] = self.reward.loss(self.reward(x), batch["reward"])
        target = (~batch["is_terminal"]).to(x.dtype) * (1 - 1 / self.settings.horizon)
        logit = self.cont(x)
        losses["con"] = F.binary_cross_entropy_with_logits(logit, target.to(logit.dtype), reduction="none")
        if hp.kl == "plain":
            return losses | {"dyn": kl(post.q, post.p).clamp_min(hp.free_nats)}
        losses["dyn"] = kl(post.q.detach(), post.p).clamp_min(hp.free_nats)
        losses["rep"] = kl(post.q, post.p.detach()).clamp_min(hp.free_nats)
        return losses

    def read_by_heads(self, post: Posterior) -> Tensor:
        """(B,T,F) what reward, continue and the critic on real sequences read, and send gradients into."""
        x = feature(post.deter, post.stoch)
        return x if self.hparams.value_gradient else x.detach()

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
        length = self.hparams.imagination_length
        memory = None
        if self._in_training_step:  # Lightning is done with one step's graph before the next step writes there
            memory = self._room = room(*starts, length, self._room)
        dream = imagine(self.rssm, self.actor, *starts, length, sample, memory)
        reward, cont, slow_value = predict(self.reward, self.cont, self.slow_critic, dream.feature)
        losses, returns, logged = imagination_losses(
            dream,
            reward,
            cont,
            self.actor,
            self.critic,
            slow_value,
            self.normalizer,
            self.settings,
            self.training,
        )
        boot = returns[:, 0].view(batch_size, last)
        recent = {key: batch[key][:, -last:] for key in ("reward", "is_last", "is_terminal")}
        x = self.read_by_heads(post)[:, -last:]
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
        captured = self._captured is not None and self.training and self.device.type == "cuda"
        losses, self._newer = (self._captured if captured else self.update)(batch)
        return losses

    def update(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The scaled losses of a batch, and the states after each trained row, packed as a replay keeps them."""
        post = self.filter(batch)
        trained = after_context(batch) if "latent_deter" in batch else batch
        losses = self.world_model_losses(post, trained)
        behavior, logged = self.behavior_losses(post, trained)
        scaled = {
            k: self.scales["rec" if k.startswith("rec_") else k] * v.mean() for k, v in (losses | behavior).items()
        }
        latents = self.rssm.latents
        with torch.no_grad():
            logged["kl"] = latents.kl(post.q, post.p).mean()
            logged["posterior_entropy"] = latents.entropy(post.q).mean()
            logged["prior_entropy"] = latents.entropy(post.p).mean()
            logged["return_scale"] = self.normalizer.scale
            newer = {"deter": post.deter.detach(), "stoch": latents.pack(post.stoch.detach())}
        return scaled | {f"_{key}": value for key, value in logged.items()}, newer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Online, the newer latents go back to the replay. Here, because a checkpoint is written before the end of the batch
        is announced, and must hold them."""
        self._in_training_step = True
        try:
            total = super().training_step(batch, batch_idx)
        finally:
            self._in_training_step = False
        if "latent_deter" in batch:
            self.trainer.datamodule.write_back(batch, self._newer)
        return total

    def policy(self, seed: int) -> DreamerPolicy:
        """The agent at play, for a ReplayDataModule."""
        return DreamerPolicy(self, seed)

    def configure_optimizers(self) -> dict[str, Any]:
        params = [p for p in self.parameters() if p.requires_grad]
        hp = self.hparams
        optimizer = LaProp(params, lr=hp.lr, betas=(0.9, hp.beta2), clip=hp.agc)
        schedule = LambdaLR(optimizer, lambda step: warmup_from_zero(step, hp.warmup_steps) * self.decay(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Factor of the learning rate over the last ``decay_steps`` updates of the run: a straight line to 0."""
        if not self.hparams.decay_steps:
            return 1.0
        if self.trainer.max_steps < self.hparams.decay_steps:
            raise UserError(
                f"decay_steps is {self.hparams.decay_steps}: trainer.max_steps must say how long the run is, and be no less"
            )
        return min(1.0, max(0.0, (self.trainer.max_steps - step) / self.hparams.decay_steps))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The slow critic follows after the step (and so once per update under gradient accumulation)."""
        super().optimizer_step(*args, **kwargs)
        ema_update(self.slow_critic, self.critic, 1 - self.hparams.slow_rate)

    # ---- the contract ------------------------------------------------------------------------------------------------

    def look(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """As any route's; of a replay's batch the rows that are trained."""
        return super().look(after_context(batch) if "latent_deter" in batch else batch)

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


def after_context(batch: Batch) -> Batch:
    """The rows of a replay's batch that are trained: all but the first. What has no time axis stays out."""
    return {
        key: x[:, 1:] for key, x in batch.items() if not key.startswith("latent_") and key not in ("stream", "step")
    }
