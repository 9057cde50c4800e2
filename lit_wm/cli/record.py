"""``lit-wm record``: play an environment and write shards that every route trains on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lit_wm.cli.into_folder import add_folder_options, write_recording
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
    p.add_argument("--policy", default="sticky", help="random, sticky, rightward, scripted, or straight (sprites)")
    p.add_argument("--seed", type=int, default=0, help="of environments and policy")
    p.add_argument("--num-envs", type=int, default=8, help="environments side by side")
    p.add_argument("--size", type=int, help="side of the picture, the same as --env-arg size=N")
    p.add_argument(
        "--env-arg", action="append", default=[], metavar="KEY=VALUE", help="an option of the environment; repeatable"
    )
    add_folder_options(p, "episodes")
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
    done = write_recording(
        given,
        "record",
        given.env,
        find=lambda: find_recording(*what, **how),
        write=lambda overwrite: record(*what, **how, overwrite=overwrite),
    )
    if done is None:
        return
    print(
        f"recorded {done.episodes} episodes, {done.steps:,} steps of {given.env} to {done.root}: "
        f"{done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s ({done.steps / done.seconds:,.0f} steps/s)\n"
        f"look at it: lit-wm inspect {done.root}"
    )
