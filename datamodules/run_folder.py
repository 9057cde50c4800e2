"""Where a run keeps what is too large for its checkpoints, and which run a checkpoint is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer

from datamodules.replay_memory import Replay

BEST = "best.ckpt"  # beside a run's checkpoints: the weights that were judged best, which name no replay


class RunFolder:
    """The folder of the run that a trainer carries out, as far as its callbacks and its logger tell.

    Args:
        trainer: whose checkpoint callbacks are set up.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def own_callback(self) -> Any:
        """lit_wm's StepCheckpoint, which gives a run a folder where nobody else writes; None if there is none."""
        callbacks = self.trainer.checkpoint_callbacks
        return next((one for one in callbacks if getattr(one, "run_folder", None) is not None), None)

    @property
    def path(self) -> Path | None:
        """The run's folder: where the callback that keeps its checkpoints, or else the logger, puts what is the run's alone;
        None where there is none."""
        if self.own_callback is not None:
            return self.own_callback.run_folder
        for callback in self.trainer.checkpoint_callbacks:
            if callback.dirpath and Path(callback.dirpath).name == "checkpoints":
                return Path(callback.dirpath).parent
        logger = self.trainer.logger
        if logger is None or not logger.save_dir or logger.version in (None, ""):
            return None
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(logger.save_dir, str(logger.name or ""), version)

    @property
    def from_last(self) -> bool:
        """Whether this run goes on from its own ``last.ckpt``, so that nothing else needs what was recorded since."""
        own = self.own_callback
        return own is not None and Path(own.dirpath, "last.ckpt").resolve() == Path(self.trainer.ckpt_path).resolve()

    @property
    def is_without_checkpoints(self) -> bool:
        """Whether this folder is the run's own, and holds no checkpoint that could be gone on with."""
        if self.own_callback is None:
            return False
        return not {path.name for path in Path(self.own_callback.dirpath).glob("*.ckpt")} - {BEST}

    @property
    def others_that_replace(self) -> list[Any]:
        """Callbacks, other than the run's own, that delete some of the checkpoints they wrote."""
        callbacks = self.trainer.checkpoint_callbacks
        return [one for one in callbacks if one is not self.own_callback and getattr(one, "save_top_k", -1) != -1]

    def origin(self, name: str, state: Mapping[str, Any]) -> Path:
        """The folder of the run that the checkpoint which is resumed is of: around it, also after a move, or else where it was
        written. Where none of these holds its whole replay, one that holds a part of it, for the error to name.

        Args:
            name: of the replay's folder.
            state: what the checkpoint holds of the data.
        """
        beside = Path(self.trainer.ckpt_path).resolve().parent
        written = Path(state.get("folder", beside.parent))
        places = (beside.parent, beside, written)
        whole = [place for place in places if Replay.is_complete(place / name, state["replay"])]
        some = [place for place in (written, *places) if (place / name).is_dir()]
        return (*whole, *some, written)[0]
