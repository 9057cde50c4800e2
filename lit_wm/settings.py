"""Groups of settings, as a configuration file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lit_wm.errors import UserError

Settings = TypeVar("Settings")


def settings_from(cls: type[Settings], given: Settings | Mapping[str, Any], name: str, model: str) -> Settings:
    """Settings from a config's dictionary.

    Args:
        cls: a dataclass.
        given: an instance of it, or its fields.
        name: of the key that holds them.
        model: whose they are, for the message.

    Raises:
        UserError: a key that does not exist.
    """
    if isinstance(given, cls):
        return given
    try:
        return cls(**given)
    except TypeError as error:
        raise UserError(f"'{name}' of the {model} model: {str(error).split('__init__() ')[-1]}") from error
