"""A tiny Dreamer that learns online, and tells what it saw: shared by tests in this and in other processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import tiny_routes
import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from datamodules import replay_memory
from datamodules.replay import ReplayDataModule
from lit_wm.callbacks.checkpoint import StepCheckpoint
from lit_wm.dreamer import DreamerModule


def fingerprint(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(x.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def replay_fingerprint(data: ReplayDataModule) -> str:
    """Of every row and every latent that is there, and of how many were dropped."""
    digest = hashlib.sha256()
    for stream in data._loader.replay.streams:
        digest.update(str((stream.count, stream.dropped)).encode())
        for block in stream.blocks:
            for arrays in (block.rows, block.latents):
                for key in sorted(arrays):
                    digest.update(arrays[key][: block.size].tobytes())
    return digest.hexdigest()


class Witness(Callback):
    """After every update: the batch, the loss, the replay, the weights. Kills the process, as ``kill -9`` does, where told to."""

    def __init__(self, folder: Path, kill_at: int | None = None) -> None:
        self.folder, self.kill_at = folder, kill_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        seen = {
            "step": trainer.global_step,
            "batch": fingerprint(*(batch[key] for key in sorted(batch))),
            "places": fingerprint(batch["stream"], batch["step"]),
            "loss": outputs["loss"].item(),
            "replay": replay_fingerprint(trainer.datamodule),
            "weights": fingerprint(*pl_module.state_dict().values()),
            "env_steps": trainer.datamodule.statistics()["env/steps"],
            "rows": len(trainer.datamodule._loader.replay),
            "random": fingerprint(torch.get_rng_state()),
        }
        with (self.folder / f"seen-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(seen) + "\n")
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def seen(folder: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (folder / f"seen-{rank}.jsonl").read_text().splitlines()]


def data_module(**options) -> ReplayDataModule:
    sizes = {"num_envs": 3, "batch_size": 2, "clip_length": 5, "train_ratio": 2.0, "capacity": 150, "start_after": 12}
    return ReplayDataModule(**({"env": "CartPole-v1", "epoch_batches": 7} | sizes | options))


def fit(
    out: Path,
    steps: int,
    devices: int = 1,
    kill_at: int | None = None,
    resume: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    every: int = 3,
    keep_all: bool = False,
    lr: float = 1e-3,
    folder: str = "checkpoints",
    **options,
) -> DreamerModule:
    """Fit, leaving ``out/checkpoints/last.ckpt`` every 3 updates. ``options`` are the data module's."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    data = data_module(**options)
    model = tiny_routes.tiny("dreamer", data.spec, lr=lr)
    checkpoints = StepCheckpoint(every_n_train_steps=every, keep_all=keep_all)
    checkpoints.dirpath = str(out / folder)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto",
        max_steps=steps,
        callbacks=[*callbacks, checkpoints, Witness(out, kill_at)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model


def fit_and_die_writing(n: int, out: Path, steps: int) -> None:
    """Kill this process, as ``kill -9`` does, when the n-th file of the replay has been written but not yet named."""
    rename, left = os.replace, [n]

    def replace(*paths):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)

    replay_memory.os = SimpleNamespace(replace=replace, fsync=os.fsync)

    fit(out, steps)
