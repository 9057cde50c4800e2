"""Route 2, Genie: a playable world from video without action labels. See the README of this folder."""

from lit_wm.genie.module import GenieModule

__all__ = ["GenieModule"]
