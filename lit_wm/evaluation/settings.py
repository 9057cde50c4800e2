"""What every run is judged by, the same for all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The yardstick.

    Args:
        context: frames a model sees before it imagines (C); fixed, because a longer context is a privilege.
        horizons: steps imagined beyond the last context frame; 0 is the closed-loop state itself.
        probe_dims: width that features are projected to before any probe.
        projection: ``pca`` or ``random`` (``projection.py`` says why PCA).
        draws: bootstrap samples over test episodes.
        batch_size: clips per call of a model.
        temperature: of imagination; 0 takes modes, so that one rollout stands for the model's best guess.
        decoder_steps: training steps of the common probe decoder.
        retrieval_pool: predictions among which each must find its own target.
        repeats: timed repeats of each cost, whose median is printed.
        shown: clips in the pictures.
        seed: of the bootstrap, the common decoder, the random projection and imagination.
    """

    context: int = 4
    horizons: tuple[int, ...] = (0, 1, 4, 8)
    probe_dims: int = 64
    projection: str = "pca"
    draws: int = 1000
    batch_size: int = 64
    temperature: float = 0.0
    decoder_steps: int = 200
    retrieval_pool: int = 500
    repeats: int = 5
    shown: int = 3
    seed: int = 0

    @property
    def steps(self) -> int:
        """Imagined steps K: the longest horizon."""
        return max(self.horizons)

    @property
    def length(self) -> int:
        """Frames of a clip: context and what is imagined after it."""
        return self.context + self.steps
