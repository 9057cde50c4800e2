"""Route 3: JEPA predicts representations and never touches pixels."""

from lit_wm.jepa.module import JEPAModule

__all__ = ["JEPAModule"]
