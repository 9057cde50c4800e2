"""Route 1: Dreamer predicts latent distributions and pixels, and acts in imagination."""

from lit_wm.dreamer.module import DreamerModule

__all__ = ["DreamerModule"]
