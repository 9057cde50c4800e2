"""From latent actions to real ones, by a few labelled steps: D[a~] is the list of the actions seen with code a~."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Dictionary(NamedTuple):
    """Code -> the real actions of the labelled steps that have it."""

    of_code: Mapping[int, np.ndarray]
    pooled: np.ndarray  # (m,) of all labelled steps: what a code that has none is drawn from


def labelled_steps(steps: int, n: int, seed: int) -> np.ndarray:
    """Which ``n`` of ``steps`` transitions are labelled: drawn uniformly without replacement.

    A larger n adds to what a smaller one has, so that a curve over n shows what more labels bring and not another draw.

    Returns:
        (n,) int64 in the order in which they were drawn.

    Raises:
        ValueError: there are fewer than n.
    """
    if not 0 <= n <= steps:
        raise ValueError(f"{n} labelled steps of {steps}")
    return np.random.default_rng(seed).permutation(steps)[:n]


def code_dictionary(codes_n: np.ndarray, actions_n: np.ndarray, actions: int) -> Dictionary:
    """The dictionary of n labelled steps.

    Args:
        codes_n: (n,) int64 latent action of each.
        actions_n: (n,) int64 real action of each.
        actions: how many the environment has. Without any label all of them are equally likely, once each in ``pooled``.
    """
    of_code = {int(code): actions_n[codes_n == code] for code in np.unique(codes_n)}
    return Dictionary(of_code, actions_n if len(actions_n) else np.arange(actions))


def draw_actions(dictionary: Dictionary, codes_b: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(B,) codes -> (B,) real actions, each drawn uniformly from its code's list; a code without a list from the pooled one,
    which holds how often the expert does what, and nothing of what this code means."""
    lists = (dictionary.of_code.get(int(code), dictionary.pooled) for code in codes_b)
    return np.array([choices[generator.integers(len(choices))] for choices in lists], np.int64)
