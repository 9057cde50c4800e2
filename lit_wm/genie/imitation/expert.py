"""An expert's video, labelled once by a frozen latent action model, and the windows a policy learns from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_wm.contract import Batch
from lit_wm.errors import UserError

NONE = -1  # what stands where nothing was done any more: on the last row of an episode


class ReadsActions(Protocol):
    """All that imitation asks of a world model."""

    def infer_actions(self, batch: Batch) -> Tensor | None:
        """(B,T-1) int64 codes; code t is what happened between frames t and t+1."""


@dataclass(frozen=True)
class Expert:
    """Episodes one after the other, N rows in all.

    Args:
        frames: (N,C,H,W) uint8.
        code: (N,) int64: the code at t is what happened between frames t and t+1, hence what the expert did on seeing frame t.
        action: (N,) int64: the action taken after frame t. Beside the oracle only the labelled steps are read of it.
        lengths: rows of each episode; code and action of its last row are ``NONE``.
    """

    frames: Tensor
    code: Tensor
    action: Tensor
    lengths: tuple[int, ...]

    @property
    def transitions(self) -> np.ndarray:
        """(M,) rows on which something was done: all but the last ones of episodes."""
        return np.flatnonzero(self.code.numpy() != NONE)

    @property
    def codes(self) -> int:
        """How many codes a policy must tell apart: up to the highest that occurs."""
        return int(self.code.max()) + 1


def label(
    model: ReadsActions,
    episodes: Iterable[Mapping[str, np.ndarray]],
    most_steps: int,
    device: torch.device | str = "cpu",
) -> Expert:
    """Read codes off whole episodes. The model sees frames and where episodes begin and end, nothing else.

    Args:
        model: frozen, in evaluation mode.
        episodes: rows of the data contract, time first.
        most_steps: stop after the episode with which so many rows are reached: they are held in memory.
        device: where the model is.

    Raises:
        UserError: the model finds no codes, or they are no whole numbers.
    """
    frames, codes, actions, lengths = [], [], [], []
    nothing = torch.tensor([NONE])
    for rows in episodes:
        x_tchw = torch.from_numpy(rows["frames"]).permute(0, 3, 1, 2).contiguous()
        flags = {key: torch.from_numpy(rows[key])[None].to(device) for key in ("is_first", "is_last")}
        code_bt = model.infer_actions({"frames": x_tchw[None].to(device), **flags})
        check_codes(code_bt)
        frames.append(x_tchw)
        codes += [code_bt[0].cpu(), nothing]
        actions += [torch.from_numpy(rows["action"][:-1]), nothing]
        lengths.append(len(x_tchw))
        if sum(lengths) >= most_steps:
            break
    return Expert(torch.cat(frames), torch.cat(codes), torch.cat(actions), tuple(lengths))


def check_codes(code_bt: Tensor | None) -> None:
    """Refuse what no dictionary can be kept of.

    Raises:
        UserError: no codes, or continuous ones.
    """
    if code_bt is None:
        raise UserError("this model finds no latent actions: imitation needs one with codes, such as a Genie run")
    if code_bt.is_floating_point() or code_bt.ndim != 2:
        raise UserError(
            "this model's latent actions are continuous vectors, of which no dictionary of real actions can be kept:"
            " give a run whose codes are numbered"
        )


class Windows(Dataset):
    """All runs of T transitions that lie within an episode.

    An item: ``frames`` (T,C,H,W) uint8 and ``target`` (T,) int64, what the expert did on seeing each.

    Args:
        expert: the episodes.
        target: (N,) int64: the expert's codes, or its actions.
        length: T.
        stride: rows between the beginnings of neighbouring windows of an episode.

    Raises:
        UserError: no episode has T transitions.
    """

    def __init__(self, expert: Expert, target: Tensor, length: int, stride: int = 1) -> None:
        self.frames, self.target, self.length = expert.frames, target, length
        ends = np.cumsum(expert.lengths)
        begins = ends - expert.lengths
        # the last row is no transition, so the last window ends before it
        self.starts = np.concatenate([np.arange(a, b - length, stride) for a, b in zip(begins, ends, strict=True)])
        if not len(self.starts):
            raise UserError(
                f"no episode of the expert has the {length + 1} steps that a policy of {length} frames needs: its longest"
                f" has {max(expert.lengths)}; lower policy.frames"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        rows = slice(self.starts[i], self.starts[i] + self.length)
        return {"frames": self.frames[rows], "target": self.target[rows]}
