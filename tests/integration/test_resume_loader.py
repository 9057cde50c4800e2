"""Resume through Lightning: whatever a checkpoint's moment, the batches after it are the uninterrupted run's."""

from __future__ import annotations

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.episodes import EpisodeDataModule
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec

SPEC = ExperienceSpec({"vector": (1,)}, ActionSpace("discrete", (2,)))


class Witness(LightningModule):
    """Learns next to nothing and remembers every batch it saw."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["episode"].tolist(), batch["start"].tolist()))
        return self.layer(batch["vector"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", batch["weight"].sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.fixture
def run(make_recording, tmp_path):
    """``run(**Trainer arguments)``: fit, and return the batches seen. Checkpoints go to ``checkpoints/step=N.ckpt``."""
    root = make_recording([20, 11, 9, 33, 17, 26, 12, 8, 30], SPEC)

    def fit(ckpt=None, workers=0, batch_size=2, every=None, at_epoch_end=False, **trainer):
        callbacks = []
        if every or at_epoch_end:
            saver = ModelCheckpoint(
                tmp_path / "checkpoints",
                filename="{step}",
                every_n_train_steps=every,
                every_n_epochs=1 if at_epoch_end else None,
                save_on_train_epoch_end=True if at_epoch_end else None,
                save_top_k=-1,
            )
            callbacks = [saver]
        witness = Witness()
        Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=bool(callbacks),
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **trainer,
        ).fit(
            witness,
            EpisodeDataModule(
                str(root), batch_size=batch_size, clip_length=5, num_workers=workers, shuffle_buffer=8, epoch_batches=5
            ),
            ckpt_path=ckpt and tmp_path / "checkpoints" / f"step={ckpt}.ckpt",
        )
        return witness.seen

    return fit


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_from_any_step_the_batches_go_on(run, workers):
    expected = run(max_steps=12, every=1, workers=workers)
    assert [epoch for epoch, *_ in expected] == [0] * 5 + [1] * 5 + [2] * 2
    assert len({str(batch[1:]) for batch in expected}) == 12
    for step in (1, 4, 5, 6, 10, 11) if workers == 0 else (4, 8):
        assert run(ckpt=step, max_steps=12, workers=workers) == expected[step:]


def test_from_the_end_of_an_epoch(run):
    expected = run(max_epochs=4)
    assert run(max_epochs=2, at_epoch_end=True) == expected[:10]
    assert run(ckpt=10, max_epochs=4) == expected[10:]  # Lightning restores no loader state here, it names the epoch


def test_when_lightning_cuts_epochs_short(run):
    cut = {"limit_train_batches": 3, "max_steps": 8}
    expected = run(every=1, **cut)
    for step in (2, 3, 4, 6):
        assert run(ckpt=step, **cut) == expected[step:]


def test_with_validation_inside_the_epoch_and_accumulation(run):
    settings = {"max_epochs": 3, "val_check_interval": 2, "accumulate_grad_batches": 2}
    expected = run(every=1, **settings)
    assert run(ckpt=1, **settings) == expected[2:]
    assert run(ckpt=4, **settings) == expected[7:]


def test_a_changed_batch_size_in_mid_epoch_is_refused(run):
    run(max_steps=3, every=3)
    with pytest.raises(ExperienceError, match="batch_size was 2, now it is 3"):
        run(ckpt=3, max_steps=6, batch_size=3)


def test_validation_test_and_prediction_see_every_window_once(make_recording, tmp_path):
    class Count(Witness):
        def test_step(self, batch, batch_idx):
            self.seen.extend(zip(batch["episode"].tolist(), batch["start"].tolist(), strict=True))

        predict_step = test_step

    root = make_recording([20] * 13, SPEC)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    for run in (trainer.test, trainer.predict):
        model = Count()
        run(model, datamodule=EpisodeDataModule(str(root), batch_size=3, clip_length=5))
        assert model.seen == [(episode, start) for episode in (2, 12) for start in (0, 5, 10, 15)]
