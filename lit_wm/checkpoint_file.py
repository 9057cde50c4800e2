"""A checkpoint file: replaced atomically, read without executing anything, refused in one line where it is not ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from datamodules.run_folder import BEST
from lit_wm.errors import UserError

CHECKPOINT_FORMAT = 1
CHECKPOINT = Path("checkpoints") / "last.ckpt"  # in a run's folder
BEST_WEIGHTS = CHECKPOINT.with_name(BEST)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that whoever is killed while writing still has the checkpoint before.

    Lightning writes into the system's temporary folder and moves; between two file systems that is a plain copy over
    the only checkpoint there is.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save to ``path``.

        Raises:
            UserError: it cannot be written; the checkpoint before it is untouched.
        """
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch's writer says a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            raise UserError(
                f"{path} cannot be written ({first_line(error)}); what was saved before is untouched: free some space"
            ) from error


def read_checkpoint(path: Path, route: str | None = None) -> dict[str, Any]:
    """Read and check a checkpoint file, without executing anything it holds.

    Args:
        path: the file, or a run's folder.
        route: the route it must be of; None for any.

    Raises:
        UserError: missing, truncated, not ours, or of another route.
    """
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train with `lit-wm fit --config ...` first, or name another run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever the bytes happen to provoke, in words that help nobody
        raise UserError(f"{path} cannot be read: it is truncated or not a checkpoint") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint")
    check_checkpoint(checkpoint, route, str(path))
    return checkpoint


def check_checkpoint(checkpoint: Mapping[str, Any], route: str | None = None, where: str = "the checkpoint") -> None:
    """Refuse a checkpoint that is not ours, is of another format, or of another route.

    Raises:
        UserError: saying which.
    """
    ours = checkpoint.get("lit_wm")
    if not isinstance(ours, Mapping):
        raise UserError(f"{where} was not written by lit_wm: it holds no 'lit_wm' entry")
    if ours["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"{where} has format {ours['format']}, this version reads {CHECKPOINT_FORMAT}")
    if route is not None and ours["route"] != route:
        raise UserError(f"{where} holds a {ours['route']} model, not a {route} model: give the config of its own route")


def check_weights(weights: Mapping[str, torch.Tensor], mine: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights of a model of other sizes.

    Args:
        weights: a checkpoint's ``state_dict``.
        mine: the model's.

    Raises:
        UserError: names the first difference.
    """
    hint = (
        "the checkpoint is of a model of other sizes, or for frames of another size: give its own config.yaml and data"
    )
    for name in sorted(weights.keys() | mine.keys()):
        there, here = (x[name].shape if name in x else None for x in (weights, mine))
        if there != here:
            says = ("absent" if shape is None else "x".join(map(str, shape)) or "a number" for shape in (there, here))
            raise UserError("'{}' is {} in the checkpoint, {} here: {}".format(name, *says, hint))


def first_line(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120] or type(error).__name__
