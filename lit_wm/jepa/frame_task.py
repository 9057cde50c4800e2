"""Frame to frame: the representation of the next frame, from those of the past and, if they are given, the actions."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from datamodules.experience import ExperienceSpec, action_vectors
from lit_wm.contract import Batch, State
from lit_wm.errors import UserError
from lit_wm.jepa.conditional_predictor import ConditionalPredictor
from lit_wm.jepa.encoders import ConvolutionEncoder, PictureDecoder, PooledTransformer, standardised
from lit_wm.jepa.objective import DISTANCES, collapse_numbers, in_windows, mean_where
from lit_wm.jepa.predictor import FrameCausalPredictor, frame_mask, normalise, roll_out
from lit_wm.jepa.regularizers import covariance, random_directions, sigreg, smoothness, variance_hinge
from lit_wm.jepa.settings import (
    ONE_FRAME,
    EncoderSettings,
    LossSettings,
    PredictorSettings,
    RegularizerSettings,
    TargetSettings,
)
from lit_wm.jepa.task import Task
from lit_wm.jepa.vector_predictors import LinearPredictor, PerceptronPredictor, RecurrentPredictor
from lit_wm.jepa.vit import Past, VisionTransformer
from lit_wm.nn.moments import spatial_moments


class FrameTask(Task):
    """z_t = E(x_t), h_t = E_target(x_t), and the predictor P is asked for h_{t+1} from z_{<=t} and the actions taken after them.

    Args:
        spec: of the data.
        actions: condition on the environment's actions.
        encoder, predictor, target, regularizers, loss: the settings, which fit each other.

    Raises:
        ValueError: sizes that do not fit the picture or each other.
    """

    imagines = True

    def __init__(
        self,
        spec: ExperienceSpec,
        actions: bool,
        encoder: EncoderSettings,
        predictor: PredictorSettings,
        target: TargetSettings,
        regularizers: RegularizerSettings,
        loss: LossSettings,
    ) -> None:
        super().__init__()
        self.spec, self.actions, self.history = spec, actions, 1 if predictor.kind in ONE_FRAME else predictor.history
        self.rollout_steps, self.target, self.regularizers, self.loss = (
            predictor.rollout_steps,
            target,
            regularizers,
            loss,
        )
        height, width, channels = spec.observations["frames"]
        self.encoder = make_encoder((height, width), channels, encoder)
        self.grid = self.encoder.grid
        acts = spec.action.width if actions else 0
        self.predictor = make_predictor(self.grid, encoder.dim, acts, predictor)
        if target.kind == "ema":
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        if regularizers.inverse_dynamics:
            self.inverse = nn.Sequential(nn.Linear(2 * encoder.dim, 128), nn.ReLU(), nn.Linear(128, acts))
        if loss.next_pixels or loss.current_pixels:
            self.decoder = PictureDecoder((channels, height, width), encoder.dim, self.grid, loss.pixel_widths)

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, update: int) -> dict[str, Tensor]:
        """Named losses, weighted; ``update`` seeds SIGReg's directions."""
        frames, episode, conditions = self._cut(batch, max(self.history, self.rollout_steps))
        weight, length = self.loss, frames.shape[1] - 1
        z_all, h = self.both(frames)
        z = z_all[:, :length]
        mask = frame_mask(episode[:, :length])
        forced, past = self.predict(z, conditions, mask)
        same = episode[:, 1:] == episode[:, :-1]
        distance, losses = DISTANCES[weight.distance], {}
        if weight.teacher_forcing:
            losses["prediction"] = weight.teacher_forcing * mean_where(distance(forced, h), same)
        if weight.rollout and (steps := min(self.rollout_steps, length)) > 1:
            seen = length - steps + 1  # true frames before the first prediction that is fed back
            rolled = self._rolled(forced, past, conditions, mask, seen, length)
            reached = episode[:, seen:] == episode[:, seen - 1 : seen]
            losses["rollout"] = weight.rollout * mean_where(distance(rolled, h[:, seen - 1 :]), reached)
        losses |= self._pixel_losses(frames, z, forced, same)
        losses |= self._regularizer_losses(z_all, conditions, same, update)
        return losses | collapse_numbers(forced, h)

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """All tokens of the next frame in one row, predicted from true frames, and the target's."""
        frames, episode, conditions = self._cut(batch, self.history)
        length = frames.shape[1] - 1
        z, h = self.both(frames)
        predicted, _ = self.predict(z[:, :length], conditions, frame_mask(episode[:, :length]))
        same = episode[:, 1:] == episode[:, :-1]
        return predicted[same].flatten(1), h[same].flatten(1)

    def _cut(self, batch: Batch, longest: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Windows of L transitions: frames (B,L+1,C,H,W), episode numbers (B,L+1), conditions (B,L,A). L frames predict L next frames."""
        if batch["frames"].shape[1] < 2:
            raise UserError("clip_length is 1, but the jepa model predicts the next frame: choose 2 or more")
        length = min(longest, batch["frames"].shape[1] - 1)
        conditions = {name: in_windows(x, length)[:, :length] for name, x in self.conditions(batch).items()}
        return in_windows(batch["frames"], length), in_windows(batch["is_first"].long().cumsum(1), length), conditions

    def both(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B,L+1,C,H,W) -> (B,L or L+1,N,D) of the encoder, and (B,L,N,D) targets of the frames after the first."""
        if self.target.kind != "ema":
            z = self.encode(self.encoder, frames)
            return z, z[:, 1:].detach() if self.target.kind == "stop_gradient" else z[:, 1:]
        z = self.encode(self.encoder, frames[:, :-1])
        with torch.no_grad():
            return z, self.encode(self.target_encoder, frames[:, 1:])

    def encode(self, encoder: nn.Module, frames_bt: Tensor) -> Tensor:
        """(B,T,C,H,W) uint8 -> (B,T,N,D), every frame by itself."""
        z = encoder(standardised(frames_bt.flatten(0, 1), self.dtype)).unflatten(0, frames_bt.shape[:2])
        return normalise(z) if self.target.normalise else z

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def predict(
        self, z_btnd: Tensor, conditions: dict[str, Tensor], mask: Tensor, past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """(B,T,N,D) -> (B,T,N,D): entry t is the prediction of frame t+1. See the predictors for the rest."""
        predicted, past = self.predictor(z_btnd, conditions, mask, past)
        return (normalise(predicted) if self.target.normalise else predicted), past

    def conditions(self, batch: Batch) -> dict[str, Tensor]:
        """What enters the predictor beside pictures: (B,T,A) action vectors, zero where the action is void."""
        if not self.actions:
            return {}
        return {"action": action_vectors(batch["action"], batch["is_last"], self.spec.action).to(self.dtype)}

    def _rolled(
        self, forced: Tensor, past: list[Past], conditions: dict[str, Tensor], mask: Tensor, seen: int, length: int
    ) -> Tensor:
        def step(z_b1nd: Tensor, t: int, past: list[Past]) -> tuple[Tensor, list[Past]]:
            now = {name: x[:, t : t + 1] for name, x in conditions.items()}
            return self.predict(z_b1nd, now, mask[:, t : t + 1, : t + 1], past)

        return roll_out(step, forced[:, seen - 1], self.predictor.first_frames(past, seen), seen, length)

    def _pixel_losses(self, frames: Tensor, z: Tensor, forced: Tensor, same: Tensor) -> dict[str, Tensor]:
        """The rivals that predict pixels: of the next frame, or of the one that is seen."""
        found = {}
        if self.loss.next_pixels:
            error = (self.decoder(forced) - standardised(frames[:, 1:], z.dtype)).square()
            found["next_pixels"] = self.loss.next_pixels * mean_where(error, same)
        if self.loss.current_pixels:
            error = (self.decoder(z) - standardised(frames[:, : z.shape[1]], z.dtype)).square()
            found["current_pixels"] = self.loss.current_pixels * error.mean()
        return found

    def _regularizer_losses(
        self, z_btnd: Tensor, conditions: dict[str, Tensor], same: Tensor, update: int
    ) -> dict[str, Tensor]:
        """VICReg, SIGReg and what PLDM adds, each by its weight; every place is judged by itself."""
        r, found = self.regularizers, {}
        clip_nbtd = z_btnd.permute(2, 0, 1, 3)
        samples = {
            "batch": clip_nbtd.transpose(1, 2),
            "batch_and_time": clip_nbtd.flatten(1, 2),
            "first_frame": clip_nbtd[:, :, 0],
        }[r.samples]
        if r.variance:
            found["variance"] = r.variance * variance_hinge(samples)
        if r.covariance:
            found["covariance"] = r.covariance * covariance(samples)
        if r.sigreg:
            directions = random_directions(samples.shape[-1], r.slices, update, samples)
            found["sigreg"] = r.sigreg * sigreg(samples, directions)
        if r.variance_time:
            found["variance_time"] = r.variance_time * variance_hinge(clip_nbtd, over_ranks=False)
        if r.covariance_time:
            found["covariance_time"] = r.covariance_time * covariance(clip_nbtd, over_ranks=False)
        if r.smoothness:
            found["smoothness"] = r.smoothness * smoothness(z_btnd.transpose(1, 2).flatten(0, 1))
        if r.inverse_dynamics:
            z_btd = z_btnd.mean(2)
            t = z_btd.shape[1] - 1
            told = self.inverse(torch.cat([z_btd[:, :-1], z_btd[:, 1:]], -1))
            error = (told - conditions["action"][:, :t]).square()
            found["inverse_dynamics"] = r.inverse_dynamics * mean_where(error, same[:, :t])
        return found

    # ---- the contract ----------------------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> State:
        """The last ``history`` frames at every t, as far as they belong to the episode of frame t.

        Returns:
            ``tokens`` (B,T,history,N,D), ``valid`` (B,T,history) bool, and with actions ``action`` (B,T,history-1,A): the action
            between each two frames of the window.
        """
        episode = batch["is_first"].long().cumsum(1)
        size = max(self.history, 2)  # features also tell the frame before
        state = {"tokens": _last(self.encode(self.encoder, batch["frames"]), size, 0.0)}
        state["valid"] = _last(episode, size, -1) == episode.unsqueeze(2)
        if self.actions:
            state["action"] = _last(self.conditions(batch)["action"], size, 0.0)[:, :, :-1]
        return state

    def imagine(self, state: State, actions: Tensor, samples: int) -> State:
        """Open loop, each prediction taking its frame's place in the window. Deterministic: all samples are equal."""
        z, valid, size = state["tokens"], state["valid"], state["valid"].shape[1]
        done = torch.cat([state["action"], actions.to(z.dtype)], 1) if self.actions else None  # (B,size-1+K,A)
        for k in range(actions.shape[1]):
            seen = slice(k + size - self.history, k + size)
            mask = frame_mask(torch.zeros_like(valid[:, seen], dtype=torch.long)) & valid[:, None, seen]
            # padding sees itself: no empty rows
            mask = mask | torch.eye(self.history, dtype=torch.bool, device=mask.device)
            predicted, _ = self.predict(z[:, seen], {} if done is None else {"action": done[:, seen]}, mask)
            z = torch.cat([z, predicted[:, -1:]], 1)
            valid = torch.cat([valid, torch.ones_like(valid[:, :1])], 1)
        states = {"tokens": _windows(z, size)[:, 1:], "valid": _windows(valid, size)[:, 1:]}
        if done is not None:
            states["action"] = _windows(done[:, 1:], size - 1)
        return {key: x.unsqueeze(1).expand(-1, samples, *x.shape[1:]) for key, x in states.items()}

    def feature_map(self, state: State) -> Tensor:
        """(..., N, D) tokens of the current frame; N = 1 where it is one vector."""
        return state["tokens"][..., -1, :, :]

    def features(self, state: State) -> Tensor:
        """Of the current and the previous frame: (..., 2 D) vectors, or (..., 4 D) spatial moments (:func:`spatial_moments`)."""
        tokens, valid = state["tokens"], state["valid"]
        now = tokens[..., -1, :, :]
        before = torch.where(valid[..., -2, None, None], tokens[..., -2, :, :], now)  # before the first frame: itself
        if self.grid is None:
            return torch.cat([now, before], -1).squeeze(-2)
        return torch.cat([spatial_moments(x, self.grid) for x in (now, before)], -1)

    def targets(self, batch: Batch) -> Tensor:
        """:meth:`features` of the target encoder's tokens, which is what the predictor is trained to meet."""
        episode = batch["is_first"].long().cumsum(1)
        h = self.encode(self.teacher, batch["frames"])
        return self.features({"tokens": _last(h, 2, 0.0), "valid": _last(episode, 2, -1) == episode.unsqueeze(2)})


def make_encoder(size: tuple[int, int], channels: int, s: EncoderSettings) -> nn.Module:
    """(M,C,H,W) -> (M,N,D); its ``grid`` is None where N = 1."""
    if s.kind == "convolution":
        return ConvolutionEncoder(size, channels, s.widths, s.hidden, s.dim)
    vit = VisionTransformer(size, channels, s.patch, s.dim, s.depth, s.heads, class_token=s.pool == "class")
    return vit if s.pool == "none" else PooledTransformer(vit, s.dim, s.projector, s.dim)


def make_predictor(grid: tuple[int, int] | None, dim: int, actions: int, s: PredictorSettings) -> nn.Module:
    """(B,T,N,D) and actions (B,T,A) -> (B,T,N,D)."""
    if s.kind == "tokens":
        conditions = {"action": actions} if actions else {}
        return FrameCausalPredictor(grid, dim, s.dim, s.depth, s.heads, conditions, s.tile_actions)
    if s.kind == "conditional":
        sizes = (s.dim, s.depth, s.heads, s.head_width, s.mlp)
        return ConditionalPredictor(dim, *sizes, s.history, actions, s.projector, s.dropout)
    if s.kind == "recurrent":
        return RecurrentPredictor(dim, actions, s.dim)
    if s.kind == "perceptron":
        return PerceptronPredictor(dim, actions, s.history, s.dim, s.depth)
    return LinearPredictor(dim, actions)


def _windows(x: Tensor, size: int) -> Tensor:
    """(B,T,...) -> (B,T-size+1,size,...): every run of ``size`` entries, as a view."""
    return x.unfold(1, size, 1).movedim(-1, 2)


def _last(x: Tensor, size: int, fill: float) -> Tensor:
    """(B,T,...) -> (B,T,size,...): the last ``size`` entries at every t, with ``fill`` before the clip."""
    return _windows(torch.cat([x.new_full((len(x), size - 1, *x.shape[2:]), fill), x], 1), size)
