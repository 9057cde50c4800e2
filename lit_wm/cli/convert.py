"""``lit-wm convert``: videos and folders of images to shards that Genie and the action-free JEPA train on."""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

from lit_wm.cli.into_folder import add_folder_options, write_recording
from lit_wm.cli.parser import OneLineArgumentParser


def rate(text: str) -> Fraction:
    """A number, decimal or as a fraction: ``29.97``, ``30000/1001``."""
    try:
        return Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError(text) from error


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    p = OneLineArgumentParser(
        prog="lit-wm convert",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="example: lit-wm convert videos --out data/mine --fps 15 --fit pad",
    )
    p.add_argument(
        "videos",
        nargs="+",
        type=Path,
        metavar="VIDEOS",
        help="video files, or folders of videos or images, with all below",
    )
    p.add_argument("--out", required=True, type=Path, help="folder for the shards")
    p.add_argument(
        "--fps",
        type=rate,
        default=Fraction(10),
        help="frames per second of the recording, the same for all videos, taken by their time stamps; the images of a"
        " folder are taken to come at this rate",
    )
    p.add_argument("--size", type=int, default=64, help="side of the picture")
    p.add_argument("--fit", default="crop", help="crop to the middle square, pad with black, or stretch")
    p.add_argument("--min-frames", type=int, default=16, help="leave out what is shorter than so many frames")
    p.add_argument("--clip-seconds", type=rate, help="cut longer videos into episodes of so many seconds")
    p.add_argument(
        "--split-by",
        default="video",
        help="what --holdout counts: video keeps all clips of one on one side; clip is for a single long video",
    )
    p.add_argument("--strict", action="store_true", help="stop at a broken file instead of using what can be used")
    add_folder_options(p, "videos (or clips)")
    return p


def main(argv: list[str]) -> None:
    """Convert, then say what there is and what to do next.

    Raises:
        UserError, ExperienceError: an option that cannot work, or nothing that can be converted.
    """
    given = parser().parse_args(argv)
    from datamodules.convert import ConvertSettings, convert, find_conversion  # after the options were understood

    fit, split_by = given.fit, given.split_by
    settings = ConvertSettings(given.fps, given.size, fit, given.min_frames, given.clip_seconds, split_by)
    what, how = (given.videos, given.out, settings), {"codec": given.codec, "holdout": given.holdout}
    done = write_recording(
        given,
        "convert",
        "video",
        find=lambda: find_conversion(*what, **how),
        write=lambda overwrite: convert(*what, **how, strict=given.strict, overwrite=overwrite),
    )
    if done is None:
        return
    skipped = f", {done.skipped} skipped" if done.skipped else ""
    print(
        f"converted {done.used} of {done.used + done.skipped} videos{skipped} to {done.root}: {done.episodes} episodes,"
        f" {done.steps:,} frames ({done.steps / float(settings.fps) / 60:.1f} min at {float(settings.fps):g} frames/s),"
        f" {done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s"
    )
    if given.holdout and done.empty:
        print(
            f"lit-wm convert: nothing is held out for {' and '.join(done.empty)}, which fit and compare need: add videos, or"
            " cut these into clips that are split among them: --clip-seconds 10 --split-by clip",
            file=sys.stderr,
        )
    print(f"look at it: lit-wm inspect {done.root}")
