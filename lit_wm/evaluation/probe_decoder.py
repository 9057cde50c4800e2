"""One decoder for every route: what a picture-free model knows, drawn by the same hand.

Routes differ in their own decoders (and JEPA has none), so their pictures compare decoders as much as knowledge. This one
has the same architecture, steps and seed for all, is trained on **detached** closed-loop features of training clips, and
is then shown imagined features. Its k=0 row is its ceiling: what it could draw had the model imagined perfectly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.evaluation.frames import unit
from lit_wm.evaluation.projection import fit_projection

DIMS = 256  # projected features the decoder reads, so that it is equally large for every route
PCA_ROWS = 1024


class ProbeDecoder(nn.Module):
    """Projected features -> picture: a hidden layer, a coarse grid, and upsampling convolutions, around the mean picture.

    Args:
        shape: (C,H,W) of the pictures.
        dims: width of the input.
        width: channels of the coarse grid.
    """

    def __init__(self, shape: tuple[int, int, int], dims: int = DIMS, width: int = 32) -> None:
        super().__init__()
        self.shape = shape
        channels, height, wide = shape
        self.grid = (width, -(-height // 8), -(-wide // 8))  # an eighth of the picture, rounded up and cropped later
        self.hidden = nn.Sequential(
            nn.Linear(dims, 512), nn.SiLU(), nn.Linear(512, self.grid[0] * self.grid[1] * self.grid[2])
        )
        self.up = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width * 4, 3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(width, channels * 16, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.register_buffer("mean_chw", torch.zeros(shape))

    def forward(self, x_np: Tensor) -> Tensor:
        """(n,dims) -> (n,C,H,W), around [0, 1] but not clamped (clamping would stop the gradient)."""
        _, height, wide = self.shape
        picture = self.up(self.hidden(x_np).unflatten(1, self.grid))
        return self.mean_chw + picture[..., :height, :wide]


class FittedDecoder:
    """A projection and the decoder trained on it: features in, pictures out."""

    def __init__(self, features_nd: Tensor, frames_nchw: Tensor, steps: int, seed: int, batch_size: int = 64) -> None:
        """Train on closed-loop features and their own frames.

        Args:
            features_nd: (n,D) detached features of training clips.
            frames_nchw: (n,C,H,W) uint8, the frame of each feature.
            steps: AdamW steps of ``batch_size`` frames; one cycle up to 3e-3.
            seed: of the weights and of the order of the frames.
        """
        rows = torch.linspace(0, len(features_nd) - 1, min(PCA_ROWS, len(features_nd))).long()
        self.projection = fit_projection(features_nd[rows], DIMS)
        inputs = self.projection(features_nd).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = ProbeDecoder(tuple(frames_nchw.shape[1:]))
        self.decoder.mean_chw.copy_(frames_nchw[rows].float().mean(0) / 255)
        optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=3e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=max(steps, 2))
        order = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            pick = torch.randint(len(inputs), (batch_size,), generator=order)
            loss = F.mse_loss(self.decoder(inputs[pick]), unit(frames_nchw[pick]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def __call__(self, features_nd: Tensor) -> Tensor:
        """(n,D) features -> (n,C,H,W) in [0, 1]."""
        inputs = self.projection(features_nd).float()
        return torch.cat([self.decoder(x).clamp(0, 1) for x in inputs.split(256)])
