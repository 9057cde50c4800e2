"""The data contract: what a step of experience is, and how time is aligned. Settled here and nowhere else.

Step ``t`` of an episode of ``T`` steps, stored time first:

====================  ====================  ==========================================================================
key                   shape, dtype          meaning
====================  ====================  ==========================================================================
``frames``            (T,H,W,C) uint8       the picture at t; further picture keys may stand beside it
``vector``            (T,D) float32         the observation of tasks without pictures
``action``            (T,...) see below     taken **after** ``frames[t]``; void on an ``is_last`` row, stored as 0
``reward``            (T,) float32          arrives **with** ``frames[t]``; 0 on the first row
``is_first``          (T,) bool             true starts of episodes only (a chunk need not begin with one)
``is_last``           (T,) bool             the last row of an episode
``is_terminal``       (T,) bool             the episode ended for good here (not by a time limit): implies ``is_last``
``state``             (T,F) float32         ground truth, for evaluation only; NaN where a factor is undefined
====================  ====================  ==========================================================================

A batch has the same keys with a leading batch axis, pictures as (B,T,C,H,W) and still uint8. Where nobody acted, as in
video (:attr:`ExperienceSpec.acted`), there is neither ``action`` nor ``reward``: zeros would be taken for actions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

STEP_KEYS = ("action", "reward", "is_first", "is_last", "is_terminal")
BATCH_KEYS = ("state", "weight", "episode", "start", "stream", "step")  # what a batch may hold beside them
ACTION_KINDS = ("discrete", "multi_discrete", "continuous", "none")
FACTOR_GROUPS = ("task", "velocity", "event", "distractor")
FACTOR_KINDS = ("continuous", "discrete")


class ExperienceError(ValueError):
    """Experience that breaks the contract. The message is one line that names the key or file and says what to do."""


@dataclass(frozen=True)
class ActionSpace:
    """The actions of an environment.

    Args:
        kind: ``discrete`` (int64 scalar per step), ``multi_discrete`` (int64 vector), ``continuous`` (float32 in [-1, 1]),
            or ``none`` where nobody acted.
        sizes: ``(n,)`` classes, the classes of each entry, or ``(dims,)``; ``()`` of ``none``.
        names: a name for each class of a discrete space; empty when there are none.
    """

    kind: str
    sizes: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(n) for n in self.sizes))
        object.__setattr__(self, "names", tuple(self.names))
        if self.kind not in ACTION_KINDS:
            raise ExperienceError(f"action kind '{self.kind}' is not one of {', '.join(ACTION_KINDS)}")
        if self.kind == "none":
            if self.sizes or self.names:
                raise ExperienceError(f"an action space of kind none has neither sizes {self.sizes} nor names")
            return
        if not self.sizes or min(self.sizes) < 1:
            raise ExperienceError(f"action sizes {self.sizes} must be positive")
        if self.kind != "multi_discrete" and len(self.sizes) != 1:
            raise ExperienceError(f"a {self.kind} action space has one size, not {self.sizes}")
        if self.names and (self.kind != "discrete" or len(self.names) != self.sizes[0]):
            raise ExperienceError(f"{len(self.names)} action names for a {self.kind} space of sizes {self.sizes}")

    @property
    def width(self) -> int:
        """Width of the float vector a model is fed: one-hot classes laid side by side, or the continuous dimensions."""
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stored action."""
        if self.kind == "discrete":
            return ()
        return self.sizes if self.kind == "continuous" else (len(self.sizes),)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of a stored action."""
        return np.dtype(np.float32 if self.kind == "continuous" else np.int64)


@dataclass(frozen=True)
class Factor:
    """One named entry of ``state``.

    Args:
        name: for example ``ball_x``.
        group: ``task`` (what an agent must know), ``velocity``, ``event`` (unpredictable), or ``distractor``.
        kind: ``continuous`` (scored by R2) or ``discrete`` (scored by balanced accuracy).
    """

    name: str
    group: str = "task"
    kind: str = "continuous"

    def __post_init__(self) -> None:
        if self.group not in FACTOR_GROUPS or self.kind not in FACTOR_KINDS:
            raise ExperienceError(f"factor '{self.name}': group '{self.group}' or kind '{self.kind}' is unknown")


def reserved(key: str) -> bool:
    """Whether a batch uses the key for something that is no observation."""
    return key in (*STEP_KEYS, *BATCH_KEYS) or key.startswith("latent_")


@dataclass(frozen=True)
class ExperienceSpec:
    """Shapes and names of a data set: what a model needs to know to be built for it.

    Args:
        observations: observation key -> shape of one step, (H,W,C) for uint8 pictures and (D,) for float32 vectors.
        action: the action space.
        factors: the names behind the columns of ``state``; empty where there is no ground truth.
    """

    observations: Mapping[str, tuple[int, ...]]
    action: ActionSpace
    factors: tuple[Factor, ...] = field(default=())

    def __post_init__(self) -> None:
        shapes = {key: tuple(int(n) for n in shape) for key, shape in self.observations.items()}
        object.__setattr__(self, "observations", shapes)
        object.__setattr__(self, "factors", tuple(self.factors))
        for key, shape in shapes.items():
            if reserved(key):
                raise ExperienceError(f"an observation cannot be named '{key}', which means something else in a batch")
            if len(shape) not in (1, 3):
                raise ExperienceError(f"observation '{key}' of shape {shape}: pictures are (H,W,C), vectors (D,)")

    @property
    def pictures(self) -> tuple[str, ...]:
        """Picture keys in sorted order."""
        return tuple(sorted(key for key, shape in self.observations.items() if len(shape) == 3))

    @property
    def acted(self) -> bool:
        """Whether somebody acted. If not, the steps hold neither ``action`` nor ``reward``."""
        return self.action.kind != "none"

    @property
    def vectors(self) -> tuple[str, ...]:
        """Vector keys in sorted order."""
        return tuple(sorted(key for key, shape in self.observations.items() if len(shape) == 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for ``index.json`` and for the hyper-parameters of a checkpoint."""
        return {
            "observations": {key: list(shape) for key, shape in self.observations.items()},
            "action": {"kind": self.action.kind, "sizes": list(self.action.sizes), "names": list(self.action.names)},
            "factors": [asdict(factor) for factor in self.factors],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ExperienceSpec:
        """The inverse of :meth:`to_dict`."""
        try:
            action = ActionSpace(**plain["action"])
            factors = tuple(Factor(**factor) for factor in plain.get("factors", ()))
            return cls(dict(plain["observations"]), action, factors)
        except ExperienceError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ExperienceError(f"the description of the experience is broken at {error}") from error


def check_rows(rows: Mapping[str, np.ndarray], spec: ExperienceSpec, where: str = "episode") -> int:
    """Check a run of steps (an episode or a chunk of one) against the contract.

    Args:
        rows: key -> array with time first.
        spec: what the arrays must look like.
        where: named in the message.

    Returns:
        The number of steps.

    Raises:
        ExperienceError: naming the key, and the step where that helps.
    """
    expected: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        key: (shape, np.dtype(np.uint8 if len(shape) == 3 else np.float32)) for key, shape in spec.observations.items()
    }
    if spec.acted:
        expected |= {"action": (spec.action.shape, spec.action.dtype), "reward": ((), np.dtype(np.float32))}
    expected |= {key: ((), np.dtype(bool)) for key in ("is_first", "is_last", "is_terminal")}
    if "state" in rows:
        expected["state"] = ((len(spec.factors),), np.dtype(np.float32))
    if missing := sorted(expected.keys() - rows.keys()):
        raise ExperienceError(f"{where}: '{missing[0]}' is missing")
    if extra := sorted(rows.keys() - expected.keys()):
        raise ExperienceError(f"{where}: '{extra[0]}' is not described by the index")
    steps = len(rows["is_first"])
    if steps < 1:
        raise ExperienceError(f"{where}: holds no steps")
    for key, (shape, dtype) in expected.items():
        if rows[key].shape != (steps, *shape) or rows[key].dtype != dtype:
            raise ExperienceError(
                f"{where}: '{key}' is {rows[key].dtype} {rows[key].shape}, expected {dtype} {(steps, *shape)}"
            )
    _check_values(rows, spec, where)
    return steps


def _check_values(rows: Mapping[str, np.ndarray], spec: ExperienceSpec, where: str) -> None:
    """Values, once shapes and dtypes are known to be right."""
    last, first = rows["is_last"], rows["is_first"]
    if first[1:].any():
        raise ExperienceError(f"{where}: 'is_first' is set at step {int(first[1:].argmax()) + 1}, inside an episode")
    if last[:-1].any():
        raise ExperienceError(f"{where}: 'is_last' is set at step {int(last.argmax())}, before the end")
    if (rows["is_terminal"] & ~last).any():
        raise ExperienceError(f"{where}: 'is_terminal' is set where 'is_last' is not")
    for key in ("reward", *spec.vectors, *(["action"] if spec.action.kind == "continuous" else [])):
        if key in rows and not np.isfinite(rows[key]).all():
            raise ExperienceError(f"{where}: '{key}' holds NaN or infinity")
    if "state" in rows and np.isinf(rows["state"]).any():
        raise ExperienceError(f"{where}: 'state' holds infinity (NaN marks an undefined factor)")
    if spec.acted:
        _check_acts(rows["action"], rows["reward"], first, last, spec.action, where)


def _check_acts(
    action: np.ndarray, reward: np.ndarray, first: np.ndarray, last: np.ndarray, space: ActionSpace, where: str
) -> None:
    """What was done and what came of it."""
    if np.any(action[last] != 0):
        raise ExperienceError(f"{where}: 'action' on the last row of an episode is void and must be stored as 0")
    if first[0] and reward[0] != 0:
        raise ExperienceError(f"{where}: 'reward' on the first row is {reward[0]}, but nothing was done yet")
    low, high = (-1, np.ones(())) if space.kind == "continuous" else (0, np.asarray(space.sizes) - 1)
    if space.kind == "discrete":
        high = high[0]
    if action.size and (np.any(action < low) or np.any(action > high)):
        raise ExperienceError(f"{where}: 'action' leaves its range [{low}, {np.asarray(high).tolist()}]")


def check_episode(rows: Mapping[str, np.ndarray], spec: ExperienceSpec, where: str = "episode") -> int:
    """Check a whole episode: :func:`check_rows`, and it begins and ends where an episode does.

    An episode that the recorder had to cut is closed like a time limit: ``is_last`` without ``is_terminal``.
    """
    steps = check_rows(rows, spec, where)
    if not rows["is_first"][0] or not rows["is_last"][-1]:
        raise ExperienceError(f"{where}: a whole episode has 'is_first' on its first and 'is_last' on its last row")
    return steps


def check_chunks(
    chunks: Iterable[Mapping[str, np.ndarray]], spec: ExperienceSpec, where: str
) -> Iterator[Mapping[str, np.ndarray]]:
    """:func:`check_episode` for an episode that comes in chunks: each is handed on as soon as it is checked."""
    begun = ended = False
    for rows in chunks:
        check_rows(rows, spec, where)
        if rows["is_first"][0] == begun or ended:
            raise ExperienceError(f"{where}: 'is_first' and 'is_last' must be set at its ends and nowhere else")
        begun, ended = True, bool(rows["is_last"][-1])
        yield rows
    if not ended:
        raise ExperienceError(f"{where}: a whole episode has 'is_last' on its last row")


def action_vectors(action: torch.Tensor, is_last: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Actions as a model is fed them: float32 vectors, the zero vector (not class 0) where the action is void.

    Args:
        action: (..., ) int64, (..., E) int64 or (..., A) float32, as stored.
        is_last: (...,) bool.
        space: the action space.

    Returns:
        (..., space.width) float32.
    """
    import torch.nn.functional as F  # torch only where a tensor is at hand: the recorder does without

    if space.kind == "continuous":
        x_a = action.float()
    elif space.kind == "discrete":
        x_a = F.one_hot(action.long(), space.sizes[0]).float()
    else:
        import torch

        x_a = torch.cat([F.one_hot(action[..., i].long(), n).float() for i, n in enumerate(space.sizes)], -1)
    return x_a * (~is_last).unsqueeze(-1)


def previous_actions(action_bta: torch.Tensor, is_first: torch.Tensor) -> torch.Tensor:
    """The action that led to each frame, ``previous[t] = action[t-1]``: the one place where actions are shifted.

    Args:
        action_bta: (B,T,A) from :func:`action_vectors`.
        is_first: (B,T) bool.

    Returns:
        (B,T,A); zero at the start of the clip and at the start of an episode.
    """
    import torch

    previous = torch.cat([torch.zeros_like(action_bta[:, :1]), action_bta[:, :-1]], 1)
    return previous * (~is_first).unsqueeze(-1)


class Policy(Protocol):
    """Something that acts in ``n`` environments at once: a scripted policy, or an agent that is being trained."""

    def initial_state(self, n: int) -> Any:
        """The policy's memory before the first step of ``n`` environments; None for a policy without memory."""

    def act(
        self, observation: Mapping[str, np.ndarray], is_first: np.ndarray, state: Any
    ) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        """Choose actions.

        Args:
            observation: key -> (n, ...) of this step; scripted policies also find ``state`` there.
            is_first: (n,) bool, where an episode begins (memory must be wiped).
            state: what the last call returned.

        Returns:
            Actions (n, ...), the new memory, and per-step extras (n, ...) to be stored beside the step, such as the
            latents of an RSSM, which training writes back later; empty for most policies.
        """
