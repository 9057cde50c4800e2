"""WorldModel: what the routes share as LightningModules. The routes themselves hold the ideas; this holds the wiring."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from datamodules.experience import ExperienceSpec, action_vectors
from lit_wm.checkpoint_file import CHECKPOINT_FORMAT, check_checkpoint, check_weights
from lit_wm.contract import Batch, State, map_state
from lit_wm.distributed import gather_objects, random_state, set_random_state, shard, world_size
from lit_wm.errors import UserError

# what a route consumes -> the batch keys that hold it; the end of rewards is told from the end of a recording
LABELS = {"actions": ("action",), "rewards": ("reward", "is_terminal")}
GROUP_STATE = ("params", "step", "lr")  # what an optimizer's parameter group holds beside what it was configured with


class WorldModel(LightningModule):
    """Base of all routes; answers :class:`lit_wm.contract.WorldModelContract`.

    A route says which ``labels`` it consumes, computes named scalar losses in :meth:`losses`, and implements the
    contract. Its hyper-parameters are plain numbers, strings, lists and dicts, so that a checkpoint alone rebuilds it.

    Args:
        experience: description of the data (``ExperienceSpec.to_dict()``); the command line links it from the data.
        labels: what this model consumes, where that depends on its settings; None: what the class says.

    Raises:
        ExperienceError: if the description is broken.
        UserError: it describes no observation at all, or lacks a label that the model consumes.
    """

    route: str = ""
    action_space: str = "none"
    codes: int | None = None
    labels: tuple[str, ...] = ("frames",)
    can_be_sharded: bool = False

    def __init__(self, experience: dict[str, Any], labels: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.spec = ExperienceSpec.from_dict(experience)
        self.labels = labels or self.labels
        if not self.spec.observations:
            raise UserError(f"the data leaves the {self.route} model nothing to observe: shorten the list 'without'")
        if not self.spec.acted and (lacking := [label for label in self.labels if label in LABELS]):
            raise UserError(
                f"the {self.route} model learns from {' and '.join(lacking)}, which this data, being video, does not hold:"
                " choose a model that needs frames alone (Genie, or JEPA with actions: false)"
            )
        self._class_path = f"{type(self).__module__}.{type(self).__qualname__}"  # FSDP2 gives it another class
        self._loaded_updates = 0
        self._step_numbers: tuple[dict[str, Tensor], int] = (
            {},
            1,
        )  # what the last training step has to log, and of how many
        self._resumed_random_state: dict[str, Any] | None = None
        self._random_state_before_validation: dict[str, Any] | None = None

    # ---- what a route writes -----------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, already scaled: their sum is minimised. A key that starts with ``_`` is only logged."""

    @abstractmethod
    def configure_optimizers(self) -> dict[str, Any]:
        """One ``optimizer``, and under ``lr_scheduler`` a dict with its ``scheduler``, a ``LambdaLR`` stepped per update."""

    def sharded_blocks(self) -> Iterable[nn.Module]:
        """Parts whose parameters FSDP2 gathers one after the other, of a route that ``can_be_sharded``."""
        return ()

    def start_from(self, batch: Batch) -> None:
        """Take from the first batch what a fit takes before it learns anything from it; for most routes that is nothing."""

    @abstractmethod
    def observe(self, batch: Batch) -> State: ...

    @abstractmethod
    def imagine(
        self,
        state: State,
        actions: Tensor,
        samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> State: ...

    @abstractmethod
    def features(self, state: State) -> Tensor: ...

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor: ...

    @torch.no_grad()
    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model predicts and what it should have, (n,D) each: here the features of every next frame, imagined from the one
        before with what was done in between."""
        state, targets = self.observe(batch), self.targets(batch)[:, 1:]
        if self.action_space == "codes":
            done = self.infer_actions(batch)
        elif self.action_space == "environment":
            done = action_vectors(batch["action"], batch["is_last"], self.spec.action)[:, :-1]
        else:
            done = torch.zeros(targets.shape[:2], device=targets.device)
        same = ~batch["is_first"][:, 1:]
        before = map_state(state, lambda x: x[:, :-1][same])
        future = self.imagine(before, done[same].unsqueeze(1))
        return self.features(future)[:, 0, 0], targets[same]

    @torch.no_grad()
    def look(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`predictions`, and representations (m,P,D) of every frame: tokens at P places, or else the features (P = 1)."""
        predicted, target = self.predictions(batch)
        state = self.observe(batch)
        tokens = self.feature_map(state)
        z = self.features(state).unsqueeze(-2) if tokens is None else tokens
        return predicted, target, z.flatten(0, 1)

    def feature_map(self, state: State) -> Tensor | None:
        return None

    def decode(self, state: State) -> Tensor | None:
        return None

    def infer_actions(self, batch: Batch) -> Tensor | None:
        return None

    def log_prob(self, state: State, batch: Batch) -> Tensor | None:
        return None

    @property
    def updates(self) -> int:
        """Updates behind the present weights. Outside a fit Lightning's ``global_step`` is 0 whatever was loaded."""
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        return self.global_step if fits else self._loaded_updates

    # ---- what Lightning calls ----------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Split the parameters over ranks where the strategy is FSDP2 (``ModelParallelStrategy``).

        Raises:
            UserError: a route that cannot be split, or a strategy that would also split tensors.
        """
        mesh = self.device_mesh
        if mesh is None or isinstance(self, FSDPModule):
            return
        if not self.can_be_sharded:
            raise UserError(f"the {self.route} model cannot be split over ranks (FSDP2): use configs/machine/ddp.yaml")
        if mesh["tensor_parallel"].size() > 1:
            raise UserError(
                "trainer.strategy: set data_parallel_size to the number of processes and tensor_parallel_size to 1"
                " (configs/machine/fsdp2.yaml does)"
            )
        shard(self, self.sharded_blocks(), mesh["data_parallel"])

    def setup(self, stage: str) -> None:
        """Refuse settings of the trainer that no route can work with.

        Raises:
            UserError: weights in half precision, or a fit without updates.
        """
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise UserError(
                f"trainer.precision {self.trainer.precision} would round the weights themselves, which the {self.route}"
                " model does not allow: use bf16-mixed"
            )
        if stage == "fit" and self.trainer.max_steps == 0:
            raise UserError("trainer.max_steps is 0, it must be at least 1 (or -1, without end)")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._total(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "test")

    def _judge(self, batch: Batch, stage: str) -> None:
        if "episode_return" not in batch:
            self._total(batch, stage)
            return
        for name in ("return", "length"):  # of an episode that was played, see datamodules.play
            self.log(f"{stage}/{name}", batch[f"episode_{name}"].float().mean(), batch_size=1, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B,T,D) features of every frame."""
        self.check_batch(batch)
        return self.features(self.observe(batch))

    def _total(self, batch: Batch, stage: str) -> Tensor:
        self.check_batch(batch)
        batch, size = without_padding(batch)
        losses = self.losses(batch)
        total = torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum()
        if not torch.isfinite(total):
            worst = [name for name, value in losses.items() if not torch.isfinite(value)]
            raise UserError(
                f"the {self.route} loss became {total.item()} (in: {', '.join(worst) or 'the sum'}); lower lr"
            )
        if stage == "train":
            self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=size)
        self.log(f"{stage}/loss", total.detach(), batch_size=size, sync_dist=stage != "train")
        numbers = {f"{stage}/{name.lstrip('_')}": value.detach() for name, value in losses.items()}
        if stage != "train":
            self.log_dict(numbers, batch_size=size, sync_dist=True)
            return total
        self._step_numbers = numbers, size
        if (
            self._somebody_listens()
        ):  # a small model's update would spend a sixth of its time on numbers that nobody takes
            self._log_step_numbers()
        return total

    def _log_step_numbers(self) -> None:
        numbers, size = self._step_numbers
        self.log_dict(numbers, batch_size=size)
        if hasattr(self._datamodule, "statistics"):
            self.log_dict(self._datamodule.statistics())

    def _somebody_listens(self) -> bool:
        """Whether Lightning will hand what this step logs to a logger, or a callback monitors more than the loss. Lightning's
        own count of batches says so: after a resume from the middle of an update it is not the number of updates."""
        if self._trainer is None:
            return False
        monitored = {getattr(callback, "monitor", None) for callback in self.trainer.callbacks}
        if any(name not in (None, "loss", "train/loss") and not name.startswith("val/") for name in monitored):
            return True
        every = self.trainer.log_every_n_steps
        return bool(every) and (self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """A callback may just have stopped the run: Lightning then writes a last row, and would repeat an earlier step's
        numbers in it."""
        if self.trainer.should_stop:
            self._log_step_numbers()

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that this model was not built for.

        Raises:
            UserError: a needed key is missing, or a shape differs from the one the model was built for.
        """
        needed = [key for label in self.labels for key in LABELS.get(label, ())]
        for key in (*self.spec.observations, *needed, "is_first", "is_last"):
            if key not in batch:
                raise UserError(f"the {self.route} model needs '{key}', which the batch does not hold")
        for key in self.spec.pictures:
            height, width, channels = self.spec.observations[key]
            if tuple(batch[key].shape[2:]) != (channels, height, width):
                found = "x".join(map(str, batch[key].shape[2:]))
                raise UserError(
                    f"'{key}' is {found} (C x H x W), but the model was built for {channels}x{height}x{width}"
                )
        for key in self.spec.vectors:
            if tuple(batch[key].shape[2:]) != self.spec.observations[key]:
                raise UserError(
                    f"'{key}' has {batch[key].shape[-1]} numbers, the model was built for {self.spec.observations[key][0]}"
                )

    # ---- random state: validation leaves none behind, a checkpoint holds it ---------------------------------------

    def on_validation_start(self) -> None:
        self._random_state_before_validation = random_state()
        torch.manual_seed(0)  # every validation draws the same noise, so that its curve shows the model alone

    def on_validation_end(self) -> None:
        if self._random_state_before_validation is not None:
            set_random_state(self._random_state_before_validation)
            self._random_state_before_validation = None

    def on_train_start(self) -> None:
        """All ranks begin with the same seed, for the same weights; what they draw in training is to differ."""
        if self.trainer.ckpt_path is not None:
            self._train_as_configured()
        if rank := self.trainer.global_rank:
            # not a sum: the second rank of seed 0 would draw what the first of seed 1 draws
            words = np.random.SeedSequence([torch.initial_seed(), rank])
            torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

    def _train_as_configured(self) -> None:
        """What the configuration says is what runs: the state of optimizer and schedule that a checkpoint brings holds the
        hyper-parameters they had, over which those of now are laid. Where nothing was changed, nothing changes."""
        configured = self.configure_optimizers()
        (optimizer,), (config,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        schedule = config.scheduler
        schedule.base_lrs = configured["lr_scheduler"]["scheduler"].base_lrs
        groups = zip(optimizer.param_groups, configured["optimizer"].param_groups, strict=True)
        for (group, now), base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group.update({name: value for name, value in now.items() if name not in GROUP_STATE})
            group["lr"] = base * factor(schedule.last_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self._resumed_random_state is not None:  # as late as can be: set-up before the first batch draws numbers too
            set_random_state(self._resumed_random_state)
            self._resumed_random_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lit_wm"] = {
            "format": CHECKPOINT_FORMAT,
            "route": self.route,
            "class_path": self._class_path,
            "data_hash": self._data_hash(),
            "random_state": gather_objects(random_state()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_checkpoint(checkpoint, route=self.route)
        if "state_dict" in checkpoint:  # under FSDP2 Lightning has loaded the weights before, and taken them out
            check_weights(checkpoint["state_dict"], self.state_dict())
        before, now = checkpoint["lit_wm"]["data_hash"], self._data_hash()
        if self._trainer is not None and self.trainer.state.fn == "fit" and None not in (before, now) and before != now:
            raise UserError(
                f"the checkpoint was trained on other data (hash {before[:12]}, here {now[:12]}): give its own root"
            )
        self._loaded_updates = checkpoint["global_step"]
        states = checkpoint["lit_wm"]["random_state"]
        if self._trainer is not None and len(states) == world_size():
            self._resumed_random_state = states[self.trainer.global_rank]

    def _data_hash(self) -> str | None:
        """Hash of the data the trainer reads; None without a trainer or for data that has none."""
        return getattr(self._datamodule, "data_hash", None)

    @property
    def _datamodule(self) -> Any:
        """What the trainer reads from; None without a trainer, or where loaders were given to it."""
        return getattr(self._trainer, "datamodule", None)


def without_padding(batch: Batch) -> tuple[Batch, int]:
    """The rows that count, and how many: validation pads the ranks to equal numbers of batches with rows of weight 0.

    A batch of padding alone is kept, so that every rank does the same, and counts 0 in the mean.
    """
    if "weight" not in batch:
        return batch, len(batch["is_first"])
    real = batch["weight"] > 0
    return ({key: value[real] for key, value in batch.items()} if real.any() else batch), int(real.sum())
