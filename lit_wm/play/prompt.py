"""What a world begins from: a recorded frame that no training saw, or any picture, a drawing for example.

A prompt is a batch of one clip in the form of the data contract, as every model's ``observe`` takes it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from datamodules.clips import collate, read_clips, segments
from datamodules.experience import ExperienceSpec
from datamodules.index import Index
from datamodules.pictures import BROKEN, FITS, fitted, read_picture
from lit_wm.errors import UserError, check_choice
from lit_wm.evaluation.rollouts import NOT_FOR_MODELS

SPLIT = "test"  # of a recording: episodes that no training saw
MOST_PIXELS = 40_000_000  # of a picture: a larger one would fill the memory, to be made tiny a moment later


def recorded_prompt(index: Index, clip: int, frame: int, context: int) -> dict[str, Tensor]:
    """A frame of a test episode and those before it.

    Args:
        index: of the recording.
        clip: which of the test episodes, counted from 0.
        frame: the last one that is shown, counted from 0.
        context: how many are shown, at least 1.

    Returns:
        (1,context,...) of all that a model may see.

    Raises:
        UserError: there are no test episodes, no such episode, or no such frame in it.
        ExperienceError: the shard is broken.
    """
    episodes = [(shard, *rows) for shard in index.of(SPLIT) for rows in segments(shard, 1, cross_episodes=False)]
    if not episodes:
        raise UserError(
            f"{index.root} holds no {SPLIT} episodes to begin from (of every ten one is held out): give other --data, or"
            " a --picture"
        )
    if not 0 <= clip < len(episodes):
        raise UserError(f"clip is {clip}, the {SPLIT} episodes in {index.root} are numbered 0 to {len(episodes) - 1}")
    shard, begin, steps = episodes[clip]
    if context > steps:
        raise UserError(f"context is {context}, but clip {clip} in {index.root} has {steps} frames")
    if not context - 1 <= frame < steps:
        before = f" with {context - 1} before them" if context > 1 else ""
        raise UserError(
            f"frame is {frame}, the frames of clip {clip}{before} are numbered {context - 1} to {steps - 1}"
        )
    (rows,) = read_clips(index, shard, [begin + frame - context + 1], context)
    return {key: value for key, value in collate([rows], index.spec).items() if key not in NOT_FOR_MODELS}


def picture_prompt(path: Path, fit: str, spec: ExperienceSpec) -> dict[str, Tensor]:
    """An image file of any size as the first frame of an episode; transparency shows black.

    Args:
        path: the file.
        fit: how the picture is brought to the size of the model's frames, see :func:`datamodules.pictures.fitted`.
        spec: what the model was built for.

    Returns:
        (1,1,...) with every key of the data contract.

    Raises:
        UserError: no such file, no picture or a huge one, no such ``fit``, or a model that sees more than a picture.
    """
    check_choice("fit", fit, FITS)
    if others := [key for key in spec.observations if key != "frames"]:
        raise UserError(
            f"the model also sees '{others[0]}', which a picture does not show: begin from a recorded frame"
        )
    rows, columns, channels = spec.observations["frames"]
    pixels = fitted(read_prompt(path), (rows, columns), fit)
    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    elif channels != 3:
        raise UserError(f"the model sees frames of {channels} channels, a picture has 3: begin from a recorded frame")
    flags = {key: np.array([key == "is_first"]) for key in ("is_first", "is_last", "is_terminal")}
    acts = {"action": np.zeros((1, *spec.action.shape), spec.action.dtype), "reward": np.zeros(1, np.float32)}
    return collate([{"frames": pixels[None]} | flags | (acts if spec.acted else {})], spec)


def read_prompt(path: Path) -> np.ndarray:
    """An image file as (H,W,3) uint8.

    Raises:
        UserError: no such file, no picture, or more than ``MOST_PIXELS``.
    """
    if not path.is_file():
        raise UserError(f"no picture at {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as picture:
                width, height = picture.size  # from the head of the file: nothing is decoded yet
            if width * height > MOST_PIXELS:
                raise UserError(
                    f"{path} has {width}x{height} pixels, more than {MOST_PIXELS // 10**6} million: make it smaller"
                )
            return read_picture(path)
        except (*BROKEN, Image.DecompressionBombWarning) as error:
            raise UserError(f"{path} cannot be read as a picture: {error}") from error
