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
from jsonargparse import Namespace

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
    """``(in FILE)`` for the last file that holds the unknown key of a message, else nothing; with advice where it is not
    the key that is wrong but the file's place."""
    unknown = UNKNOWN.search(message)
    if unknown is None or "unrecognized" in message:  # that one stands on the command line
        return ""
    for file in reversed(files):
        if any(".".join(("", *path)).endswith(f".{unknown[1]}") for path, _ in keys_of(_read(file))):
            early = "; put it after the experiment's file" if _comes_too_early(file, files) else ""
            return f" (in {file}{early})"
    return ""


def _comes_too_early(file: str, files: list[str]) -> bool:
    """Whether a file adds to the model or the data before the one that says of which class they are."""

    def says_class(group: str, some: list[str]) -> bool:
        return any("class_path" in (_read(each).get(group) or {}) for each in some)

    place = files.index(file)
    return any(
        group in _read(file) and not says_class(group, files[: place + 1]) and says_class(group, files[place + 1 :])
        for group in ("model", "data")
    )


def keys_of(content: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path of every key in nested mappings and lists, with its value; an element of a list has its number as key."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*above, str(key)), value
        yield from keys_of(value, (*above, str(key)))


def refuse_unknown_empty_keys(files: list[str], parsed: Namespace) -> None:
    """jsonargparse reads past an unknown key whose value is ``{}``; this does not.

    Args:
        files: configuration files.
        parsed: what they came to.

    Raises:
        UserError: names the file and the key.
    """
    for file in files:
        for path, value in keys_of(_read(file)):
            if value == {} and (around := _stranger_to(parsed, path)) is not None:
                found = difflib.get_close_matches(path[-1], list(vars(around)), n=1, cutoff=0.7)
                hint = f"; did you mean '{found[0]}'?" if found else ""
                raise UserError(f"{file}: nothing reads the key '{'.'.join(path)}'{hint}")


def _stranger_to(parsed: Any, path: tuple[str, ...]) -> Namespace | None:
    """The part of the configuration that lacks the next key of a path; None if the path is there, or leads into a
    mapping that may hold any key."""
    for key in path:
        if isinstance(parsed, list) and key.isdigit() and int(key) < len(parsed):
            parsed = parsed[int(key)]
        elif not isinstance(parsed, Namespace) or key == "dict_kwargs":
            return None
        elif key not in vars(parsed):
            return parsed
        else:
            parsed = vars(parsed)[key]
    return None


def _read(file: str) -> Any:
    return yaml.safe_load(Path(file).read_text())
