"""ImageDataModule: single pictures out of shards, cropped and mirrored at random on the device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from datamodules.episodes import EpisodeDataModule
from datamodules.experience import ExperienceError


class ImageDataModule(EpisodeDataModule):
    """Pictures for models that look at one at a time, in the data contract's form with T = 1.

    They come from any shards with pictures: recorded games and converted videos, every frame of which is a sample, and converted
    folders of images. While training, ``frames`` is cropped and mirrored at random; validation and test see pictures as they are.

    Args:
        root: folder that ``lit-wm record`` or ``lit-wm convert`` wrote.
        batch_size: pictures of a batch on each rank.
        crop_scale: share of the picture's area that a crop covers, drawn uniformly between the two (I-JEPA .3 to 1); (1, 1) leaves
            pictures whole.
        crop_aspect: width over height of a crop, drawn uniformly on a logarithmic scale.
        flip: probability that a picture is mirrored from left to right (I-JEPA 0). Mirroring exchanges right and left, also of what
            a probe is to find.
        num_workers, seed, shuffle_buffer, without, max_corrupt, epoch_batches: as for :class:`EpisodeDataModule`.

    Raises:
        ExperienceError: the folder is missing or broken, or an argument cannot work.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
        shuffle_buffer: int = 2048,
        without: list[str] | None = None,
        max_corrupt: float = 0.01,
        epoch_batches: int | None = None,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            clip_length=1,
            num_workers=num_workers,
            seed=seed,
            shuffle_buffer=shuffle_buffer,
            without=without,
            max_corrupt=max_corrupt,
            epoch_batches=epoch_batches,
        )
        if "frames" not in self.spec["observations"]:
            raise ExperienceError(f"{root} holds no pictures 'frames'")
        for name, (low, high) in (("crop_scale", crop_scale), ("crop_aspect", crop_aspect)):
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                raise ExperienceError(
                    f"{name} is {low} to {high}: it must rise, above 0" + " and up to 1" * (name == "crop_scale")
                )
        if not 0 <= flip <= 1:
            raise ExperienceError(f"flip is {flip}, it must be in [0, 1]")
        self.crop_scale, self.crop_aspect, self.flip = crop_scale, crop_aspect, flip

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """On the device, and in training alone. What is drawn depends on the seed, the rank and the number of the batch: a resumed run
        draws what the uninterrupted one would."""
        if self.trainer is None or self.trainer.state.stage != RunningStage.TRAINING:
            return batch
        frames, number = batch["frames"], self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        words = np.random.SeedSequence([self._train["seed"], self.trainer.global_rank, number])
        generator = torch.Generator().manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
        drawn = random_crops(frames.flatten(0, 1), self.crop_scale, self.crop_aspect, self.flip, generator)
        return batch | {"frames": drawn.view_as(frames)}


def random_crops(
    x_nchw: Tensor,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    flip: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random part of each picture, stretched to its size, bilinearly; some of them mirrored.

    Args:
        x_nchw: (N,C,H,W) uint8.
        scale: share of the area, drawn uniformly.
        aspect: width over height, drawn uniformly on a logarithmic scale, and then as far from 1 as the area leaves room for.
        flip: probability of mirroring.
        generator: source of randomness, on the CPU.

    Returns:
        (N,C,H,W) uint8.
    """
    n = len(x_nchw)
    u_n5 = torch.rand(n, 5, generator=generator).to(x_nchw.device)
    area = scale[0] + (scale[1] - scale[0]) * u_n5[:, 0]
    ratio = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * u_n5[:, 1])
    ratio = torch.minimum(torch.maximum(ratio, area), 1 / area)  # so that neither side is longer than the picture's
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    x, y = ((1 - side) * (2 * u - 1) for side, u in ((width, u_n5[:, 2]), (height, u_n5[:, 3])))  # centres, in [-1, 1]
    width = torch.where(u_n5[:, 4] < flip, -width, width)
    theta = torch.zeros(n, 2, 3, device=x_nchw.device)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = width, x, height, y
    grid = F.affine_grid(theta, list(x_nchw.shape), align_corners=False)
    drawn = F.grid_sample(x_nchw.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return drawn.round().clamp(0, 255).to(torch.uint8)
