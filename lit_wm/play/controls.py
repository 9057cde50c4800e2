"""What is done in a world, from the words of whoever plays: numbers, or names of the environment's actions.

A list of words is repeated from its beginning until it is as long as wanted, and cut there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from datamodules.experience import ActionSpace
from lit_wm.contract import WorldModelContract
from lit_wm.errors import UserError
from lit_wm.evaluation.steering import action_of_class


@dataclass(frozen=True)
class Controls:
    """What is done in R worlds for K steps.

    Args:
        values: (R,K,...) as ``imagine`` takes it.
        titles: R words.
        steps: K words for what is done at each step; None where the worlds differ in it.
    """

    values: Tensor
    titles: list[str]
    steps: list[str] | None = None


def repeated(items: Sequence, steps: int) -> list:
    """Items repeated from the first until there are ``steps``, and cut there.

    >>> repeated([1, 2, 3], 5)
    [1, 2, 3, 1, 2]
    """
    return list(islice(cycle(items), steps))


def choices(model: WorldModelContract, space: ActionSpace) -> list[str]:
    """Names of all that can be done in a model's world, by number.

    Args:
        model: whose world.
        space: the actions of the environment it was trained on.

    Raises:
        UserError: nothing can be done in it, or what can be done has no numbers.
    """
    if model.action_space == "none":
        raise UserError("the model takes no actions: there is nothing to steer it by")
    if model.action_space == "codes":
        if model.codes is None:
            raise UserError("the model's codes are vectors and have no numbers: steer it by --labels")
        return [f"code {number}" for number in range(model.codes)]
    return action_names(space)


def action_names(space: ActionSpace) -> list[str]:
    """Names of an environment's actions, by number (of :func:`lit_wm.evaluation.steering.action_classes`).

    Raises:
        UserError: there are no actions, or they have no numbers.
    """
    if space.kind == "none":
        raise UserError("nobody acted in this data: there are no labels to steer by, only --actions")
    if space.kind == "continuous":
        raise UserError("the environment's actions are continuous and have no numbers: they cannot be named here")
    return list(space.names) or [f"action {number}" for number in range(math.prod(space.sizes))]


def check_numbers(numbers: Sequence[int], names: Sequence[str], what: str) -> None:
    """Refuse a number that stands for nothing. ``what`` is numbered, for the message.

    Raises:
        UserError: names the range.
    """
    for number in numbers:
        if not 0 <= number < len(names):
            raise UserError(f"there is no {what} {number}: the model's are numbered 0 to {len(names) - 1}")


def numbers_of(words: Sequence[str], names: Sequence[str]) -> list[int]:
    """Words, each the name or the number of an action, as numbers.

    Raises:
        UserError: names the actions.
    """
    known = {name: number for number, name in enumerate(names)}
    known = {str(number): number for number in range(len(names))} | known
    for word in words:
        if word not in known:
            raise UserError(f"there is no action '{word}': {', '.join(names)}, or 0 to {len(names) - 1}")
    return [known[word] for word in words]


def by_number(model: WorldModelContract, space: ActionSpace) -> dict[int, Tensor]:
    """Number -> what ``imagine`` takes for one step: a code (), or the vector (A,) of an action."""
    numbers = range(len(choices(model, space)))
    if model.action_space == "codes":
        return {number: torch.tensor(number) for number in numbers}
    return {number: action_of_class(number, space) for number in numbers}


def one_world(
    words: Sequence[str], numbers: Sequence[int], meaning: Mapping[int, Tensor], names: Sequence[str], steps: int
) -> Controls:
    """One world, in which the numbers are done one after another; ``words`` are what the player called them."""
    done = repeated(numbers, steps)
    title = " ".join(words[:12]) + " ..." * (len(words) > 12)
    return Controls(torch.stack([meaning[n] for n in done])[None], [title], [names[n] for n in done])


def world_for_each(meaning: Mapping[int, Tensor], names: Sequence[str], steps: int) -> Controls:
    """A world for each number, in which it is done at every step."""
    values = torch.stack([meaning[number] for number in range(len(names))])
    return Controls(torch.stack([values] * steps, 1), list(names))
