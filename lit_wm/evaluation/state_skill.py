"""State skill of open-loop rollouts: probe scores at every horizon, beside three floors and two ceilings.

=========================  =========================================================================================
tag                        features that are probed for the state at t+k (t: the last context frame)
=========================  =========================================================================================
``state_r2``               imagined features, probe refitted at every horizon (Pk: what information is left); headline
``state_r2_p0``            the same features through the probe fitted at k=0 (P0: also sensitive to drift)
``state_r2_random``        floor: the same architecture with random weights, rolled out alike
``state_r2_persistence``   floor: the model's own features at t, never rolled
``state_r2_pixels``        floor: the frame at t averaged down to 8x8 pixels
``state_r2_ceiling``       ceiling: the true state itself; the closed-loop k=0 row is the ceiling of the same model
``state_skill``            (R2 - random) / (1 - random)
``*_oracle_codes``         privileged: test rollouts steered by codes that saw the true future, through the headline's probe
``state_minus_*``          R2 less a floor, with the interval of the paired difference
=========================  =========================================================================================

Discrete factors take part with chance-corrected balanced accuracy in the place of R2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from datamodules.experience import Factor
from lit_wm.contract import Batch
from lit_wm.evaluation.frames import small_pixels
from lit_wm.evaluation.probes import Split, StateProbe, fit_state_probe, score_state_probe, skill
from lit_wm.evaluation.rollouts import Rollout
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import EpisodeDraws, Number, not_applicable, summarise

NO_ROOM = 0.98  # a floor above it leaves no room for skill

Scores = list[np.ndarray | str]  # per factor: bootstrap vector, or why there is none


class Examiner:
    """Fits and scores probes of one horizon.

    Args:
        state: split -> (n,F) true state at the horizon.
        factors: its columns.
        settings: the yardstick.
        draws: over the test clips.
    """

    def __init__(
        self, state: Mapping[str, Tensor], factors: tuple[Factor, ...], settings: Settings, draws: EpisodeDraws
    ) -> None:
        self.state, self.factors, self.settings, self.draws = state, factors, settings, draws

    def fit(self, x: Mapping[str, Tensor]) -> StateProbe:
        """A probe of split -> (n,D) features."""
        train, val = (Split(x[split], self.state[split]) for split in ("train", "val"))
        return fit_state_probe(
            train, val, self.factors, self.settings.probe_dims, self.settings.projection, self.settings.seed
        )

    def score(self, probe: StateProbe, x_test: Tensor) -> Scores:
        """Test scores of a probe."""
        return score_state_probe(probe, Split(x_test, self.state["test"]), self.factors, self.draws)

    def refit(self, x: Mapping[str, Tensor]) -> Scores:
        """Fit and score."""
        return self.score(self.fit(x), x["test"])


def state_numbers(
    fair: Mapping[str, Rollout],
    oracle: Rollout | None,
    random: Mapping[str, Rollout],
    clips: Mapping[str, Batch],
    factors: tuple[Factor, ...],
    settings: Settings,
    draws: EpisodeDraws,
) -> dict[str, Number]:
    """All state scores.

    Args:
        fair: split -> headline rollouts.
        oracle: test rollouts steered by codes of the true future, or None.
        random: split -> rollouts with random weights.
        clips: split -> clips with ``state``.
        factors: columns of ``state``.
        settings: the yardstick.
        draws: over the test clips.
    """
    if not factors or any("state" not in batch for batch in clips.values()):
        return {f"state_skill/k{k}/task": not_applicable("the data holds no true state") for k in settings.horizons}
    numbers: dict[str, Number] = {}
    now, closed_loop = settings.context - 1, None
    pixels = {split: small_pixels(batch["frames"][:, now]) for split, batch in clips.items()}
    for h, k in enumerate(settings.horizons):
        state = {split: batch["state"][:, now + k] for split, batch in clips.items()}
        examiner = Examiner(state, factors, settings, draws)
        imagined = features_at(fair, h)
        probe = examiner.fit(imagined)
        closed_loop = closed_loop or probe
        rows = {
            "state_r2": examiner.score(probe, imagined["test"]),
            "state_r2_p0": examiner.score(closed_loop, imagined["test"]),
            "state_r2_random": examiner.refit(features_at(random, h)),
            "state_r2_persistence": examiner.refit(features_at(fair, 0)),
            "state_r2_pixels": examiner.refit(pixels),
            "state_r2_ceiling": examiner.refit({split: defined_state(y) for split, y in state.items()}),
        }
        rows["state_skill"] = combine(rows["state_r2"], rows["state_r2_random"], skill_over_floor)
        for floor in ("random", "persistence", "pixels"):
            rows[f"state_minus_{floor}"] = combine(rows["state_r2"], rows[f"state_r2_{floor}"], np.subtract)
        if oracle is not None:
            rows["state_r2_oracle_codes"] = examiner.score(probe, oracle.features_bhd[:, h])
            privileged = combine(rows["state_r2_oracle_codes"], rows["state_r2_random"], skill_over_floor)
            rows["state_skill_oracle_codes"] = privileged
        for measure, scores in rows.items():
            numbers |= factor_numbers(f"{measure}/k{k}", scores, factors, state["test"], draws)
    return numbers


def features_at(rolled: Mapping[str, Rollout], h: int) -> dict[str, Tensor]:
    """split -> (n,D) features at the h-th asked horizon (the first one being k=0)."""
    return {split: rollout.features_bhd[:, h] for split, rollout in rolled.items()}


def defined_state(state: Tensor) -> Tensor:
    """(n,F) -> (n,2F): the state with 0 where undefined, and where it is defined."""
    return torch.cat([state.nan_to_num(), state.isfinite().float()], 1)


def skill_over_floor(score: np.ndarray, floor: np.ndarray) -> np.ndarray | str:
    """:func:`probes.skill`, or why it would say nothing."""
    if floor[0] > NO_ROOM:
        return f"random weights already score {floor[0]:.3f}"
    return skill(score, floor)


def combine(a: Scores, b: Scores, function: Callable[[np.ndarray, np.ndarray], np.ndarray | str]) -> Scores:
    """Per factor ``function(a, b)``; what has no score keeps its reason."""
    pairs = zip(a, b, strict=True)
    return [x if isinstance(x, str) else y if isinstance(y, str) else function(x, y) for x, y in pairs]


def factor_numbers(
    measure: str, scores: Scores, factors: tuple[Factor, ...], state: Tensor, draws: EpisodeDraws
) -> dict[str, Number]:
    """A number per factor, ``measure/group/factor``, and per group the mean over its factors that have one."""
    numbers: dict[str, Number] = {}
    defined = state.isfinite().sum(0).tolist()
    for group in dict.fromkeys(factor.group for factor in factors):
        inside = [(f, s, n) for f, s, n in zip(factors, scores, defined, strict=True) if f.group == group]
        scored = [s for _, s, _ in inside if not isinstance(s, str)]
        n = max(n for *_, n in inside)
        if scored:
            numbers[f"{measure}/{group}"] = summarise(np.mean(scored, 0), n, draws.episodes)
        else:
            numbers[f"{measure}/{group}"] = not_applicable(
                f"no factor has a score; {inside[0][0].name}: {inside[0][1]}", n
            )
        for factor, s, n in inside:
            number = not_applicable(s, n) if isinstance(s, str) else summarise(s, n, draws.episodes)
            numbers[f"{measure}/{group}/{factor.name}"] = number
    return numbers
