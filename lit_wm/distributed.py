"""What data parallelism must not change: random state per rank, the EMA teacher, statistics over the global batch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.tensor
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

STEPS = (
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "look",
)  # what Lightning and callbacks call, instead of ``forward``


def world_size() -> int:
    """Number of processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum of the ranks' gradients, so that DDP's mean over ranks is exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def global_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over all ranks, differentiable."""
    return _SumOverRanks.apply(x) if world_size() > 1 else x


def global_mean(x: Tensor) -> Tensor:
    """Mean of ``x`` over all ranks, differentiable."""
    return global_sum(x) / world_size()


@torch.no_grad()
def gather_rows(x: Tensor) -> Tensor:
    """Rows of all ranks, rank 0 first: (n, ...) -> (world * n, ...). Every rank must bring the same n. No gradient."""
    if world_size() == 1:
        return x
    rows = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, decay: float) -> None:
    """``target <- decay * target + (1 - decay) * online`` for parameters; buffers are copied.

    Works on plain tensors and on FSDP2's shards alike, because both modules are sharded the same way.
    """
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast.detach(), 1 - decay)
    for slow, fast in zip(target.buffers(), online.buffers(), strict=True):
        slow.copy_(fast)


def shard(model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """FSDP2: each rank keeps its share of the parameters, gradients and optimizer states.

    Args:
        model: a LightningModule; its parameters outside the blocks are gathered while one of its steps runs.
        blocks: parts whose parameters are gathered only while they themselves run.
        mesh: of the ranks that share.
    """
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh)
    for step in STEPS:
        register_fsdp_forward_method(model, step)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of whole tensors, also into a module that FSDP2 has split over ranks.

    Raises:
        RuntimeError: a name or a shape differs.
    """
    if any(isinstance(parameter, dist.tensor.DTensor) for parameter in module.parameters()):
        set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True))
    else:
        module.load_state_dict(weights)


def random_state() -> dict[str, Any]:
    """Random state of torch, numpy, python and CUDA, in types that ``torch.load(weights_only=True)`` accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def gather_objects(mine: Any) -> list[Any]:
    """One python object from every rank, on every rank. A collective: all ranks must call it."""
    if world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
