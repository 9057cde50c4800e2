"""``lit-wm`` and ``lightning``: find the verb, run it, and say a user's mistake in one line.

Verbs are imported only when they are called, so that ``lit-wm --help`` answers before torch would be loaded.
"""

from __future__ import annotations

import errno
import importlib
import sys

from lit_wm.cli.memory import keep_freed_memory
from lit_wm.errors import ExperienceError, UserError

VERBS = {
    "fit": ("train", "train a model: lit-wm fit --config configs/jepa/pong.yaml"),
    "validate": ("train", "one pass over the validation episodes"),
    "test": ("train", "one pass over the test episodes"),
    "predict": ("train", "features of the test clips, frame by frame"),
    "record": ("record", "play an environment and write shards: lit-wm record --env pong --out data/pong"),
    "convert": ("convert", "videos or folders of images to shards: lit-wm convert videos --out data/mine"),
    "inspect": ("inspect", "what a shard folder or a run holds: lit-wm inspect data/pong"),
    "compare": ("compare", "judge runs by one scorecard: lit-wm compare runs/dreamer_pong runs/jepa_pong"),
    "ablate": ("ablate", "a paper's ablation with its verdict: lit-wm ablate configs/ablations/genie_codes.yaml"),
    "generate": ("generate", "a world from one frame or a picture: lit-wm generate runs/genie_sprites --each"),
    "plan": ("plan", "reach a goal given as a picture: lit-wm plan runs/jepa_rooms"),
    "imitate": ("imitate", "behaviour from video: lit-wm imitate runs/genie_lam --expert data/sprites_expert"),
    "bench": ("bench", "CPU time of a training step: lit-wm bench dreamer --threads 1"),
    "doctor": ("doctor", "versions, devices and threads of this machine"),
}


def usage() -> str:
    """The text of ``lit-wm --help``."""
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    return f"""usage: lit-wm VERB [options]        (also: lightning VERB, python -m lit_wm VERB)

Dreamer, Genie and JEPA side by side: trained from the same experience, judged by the same scorecard.

{verbs}

  lit-wm VERB --help shows the options of a verb; --debug shows the traceback of an error; --version the version."""


def run(argv: list[str]) -> None:
    """Run one verb.

    Raises:
        UserError: no such verb.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
    elif argv[0] == "--version":
        from lit_wm import __version__

        print(f"lit-wm {__version__}")
    elif argv[0] not in VERBS:
        raise UserError(f"'{argv[0]}' is not a verb: {', '.join(VERBS)}")
    else:
        importlib.import_module(f"lit_wm.cli.{VERBS[argv[0]][0]}").main(
            argv if VERBS[argv[0]][0] == "train" else argv[1:]
        )


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit code 2 and one line for what the user can mend; a traceback only for our own mistakes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    keep_freed_memory()
    try:
        run(argv)
    except (UserError, ExperienceError) as error:
        if debug:
            raise
        fail(str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS)
        if debug or not (full or error.filename):  # without a file's name it is no mistake about files
            raise
        advice = "free some space or choose another folder" if full else "choose another path"
        fail(f"{error.filename or 'writing'}: {error.strerror}; {advice}")
    except KeyboardInterrupt:
        if debug:
            raise
        print("lit-wm: interrupted", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> None:
    """Print one line and exit with status 2."""
    print("lit-wm: error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
