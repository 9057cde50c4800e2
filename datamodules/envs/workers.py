"""Environments side by side that survive the death of one, in this process or spread over several."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from datamodules.envs.restorable import RestorableEnv
from datamodules.experience import ExperienceError

LONG_LIFE = 1000  # steps after which an environment's earlier deaths no longer count against it

Maker = Callable[[], gymnasium.Env]
Rows = dict[str, np.ndarray]


class Outcome(NamedTuple):
    """What one environment answers to one action, in NEXT_STEP order: after the last frame of an episode comes the
    first of the next, with reward 0."""

    observation: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    died: str  # why the environment had to be made anew, and this is the first frame after that; "" normally


class Group:
    """Environments stepped one after the other.

    Args:
        makers: make them.
        seeds: one for each; see :class:`RestorableEnv`.
        lives: how often each was made before, so that one that dies does not live the same life again.
    """

    def __init__(self, makers: Sequence[Maker], seeds: Sequence[int], lives: Sequence[int]) -> None:
        self.makers, self.seeds, self.lives = list(makers), list(seeds), list(lives)
        self.envs = [self._make(i) for i in range(len(makers))]
        self.over = [True] * len(makers)  # the next step begins an episode

    def _make(self, i: int) -> RestorableEnv:
        return RestorableEnv(self.makers[i](), (self.seeds[i], self.lives[i]))

    def reset(self) -> list[Outcome]:
        """Begin an episode everywhere."""
        self.over = [True] * len(self.envs)
        return self.step([None] * len(self.envs))

    def step(self, actions: Sequence[Any]) -> list[Outcome]:
        """Step each environment, or begin its next episode, whatever the action, where the last one is over."""
        return [self._step(i, action) for i, action in enumerate(actions)]

    def _step(self, i: int, action: Any) -> Outcome:
        try:
            if self.over[i]:
                self.over[i] = False
                return Outcome(self.envs[i].reset()[0], 0.0, False, False, "")
            observation, reward, terminated, truncated, _ = self.envs[i].step(action)
        except Exception as error:  # whatever an environment raises, the others go on
            return self._born_again(i, error)
        self.over[i] = terminated or truncated
        return Outcome(observation, float(reward), bool(terminated), bool(truncated), "")

    def _born_again(self, i: int, error: Exception) -> Outcome:
        with contextlib.suppress(Exception):  # broken as it is, it may not even close; the cause is known
            self.envs[i].close()
        self.lives[i] += 1
        self.envs[i] = self._make(i)
        return Outcome(self.envs[i].reset()[0], 0.0, False, False, f"{type(error).__name__}: {error}")

    def snapshot(self) -> list[dict[str, Any]]:
        """Where each environment is; see :meth:`RestorableEnv.snapshot`."""
        return [
            env.snapshot() | {"over": over, "life": life}
            for env, over, life in zip(self.envs, self.over, self.lives, strict=True)
        ]

    def restore(self, arguments: Sequence[tuple[dict[str, Any], Rows]]) -> list[Rows | None]:
        """Go back to (snapshot, observation there) of each; see :meth:`SturdyVectorEnv.restore`."""
        return [self._restore(i, snapshot, seen) for i, (snapshot, seen) in enumerate(arguments)]

    def _restore(self, i: int, snapshot: dict[str, Any], seen: Rows) -> Rows | None:
        self.lives[i], self.over[i] = snapshot["life"], snapshot["over"]
        try:
            there = self.envs[i].restore(snapshot)
        except Exception as error:  # its past went otherwise this time, to where an action makes no sense
            self.over[i] = False
            return self._born_again(i, error).observation
        if all(np.array_equal(there[key], seen[key], equal_nan=True) for key in seen):
            return None
        self.over[i] = False
        return self.envs[i].reset()[0]

    def render(self) -> list[np.ndarray | None]:
        """A picture (H,W,3) of each environment that was made with ``render_mode="rgb_array"``."""
        return [env.render() if env.render_mode == "rgb_array" else None for env in self.envs]

    def close(self) -> None:
        for env in self.envs:
            env.close()


def _serve(pipe: Any, makers: Sequence[Maker], seeds: Sequence[int], lives: Sequence[int]) -> None:
    """A process that answers for one group until it is told to close."""
    group = Group(makers, seeds, lives)
    while True:
        command, arguments = pipe.recv()
        try:
            pipe.send(getattr(group, command)(*arguments))
        except Exception as error:
            pipe.send(error)
        if command == "close":
            return


class ProcessGroup:
    """A :class:`Group` in a process of its own; if the process dies, a new one takes its place.

    Args:
        makers, seeds: as for :class:`Group`.
        numbers: of its environments among all, to be named when they die together: which of them it was cannot be told.
    """

    def __init__(self, makers: Sequence[Maker], seeds: Sequence[int], numbers: Sequence[int]) -> None:
        self.makers, self.seeds, self.numbers = list(makers), list(seeds), list(numbers)
        self.lives = [0] * len(makers)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")  # neither torch's threads nor its memory are copied
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self.makers, self.seeds, list(self.lives)), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, command: str, *arguments: Any) -> None:
        """Ask; :meth:`receive` waits for the answer."""
        self._asked = command
        if command == "restore":
            self.lives = [snapshot["life"] for snapshot, _ in arguments[0]]
        with contextlib.suppress(OSError):  # the process is gone: receive() will find it so
            self._pipe.send((command, arguments))

    def receive(self) -> Any:
        """The answer to the last :meth:`send`.

        Raises:
            ExperienceError: what the group raised; or its process died, other than in a step, or twice in a row.
        """
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            if self._asked == "close":
                return None
            cause = f"its process died (exit code {self._process.exitcode})"
            if len(self.numbers) > 1:
                cause += (
                    f", and with it environments {', '.join(map(str, self.numbers))}, any of which may have done it"
                )
            if self._asked != "step":
                raise ExperienceError(f"an environment cannot {self._asked}: {cause}") from None
            self.lives = [life + 1 for life in self.lives]
            self._start()
            self.send("reset")
            return [outcome._replace(died=cause) for outcome in self.receive()]
        if self._asked == "step" and isinstance(answer, list):
            self.lives = [life + bool(outcome.died) for life, outcome in zip(self.lives, answer, strict=True)]
        if self._asked == "close":
            self._process.join()
        if isinstance(answer, Exception):
            raise answer
        return answer


class LocalGroup:
    """A :class:`Group` in this process, asked like one in another."""

    def __init__(self, makers: Sequence[Maker], seeds: Sequence[int]) -> None:
        self.group = Group(makers, seeds, [0] * len(makers))

    def send(self, command: str, *arguments: Any) -> None:
        """Ask; done at once."""
        self._answer = getattr(self.group, command)(*arguments)

    def receive(self) -> Any:
        """The answer to the last :meth:`send`."""
        return self._answer


class SturdyVectorEnv(VectorEnv):
    """Environments side by side in NEXT_STEP mode. One that raises, or whose process dies, is made anew and counted.

    ``info["died"]`` tells, of each environment, why its observation is the first after a death; "" normally.

    Args:
        makers: one for each environment; each must be picklable if there are processes.
        seeds: one for each.
        processes: how many to spread them over; 0 steps them in this process.
        most_deaths: more deaths of one environment, without an episode of its own that ended or a thousand steps in between,
            are an error.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self, makers: Sequence[Maker], seeds: Sequence[int], processes: int = 0, most_deaths: int = 20
    ) -> None:
        example = makers[0]()
        self.experience = example.experience
        self.single_observation_space, self.single_action_space = example.observation_space, example.action_space
        example.close()
        self.num_envs, self.most_deaths = len(makers), most_deaths
        self.deaths = 0
        self._in_a_row = np.zeros(
            self.num_envs, int
        )  # deaths of each since an episode of its own ended, or a long life
        self._lived = np.zeros(self.num_envs, int)  # steps of each since its last death
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        shares = np.array_split(np.arange(self.num_envs), min(processes, self.num_envs) or 1)
        self._shares = [share.tolist() for share in shares]
        self._groups: list[LocalGroup | ProcessGroup] = []
        for share in self._shares:
            theirs = [makers[i] for i in share], [seeds[i] for i in share]
            self._groups.append(ProcessGroup(*theirs, share) if processes else LocalGroup(*theirs))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode everywhere. Seeds were given to the constructor."""
        if seed is not None or options:
            raise ExperienceError("this vector environment is seeded when it is made")
        observation, _, _, _, info = self._gather(self._ask("reset"))
        return observation, info

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict]:
        """As Gymnasium's, with ``info["died"]``.

        Raises:
            ExperienceError: too many deaths; names the last cause.
        """
        outcomes = self._ask("step", actions)
        return self._gather(outcomes)

    def snapshot(self) -> list[dict[str, Any]]:
        """Where each environment is, in plain types."""
        return self._ask("snapshot")

    def restore(self, snapshots: Sequence[dict[str, Any]], seen: Sequence[Rows]) -> list[Rows | None]:
        """Go back to snapshots.

        Args:
            snapshots: of each environment.
            seen: what each saw there.

        Returns:
            None for each that sees the same again; one that does not begins another episode, and this is its first
            observation.
        """
        return self._ask("restore", list(zip(snapshots, seen, strict=True)))

    def render(self) -> tuple[np.ndarray | None, ...]:
        """A picture (H,W,3) of each environment; None where it draws none.

        Raises:
            ExperienceError: it cannot draw, for example because a library is missing.
        """
        try:
            return tuple(self._ask("render"))
        except ExperienceError:
            raise
        except Exception as error:  # whatever an environment raises
            raise ExperienceError(f"the environment cannot draw itself: {' '.join(str(error).split())}") from error

    def close_extras(self, **kwargs: Any) -> None:
        self._ask("close")

    def _ask(self, command: str, one_each: Sequence[Any] | None = None) -> list[Any]:
        """Ask all groups, then hear all; each environment's argument goes to its group."""
        for group, share in zip(self._groups, self._shares, strict=True):
            group.send(command, *([] if one_each is None else [[one_each[i] for i in share]]))
        answers = [group.receive() for group in self._groups]
        return [one for answer in answers for one in answer or ()]

    def _gather(
        self, outcomes: list[Outcome]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict]:
        died = [outcome.died for outcome in outcomes]
        self.deaths += sum(map(bool, died))
        for i, outcome in enumerate(outcomes):
            self._lived[i] = 0 if outcome.died else self._lived[i] + 1
            well = outcome.terminated or outcome.truncated or self._lived[i] >= LONG_LIFE
            self._in_a_row[i] = 0 if well else self._in_a_row[i] + bool(outcome.died)
            if self._in_a_row[i] > self.most_deaths:
                raise ExperienceError(
                    f"environment {i} died {self._in_a_row[i]} times before an episode of it ended, the last time of:"
                    f" {outcome.died}"
                )
        observation = {key: np.stack([o.observation[key] for o in outcomes]) for key in outcomes[0].observation}
        reward, terminated, truncated = (
            np.array([getattr(o, name) for o in outcomes]) for name in ("reward", "terminated", "truncated")
        )
        return observation, reward, terminated, truncated, {"died": died}
