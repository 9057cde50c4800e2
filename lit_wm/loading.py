"""A trained model back from disk: ``lit_wm.load("runs/jepa_pong")`` is all a notebook needs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_wm.checkpoint_file import CHECKPOINT, first_line, read_checkpoint
from lit_wm.errors import UserError
from lit_wm.world_model import WorldModel

CONFIG = "config.yaml"


@dataclass(frozen=True)
class LoadedRun:
    """A run folder, opened.

    Attributes:
        name: the folder's name.
        path: the folder (for a bare checkpoint, the folder that holds it).
        model: the trained model in evaluation mode.
        config: the saved configuration; empty for a bare checkpoint.
        checkpoint: the file the weights came from.
        root: the shard folder it was trained on, as configured; None if unknown.
        data_hash: hash of the data it was trained on; None if it was trained without recorded shards.
        global_step: optimizer updates done.
        ranks: processes that trained it together, each on batches of its own (those of the last fit, where a run was resumed).
        seed: the configured seed; None if unknown.
    """

    name: str
    path: Path
    model: WorldModel
    config: dict[str, Any]
    checkpoint: Path
    root: str | None
    data_hash: str | None
    global_step: int
    ranks: int
    seed: int | None

    def fresh_model(self, seed: int) -> WorldModel:
        """The same architecture with random weights: the floor that a trained model has to beat."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return type(self.model)(**init_args(dict(self.model.hparams))).eval()


def init_args(hyper_parameters: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments out of saved hyper-parameters, less the entries Lightning keeps for itself."""
    return {key: value for key, value in hyper_parameters.items() if not key.startswith("_")}


def model_class(class_path: str, where: str) -> type[WorldModel]:
    """The class a checkpoint names; refuses anything that is not a WorldModel.

    Raises:
        UserError: the path cannot be imported or names something else.
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where} names the class '{class_path}', which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, WorldModel)):
        raise UserError(f"{where} names the class '{class_path}', which is not a WorldModel")
    return found


def load_run(path: str | Path) -> LoadedRun:
    """Open a run folder or a single ``.ckpt`` file.

    Raises:
        UserError: nothing there, or it cannot be read; one line.
    """
    if not path:
        raise UserError("no run is named: give a run's folder, for example runs/jepa_pong, or a .ckpt file")
    path = Path(path)
    if not path.exists():
        raise UserError(f"no run at {path}")
    file = path / CHECKPOINT if path.is_dir() else path
    if not file.exists() and (inside := sorted(found.parents[1].name for found in path.glob(f"*/{CHECKPOINT}"))):
        raise UserError(f"{path} is no run but holds some: name one of {', '.join(inside)}")
    checkpoint = read_checkpoint(file)
    folder = path if path.is_dir() else (path.parent.parent if path.parent.name == "checkpoints" else path.parent)
    config: dict[str, Any] = {}
    if (folder / CONFIG).is_file():
        try:
            config = yaml.safe_load((folder / CONFIG).read_text()) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{folder / CONFIG} is not YAML: {first_line(error)}") from error
        if not isinstance(config, dict):
            raise UserError(f"{folder / CONFIG} is not a configuration: restore it, or give the .ckpt file alone")
    cls = model_class(checkpoint["lit_wm"]["class_path"], str(file))
    try:
        model = cls(**init_args(checkpoint["hyper_parameters"]))
        model.load_state_dict(checkpoint["state_dict"])
    except (TypeError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{file} does not fit {cls.__name__}: {first_line(error)}; it was written by another version"
        ) from error
    return LoadedRun(
        name=folder.resolve().name,
        path=folder,
        model=model.eval(),
        config=config,
        checkpoint=file,
        root=((config.get("data") or {}).get("init_args") or {}).get("root"),
        data_hash=checkpoint["lit_wm"]["data_hash"],
        global_step=int(checkpoint["global_step"]),
        ranks=len(checkpoint["lit_wm"]["random_state"]),  # one entry per rank
        seed=config.get("seed_everything"),
    )


def load(path: str | Path) -> WorldModel:
    """The trained model of a run folder or checkpoint, in evaluation mode, on the CPU.

    Args:
        path: ``runs/NAME`` or a ``.ckpt`` file.

    Raises:
        UserError: nothing there, or it cannot be read.
    """
    return load_run(path).model
