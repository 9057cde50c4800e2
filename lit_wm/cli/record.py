"""``lit-wm record``: play an environment and write shards that every route trains on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    p = OneLineArgumentParser(
        prog="lit-wm record",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="example: lit-wm record --env sprites --env-arg rooms=true --out data/rooms --steps 20000",
    )
    p.add_argument("--env", required=True, help="sprites, pong, a Gymnasium id such as CartPole-v1, or envpool:TASK")
    p.add_argument("--out", required=True, type=Path, help="folder for the shards")
    p.add_argument("--steps", type=int, default=20_000, help="rows in total, over all environments")
    p.add_argument("--policy", default="sticky", help="random, sticky, scripted, or straight (sprites)")
    p.add_argument("--seed", type=int, default=0, help="of environments and policy")
    p.add_argument("--num-envs", type=int, default=8, help="environments side by side")
    p.add_argument("--size", type=int, help="side of the picture, the same as --env-arg size=N")
    p.add_argument(
        "--env-arg", action="append", default=[], metavar="KEY=VALUE", help="an option of the environment; repeatable"
    )
    p.add_argument("--codec", choices=("webp", "npz"), default="webp", help="lossless either way")
    p.add_argument("--holdout", type=int, default=10, help="of N episodes one goes to val, one to test; 0 for none")
    there = p.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace a recording that is already in the folder")
    there.add_argument(
        "--if-missing",
        action="store_true",
        help="do nothing if the folder holds the recording that these options make; make one anew that was interrupted",
    )
    return p


def environment_options(words: list[str]) -> dict[str, Any]:
    """``["rooms=true", "noise=0.5"]`` as keyword arguments.

    Values are JSON (``true``, ``0.5``, ``null``); what is not is taken as a word.

    Raises:
        UserError: a word without ``=``, or a key given twice.
    """
    options: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--env-arg {word}: write KEY=VALUE, for example rooms=true")
        if key in options:
            raise UserError(f"--env-arg {key} is given twice")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = {"True": True, "False": False, "None": None}.get(text, text)
    return options


def main(argv: list[str]) -> None:
    """Record, then say what there is and what to do next.

    Raises:
        UserError, ExperienceError: an option that cannot work.
    """
    given = parser().parse_args(argv)
    size = [] if given.size is None else [f"size={given.size}"]
    env_args = environment_options(size + given.env_arg)
    from datamodules.record import find_recording, record  # after the options were understood: --help answers at once

    what = given.env, given.out, given.steps, given.policy, given.seed, given.num_envs
    how = {"env_args": env_args, "codec": given.codec, "holdout": given.holdout}
    overwrite = given.overwrite
    if given.if_missing:
        there = find_recording(*what, **how)
        if there and there.complete:
            print(f"{given.out} already holds this recording of {given.env}: nothing to do")
            return
        overwrite = there is not None
    occupied = (given.out / "index.json").exists()
    try:
        done = record(*what, **how, overwrite=overwrite)
    except KeyboardInterrupt:
        if occupied:
            kept = "the old recording is untouched"
        else:
            some = (given.out / "index.json").exists()
            kept = "the finished episodes are kept as an incomplete recording" if some else "no episode was finished"
        print(f"lit-wm record: stopped; {kept} in {given.out}", file=sys.stderr)
        raise
    print(
        f"recorded {done.episodes} episodes, {done.steps:,} steps of {given.env} to {done.root}: "
        f"{done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s ({done.steps / done.seconds:,.0f} steps/s)\n"
        f"look at it: lit-wm inspect {done.root}"
    )
