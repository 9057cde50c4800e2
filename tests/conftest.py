"""What several tests share: small made-up experience, written as shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from datamodules.experience import ActionSpace, ExperienceSpec, Factor
from datamodules.shards import ShardWriter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests first, so that none of them is left to run alone at the end while other workers idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


MADE_SPEC = ExperienceSpec({"frames": (8, 8, 3)}, ActionSpace("discrete", (4,)), (Factor("step"), Factor("maybe")))


def _made_episode(spec: ExperienceSpec, number: int, length: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng([number, length])
    rows: dict[str, np.ndarray] = {}
    for key, shape in spec.observations.items():
        picture = len(shape) == 3
        rows[key] = (
            draw.integers(0, 256, (length, *shape), np.uint8)
            if picture
            else draw.normal(size=(length, *shape)).astype(np.float32)
        )
    space = spec.action
    if space.kind == "continuous":
        rows["action"] = draw.uniform(-1, 1, (length, *space.shape)).astype(np.float32)
    elif spec.acted:
        high = space.sizes[0] if space.kind == "discrete" else space.sizes
        rows["action"] = draw.integers(0, high, (length, *space.shape))
    if spec.acted:
        rows["action"][-1] = 0
        rows["reward"] = draw.normal(size=length).astype(np.float32)
        rows["reward"][0] = 0
    rows["is_first"] = np.arange(length) == 0
    rows["is_last"] = np.arange(length) == length - 1
    rows["is_terminal"] = rows["is_last"] & bool(number % 2)
    if spec.factors:
        rows["state"] = np.full((length, len(spec.factors)), np.nan, np.float32)
        rows["state"][:, 0] = np.arange(length)
    return rows


@pytest.fixture(scope="session")
def made_spec() -> ExperienceSpec:
    return MADE_SPEC


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., dict[str, np.ndarray]]:
    """``make_episode(spec, number, length)``: random rows that satisfy the contract; state 0 counts the steps."""
    return _made_episode


@pytest.fixture
def make_recording(tmp_path: Path) -> Callable[..., Path]:
    """``make_recording(lengths, spec=..., **ShardWriter arguments)``: the folder of a recording with such episodes."""

    def record(
        lengths: Sequence[int], spec: ExperienceSpec = MADE_SPEC, name: str = "data", **settings: object
    ) -> Path:
        settings = {"chunk_steps": 7, "shard_steps": 60} | settings
        with ShardWriter(
            tmp_path / name, spec, environment={"id": "made"}, policy="random", seed=0, **settings
        ) as writer:
            for number, length in enumerate(lengths):
                writer.write_episode(_made_episode(spec, number, length))
        return tmp_path / name

    return record
