"""OnlineLoader: before each batch it lets the agent act as much as the train ratio asks for, then draws from the replay."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from datamodules.collector import Collector, SideBySide, row_layout
from datamodules.experience import ExperienceError, ExperienceSpec, Policy
from datamodules.replay_memory import Layout, Replay
from datamodules.shards import ShardWriter

RECENT = 10  # episodes whose mean return is logged
AVERAGED = ("env/return", "env/length", "replay/ratio")  # over ranks; the others are counts, which add up
SPEED_OVER = 10  # calls of statistics() over which the speed is measured


class Agent(Policy, Protocol):
    """A policy that is being trained: its extras are stored beside each step, in this layout."""

    latents: Layout


@dataclass(frozen=True)
class OnlineSettings:
    """How acting and learning take turns; see :class:`datamodules.replay.ReplayDataModule`."""

    batch_size: int
    clip_length: int
    train_ratio: float
    capacity: int
    start_after: int
    online_queue: bool
    seed: int
    epoch_batches: int


def batch_tensors(rows: Mapping[str, np.ndarray], spec: ExperienceSpec) -> dict[str, Tensor]:
    """Sequences (B,L,...) as a batch: pictures (B,L,C,H,W), without the ground truth, which no model may see."""
    batch = {key: torch.from_numpy(value) for key, value in rows.items() if key != "state"}
    for key in spec.pictures:
        batch[key] = batch[key].permute(0, 1, 4, 2, 3)
    return batch


class OnlineLoader:
    """Endless batches of T+1 rows each: row 0 tells the latents and the action that lead to row 1.

    A batch holds the keys of the data contract (B,T+1,...), ``latent_KEY`` (B,...) of row 0, and where row 0 is in the
    replay, ``stream`` and ``step`` (B,). One row of every environment earns ``num_envs * train_ratio / (B T)`` batches.

    Args:
        env: the environments.
        agent: acts.
        settings: sizes and ratio.
        draws: seed of the drawing, where it is not the settings' own, as on the second rank and after.
    """

    def __init__(
        self,
        env: SideBySide,
        agent: Agent,
        settings: OnlineSettings,
        draws: np.random.SeedSequence | None = None,
    ) -> None:
        self.env, self.agent, self.settings = env, agent, settings
        # takes whole episodes; given once it is known from where this run goes on
        self.writer: ShardWriter | None = None
        # what an earlier part of this run wrote, where this one writes nothing
        self.written: dict[str, Any] | None = None
        length = settings.clip_length + 1
        layout = row_layout(env.experience)
        block = min(1024, -(-settings.capacity // (8 * env.num_envs)))  # what is dropped at once is little of the whole
        self.replay = Replay(
            layout,
            agent.latents,
            env.num_envs,
            length,
            settings.capacity,
            settings.online_queue,
            settings.seed if draws is None else draws,
            block,
        )
        self.collector = Collector(env, self.replay, self._keep)
        self.credit = 0.0
        self.begun = False  # training: batches are earned from here on, whatever the replay drops
        self.batches = self.not_restored = 0
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._clock = deque([(time.perf_counter(), 0)], maxlen=SPEED_OVER)

    def _keep(self, episode: dict[str, np.ndarray]) -> None:
        if self.writer is not None:
            self.writer.write_episode(episode)

    def __len__(self) -> int:
        return self.settings.epoch_batches  # with a length, Lightning fetches no batch ahead of its update

    def state_dict(self) -> dict[str, Any]:
        """Tells Lightning that this loader can be resumed; what it takes is in the data module's own state."""
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is left to do: see :meth:`load`."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield self.next_batch()

    def next_batch(self) -> dict[str, Tensor]:
        """Act until a batch is earned, then draw it."""
        s = self.settings
        while self.credit < 1:
            self.collector.step(self.agent)
            self.recent.extend(self.collector.returns)
            self.collector.returns.clear()
            self.begun = self.begun or self.replay.sequences >= s.start_after
            if self.begun and self.replay.sequences:
                self.credit += self.env.num_envs * s.train_ratio / (s.batch_size * s.clip_length)
        self.credit -= 1
        self.batches += 1
        return batch_tensors(self.replay.sample(s.batch_size), self.env.experience)

    def write_back(self, batch: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> None:
        """Replace the latents of rows 1..T of a batch by newer ones, (B,T,...) each."""
        step = batch["step"].cpu().numpy() + 1
        self.replay.write_back(
            batch["stream"].cpu().numpy(), step, {key: value.cpu().numpy() for key, value in latents.items()}
        )

    def newest(self, clips: int, steps: int) -> dict[str, Tensor] | None:
        """A batch (B,L,...) to look at: of up to ``clips`` environments the newest rows of one episode, up to ``steps`` of them.

        Nothing is drawn at random, so that looking changes nothing. None before there is anything.
        """
        found = []
        for number, stream in enumerate(self.replay.streams[:clips]):
            if not stream.held:
                return None
            rows = self.replay.rows(number, max(stream.dropped, stream.count - 2 * steps), stream.count)
            episodes = list(pairwise([0, *(np.flatnonzero(rows["is_first"][1:]) + 1), len(rows["is_first"])]))
            start, stop = max(reversed(episodes), key=lambda episode: min(episode[1] - episode[0], steps))
            found.append({key: value[max(start, stop - steps) : stop] for key, value in rows.items()})
        length = min(len(rows["is_first"]) for rows in found)
        together = {key: np.stack([rows[key][-length:] for rows in found]) for key in found[0]}
        return batch_tensors(together, self.env.experience)

    def statistics(self) -> dict[str, float]:
        """What to log of this rank: environment steps and their rate over the last calls, episodes, the replay and its ratio."""
        now, steps = time.perf_counter(), self.collector.env_steps
        before, steps_before = self._clock[0]
        self._clock.append((now, steps))
        s = self.settings
        numbers = {
            "env/steps": steps,
            "env/episodes": self.collector.episodes,
            "env/deaths": self.env.deaths,
            "env/lost_episodes": self.collector.lost_episodes,
            "env/steps_per_second": (steps - steps_before) / max(now - before, 1e-9),
            "replay/rows": len(self.replay),
            "replay/ratio": self.batches * s.batch_size * s.clip_length / max(steps, 1),
        }
        if self.recent:
            numbers["env/return"] = float(np.mean([total for total, _ in self.recent]))
            numbers["env/length"] = float(np.mean([length for _, length in self.recent]))
        return {name: float(value) for name, value in numbers.items()}

    # ---- stopping and going on ---------------------------------------------------------------------------------

    def state(self, folder: Path, tag: str) -> dict[str, Any]:
        """Everything the next batch depends on; the replay goes to files in ``folder``, named by ``tag``."""
        return {
            "replay": self.replay.save(folder, tag),
            "collector": tensors_of(self.collector.state()),
            "writer": self.writer.state() if self.writer is not None else self.written,
            "credit": self.credit,
            "begun": self.begun,
            "batches": self.batches,
            "recent": [list(pair) for pair in self.recent],
        }

    def load(self, state: Mapping[str, Any], folder: Path, own: bool) -> None:
        """Go on from a state whose replay lies in ``folder``; ``own`` tells whether this run will save there too.

        Raises:
            ExperienceError: the replay's files are missing or broken, or it is of other environments.
        """
        self.replay.load(folder, state["replay"], own)
        try:
            self.not_restored = self.collector.load(arrays_of(state["collector"]))
        except (KeyError, ValueError, IndexError) as error:
            raise ExperienceError(f"the checkpoint was made with other environments: {error}") from error
        self.credit, self.batches = state["credit"], state["batches"]
        self.begun = state.get("begun", self.batches > 0)
        self.written = state["writer"] if own else None
        self.recent.extend((total, length) for total, length in state["recent"])
        self._clock = deque([(time.perf_counter(), self.collector.env_steps)], maxlen=SPEED_OVER)

    def close(self) -> None:
        """End the environments and the recording."""
        self.env.close()
        if self.writer is not None:
            self.writer.close()


def over_ranks(statistics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One set of numbers for all ranks; one that some do not have yet is of the others."""
    found: dict[str, list[float]] = {}
    for rank in statistics:
        for name, value in rank.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / (len(values) if name in AVERAGED else 1) for name, values in found.items()}


def tensors_of(tree: Any) -> Any:
    """Arrays in nested dicts and lists as tensors, which a checkpoint can hold."""
    if isinstance(tree, dict):
        return {key: tensors_of(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [tensors_of(value) for value in tree]
    return torch.from_numpy(np.array(tree)) if isinstance(tree, np.ndarray) else tree


def arrays_of(tree: Any) -> Any:
    """The inverse of :func:`tensors_of`."""
    if isinstance(tree, dict):
        return {key: arrays_of(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [arrays_of(value) for value in tree]
    return tree.cpu().numpy().copy() if isinstance(tree, Tensor) else tree
