"""Weights, inputs and numbers of the golden file of the JEPA family, and how ours are compared with them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILE = Path(__file__).parents[3] / "data" / "jepa" / "jepa.json"
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@cache
def section(name: str) -> dict[str, Any]:
    return json.loads(FILE.read_text())["sections"][name]


def values(name: str, dtype: torch.dtype) -> dict[str, Any]:
    return section(name)["values_f64" if dtype == torch.float64 else "values"]


def fill(name: str, shape: tuple[int, ...], scale: float = 1.0, offset: float = 0.0) -> Tensor:
    """The file's rule: noise whose seed is a checksum of the name, rounded to float32."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    return torch.from_numpy((offset + scale * noise).astype(np.float32))


def fill_module(module: nn.Module, prefix: str, names: Mapping[str, str] | None = None) -> None:
    """Give every parameter the file's noise under its reference name, ``prefix`` + name (renamed where ours differs)."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            theirs, shape = f"{prefix}.{(names or {}).get(name, name)}", tuple(parameter.shape)
            if theirs.endswith("bias"):
                value = fill(theirs, shape, 0.1)
            elif theirs.endswith("weight") and len(shape) == 1:
                value = fill(theirs, shape, 0.1, 1.0)
            elif theirs.endswith("weight"):
                value = fill(theirs, shape, 1 / np.sqrt(np.prod(shape[1:])))
            else:
                value = fill(theirs, shape, 0.5)
            parameter.copy_(value)


def close(found: float, wanted: float, dtype: torch.dtype, loose: float = 1.0) -> bool:
    """Within the file's bounds for scalars; float64 is compared at 1e-8 unless ``loose`` says that a float32 table enters."""
    relative, absolute = (1e-8, 1e-9) if dtype == torch.float64 else (2e-5, 2e-6)
    return abs(found - wanted) <= loose * (absolute + relative * abs(wanted))


def summary(x: Tensor) -> dict[str, Any]:
    """Shape, sum, sum of squares, a probe that catches permutations, and the first four entries."""
    flat = x.detach().double().flatten()
    index = torch.arange(len(flat), dtype=torch.float64)
    return {
        "shape": list(x.shape),
        "sum": flat.sum().item(),
        "sumsq": flat.square().sum().item(),
        "probe": (flat * (0.37 * index + 1).cos()).sum().item(),
        "first": flat[:4].tolist(),
    }


def same_tensor(found: Tensor, wanted: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Whether a tensor has the summary that the file holds."""
    mine = summary(found)
    tight = dtype == torch.float64
    cancels = (1e-8 if tight else 1e-5) * (found.numel() * wanted["sumsq"]) ** 0.5
    return (
        ("shape" not in wanted or mine["shape"] == wanted["shape"])
        and abs(mine["sum"] - wanted["sum"]) <= cancels
        and abs(mine["probe"] - wanted["probe"]) <= cancels
        and close(mine["sumsq"], wanted["sumsq"], dtype)
        and all(
            abs(a - b) <= (1e-7 if tight else 1e-5)
            for a, b in zip(mine["first"], wanted.get("first", []), strict=False)
        )
    )
