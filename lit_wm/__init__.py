"""lit_wm: Dreamer, Genie and JEPA side by side, trained from the same experience and judged by the same scorecard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_wm.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for, so that ``lit-wm --help`` answers at once."""
    if name == "load":
        from lit_wm.loading import load

        return load
    raise AttributeError(f"module 'lit_wm' has no attribute '{name}'")
