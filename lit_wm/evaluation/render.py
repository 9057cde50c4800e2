"""Pictures of rollouts: a contact sheet (time to the right) and a GIF (runs side by side)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_wm.contract import Batch
from lit_wm.evaluation.judge import shown_clips
from lit_wm.evaluation.scorecard import Scorecard

SEEN, IMAGINED = (70, 160, 90), (225, 130, 40)  # borders: frames that were shown to the model, frames it imagined
PAPER, INK = (255, 255, 255), (30, 30, 30)
BORDER, GAP, LINE, LABEL = 3, 4, 16, 190
TILE = 96  # pixels that a frame is enlarged to, roughly
MILLISECONDS = 350  # of a GIF frame

Rows = Mapping[str, Tensor]  # title -> (clips,T,C,H,W) uint8


def rows(card: Scorecard, test: Batch) -> dict[str, Tensor]:
    """What the pictures show: truth, the floor, and each run by its own and by the common decoder."""
    clips = shown_clips(test, card.settings)
    truth = test["frames"][clips, : card.settings.length]
    copied = truth.clone()
    copied[:, card.settings.context :] = truth[:, card.settings.context - 1 : card.settings.context]
    pictures = {f"{run.name}: {title}": frames for run in card.runs for title, frames in run.pictures.items()}
    return {"truth": truth, "floor: copy last frame": copied, **pictures}


def as_rgb(frame_chw: Tensor) -> np.ndarray:
    """(C,H,W) uint8 -> (H,W,3): the first three channels, or the first one as grey where there are fewer."""
    pixels = frame_chw.permute(1, 2, 0).numpy()
    return np.repeat(pixels[..., :1], 3, -1) if pixels.shape[-1] < 3 else np.ascontiguousarray(pixels[..., :3])


def tile(frame_chw: Tensor, seen: bool) -> Image.Image:
    """One frame, enlarged by a whole number without smoothing, in its border."""
    pixels = as_rgb(frame_chw)
    zoom = max(1, round(TILE / pixels.shape[0]))
    picture = Image.fromarray(pixels).resize((pixels.shape[1] * zoom, pixels.shape[0] * zoom), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (picture.width + 2 * BORDER, picture.height + 2 * BORDER), SEEN if seen else IMAGINED)
    framed.paste(picture, (BORDER, BORDER))
    return framed


def contact_sheet(rows: Rows, context: int, block: str = "clip", heads: Sequence[str] | None = None) -> Image.Image:
    """One block of rows per clip; green borders were seen, orange ones imagined.

    Args:
        rows: title -> (clips,T,C,H,W) uint8, truth first.
        context: frames that were seen.
        block: what the blocks are called.
        heads: T words above the columns; None: ``seen``, and how many steps ahead.
    """
    first = next(iter(rows.values()))
    clips, steps = first.shape[:2]
    width, height = (side + GAP for side in tile(first[0, 0], True).size)
    heads = heads or ["seen" if t < context else f"{t - context + 1:+d}" for t in range(steps)]
    tall = LINE + len(rows) * height
    sheet = Image.new("RGB", (LABEL + steps * width, clips * tall), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for clip in range(clips):
        top = clip * tall
        draw.text((4, top + 1), f"{block} {clip + 1}", INK, font)
        for t, head in enumerate(heads):
            draw.text((LABEL + t * width + BORDER, top + 1), head, INK, font)
        for row, (title, frames) in enumerate(rows.items()):
            y = top + LINE + row * height
            draw.multiline_text((4, y + height // 4), wrapped(title, LABEL, 12), INK, font)
            for t in range(steps):
                sheet.paste(tile(frames[clip, t], t < context), (LABEL + t * width, y))
    return sheet


def wrapped(title: str, pixels: int, size: int) -> str:
    """A title, run and row on lines of their own, broken where a line would be wider than ``pixels`` at a font of ``size``."""
    width = int(pixels / (0.62 * size))  # characters: the default font's are about so wide
    return "\n".join(line for part in title.split(": ", 1) for line in textwrap.wrap(part, width))


def strips(rows: Rows) -> Image.Image:
    """The frames alone, at their own size: a line of all its frames for every clip of every row, as the contact sheet has them."""
    clips = next(iter(rows.values())).shape[0]
    lines = [np.concatenate([as_rgb(x) for x in frames[clip]], 1) for clip in range(clips) for frames in rows.values()]
    return Image.fromarray(np.concatenate(lines))


def animation(rows: Rows, context: int, heads: Sequence[str] | None = None) -> list[Image.Image]:
    """One picture per time step: a column per row of the contact sheet, a line per clip. ``heads`` as there."""
    first = next(iter(rows.values()))
    clips, steps = first.shape[:2]
    font = ImageFont.load_default(11)
    width, height = (side + GAP for side in tile(first[0, 0], True).size)
    titles = [wrapped(title, width, 11) for title in rows]
    top = LINE * max(title.count("\n") + 1 for title in titles)
    pictures = []
    for t in range(steps):
        picture = Image.new("RGB", (len(rows) * width, top + clips * height + LINE), PAPER)
        draw = ImageDraw.Draw(picture)
        for column, (title, frames) in enumerate(zip(titles, rows.values(), strict=True)):
            draw.multiline_text((column * width + 2, 1), title, INK, font, spacing=1)
            for clip in range(clips):
                picture.paste(tile(frames[clip, t], t < context), (column * width, top + clip * height))
        says = heads[t] if heads else "seen" if t < context else f"imagined, {t - context + 1} ahead"
        draw.text((2, picture.height - LINE), says, SEEN if t < context else IMAGINED, font)
        pictures.append(picture)
    return pictures


def write_gif(pictures: list[Image.Image], path: Path | BinaryIO, milliseconds: int = MILLISECONDS) -> None:
    """An endless GIF with one palette for all frames, so that still pixels do not flicker."""
    everything = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
    for i, picture in enumerate(pictures):
        everything.paste(picture, (0, i * picture.height))
    palette = everything.quantize(256)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
