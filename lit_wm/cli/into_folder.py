"""What the verbs share that write a recording into a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from datamodules.index import Index

Done = TypeVar("Done")


def add_folder_options(parser: argparse.ArgumentParser, things: str) -> None:
    """Options about the folder and what is in it.

    Args:
        parser: of the verb.
        things: what ``--holdout`` counts.
    """
    parser.add_argument("--codec", choices=("webp", "npz"), default="webp", help="lossless either way")
    parser.add_argument(
        "--holdout", type=int, default=10, help=f"of N {things} one goes to val, one to test; 0 for none"
    )
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace a recording that is already in the folder")
    there.add_argument(
        "--if-missing",
        action="store_true",
        help="do nothing if the folder holds the recording that these options make; make one anew that was interrupted",
    )


def write_recording(
    given: argparse.Namespace, verb: str, of: str, find: Callable[[], Index | None], write: Callable[[bool], Done]
) -> Done | None:
    """Write a recording as the options say, and say what is left where it is interrupted.

    Args:
        given: options, among them ``out`` and those of :func:`add_folder_options`.
        verb: its name.
        of: what is recorded, for the messages.
        find: gives the index of the same recording, ``complete`` or not; an error where another one lies there.
        write: writes it; takes whether to overwrite what is there.

    Returns:
        What ``write`` gives, or None where there was nothing to do.
    """
    overwrite = given.overwrite
    if given.if_missing:
        there = find()
        if there and there.complete:
            print(f"{given.out} already holds this recording of {of}: nothing to do")
            return None
        overwrite = there is not None
    occupied = (given.out / "index.json").exists()
    try:
        return write(overwrite)
    except KeyboardInterrupt:
        if occupied:
            kept = "the old recording is untouched"
        else:
            some = (given.out / "index.json").exists()
            kept = "the finished episodes are kept as an incomplete recording" if some else "no episode was finished"
        print(f"lit-wm {verb}: stopped; {kept} in {given.out}", file=sys.stderr)
        raise
