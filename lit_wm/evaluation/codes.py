"""Latent actions against what really happened and against the command.

AMI (adjusted mutual information) is used instead of NMI because NMI rises with the number of codes by chance alone.
Majority accuracy names each code after its most frequent label on **training** clips and counts hits on test clips, so that
many codes cannot memorise. Both stand beside the same number for shuffled codes and beside the majority class: neither says
how *good* rollouts are, and a frame-quality gain does not say what the codes mean (a code may carry a distractor), so read both.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from lit_wm.evaluation.statistics import EpisodeDraws, Number, summarise


def ami(code: np.ndarray, label: np.ndarray) -> float:
    """Adjusted mutual information: 0 for independent labellings, 1 for equal ones whatever their names."""
    return float(adjusted_mutual_info_score(label, code))


def majority_hits(
    code_train: np.ndarray, label_train: np.ndarray, code_test: np.ndarray, label_test: np.ndarray
) -> np.ndarray:
    """(n_test,) bool: the label that a code most often had in training is the true one. Unseen codes miss."""
    name = {code: np.bincount(label_train[code_train == code]).argmax() for code in np.unique(code_train)}
    return np.array([name.get(code, -1) for code in code_test]) == label_test


def perplexity(code: np.ndarray) -> float:
    """exp(entropy) of the codes' frequencies: how many are in even use."""
    share = np.unique(code, return_counts=True)[1] / len(code)
    return float(np.exp(-(share * np.log(share)).sum()))


def label_numbers(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    draws: EpisodeDraws,
    seed: int,
) -> dict[str, Number]:
    """Numbers of codes against one labelling.

    Args:
        name: of the labelling, ``effect`` or ``command``.
        train: codes and labels (n,) of training transitions.
        test: codes and labels (m,) of test transitions.
        draws: over the m transitions, by their episodes.
        seed: of the shuffle.
    """
    code, label = test
    shuffled = np.random.default_rng(seed).permutation(code)
    n = len(code)

    def accuracy(code_test: np.ndarray) -> Number:
        return summarise(draws.means(majority_hits(*train, code_test, label)), n, draws.episodes)

    constant = np.zeros_like(train[0])
    floor = majority_hits(constant, train[1], np.zeros_like(code), label)
    return {
        f"codes/{name}_ami": Number(ami(code, label), n),
        f"codes/{name}_ami_shuffled": Number(ami(shuffled, label), n),
        f"codes/{name}_accuracy": accuracy(code),
        f"codes/{name}_accuracy_shuffled": accuracy(shuffled),
        f"codes/{name}_accuracy_majority_class": summarise(draws.means(floor), n, draws.episodes),
    }
