"""Hidden parts of a picture or clip, predicted from what is left of it: I-JEPA and V-JEPA."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch, State
from lit_wm.errors import UserError
from lit_wm.jepa.encoders import standardised
from lit_wm.jepa.masked_predictor import MaskedPredictor
from lit_wm.jepa.masks import Mask, MaskSettings, draw_mask
from lit_wm.jepa.objective import DISTANCES
from lit_wm.jepa.predictor import normalise
from lit_wm.jepa.regularizers import covariance, random_directions, sigreg, variance_hinge
from lit_wm.jepa.settings import (
    EncoderSettings,
    LossSettings,
    PredictorSettings,
    RegularizerSettings,
    TargetSettings,
)
from lit_wm.jepa.task import Task
from lit_wm.jepa.vit import VisionTransformer, take
from lit_wm.nn.patches import patchify

IMAGE = (MaskSettings(),)
SHORT = MaskSettings(targets=8, target_scale=(0.15, 0.15), context_scale=(1.0, 1.0), together=True, least_context=1)
LONG = MaskSettings(targets=2, target_scale=(0.7, 0.7), context_scale=(1.0, 1.0), together=True, least_context=1)
VIDEO = (SHORT, LONG)  # V-JEPA's multi-mask


class MaskedTask(Task):
    """The encoder sees the context, the predictor is asked for what the target encoder, which sees all, has at the hidden places.

    Args:
        spec: of the data.
        video: clips of ``encoder.frames`` (V-JEPA) instead of single pictures (I-JEPA).
        encoder, predictor, target, regularizers, loss: the settings, which fit each other.
        masks: one for each mask that is drawn for every sample; None: those of the paper.

    Raises:
        ValueError: sizes that do not fit the picture or each other.
    """

    imagines = False

    def __init__(
        self,
        spec: ExperienceSpec,
        video: bool,
        encoder: EncoderSettings,
        predictor: PredictorSettings,
        target: TargetSettings,
        regularizers: RegularizerSettings,
        loss: LossSettings,
        masks: Sequence[MaskSettings] | None,
    ) -> None:
        super().__init__()
        self.video, self.settings, self.target, self.regularizers = video, encoder, target, regularizers
        self.distance = DISTANCES[loss.distance]
        self.masks = tuple(masks or (VIDEO if video else IMAGE))
        height, width, channels = spec.observations["frames"]
        clips = {"frames": encoder.frames, "tubelet": encoder.tubelet} if video else {}
        self.encoder = VisionTransformer(
            (height, width), channels, encoder.patch, encoder.dim, encoder.depth, encoder.heads, **clips
        )
        self.grid = (self.encoder.times, *self.encoder.grid)
        pixels = channels * encoder.patch**2 * (encoder.tubelet if video else 1)
        out = pixels if target.kind == "pixels" else encoder.dim
        sizes = (predictor.dim, predictor.depth, predictor.heads)
        self.predictor = MaskedPredictor(self.grid, not video, encoder.dim, *sizes, kinds=len(self.masks), out=out)
        if target.kind == "ema":
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, update: int) -> dict[str, Tensor]:
        """The mean over masks of the mean distance at the hidden places; ``update`` seeds SIGReg's directions."""
        x = self.inputs(batch["frames"])
        masks = [draw_mask(settings, len(x), self.grid) for settings in self.masks]
        return self.losses_of(x, [Mask(*(index.to(x.device) for index in mask)) for mask in masks], update)

    def inputs(self, frames: Tensor) -> Tensor:
        """(B,T,C,H,W) uint8 -> (B*T,C,H,W) pictures, or (B*n,C,T',H,W) clips of ``frames``, cut one after the other.

        Raises:
            UserError: clips that are too short.
        """
        x = standardised(frames, next(self.parameters()).dtype)
        if not self.video:
            return x.flatten(0, 1)
        length, found = self.settings.frames, frames.shape[1]
        if found < length:
            raise UserError(f"clip_length is {found}, but the jepa model's encoder takes clips of {length} frames")
        clips = [x[:, i : i + length] for i in range(0, found - length + 1, length)]
        return torch.cat(clips).transpose(1, 2)

    def losses_of(self, x: Tensor, masks: Sequence[Mask], update: int = 0) -> dict[str, Tensor]:
        """:meth:`losses` of pictures or clips, for masks that are given."""
        h_bnd, errors, squares, contexts = self.hidden(x), [], [], []
        for kind, mask in enumerate(masks):
            z_bkd = self.encoder(x, mask.context_bk)
            predicted_bmld = self.predictor(z_bkd, mask, kind)
            target_bmld = take(h_bnd, mask.targets_bml.flatten(1)).view_as(predicted_bmld)
            errors.append(self.distance(predicted_bmld, target_bmld).mean())
            squares.append((predicted_bmld - target_bmld).detach().square().mean())
            contexts.append(z_bkd.mean(1))
        losses = {"prediction": torch.stack(errors).mean()}
        losses |= self._regularizer_losses(torch.cat(contexts), update)
        # at one place over the samples: 0 when all pictures give the same tokens, however much these tell places apart
        variance = h_bnd.detach().var(0, unbiased=False).mean()
        nmse = torch.stack(squares).mean() / variance.clamp_min(1e-12)
        return losses | {"_target_std": variance.sqrt(), "_nmse": nmse}

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean over all hidden places of the first mask, predicted and true."""
        x = self.inputs(batch["frames"])
        mask = Mask(*(index.to(x.device) for index in draw_mask(self.masks[0], len(x), self.grid)))
        predicted_bmld = self.predictor(self.encoder(x, mask.context_bk), mask)
        target_bkd = take(self.hidden(x), mask.targets_bml.flatten(1))
        return predicted_bmld.mean((1, 2)), target_bkd.mean(1)

    def hidden(self, x: Tensor) -> Tensor:
        """(B,N,D) what stands at every place: representations, or the pixels of the patch."""
        if self.target.kind == "pixels":
            return normalise(self._patches(x)) if self.target.normalise else self._patches(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.target.kind == "online"):
            h_bnd = self.teacher(x)
        return normalise(h_bnd) if self.target.normalise else h_bnd

    def _patches(self, x: Tensor) -> Tensor:
        """Pixels of patches or tubelets, numbered as the tokens."""
        if not self.video:
            return patchify(x, self.settings.patch)
        patches_btnd = patchify(x.transpose(1, 2), self.settings.patch)  # (B,T,N,D)
        b, t, n, d = patches_btnd.shape
        tubelet = self.settings.tubelet
        return patches_btnd.view(b, t // tubelet, tubelet, n, d).transpose(2, 3).reshape(b, -1, tubelet * d)

    def _regularizer_losses(self, z_bd: Tensor, update: int) -> dict[str, Tensor]:
        """VICReg and SIGReg of the mean context token of each sample."""
        r, found = self.regularizers, {}
        if r.variance:
            found["variance"] = r.variance * variance_hinge(z_bd)
        if r.covariance:
            found["covariance"] = r.covariance * covariance(z_bd)
        if r.sigreg:
            found["sigreg"] = r.sigreg * sigreg(z_bd, random_directions(z_bd.shape[-1], r.slices, update, z_bd))
        return found

    # ---- the contract ----------------------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> State:
        """``tokens`` (B,T,N,D) of the target encoder: of each picture by itself, or of the clip that ends with frame t.

        Before the start of an episode a clip is filled up with its first frame; N are then the places of the last tubelet.
        """
        frames = batch["frames"]
        b, t = frames.shape[:2]
        if not self.video:
            return {"tokens": self.teacher(self.inputs(frames)).unflatten(0, (b, t))}
        length = self.settings.frames
        now = torch.arange(t, device=frames.device)
        start_bt = torch.where(batch["is_first"], now, 0).cummax(1).values
        index_btl = torch.maximum(
            now[:, None] - torch.arange(length - 1, -1, -1, device=now.device), start_bt[..., None]
        )
        clips = frames[torch.arange(b, device=now.device)[:, None, None], index_btl.clamp_min(0)].flatten(0, 1)
        tokens = torch.cat([self.teacher(self.inputs(part)) for part in clips.split(64)])
        return {"tokens": tokens.unflatten(1, (self.encoder.times, -1))[:, -1].unflatten(0, (b, t))}

    def feature_map(self, state: State) -> Tensor:
        """(..., N, D) tokens."""
        return state["tokens"]

    def features(self, state: State) -> Tensor:
        """(..., D): tokens, averaged over places (as I-JEPA is evaluated)."""
        return state["tokens"].mean(-2)

    def targets(self, batch: Batch) -> Tensor:
        """:meth:`features` of every frame, which are already the target encoder's."""
        return self.features(self.observe(batch))
