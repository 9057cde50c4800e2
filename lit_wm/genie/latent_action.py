"""The latent action model: what happened between two frames, as one of K codes, learnt without labels (Genie, 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.distributed import global_mean
from lit_wm.errors import UserError, check_choice, refuse_given
from lit_wm.genie.codebooks import Quantizer, make_quantizer
from lit_wm.genie.gaussian_bottleneck import GaussianBottleneck
from lit_wm.genie.pixel_loss import pixel_loss
from lit_wm.genie.st_transformer import STTransformer
from lit_wm.genie.stem import STEMS, make_stem
from lit_wm.genie.tokenizer import causal_windows
from lit_wm.genie.vector_quantizer import Quantized
from lit_wm.nn.patches import check_patch, unpatchify

POOLS = ("token", "mean", "max")
INPUTS = ("pixels", "tokens")
OF_CODES = ("codes", "codebooks", "levels", "beta", "decay", "kmeans_start", "restart_below")
OF_CODES += ("continuous_warmup", "warmup_noise")
OF_PIXELS = ("downsample", "shift", "stem")


@dataclass(frozen=True)
class LatentActionSettings:
    """Sizes and switches of the latent action model.

    Sizes default to the paper's CoinRun case study (appendix F) with the K = 8 of its main experiments. The switches
    from ``difference_input`` on default to the paper (off); on a small world and a small budget they decide whether
    the codes find the actions at all, see the README of this folder.

    Args:
        input: ``pixels``, or for the paper's comparison (table 2) ``tokens``: both encoder and decoder see the tokenizer's code
            vectors instead of pixels, on its grid; what is predicted are pixels all the same.
        patch: pixels along the side of a patch.
        dim: width of the transformers.
        heads: attention heads.
        ffn: hidden width of the feed-forward layers; the paper is silent, 4 x ``dim`` is usual.
        encoder_blocks: ST blocks that see x_1:t+1.
        decoder_blocks: ST blocks that see x_1:t and the codes; thrown away after training.
        codes: K.
        latent_dim: width of a code.
        codebook: ``gradient``, ``ema`` or ``fsq``; this, ``codebooks`` and ``levels`` as for the tokenizer. Or ``vae``: no
            codes but vectors, see :class:`~lit_wm.genie.gaussian_bottleneck.GaussianBottleneck`.
        kl: weight of the divergence of ``vae``; AdaWorld's is 2e-4.
        codebooks: K as a product of so many codebooks.
        levels: of ``fsq``.
        beta: weight of the commitment loss; not stated in the paper.
        decay: of the running statistics of the codebook.
        kmeans_start: not in the paper.
        restart_below: not in the paper.
        pool: how a frame's tokens become one action: a learned ``token`` that attends to the patches, their ``mean``, or of
            each number the ``max``, with which a movement in one patch is not drowned by the many that stand still. Open in
            the paper; ``token`` is what its public re-implementations do.
        stem: how encoder and decoder read pixels, ``linear`` patches or a ``convolution``, which makes out sooner where a thing
            moves to: see :class:`~lit_wm.genie.stem.ConvolutionStem`. Not in the paper (linear).
        downsample: the model sees and predicts frames averaged over squares of this many pixels (``patch`` and ``picture``
            then count the averages). A small movement is then a smooth change of a few numbers, which is far easier to
            learn than a jump from pixel to pixel, and costs less. Not in the paper (1).
        difference_input: the encoder sees x_t - x_{t-1} beside x_t. Not in the paper.
        decoder_difference: the decoder too, which lets it know what moves by itself, so that codes need not tell it. Not in
            the paper.
        encoder_positions: give the encoder the code of place and time. Without it all that stands still looks alike, and what
            moves stands out from the first update on. In the paper's transformers yes (True).
        shift: the encoder's clip (all its frames alike, not the decoder's) is moved by up to this many pixels in each
            direction in training, so that codes cannot hide where in a patch a thing is. Not in the paper (0).
        residual_output: the decoder predicts x_t plus a change that starts at zero. In the paper it predicts the frame,
            here through a sigmoid.
        changed_weight: extra weight of pixels that changed; 0 is the plain mean squared error of the paper.
        burn_in: transitions at the start of a clip whose frames teach nothing. How things move by themselves cannot be seen in
            a single frame, so the first code of a clip has good reason to tell it, and tells it everywhere, since the encoder
            knows no place in the clip. Not in the paper (0).
        continuous_warmup: updates during which vectors are not quantised. Not in the paper (0).
        warmup_noise: standard deviation of the noise that meanwhile lies on the vectors, in units of their own root mean
            square. What the decoder needs must then stand out of the noise, and what it can tell by itself (what moves on
            its own course) drowns: codes that are fitted to such vectors do not carry it. Not in the paper (0).
    """

    input: str = "pixels"
    patch: int = 16
    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    encoder_blocks: int = 8
    decoder_blocks: int = 8
    codes: int = 8
    latent_dim: int = 32
    codebook: str = "gradient"
    kl: float = 0.0
    codebooks: int = 1
    levels: tuple[int, ...] = ()
    beta: float = 0.25
    decay: float = 0.99
    kmeans_start: bool = False
    restart_below: float = 0.0
    pool: str = "token"
    stem: str = "linear"
    downsample: int = 1
    difference_input: bool = False
    decoder_difference: bool = False
    encoder_positions: bool = True
    shift: int = 0
    residual_output: bool = False
    changed_weight: float = 0.0
    burn_in: int = 0
    continuous_warmup: int = 0
    warmup_noise: float = 0.0


class LatentActions(NamedTuple):
    """What training the latent action model on a clip gives."""

    vectors: Tensor  # (B,T-1,latent_dim) a~, straight-through; entry t is what happened between frames t and t+1
    codes: Tensor  # (B,T-1) int64; with ``vae`` (B,T-1,latent_dim) float
    frames: Tensor | None  # (B,T-1,C,H,W) prediction of (coarse) frames 1..T-1; None when it was not asked for
    pixel_loss: Tensor | None  # scalar; of the frames after ``burn_in``
    bottleneck_loss: Tensor  # scalar: of the codebook, or the divergence of ``vae``


def make_bottleneck(s: LatentActionSettings) -> Quantizer | GaussianBottleneck:
    """What the change between two frames must pass through: codes, or for comparison vectors (``codebook: vae``).

    Raises:
        UserError: settings that contradict each other.
    """
    if s.codebook != "vae":
        refuse_given("latent action model", s, ("kl",), "codebook 'vae' alone reads it")
        return make_quantizer(s)
    refuse_given("latent action model", s, OF_CODES, "codebook 'vae' has no codes")
    return GaussianBottleneck(s.kl)


class LatentActionModel(nn.Module):
    """Encoder: frames x_1:t+1 -> code a~_t. Decoder: frames x_1:t and codes a~_1:t -> pixels x_t+1.

    The decoder is the only reason for the codes to carry the change: they are all it knows of the frame it predicts.

    Args:
        picture: (C,H,W); H and W divisible by ``downsample`` times the patch.
        frames: the longest clip W.
        settings: sizes and switches.
        token_dim: width of the tokenizer's code vectors, with ``input: tokens``.

    Raises:
        UserError: an unknown way of pooling or of seeing, or settings that contradict each other or leave nothing to see.
    """

    def __init__(
        self, picture: tuple[int, int, int], frames: int, settings: LatentActionSettings, token_dim: int | None = None
    ) -> None:
        super().__init__()
        s = self.settings = settings
        check_choice("pool of the latent action model", s.pool, POOLS)
        check_choice("input of the latent action model", s.input, INPUTS)
        check_choice("stem of the latent action model", s.stem, STEMS)
        if s.input == "tokens":
            refuse_given("latent action model", s, OF_PIXELS, "it sees tokens")
        if s.continuous_warmup == 0:
            refuse_given("latent action model", s, ("warmup_noise",), "it has no continuous_warmup")
        if s.pool == "token" and s.encoder_blocks == 0:
            raise UserError(
                "encoder_blocks of the latent action model is 0, but pool 'token' sees frames through them alone"
            )
        if s.burn_in > frames - 2:
            raise UserError(
                f"burn_in {s.burn_in} of the latent action model leaves nothing of clips of {frames} frames"
            )
        check_patch(picture[1:], s.downsample)
        picture = (picture[0], picture[1] // s.downsample, picture[2] // s.downsample)
        self.picture, self.frames = picture, frames
        grid = check_patch(picture[1:], s.patch)
        self.patch_in = self._entrance(2 if s.difference_input else 1, token_dim)
        self.action_token = nn.Parameter(torch.randn(s.dim) * 0.02) if s.pool == "token" else None
        extra = 0 if self.action_token is None else 1
        self.encoder = STTransformer(
            grid, frames, s.dim, s.heads, s.ffn, s.encoder_blocks, extra, positions=s.encoder_positions
        )
        self.to_latent = nn.Linear(s.dim, s.latent_dim * (1 if self.discrete else 2))
        self.bottleneck = make_bottleneck(s)
        self.decoder_in = self._entrance(2 if s.decoder_difference else 1, token_dim)
        self.action_in = nn.Linear(s.latent_dim, s.dim)
        self.decoder = STTransformer(grid, frames, s.dim, s.heads, s.ffn, s.decoder_blocks)
        self.patch_out = nn.Linear(s.dim, s.patch * s.patch * picture[0])
        if s.residual_output:
            nn.init.zeros_(self.patch_out.weight)
            nn.init.zeros_(self.patch_out.bias)

    def _entrance(self, times: int, token_dim: int | None) -> nn.Module:
        """From what is seen, ``times`` its channels (with its difference), to the width of the transformers."""
        s = self.settings
        if s.input == "tokens":
            return nn.Linear(times * token_dim, s.dim)
        return make_stem(s.stem, times * self.picture[0], s.patch, s.dim)

    @property
    def discrete(self) -> bool:
        """Actions are codes, not vectors."""
        return self.settings.codebook != "vae"

    def coarse(self, x_btchw: Tensor) -> Tensor:
        """Frames as this model sees and predicts them (``downsample``)."""
        by = self.settings.downsample
        return x_btchw if by == 1 else F.avg_pool2d(x_btchw.flatten(0, 1), by).unflatten(0, x_btchw.shape[:2])

    def look(self, x_btchw: Tensor, z_btnc: Tensor | None = None) -> Tensor:
        """What encoder and decoder see of a clip: (B,T,C,H,W) coarse frames, or with ``input: tokens`` (B,T,N,C) ``z_btnc``."""
        return self.coarse(x_btchw) if self.settings.input == "pixels" else z_btnc

    def latents(self, seen: Tensor) -> Tensor:
        """A clip as from :meth:`look`, T <= W -> (B,T-1,to_latent) before the bottleneck; entry t sees frames <= t+1."""
        h_btnd = self.patch_in(self._and_difference(seen) if self.settings.difference_input else seen)
        if self.action_token is not None:
            token = self.action_token.expand(*h_btnd.shape[:2], 1, -1)
            pooled_btd = self.encoder(torch.cat([token, h_btnd], 2))[:, :, 0]
        else:
            h_btnd = self.encoder(h_btnd)
            pooled_btd = h_btnd.mean(2) if self.settings.pool == "mean" else h_btnd.amax(2)
        return self.to_latent(pooled_btd)[:, 1:]

    def encode(self, x_btchw: Tensor, z_btnc: Tensor | None = None) -> Tensor:
        """(B,T,C,H,W) in [0, 1], any T -> (B,T-1) int64 codes, or (B,T-1,latent_dim) vectors with ``vae``.

        Learns nothing. Long clips as the tokenizer's; ``z_btnc`` as for :meth:`look`.
        """
        seen = self.look(x_btchw, z_btnc)
        parts = [
            self.bottleneck.encode(self.latents(seen[:, start:stop]))[:, max(keep - 1 - start, 0) :]
            for start, keep, stop in causal_windows(seen.shape[1], self.frames)
        ]
        return torch.cat(parts, 1)

    def decode(self, x_btchw: Tensor, actions_bta: Tensor, z_btnc: Tensor | None = None) -> Tensor:
        """The frames that follow.

        Args:
            x_btchw: (B,T,C,H,W) frames as from :meth:`coarse`.
            actions_bta: (B,T,latent_dim) what is done after each.
            z_btnc: as for :meth:`look`.

        Returns:
            (B,T,C,H,W), coarse likewise.
        """
        s = self.settings
        seen = x_btchw if s.input == "pixels" else z_btnc
        h_btnd = self.decoder_in(self._and_difference(seen) if s.decoder_difference else seen)
        h_btnd = h_btnd + self.action_in(actions_bta)[:, :, None]
        y = unpatchify(self.patch_out(self.decoder(h_btnd)), s.patch, self.picture[0], self.picture[1:])
        return x_btchw + y if s.residual_output else y.sigmoid()

    def forward(
        self,
        x_btchw: Tensor,
        z_btnc: Tensor | None = None,
        continuous: bool = False,
        predict_pixels: bool = True,
    ) -> LatentActions:
        """Infer a clip's actions and, from them, its frames.

        Args:
            x_btchw: (B,T,C,H,W) in [0, 1], burn_in + 2 <= T <= W.
            z_btnc: as for :meth:`look`.
            continuous: skip quantisation (``continuous_warmup``).
            predict_pixels: run the decoder; without it only another model's loss can teach the codes.
        """
        s = self.settings
        shifted = random_shift(x_btchw, s.shift) if self.training and s.shift else x_btchw
        latents = self.latents(self.look(shifted, z_btnc))
        passed = self._warm_up(latents) if continuous else self.bottleneck(latents)
        frames = error = None
        if predict_pixels:
            x_btchw = self.coarse(x_btchw)
            z_btnc = None if z_btnc is None else z_btnc[:, :-1]
            frames = self.decode(x_btchw[:, :-1], passed.vectors, z_btnc)
            n = s.burn_in
            error = pixel_loss(frames[:, n:], x_btchw[:, n + 1 :], x_btchw[:, n:-1], s.changed_weight)
        return LatentActions(passed.vectors, passed.codes, frames, error, passed.loss)

    def _and_difference(self, seen: Tensor) -> Tensor:
        """What is seen of each frame, and as so many channels more how that differs from the frame before (0 for the first)."""
        change = torch.cat([torch.zeros_like(seen[:, :1]), seen.diff(dim=1)], 1)
        return torch.cat([seen, change], 2 if self.settings.input == "pixels" else -1)

    def _warm_up(self, latents: Tensor) -> Quantized:
        passed = self.bottleneck.let_through(latents)
        if not (self.training and self.settings.warmup_noise):
            return passed
        scale = global_mean(latents.detach().square().mean()).sqrt() * self.settings.warmup_noise
        return passed._replace(vectors=passed.vectors + scale * torch.randn_like(latents))


def random_shift(x_btchw: Tensor, most: int) -> Tensor:
    """Each clip moved by its own random (rows, columns) of at most ``most`` pixels; its edge pixels fill the gap."""
    b, (h, w) = len(x_btchw), x_btchw.shape[-2:]
    dy_b, dx_b = torch.randint(-most, most + 1, (2, b), device=x_btchw.device)
    rows_bh = (torch.arange(h, device=x_btchw.device) + dy_b[:, None]).clamp(0, h - 1)
    columns_bw = (torch.arange(w, device=x_btchw.device) + dx_b[:, None]).clamp(0, w - 1)
    clip_b = torch.arange(b, device=x_btchw.device)[:, None, None]
    moved_bhwtc = x_btchw.permute(0, 3, 4, 1, 2)[clip_b, rows_bh[:, :, None], columns_bw[:, None]]
    return moved_bhwtc.permute(0, 3, 4, 1, 2)
