"""What is said about a key that nothing reads: its file, and the key that was probably meant."""

from __future__ import annotations

import difflib
import itertools
import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lit_wm.errors import UserError

# how jsonargparse says it
UNKNOWN = re.compile(r"(?:[Oo]ption '|unrecognized arguments: -*)([\w.]+)")


def nearest(message: str, parser: ArgumentParser) -> str:
    """``; did you mean 'x'?`` if the message is about an unknown key that is nearly one of the parser's, else nothing."""
    unknown = UNKNOWN.search(message)
    if unknown is None or "did you mean" in message:
        return ""
    known, verb = set(), re.search(r"Subcommand '(\w+)'", message)
    for action in parser._actions:
        known.add(action.dest)
        if isinstance(action, _SubParsersAction) and verb:
            known |= {inner.dest for inner in action.choices[verb[1]]._actions}
    known |= {key.split(".")[0] for key in known}
    if group := re.search(r"Group '([\w.]+)'", message):
        known = {key.removeprefix(f"{group[1]}.") for key in known if key.startswith(f"{group[1]}.")}
    found = difflib.get_close_matches(unknown[1], sorted(known), n=1, cutoff=0.7)
    if not found and (first := unknown[1].split(".")[0]) not in known:  # modell.class_path: the group is what is wrong
        found = difflib.get_close_matches(first, sorted(known), n=1, cutoff=0.7)
    return f"; did you mean '{found[0]}'?" if found else ""


def config_files(argv: list[str]) -> list[str]:
    """The files of all ``--config FILE`` of a command line, in its order."""
    after = [word for option, word in itertools.pairwise(argv) if option in ("-c", "--config")]
    joined = [word.partition("=")[2] for word in argv if word.startswith(("-c=", "--config="))]
    return after + joined


def file_of(message: str, files: list[str]) -> str:
    """``(in FILE)`` for the last file that holds the unknown key of a message, else nothing."""
    unknown = UNKNOWN.search(message)
    for file in reversed(files if unknown else []):
        if any(f".{path}".endswith(f".{unknown[1]}") for path, _ in keys_of(yaml.safe_load(Path(file).read_text()))):
            return f" (in {file})"
    return ""


def keys_of(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested mapping with its value."""
    for key, value in content.items() if isinstance(content, dict) else ():
        yield f"{above}{key}", value
        yield from keys_of(value, f"{above}{key}.")


def refuse_unknown_empty_keys(files: list[str], parsed: Any) -> None:
    """jsonargparse reads past an unknown key whose value is ``{}``; this does not.

    Args:
        files: configuration files.
        parsed: what they came to, a jsonargparse Namespace.

    Raises:
        UserError: names the file and the key.
    """
    for file in files:
        for path, value in keys_of(yaml.safe_load(Path(file).read_text())):
            if value == {} and path not in parsed:
                raise UserError(f"{file}: nothing reads the key '{path}'")
