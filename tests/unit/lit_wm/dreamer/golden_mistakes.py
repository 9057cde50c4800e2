"""What the tests of deliberate mistakes share: how one is registered, and which stage of the golden comparison catches it.

Every mistake changes one function or setting of an otherwise untouched module. The comparison must catch it at the stage
named and at none before: a missing stop-gradient leaves every forward number right, and Adam's order every gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_comparison import SEQUENCES, forward, gradients, gradients_by_term, recording, updates, violations
from golden_reference import Reference

DOUBLE = torch.float64
EVERY_TERM = "image vector rew con dyn rep policy value repval"
Maker = Callable[[Reference, pytest.MonkeyPatch], None]


class Mistakes:
    """Those of one file, as parameters of a test: (make, stage, terms)."""

    def __init__(self) -> None:
        self.made: list = []

    def __call__(self, stage: str, terms: str = "") -> Callable[[Maker], Maker]:
        """Register one with the first stage that must catch it, and the loss terms that must move (and no other)."""

        def register(make: Maker) -> Maker:
            self.made.append(pytest.param(make, stage, set(terms.split()), id=make.__name__))
            return make

        return register


def first_caught(make: Maker) -> tuple[str, set[str]]:
    """The first stage that misses golden numbers, and the loss terms among them; the stages after it are not run."""
    with pytest.MonkeyPatch.context() as patch:
        reference = Reference(DOUBLE)
        make(reference, patch)
        numbers, losses = forward(reference)
        for stage, found in (
            ("forward", lambda: numbers),
            ("recording", lambda: recording(reference)),
            ("gradients", lambda: gradients(reference, losses)),
        ):
            if missed := violations(found(), reference.run, DOUBLE):
                return stage, terms_among(missed)
    for sequence, options in SEQUENCES.items():
        with pytest.MonkeyPatch.context() as patch:
            reference = Reference(DOUBLE, **options)
            make(reference, patch)
            if missed := violations({sequence: updates(reference)}, reference.run, DOUBLE):
                return "updates", terms_among(missed)
    return "nothing", set()


def terms_among(missed: list[str]) -> set[str]:
    """A term that is wrong, or wrongly scaled."""
    return {path.split(".")[1] for path in missed if path.startswith(("loss_terms_unscaled", "loss_terms_scaled"))}


def leaks(make: Maker) -> set[str]:
    """By term and module, where a gradient went that should not have gone, or did not arrive: ``dyn.enc``."""
    with pytest.MonkeyPatch.context() as patch:
        reference = Reference(DOUBLE)
        make(reference, patch)
        missed = violations(gradients_by_term(reference, reference.losses()), reference.run, DOUBLE)
    return {path.split(".", 1)[1] for path in missed}
