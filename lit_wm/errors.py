"""What a user did that cannot work, said in one line."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from datamodules.experience import ExperienceError

__all__ = ["ExperienceError", "UserError", "check_bounds", "check_choice", "check_shares", "refuse_given"]


class UserError(Exception):
    """A mistake on the user's side: one line that names the file or key and says what to do.

    The command line prints it without a traceback and exits with status 2 (``--debug`` shows the traceback).
    """


def check_bounds(
    owner: str, settings: Mapping[str, Any], least: Mapping[str, float], positive: Sequence[str] = ()
) -> None:
    """Refuse numbers that cannot work.

    Args:
        owner: whose settings they are, for the message.
        settings: name -> number; None is left alone.
        least: name -> the smallest that works.
        positive: names of those that must be above 0.

    Raises:
        UserError: names the first that is out of bounds.
    """
    for name in (*least, *positive):
        value, bound = settings[name], least.get(name, 0)
        if value is not None and (value < bound or (name in positive and value <= 0)):
            wanted = "above 0" if name in positive else f"at least {bound}"
            raise UserError(f"{name} of the {owner} is {value}, it must be {wanted}")


def check_shares(owner: str, settings: Mapping[str, float]) -> None:
    """Refuse numbers outside [0, 1).

    Raises:
        UserError: names the first.
    """
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} of the {owner} is {value}, it must be in [0, 1)")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not among those that mean something.

    Raises:
        UserError: names the choices.
    """
    if value not in choices:
        raise UserError(f"{name} '{value}' is not one of {', '.join(choices)}")


def refuse_given(owner: str, settings: Any, names: Sequence[str], why: str) -> None:
    """Refuse settings that nothing would read, where they differ from their defaults.

    Args:
        owner: whose settings they are, for the message.
        settings: a dataclass instance.
        names: of its fields that are not read.
        why: what makes them so, for the message.

    Raises:
        UserError: names the first that was given.
    """
    defaults = {field.name: field.default for field in fields(settings) if field.default is not MISSING}
    for name in names:
        value = getattr(settings, name)
        if (tuple(value) if isinstance(value, list) else value) != defaults[name]:  # a file knows no tuples
            raise UserError(f"{name} of the {owner} is {value}, but {why}: leave it out")
