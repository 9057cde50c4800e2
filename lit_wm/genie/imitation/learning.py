"""Behaviour cloning as a LightningModule: the policy learns to do what the expert's codes, or its actions, say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler

from lit_wm.checkpoint_file import AtomicCheckpointIO
from lit_wm.errors import UserError, check_bounds, check_choice
from lit_wm.genie.imitation.expert import Windows
from lit_wm.genie.imitation.policy import ImitationPolicy, PolicySettings
from lit_wm.genie.learning_order import DECAYS, OptimizerSettings


@dataclass(frozen=True)
class LearningSettings:
    """How a policy learns; the defaults are the paper's where it gives any.

    Args:
        updates: optimizer steps; the paper does not say how many.
        batch_size: windows of a batch.
        optimizer: 3e-5 -> 3e-6, warm-up 5,000.
        betas: of AdamW.
        weight_decay: of AdamW; not in the paper, Genie's own.
    """

    updates: int = 100_000
    batch_size: int = 16
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 1e-4

    def check(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            UserError: names the first.
        """
        check_bounds("imitation learning", vars(self), {"updates": 1, "batch_size": 1, "weight_decay": 0})
        check_bounds("imitation learning's optimizer", vars(self.optimizer), {"warmup_steps": 0}, positive=("lr",))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas of the imitation learning are {self.betas}, each must be in [0, 1)")
        check_choice("decay of the imitation learning's optimizer", self.optimizer.decay, DECAYS)


class Imitator(LightningModule):
    """Cross-entropy between the policy and what the expert did, at every frame of a window.

    Args:
        picture: (C,H,W).
        actions: classes.
        policy: sizes; as a dict of plain types where it comes from a checkpoint.
        learning: likewise.
    """

    def __init__(
        self,
        picture: Sequence[int],
        actions: int,
        policy: PolicySettings | dict[str, Any],
        learning: LearningSettings | dict[str, Any],
    ) -> None:
        super().__init__()
        if isinstance(policy, dict):
            policy = PolicySettings(**policy)
        if isinstance(learning, dict):
            optimizer = OptimizerSettings(**learning["optimizer"])
            learning = LearningSettings(**{**learning, "optimizer": optimizer, "betas": tuple(learning["betas"])})
        learning.check()
        self.policy, self.learning = ImitationPolicy(tuple(picture), actions, policy), learning
        picture, policy, learning = list(picture), asdict(policy), asdict(learning)  # plain types for the checkpoint
        learning["betas"] = list(learning["betas"])
        self.save_hyperparameters("picture", "actions", "policy", "learning")

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, and the share of frames at which the likeliest action is the expert's."""
        logits_bta = self.policy(batch["frames"], batch["target"])
        nats = F.cross_entropy(logits_bta.flatten(0, 1).float(), batch["target"].flatten())
        return nats, (logits_bta.argmax(-1) == batch["target"]).float().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        nats, right = self.losses(batch)
        if not torch.isfinite(nats):
            raise UserError(f"the imitation loss became {nats.item()}; lower learning.optimizer.lr")
        self.log("train/nats", nats, prog_bar=True)
        self.log("train/accuracy", right)
        return nats

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        nats, right = self.losses(batch)
        self.log_dict({"val/nats": nats, "val/accuracy": right}, batch_size=len(batch["target"]))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and its schedule, stepped per update."""
        s = self.learning
        optimizer = AdamW(self.parameters(), s.optimizer.lr, betas=s.betas, weight_decay=s.weight_decay)
        schedule = LambdaLR(optimizer, lambda step: s.optimizer.factor(step, s.updates))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learn(
    windows: Windows,
    held_out: Windows | None,
    actions: int,
    policy: PolicySettings,
    learning: LearningSettings,
    seed: int,
    folder: Path,
    name: str,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> tuple[Imitator, float | None]:
    """Train a policy; leaves ``folder/NAME.ckpt`` and its curves under ``folder/tensorboard/NAME``.

    Args:
        windows: to learn from.
        held_out: to measure accuracy on once at the end; None for none.
        actions: classes.
        policy, learning: sizes, and how.
        seed: of the first weights and of the order of the windows, the same for codes and actions.
        folder: of the experiment.
        name: of this policy.
        callbacks: Lightning's, for a progress bar.
        trainer: further arguments of Lightning's Trainer: precision, accelerator.

    Returns:
        The trained module on the CPU in evaluation mode, and its accuracy on ``held_out``.
    """
    seed_everything(seed, verbose=False)
    module = Imitator(tuple(windows.frames.shape[1:]), actions, policy, learning)
    draws = RandomSampler(
        windows,
        replacement=True,
        num_samples=learning.updates * learning.batch_size,
        generator=torch.Generator().manual_seed(seed),
    )
    lightning = Trainer(
        devices=1,
        max_steps=learning.updates,
        val_check_interval=learning.updates,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(str(folder / "tensorboard"), name=name, version=""),
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bool(callbacks),
        callbacks=list(callbacks),
        **trainer,
    )
    train = DataLoader(windows, learning.batch_size, sampler=draws)
    test = None if held_out is None else DataLoader(held_out, learning.batch_size)
    lightning.fit(module, train, test)
    lightning.save_checkpoint(folder / f"{name}.ckpt", weights_only=True)
    accuracy = None if held_out is None else float(lightning.callback_metrics["val/accuracy"])
    return module.cpu().eval(), accuracy
