"""The smallest model of every route, and a fit that tells what it saw: shared by tests in this and in other processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from datamodules.episodes import EpisodeDataModule
from lit_wm.callbacks.checkpoint import StepCheckpoint
from lit_wm.dreamer import DreamerModule
from lit_wm.genie import GenieModule
from lit_wm.jepa import JEPAModule
from lit_wm.world_model import WorldModel

CODER = {"patch": 16, "dim": 16, "heads": 2, "ffn": 16, "encoder_blocks": 1, "decoder_blocks": 1, "latent_dim": 4}


def tiny(route: str, experience: dict, **options: object) -> WorldModel:
    """A model of a route that takes milliseconds: for 64x64 frames and clips of 6."""
    torch.manual_seed(0)
    if route == "dreamer":
        size = {"deter": 32, "hidden": 8, "classes": 4, "depth": 2, "units": 8, "stoch": 4}
        defaults: dict = {"size_overrides": size, "imagination_length": 3, "lr": 1e-3, "warmup_steps": 2}
        return DreamerModule(experience, **(defaults | options))
    if route == "genie":
        fast = {"lr": 1e-3, "warmup_steps": 1, "decay": "constant"}
        defaults = {
            "frames": 6,
            "tokenizer": {**CODER, "codes": 16, "codebook": "ema"},
            "lam": {**CODER, "codebook": "ema"},
            "dynamics": {"dim": 16, "heads": 2, "ffn": 16, "blocks": 1, "sampling_steps": 2},
            "order": "staged",
            "tokenizer_steps": 4,
            **{f"{part}_optimizer": fast for part in ("tokenizer", "lam", "dynamics")},
        }
        return GenieModule(experience, **(defaults | options))
    defaults = {
        "encoder": {"patch": 16, "dim": 16, "depth": 1, "heads": 2},
        "predictor": {"dim": 16, "depth": 1, "heads": 2},
        "optimizer": {"steps": 50, "warmup_steps": 1},
    }
    return JEPAModule(experience, **(defaults | options))


class Witness(Callback):
    """Appends every batch's fingerprint and loss to a file; kills the process, as ``kill -9`` does, where told to."""

    def __init__(self, folder: Path, kill_at: int | None = None) -> None:
        self.folder, self.kill_at = folder, kill_at

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        seen = {
            "step": trainer.global_step,
            "batch": hashlib.sha256(batch["frames"].numpy().tobytes()).hexdigest(),
            "size": len(batch["frames"]),
            "loss": outputs["loss"].item(),
            "rates": self.rates,
            "random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        }
        with (self.folder / f"seen-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(seen) + "\n")
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_fit_end(self, trainer, pl_module) -> None:
        digest = hashlib.sha256()
        for value in pl_module.state_dict().values():
            digest.update(value.detach().numpy().tobytes())
        (self.folder / f"weights-{trainer.global_rank}").write_text(digest.hexdigest())


def seen(folder: Path, rank: int = 0) -> list[dict]:
    """What the witness wrote."""
    return [json.loads(line) for line in (folder / f"seen-{rank}.jsonl").read_text().splitlines()]


def fit(
    route: str,
    root: Path,
    out: Path,
    steps: int,
    workers: int = 0,
    devices: int = 1,
    kill_at: int | None = None,
    resume: Path | None = None,
    callbacks: Sequence[Callback] = (),
    **options: object,
) -> WorldModel:
    """Fit a tiny model with ``options``, leaving ``out/checkpoints/last.ckpt`` every 3 updates."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    data = EpisodeDataModule(str(root), batch_size=2, clip_length=6, num_workers=workers, shuffle_buffer=8)
    model = tiny(route, data.spec, **options)
    checkpoints = StepCheckpoint(every_n_train_steps=3)
    checkpoints.dirpath = str(out / "checkpoints")
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto",
        max_steps=steps,
        callbacks=[*callbacks, checkpoints, Witness(out, kill_at)],
        logger=False,
        limit_val_batches=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, ckpt_path=resume)
    return model
