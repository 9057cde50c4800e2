"""The picture of what each code does: above, the agent's true movement where the code was inferred; below, the code held in imagination."""

from __future__ import annotations

from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lit_wm.evaluation.code_picture import HELD, CodePicture

CELL, TOP, LEFT = (
    1.3,
    0.95,
    1.75,
)  # inches: a cell's side, the space above the first row, the space left of the first column
DPI = 110
LETTER = 0.11  # inches: the widest that a letter of the heading is on average
BINS = 15
SHORT = 0.15  # of the axes: a mean below it is a point, not an arrow
SEEN, IMAGINED, ARROW = "#46a05a", "#e18228", "#c81e50"


def code_sheet(picture: CodePicture, name: str) -> Image.Image:
    """A column per code.

    Args:
        picture: what to draw.
        name: of the run.
    """
    count, starts = len(picture.titles), len(picture.starts)
    rows = starts + (picture.moved is not None)
    left_out = f" ({picture.left_out} seldom ones are left out)" if picture.left_out else ""
    heading = f"{name}: what each code does{left_out}"
    width, height = max(LEFT + (count + 1) * CELL, LETTER * len(heading)) + 0.1, TOP + rows * CELL + 0.1
    figure = Figure((width, height), dpi=DPI)
    FigureCanvasAgg(figure)

    def cell(row: int, column: int) -> Axes:
        left, bottom = LEFT + column * CELL, height - TOP - (row + 1) * CELL
        return figure.add_axes(
            ((left + 0.06) / width, (bottom + 0.06) / height, (CELL - 0.12) / width, (CELL - 0.12) / height)
        )

    def write(x: float, y: float, text: str, **style: object) -> None:
        figure.text(x / width, 1 - y / height, text, va=style.pop("va", "center"), **style)

    write(0.1, 0.22, heading, fontsize=11, fontweight="bold")
    for i, (title, share) in enumerate(zip(picture.titles, picture.shares, strict=True)):
        write(LEFT + (i + 1.5) * CELL, 0.68, f"{title}\n{share:.0%} of steps", fontsize=8, ha="center")
    first = 0
    if picture.moved is not None:
        first = 1
        write(
            0.1,
            TOP + CELL / 2,
            "where the agent\nreally went when\nit was inferred:\ndensity, mean,\nstandard deviation",
            fontsize=8,
        )
        limit = reach(picture.moved)
        for i, moved in enumerate(picture.moved):
            draw_displacement(cell(0, i + 1), moved.numpy(), limit)
        write(
            LEFT + 0.5 * CELL,
            TOP + CELL / 2,
            f"from -{limit:.3g}\nto {limit:.3g} along\neach axis;\ny points down",
            fontsize=7,
            ha="center",
        )
    write(
        LEFT + 0.5 * CELL, TOP - 0.27 if first == 0 else TOP + CELL - 0.08, "seen", fontsize=8, ha="center", color=SEEN
    )
    for row in range(starts):
        write(
            0.1,
            TOP + (first + row + 0.5) * CELL,
            f"start {row + 1}, and what\nis imagined after\n{HELD} steps of the code",
            fontsize=8,
        )
        draw_frame(cell(first + row, 0), picture.starts[row], SEEN)
    for row, i in product(range(starts), range(count)):
        draw_frame(cell(first + row, i + 1), picture.imagined[row, i], IMAGINED)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())


def reach(moved: list[Tensor]) -> float:
    """A limit of the axes that nearly all displacements lie within."""
    every = np.concatenate([m.numpy().ravel() for m in moved])
    return float(np.quantile(np.abs(every), 0.995)) * 1.25 or 1.0 if len(every) else 1.0


def draw_displacement(axes: Axes, moved_na: np.ndarray, limit: float) -> None:
    """Where the agent went: a density, the arrow of the mean and bars of one standard deviation. Movement along one axis is drawn upright."""
    axes.set(xlim=(-limit, limit), ylim=(limit, -limit), xticks=[0], yticks=[0], xticklabels=[], yticklabels=[])
    axes.grid(True, color="#dddddd", linewidth=0.5)
    axes.tick_params(length=0)
    if not len(moved_na):
        axes.text(0, 0, "never\nunblocked", fontsize=7, ha="center", va="center")
        return
    if moved_na.shape[1] == 1:
        moved_na = np.concatenate([np.zeros_like(moved_na), moved_na], 1)
    edges = np.linspace(-limit, limit, BINS + 1)
    density = np.histogram2d(*moved_na.clip(-limit, limit).T, bins=(edges, edges))[0].T / len(moved_na)
    axes.pcolormesh(edges, edges, np.sqrt(density), cmap="Blues", vmin=0, vmax=1.2)
    (x, y), (dx, dy) = moved_na.mean(0), moved_na.std(0)
    axes.errorbar(x, y, xerr=dx, yerr=dy, color=ARROW, linewidth=1, capsize=2)
    if np.hypot(x, y) > SHORT * limit:
        style = {"arrowstyle": "-|>", "color": ARROW, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.5, "mutation_scale": 9}
        axes.annotate("", (x, y), (0, 0), arrowprops=style)


def draw_frame(axes: Axes, frame_chw: Tensor, colour: str) -> None:
    """A frame in its border, unsmoothed."""
    pixels = frame_chw.permute(1, 2, 0).numpy()
    axes.imshow(np.repeat(pixels[..., :1], 3, -1) if pixels.shape[-1] < 3 else pixels[..., :3], interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2)
