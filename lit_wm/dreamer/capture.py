"""On a GPU an update is thousands of small kernels, and launching them takes longer than running them. Recorded once as
two CUDA graphs, one for the losses and one for their gradients, an update is two launches and the optimizer's few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_wm.contract import Batch
from lit_wm.distributed import random_state, set_random_state

Update = tuple[dict[str, Tensor], dict[str, Tensor]]


class AsTensors(nn.Module):
    """A function from a batch to (losses, latents), in the form that a graph is recorded of: tensors in, tensors out.

    Args:
        model: whose parameters receive the gradients.
        update: batch -> losses to be summed or, under names with ``_``, only logged, and the newer latents.
        names: the keys of a batch, in the order in which its tensors are given.
    """

    def __init__(self, model: nn.Module, update: Callable[[Batch], Update], names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.update, self.names = model, update, names
        self.found: tuple[list[str], list[str]] = ([], [])  # names of losses and latents, known after the first call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # Weights cast to half precision in an earlier call may not be taken from autocast's cache inside a graph.
        precision = {"enabled": torch.is_autocast_enabled("cuda"), "dtype": torch.get_autocast_dtype("cuda")}
        with torch.autocast("cuda", cache_enabled=False, **precision):
            losses, latents = self.update(dict(zip(self.names, tensors, strict=True)))
        self.found = list(losses), list(latents)
        return (*losses.values(), *latents.values())

    def named(self, values: tuple[Tensor, ...]) -> Update:
        """The dicts back from what :meth:`forward` returned."""
        losses, latents = self.found
        # what a graph returns all asks for gradients, also what had none
        kept = {n: x.detach() if n.startswith("_") else x for n, x in zip(losses, values, strict=False)}
        return kept, {n: x.detach() for n, x in zip(latents, values[len(losses) :], strict=True)}


class CapturedUpdate:
    """Calls ``update`` the first time, recording it, and replays the record from then on.

    Every batch must have the shapes of the first. Recording runs the update a few times: buffers (the return normaliser)
    and random numbers are put back, so that the first real update is the first.
    """

    def __init__(self, model: nn.Module, update: Callable[[Batch], Update]) -> None:
        self.model, self.update = model, update  # held by an object that is no module: the model owns it
        self._names: tuple[str, ...] = ()
        self._plain: AsTensors | None = None
        self._graphed: Any = None

    def __call__(self, batch: Batch) -> Update:
        if self._plain is None:
            self._record(batch)
        return self._plain.named(self._graphed(*(batch[name] for name in self._names)))

    def _record(self, batch: Batch) -> None:
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        random = random_state()
        self._names = tuple(sorted(batch))
        self._plain = AsTensors(self.model, self.update, self._names)
        examples = tuple(batch[name].clone() for name in self._names)
        with torch.autocast("cuda", cache_enabled=False, enabled=torch.is_autocast_enabled("cuda")):
            self._graphed = torch.cuda.make_graphed_callables(self._plain, examples, allow_unused_input=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        set_random_state(random)
