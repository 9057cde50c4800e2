"""The video tokenizer: ST-ViViT with a VQ codebook, causal in time (Genie, section 2.1 and figure 5), and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_wm.distributed import global_mean
from lit_wm.errors import check_choice
from lit_wm.genie.codebooks import make_quantizer
from lit_wm.genie.pixel_loss import pixel_loss
from lit_wm.genie.st_transformer import Past, STTransformer
from lit_wm.nn.patches import check_patch, patchify, unpatchify

KINDS = {"st_vivit": "factored", "c_vivit": "full", "vit": "space"}  # -> attention of its transformers


@dataclass(frozen=True)
class TokenizerSettings:
    """Sizes of the tokenizer; the defaults are the paper's CoinRun case study (appendix F) unless said otherwise.

    Args:
        kind: ``st_vivit``; for the paper's comparison (table 3) ``c_vivit``, full attention over space and time, and ``vit``,
            each frame by itself.
        patch: pixels along the side of a patch; one patch is one token.
        dim: width of the transformers.
        heads: attention heads.
        ffn: hidden width of the feed-forward layers; the paper is silent, 4 x ``dim`` is usual.
        encoder_blocks: ST blocks before the codebook.
        decoder_blocks: ST blocks after it.
        codes: size of the vocabulary.
        latent_dim: width of a code.
        codebook: ``gradient`` or ``ema``, see :class:`~lit_wm.genie.vector_quantizer.VectorQuantizer`; also for the rest. Or
            ``fsq``: no codebook but a grid, see :class:`~lit_wm.genie.finite_scalar.FiniteScalarQuantizer`.
        codebooks: make a code out of so many smaller ones, see :class:`~lit_wm.genie.product_quantizer.ProductQuantizer`.
        levels: of the grid of ``fsq``; ``codes`` is their product, ``latent_dim`` their number.
        beta: weight of the commitment loss; not stated in the paper.
        decay: of the running statistics of the codebook.
        kmeans_start: not in the paper.
        restart_below: not in the paper.
        encoder_positions: give the encoder the code of place and time. Without it tokens stand for what is seen, not for where,
            which short trainings need: few codes are then enough, and what stands still keeps its token.
        foreground_weight: how much more a pixel counts that differs from the mean picture of the batch; the paper's 0
            lets small things drown in the background for a long time.
        continuous_warmup: updates during which latents are not quantised. Not in the paper (0).
    """

    kind: str = "st_vivit"
    patch: int = 4
    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    encoder_blocks: int = 8
    decoder_blocks: int = 8
    codes: int = 1024
    latent_dim: int = 32
    codebook: str = "gradient"
    codebooks: int = 1
    levels: tuple[int, ...] = ()
    beta: float = 0.25
    decay: float = 0.99
    kmeans_start: bool = False
    restart_below: float = 0.0
    encoder_positions: bool = True
    foreground_weight: float = 0.0
    continuous_warmup: int = 0


class Tokenized(NamedTuple):
    """What training the tokenizer on a clip gives."""

    tokens: Tensor  # (B,T,N) int64
    frames: Tensor  # (B,T,C,H,W) reconstruction in [0, 1]
    pixel_loss: Tensor  # scalar, mean squared error (weighted by ``foreground_weight``)
    vq_loss: Tensor  # scalar


class VideoTokenizer(nn.Module):
    """Frames to tokens and back. The token at t sees frames <= t; the picture at t sees tokens <= t (``vit``: t alone).

    Args:
        picture: (C,H,W); H and W divisible by the patch.
        frames: the longest clip W.
        settings: sizes.
    """

    def __init__(self, picture: tuple[int, int, int], frames: int, settings: TokenizerSettings) -> None:
        super().__init__()
        s = self.settings = settings
        check_choice("tokenizer.kind", s.kind, tuple(KINDS))
        attention = KINDS[s.kind]
        self.picture, self.frames = picture, frames
        self.grid = check_patch(picture[1:], s.patch)
        self.tokens = self.grid[0] * self.grid[1]  # N
        pixels = s.patch * s.patch * picture[0]
        self.patch_in = nn.Linear(pixels, s.dim)
        self.encoder = STTransformer(
            self.grid,
            frames,
            s.dim,
            s.heads,
            s.ffn,
            s.encoder_blocks,
            positions=s.encoder_positions,
            attention=attention,
        )
        self.to_latent = nn.Linear(s.dim, s.latent_dim)
        self.quantizer = make_quantizer(s)
        self.from_latent = nn.Linear(s.latent_dim, s.dim)
        self.decoder = STTransformer(self.grid, frames, s.dim, s.heads, s.ffn, s.decoder_blocks, attention=attention)
        self.patch_out = nn.Linear(s.dim, pixels)

    def latents(self, x_btchw: Tensor) -> Tensor:
        """(B,T,C,H,W) in [0, 1] -> (B,T,N,latent_dim) before quantisation."""
        return self.to_latent(self.encoder(self.patch_in(patchify(x_btchw, self.settings.patch))))

    def encode(self, x_btchw: Tensor) -> Tensor:
        """(B,T,C,H,W) in [0, 1], any T -> (B,T,N) int64 tokens. Learns nothing.

        Clips longer than W go through overlapping windows (:func:`causal_windows`), so every frame has a past of at
        least W/2 - 1 frames, and still never a future.
        """
        parts = [
            self.quantizer.encode(self.latents(x_btchw[:, start:stop]))[:, keep - start :]
            for start, keep, stop in causal_windows(x_btchw.shape[1], self.frames)
        ]
        return torch.cat(parts, 1)

    def decode(self, tokens_btn: Tensor) -> Tensor:
        """(B,T,N) tokens of a clip from its beginning, T <= W -> (B,T,C,H,W) in [0, 1]."""
        return self.decode_vectors(self.quantizer.embed(tokens_btn))

    def decode_on(self, tokens_btn: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Go on from what an earlier call returned: equal to :meth:`decode` on all frames together."""
        h_btnd, past = self.decoder.step(self.from_latent(self.quantizer.embed(tokens_btn)), past)
        return self._pixels(h_btnd), past

    def decode_vectors(self, e_btnd: Tensor) -> Tensor:
        """(B,T,N,latent_dim) -> (B,T,C,H,W) in [0, 1]."""
        return self._pixels(self.decoder(self.from_latent(e_btnd)))

    def _pixels(self, h_btnd: Tensor) -> Tensor:
        y = self.patch_out(h_btnd).sigmoid()
        return unpatchify(y, self.settings.patch, self.picture[0], self.picture[1:])

    def forward(self, x_btchw: Tensor, continuous: bool = False) -> Tokenized:
        """Tokenize and reconstruct a clip of (B,T,C,H,W) in [0, 1], T <= W, with the VQ-VAE losses.

        Args:
            x_btchw: the clip.
            continuous: skip quantisation (``continuous_warmup``).
        """
        z = self.latents(x_btchw)
        quantized = self.quantizer.let_through(z) if continuous else self.quantizer(z)
        frames = self.decode_vectors(quantized.vectors)
        background = x_btchw.mean((0, 1))
        if self.training:  # the same picture on all ranks; batches of validation need not be equally many
            background = global_mean(background)
        error = pixel_loss(frames, x_btchw, background, self.settings.foreground_weight)
        return Tokenized(quantized.codes, frames, error, quantized.loss)


def causal_windows(length: int, frames: int) -> list[tuple[int, int, int]]:
    """Windows of at most ``frames`` that cover ``length`` frames: (start, first frame to keep, stop) of each.

    After the first window each begins half a window later. Where they lie depends on nothing but ``frames``, so a
    longer clip never changes what was computed for its beginning.

    >>> causal_windows(10, 6)
    [(0, 0, 6), (3, 6, 9), (6, 9, 10)]
    """
    hop = max(frames // 2, 1)
    windows = [(0, 0, min(frames, length))]
    while windows[-1][2] < length:
        start, keep = windows[-1][0] + hop, windows[-1][2]
        windows.append((start, keep, min(start + frames, length)))
    return windows
