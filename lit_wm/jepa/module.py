"""JEPAModule: predict the representation of the next frame, never its pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.experience import action_vectors
from lit_wm.contract import Batch, State
from lit_wm.distributed import ema_update
from lit_wm.errors import UserError, check_bounds
from lit_wm.jepa.objective import collapse_numbers, in_windows, masked_power_loss, variance_hinge
from lit_wm.jepa.predictor import FrameCausalPredictor, frame_mask, normalise, roll_out
from lit_wm.jepa.target import frozen_copy, momentum
from lit_wm.jepa.vit import Past, VisionTransformer
from lit_wm.nn.moments import spatial_moments
from lit_wm.optim.schedules import warmup_cosine
from lit_wm.world_model import WorldModel

SIZES = ("patch", "dim", "heads", "predictor_dim", "predictor_heads", "history", "rollout_steps")
LEAST = dict.fromkeys(SIZES, 1) | dict.fromkeys(
    ("depth", "predictor_depth", "warmup_steps", "final_lr", "weight_decay", "variance_weight", "momentum_start"), 0
)


class JEPAModule(WorldModel):
    """Frame-to-frame JEPA: online encoder, EMA target, frame-causal predictor; with or without actions; no decoder.

    z_t = LN(E(x_t)), h_t = LN(E_ema(x_t)) without gradient, and the predictor P is asked for h_{t+1} from
    z_{t-history+1..t} and the actions taken after those frames (V-JEPA 2-AC, arXiv:2506.09985, section 3, here with
    E learned along with P as in I-JEPA, arXiv:2301.08243). The equations stand in this folder's README.

    Args:
        experience: description of the data; it must hold pictures under ``frames``.
        actions: condition on the environment's actions. Without, training needs neither ``action`` nor ``reward``.
        patch: side of a patch in pixels (I-JEPA 14 or 16 at 224 x 224; 8 keeps 64 places on 64 x 64).
        dim: width of a token (ViT-tiny 192; small here, as all sizes are, to learn in minutes on a CPU).
        depth: encoder blocks.
        heads: encoder heads.
        predictor_dim: width inside the predictor.
        predictor_depth: predictor blocks.
        predictor_heads: predictor heads; each at least 6 wide, for the rotary positions.
        tile_actions: also add the action to every patch token of its frame, as DINO-WM does; False as V-JEPA 2-AC.
        history: frames the predictor sees (V-JEPA 2-AC 8, LeWM and DINO-WM 3).
        rollout_steps: predictions fed back in training, as ``auto_steps`` of V-JEPA 2-AC; 1 is teacher forcing alone.
        momentum_start: EMA momentum of the first update (I-JEPA .996; it rises linearly, per update).
        momentum_end: EMA momentum that the last update approaches (I-JEPA 1).
        stop_gradient: False makes the online encoder its own target and sends gradients into it: the arm that collapses.
        loss_exponent: p of mean |z - h|^p / p; 1 as V-JEPA and V-JEPA 2.
        variance_weight: weight of VICReg's variance hinge on the online tokens; 0 as the EMA papers.
        lr: peak learning rate of AdamW (V-JEPA 2-AC 4.25e-4 at batch 256).
        final_lr: learning rate at the end of the cosine (I-JEPA 1e-6).
        warmup_steps: updates of linear warm-up.
        weight_decay: of matrices; biases and other 1-D parameters are not decayed (V-JEPA 2: constant .04).
        schedule_steps: updates that the schedules of learning rate and momentum span; None: as many as the trainer makes.

    Raises:
        UserError: no pictures under ``frames``, or sizes that do not fit each other.
    """

    route = "jepa"

    def __init__(
        self,
        experience: dict[str, Any],
        actions: bool = True,
        patch: int = 8,
        dim: int = 64,
        depth: int = 3,
        heads: int = 4,
        predictor_dim: int = 64,
        predictor_depth: int = 3,
        predictor_heads: int = 4,
        tile_actions: bool = False,
        history: int = 3,
        rollout_steps: int = 2,
        momentum_start: float = 0.996,
        momentum_end: float = 1.0,
        stop_gradient: bool = True,
        loss_exponent: float = 1.0,
        variance_weight: float = 0.0,
        lr: float = 1e-3,
        final_lr: float = 1e-6,
        warmup_steps: int = 100,
        weight_decay: float = 0.04,
        schedule_steps: int | None = None,
    ) -> None:
        super().__init__(experience, ("frames", "actions") if actions else ("frames",))
        self.save_hyperparameters()
        check_bounds("jepa model", self.hparams, LEAST, positive=("lr",))
        if "frames" not in self.spec.pictures:
            raise UserError("the jepa model needs pictures under 'frames', which this data does not hold")
        if not 1 <= rollout_steps <= history:
            raise UserError(f"rollout_steps is {rollout_steps}: choose 1 to history = {history}")
        self.action_space = "environment" if actions else "none"
        height, width, channels = self.spec.observations["frames"]
        conditions = {"action": self.spec.action.width} if actions else {}
        try:
            self.encoder = VisionTransformer((height, width), channels, patch, dim, depth, heads)
            self.predictor = FrameCausalPredictor(
                self.encoder.grid, dim, predictor_dim, predictor_depth, predictor_heads, conditions, tile_actions
            )
        except ValueError as error:
            raise UserError(f"the jepa model's sizes do not fit: {error}") from error
        self.target_encoder = frozen_copy(self.encoder)

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Teacher forcing and rollout, each mean |prediction - target|^p / p over the transitions within an episode."""
        hp = self.hparams
        frames = batch["frames"]
        if frames.shape[1] < 2:
            raise UserError("clip_length is 1, but the jepa model predicts the next frame: choose 2 or more")
        length = min(hp.history, frames.shape[1] - 1)  # L frames predict L next frames
        cut = lambda x: in_windows(x, length)  # noqa: E731
        frames = cut(frames)
        episode = cut(batch["is_first"].long().cumsum(1))
        conditions = {name: cut(x)[:, :length] for name, x in self._conditions(batch).items()}

        z = self.encode(self.encoder, frames[:, :length])
        teacher = self.target_encoder if hp.stop_gradient else self.encoder
        with torch.set_grad_enabled(torch.is_grad_enabled() and not hp.stop_gradient):
            h = self.encode(teacher, frames[:, 1:])
        mask = frame_mask(episode[:, :length])
        forced, past = self.predict(z, conditions, mask)
        same = episode[:, 1:] == episode[:, :-1]
        losses = {"prediction": masked_power_loss(forced, h, same, hp.loss_exponent)}

        if (steps := min(hp.rollout_steps, length)) > 1:
            seen = length - steps + 1  # true frames before the first prediction that is fed back

            def step(z_b1nd: Tensor, t: int, past: list[Past]) -> tuple[Tensor, list[Past]]:
                now = {name: x[:, t : t + 1] for name, x in conditions.items()}
                return self.predict(z_b1nd, now, mask[:, t : t + 1, : t + 1], past)

            past = self.predictor.first_frames(past, seen)
            rolled = roll_out(step, forced[:, seen - 1], past, seen, length)
            reached = episode[:, seen:] == episode[:, seen - 1 : seen]
            losses["rollout"] = masked_power_loss(rolled, h[:, seen - 1 :], reached, hp.loss_exponent)
        if hp.variance_weight:
            losses["variance"] = hp.variance_weight * variance_hinge(z.flatten(0, 1))
        return losses | collapse_numbers(forced, h)

    def encode(self, encoder: nn.Module, frames_bt: Tensor) -> Tensor:
        """(B,T,C,H,W) uint8 -> (B,T,N,D) normalised tokens, every frame by itself."""
        b, t = frames_bt.shape[:2]
        x = frames_bt.flatten(0, 1).to(self.dtype) / 63.75 - 2  # about unit variance, as I-JEPA's ImageNet scaling
        return normalise(encoder(x).unflatten(0, (b, t)))

    def predict(
        self, z_btnd: Tensor, conditions: dict[str, Tensor], mask: Tensor, past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """(B,T,N,D) -> (B,T,N,D): entry t is the normalised prediction of frame t+1. See the predictor for the rest."""
        predicted, past = self.predictor(z_btnd, conditions, mask, past)
        return normalise(predicted), past

    def _conditions(self, batch: Batch) -> dict[str, Tensor]:
        """What enters the predictor beside pictures: (B,T,A) action vectors, zero where the action is void."""
        if not self.hparams.actions:
            return {}
        return {"action": action_vectors(batch["action"], batch["is_last"], self.spec.action).to(self.dtype)}

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, no decay on biases and 1-D parameters; warm-up, then cosine (I-JEPA, ``init_opt``)."""
        hp = self.hparams
        learned = [*self.encoder.parameters(), *self.predictor.parameters()]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": hp.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=hp.lr)
        schedule = warmup_cosine(optimizer, hp.warmup_steps, self.schedule_steps(), hp.final_lr / hp.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def schedule_steps(self) -> int:
        """Updates of the whole run.

        Raises:
            UserError: the run has no end, so that schedules cannot be drawn.
        """
        total = self.hparams.schedule_steps or self.trainer.estimated_stepping_batches
        if not 0 < total < float("inf"):
            raise UserError("the jepa model's schedules need the length of the run: give --trainer.max_steps")
        return int(total)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One update, then the target follows: once per update, however many batches were accumulated."""
        update = self.trainer.global_step  # updates made before this one; restored by a checkpoint
        super().optimizer_step(*args, **kwargs)
        hp = self.hparams
        m = momentum(update, self.schedule_steps(), hp.momentum_start, hp.momentum_end)
        ema_update(self.target_encoder, self.encoder, m)
        self.log("train/momentum", m)

    # ---- the contract ----------------------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> State:
        """The last ``history`` frames at every t, as far as they belong to the episode of frame t.

        Returns:
            ``tokens`` (B,T,history,N,D) normalised, ``valid`` (B,T,history) bool, and with actions ``action``
            (B,T,history-1,A): the action between each two frames of the window.
        """
        size = self.hparams.history
        episode = batch["is_first"].long().cumsum(1)
        z = self.encode(self.encoder, batch["frames"])
        inside = _last(episode, size, -1) == episode.unsqueeze(2)
        state = {"tokens": _last(z, size, 0.0), "valid": inside}
        if self.hparams.actions:
            state["action"] = _last(self._conditions(batch)["action"], size, 0.0)[:, :, :-1]
        return state

    def imagine(
        self,
        state: State,
        actions: Tensor,
        samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> State:
        """Open loop, each prediction taking its frame's place in the window. Deterministic: all samples are equal."""
        size, steps = self.hparams.history, actions.shape[1]
        z, valid = state["tokens"], state["valid"]
        done = None
        if self.hparams.actions:
            done = torch.cat([state["action"], actions.to(z.dtype)], 1)  # (B,history-1+K,A)
        for k in range(steps):
            mask = frame_mask(torch.zeros_like(valid[:, k:], dtype=torch.long)) & valid[:, None, k:]
            mask = mask | torch.eye(size, dtype=torch.bool, device=mask.device)  # padding sees itself: no empty rows
            conditions = {} if done is None else {"action": done[:, k : k + size]}
            predicted, _ = self.predict(z[:, k:], conditions, mask)
            z = torch.cat([z, predicted[:, -1:]], 1)
            valid = torch.cat([valid, torch.ones_like(valid[:, :1])], 1)
        states = {"tokens": _windows(z, size)[:, 1:], "valid": _windows(valid, size)[:, 1:]}
        if done is not None:
            states["action"] = _windows(done[:, 1:], size - 1)
        return {key: x.unsqueeze(1).expand(-1, samples, *x.shape[1:]) for key, x in states.items()}

    def feature_map(self, state: State) -> Tensor:
        """(..., N, D) tokens of the current frame."""
        return state["tokens"][..., -1, :, :]

    def features(self, state: State) -> Tensor:
        """Spatial moments of the current and the previous frame's tokens: (..., 4 D). See :func:`spatial_moments`."""
        tokens, valid = state["tokens"], state["valid"]
        now = tokens[..., -1, :, :]
        if self.hparams.history == 1:
            return spatial_moments(now, self.encoder.grid)
        before = torch.where(valid[..., -2, None, None], tokens[..., -2, :, :], now)  # before the first frame: itself
        return torch.cat([spatial_moments(x, self.encoder.grid) for x in (now, before)], -1)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """(B,T,4 D): :meth:`features` of the EMA encoder's tokens, which is what the predictor is trained to meet."""
        episode = batch["is_first"].long().cumsum(1)
        h = self.encode(self.target_encoder, batch["frames"])
        return self.features({"tokens": _last(h, 2, 0.0), "valid": _last(episode, 2, -1) == episode.unsqueeze(2)})


def _windows(x: Tensor, size: int) -> Tensor:
    """(B,T,...) -> (B,T-size+1,size,...): every run of ``size`` entries, as a view."""
    return x.unfold(1, size, 1).movedim(-1, 2)


def _last(x: Tensor, size: int, fill: float) -> Tensor:
    """(B,T,...) -> (B,T,size,...): the last ``size`` entries at every t, with ``fill`` before the clip."""
    return _windows(torch.cat([x.new_full((len(x), size - 1, *x.shape[2:]), fill), x], 1), size)
