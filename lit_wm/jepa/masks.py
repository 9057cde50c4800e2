"""Which tokens are seen and which are to be predicted: the masks of I-JEPA (arXiv:2301.08243, section 3) and V-JEPA (arXiv:2404.08471).

A mask is drawn on the grid of patches and spans all times of a clip. Three things differ from the released code on purpose: every
place can be drawn, the last row and column too; a block's scale and aspect are independent; and what is dropped to make all samples
of a batch equally long is drawn at random, not the bottom right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_wm.errors import UserError, check_bounds, check_choice

KINDS = ("blocks", "random", "quadrants")
TRIES = 20  # of sizes, and of places for each


class Mask(NamedTuple):
    """Row-major token numbers, of equal count within a batch: what is seen (B,K), and M sets of targets (B,M,L)."""

    context_bk: Tensor
    targets_bml: Tensor


@dataclass(frozen=True)
class MaskSettings:
    """How one mask is drawn; the defaults are I-JEPA's multi-block.

    Args:
        kind: ``blocks``: the targets are rectangles; ``random``: single places; ``quadrants``: three quarters of the picture, the
            fourth is seen (I-JEPA's "rasterized").
        targets: number of blocks (I-JEPA 4; V-JEPA 8 short and 2 long ones), or with ``random`` of sets.
        target_scale: share of the picture that each block covers, drawn uniformly between the two, once per batch (I-JEPA .15 to .2).
            With ``random`` the share of places that are hidden.
        target_aspect: height over width of a block, likewise (.75 to 1.5).
        context_scale: share of the picture of the square in which the context lies (I-JEPA .85 to 1); what targets cover is cut
            out of it.
        together: the union of the targets is one set, predicted in one pass (V-JEPA); otherwise each block is a set of its own
            (I-JEPA).
        context_frames: only so many first frames (tubelets) are seen, and all of the others are targets too (V-JEPA's
            "causal multi-block"); needs ``together``. None: all.
        least_context: a sample that leaves fewer tokens to be seen is drawn anew (I-JEPA's ``min_keep``, 10).

    Raises:
        UserError: a value that cannot work.
    """

    kind: str = "blocks"
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    together: bool = False
    context_frames: int | None = None
    least_context: int = 10

    def __post_init__(self) -> None:
        check_choice("kind of the masks", self.kind, KINDS)
        numbers = {"targets": self.targets, "least_context": self.least_context, "context_frames": self.context_frames}
        check_bounds("masks", numbers, dict.fromkeys(numbers, 1))
        for name in ("target_scale", "target_aspect", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (high > 1 and name != "target_aspect"):
                raise UserError(
                    f"{name} of the masks is {low} to {high}, it must rise, above 0"
                    + " and up to 1" * ("scale" in name)
                )
        if self.context_frames is not None and not self.together:
            raise UserError("context_frames of the masks makes all later frames targets, which needs together: true")


def draw_mask(
    settings: MaskSettings, batch: int, grid: tuple[int, int, int], generator: torch.Generator | None = None
) -> Mask:
    """Draw one mask for every sample of a batch: sizes once, so that counts agree, places for each.

    Args:
        settings: what is drawn.
        batch: B.
        grid: (T,H,W) tokens; T = 1 for pictures.
        generator: source of randomness.

    Raises:
        UserError: the settings leave too little context on this grid.
    """
    frames, *plane = grid
    visible = settings.context_frames or frames
    if visible > frames:
        raise UserError(f"context_frames of the masks is {visible}, but a clip has {frames}")
    for _ in range(TRIES):
        draw = _sized(settings, tuple(plane), generator)
        seen_bhw, hidden_bmhw = draw(batch)
        for _ in range(TRIES):
            few_b = seen_bhw.flatten(1).sum(1) * visible < settings.least_context
            if not few_b.any():
                return _tokens(settings, seen_bhw, hidden_bmhw, frames, generator)
            seen_bhw[few_b], hidden_bmhw[few_b] = draw(int(few_b.sum()))
    raise UserError(
        f"the masks leave fewer than {settings.least_context} of {math.prod(grid)} tokens to be seen: "
        "lower least_context, targets or target_scale, or choose a smaller patch"
    )


def block_size(scale: float, aspect: float, grid: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a block that covers ``scale`` of the grid, ``aspect`` times as high as wide; at least one place."""
    area = scale * grid[0] * grid[1]
    sides = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(sides[0], 1), grid[0]), min(max(sides[1], 1), grid[1])


def _sized(
    settings: MaskSettings, grid: tuple[int, int], generator: torch.Generator | None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Draw the sizes; what is returned draws places: B -> (B,H,W) seen and (B,M,H,W) hidden, on the grid of one frame."""
    if settings.kind == "quadrants":
        return lambda batch: _quadrants(batch, grid, generator)
    context = block_size(_uniform(settings.context_scale, generator), 1.0, grid)
    scale = _uniform(settings.target_scale, generator)
    block = block_size(scale, _uniform(settings.target_aspect, generator), grid)
    count = max(1, round(scale * math.prod(grid)))

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        if settings.kind == "random":
            order = torch.rand(batch, settings.targets, math.prod(grid), generator=generator).argsort(-1).argsort(-1)
            hidden_bmhw = (order < count).unflatten(-1, grid)
        else:
            hidden_bmhw = _blocks((batch, settings.targets), block, grid, generator)
        return _blocks((batch,), context, grid, generator) & ~hidden_bmhw.any(1), hidden_bmhw

    return draw


def _blocks(
    shape: tuple[int, ...], size: tuple[int, int], grid: tuple[int, int], generator: torch.Generator | None
) -> Tensor:
    """(*shape,H,W) bool, True in one rectangle each, anywhere in the grid."""
    inside = []
    for side, length in zip(size, grid, strict=True):
        first = torch.randint(0, length - side + 1, shape, generator=generator).unsqueeze(-1)
        place = torch.arange(length)
        inside.append((place >= first) & (place < first + side))
    return inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)


def _quadrants(batch: int, grid: tuple[int, int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One quarter seen, the three others hidden."""
    lower, right = (torch.arange(length) >= length // 2 for length in grid)
    number_hw = 2 * lower.long().unsqueeze(1) + right.long()
    seen_b = torch.randint(0, 4, (batch,), generator=generator)
    hidden_bm = (seen_b.unsqueeze(1) + torch.arange(1, 4)) % 4
    return number_hw == seen_b[:, None, None], number_hw == hidden_bm[:, :, None, None]


def _tokens(
    settings: MaskSettings, seen_bhw: Tensor, hidden_bmhw: Tensor, frames: int, generator: torch.Generator | None
) -> Mask:
    """Stretch over time, and number the tokens."""
    seen_bthw = seen_bhw.unsqueeze(1).repeat(1, frames, 1, 1)
    hidden_bmthw = hidden_bmhw.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    if settings.together:
        hidden_bmthw = hidden_bmthw.any(1, keepdim=True)
    if settings.context_frames is not None:
        seen_bthw[:, settings.context_frames :] = False
        hidden_bmthw[:, :, settings.context_frames :] = True
    batch = len(seen_bhw)
    targets = _equal_counts(hidden_bmthw.flatten(2).flatten(0, 1), generator).unflatten(0, (batch, -1))
    return Mask(_equal_counts(seen_bthw.flatten(1), generator), targets)


def _equal_counts(chosen_bn: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B,N) bool -> (B,K) the numbers of the chosen ones, in order; K is the least count, and rows with more lose any of theirs."""
    least = int(chosen_bn.sum(1).min())
    lot_bn = torch.rand(chosen_bn.shape, generator=generator).masked_fill(~chosen_bn, -1)
    return lot_bn.topk(least, dim=1).indices.sort(1).values


def _uniform(between: tuple[float, float], generator: torch.Generator | None) -> float:
    return between[0] + (between[1] - between[0]) * torch.rand((), generator=generator).item()
