"""Latent actions against what really happened and against the command.

* **AMI** (adjusted mutual information), used instead of NMI because NMI rises with the number of codes by chance alone.
* **Majority accuracy**: each code is named after its most frequent label on **training** clips, hits are counted on test
  clips, so that many codes cannot memorise. It forgives splitting (two codes for one label), not merging.
* **Hungarian accuracy**: one code for one label, by the matching with most hits on training clips; hits on test clips. Codes
  beyond the number of labels miss, so it forgives neither. Often matched and counted on the same clips, which flatters.
* **Logistic accuracy**: a logistic regression from the code (one-hot) or from the vector of a model with continuous codes:
  the one of these that both kinds have, so that they can be compared.

Each stands beside the same number for shuffled codes and beside the majority class: none says how *good* rollouts are, and
a frame-quality gain does not say what the codes mean (a code may carry a distractor), so read both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score

from lit_wm.evaluation.statistics import EpisodeDraws, Number, not_applicable, summarise

CONTINUOUS = "the codes are continuous"
ITERATIONS = 1000  # of the logistic regression, many times what it needs


def ami(code: np.ndarray, label: np.ndarray) -> float:
    """Adjusted mutual information: 0 for independent labellings, 1 for equal ones whatever their names."""
    return float(adjusted_mutual_info_score(label, code))


def majority_hits(
    code_train: np.ndarray, label_train: np.ndarray, code_test: np.ndarray, label_test: np.ndarray
) -> np.ndarray:
    """(n_test,) bool: the label that a code most often had in training is the true one. Unseen codes miss."""
    name = {code: np.bincount(label_train[code_train == code]).argmax() for code in np.unique(code_train)}
    return np.array([name.get(code, -1) for code in code_test]) == label_test


def hungarian_hits(
    code_train: np.ndarray, label_train: np.ndarray, code_test: np.ndarray, label_test: np.ndarray
) -> np.ndarray:
    """(n_test,) bool: the label that the code was matched with in training is the true one. Unmatched codes miss."""
    codes, row = np.unique(code_train, return_inverse=True)
    labels, column = np.unique(label_train, return_inverse=True)
    together = np.zeros((len(codes), len(labels)), dtype=int)
    np.add.at(together, (row, column), 1)
    rows, columns = linear_sum_assignment(together, maximize=True)
    name = dict(zip(codes[rows].tolist(), labels[columns].tolist(), strict=True))
    return np.array([name.get(code, -1) for code in code_test.tolist()]) == label_test


def logistic_hits(
    x_train: np.ndarray, label_train: np.ndarray, x_test: np.ndarray, label_test: np.ndarray
) -> np.ndarray:
    """(n_test,) bool: a logistic regression on (n,D) vectors, fitted in training, names the true label."""
    if len(np.unique(label_train)) == 1:
        return label_test == label_train[0]
    return LogisticRegression(max_iter=ITERATIONS).fit(x_train, label_train).predict(x_test) == label_test


def code_vectors(code_train: np.ndarray, code_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a linear reader is given: one-hot codes (an unseen one is zeros), or vectors of unit variance in training."""
    if np.issubdtype(code_train.dtype, np.integer):
        codes = np.unique(code_train)
        return (code_train[:, None] == codes).astype(float), (code_test[:, None] == codes).astype(float)
    mean, std = code_train.mean(0), code_train.std(0)
    std = np.where(std > 0, std, 1)
    return (code_train - mean) / std, (code_test - mean) / std


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
        train: int codes (n,) or float vectors (n,D), and labels (n,), of training transitions.
        test: codes and labels (m,) of test transitions.
        draws: over the m transitions, by their episodes.
        seed: of the shuffle.
    """
    code, label = test
    shuffled = np.random.default_rng(seed).permutation(code)
    n = len(code)

    def share(hits: np.ndarray) -> Number:
        return summarise(draws.means(hits), n, draws.episodes)

    def logistic_of(code_test: np.ndarray) -> np.ndarray:
        x_train, x_test = code_vectors(train[0], code_test)
        return logistic_hits(x_train, train[1], x_test, label)

    constant = np.zeros(len(train[0]), dtype=int)
    numbers = {
        f"codes/{name}_logistic": share(logistic_of(code)),
        f"codes/{name}_logistic_shuffled": share(logistic_of(shuffled)),
        f"codes/{name}_accuracy_majority_class": share(
            majority_hits(constant, train[1], np.zeros(n, dtype=int), label)
        ),
    }
    measures: dict[str, Callable[[np.ndarray], Number]] = {
        "ami": lambda code_test: Number(ami(code_test, label), n),
        "accuracy": lambda code_test: share(majority_hits(*train, code_test, label)),
        "hungarian": lambda code_test: share(hungarian_hits(*train, code_test, label)),
    }
    discrete = np.issubdtype(code.dtype, np.integer)
    for measure, function in measures.items():
        for suffix, tested in (("", code), ("_shuffled", shuffled)):
            number = function(tested) if discrete else not_applicable(CONTINUOUS)
            numbers[f"codes/{name}_{measure}{suffix}"] = number
    return numbers
