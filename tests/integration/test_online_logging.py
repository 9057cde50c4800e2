"""What an online run logs between the steps that a logger takes: for who monitors it, and when a callback stops the run."""

import csv

import pytest
import tiny_online
import tiny_routes
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger


def fit(callbacks, steps=14, watch=None, **options):
    data = tiny_online.data_module(keep_episodes=False)
    model = tiny_routes.tiny("dreamer", data.spec)
    if watch is not None:
        losses = model.losses

        def watched(batch):
            found = losses(batch)
            watch.append(found["rew"].item())
            return found

        model.losses = watched
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False,
        **({"logger": False, "enable_checkpointing": False} | options),
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


class StopAt(Callback):
    def __init__(self, *updates):
        self.updates = updates

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or trainer.global_step in self.updates


@pytest.mark.parametrize("min_steps", [None, 9])  # stopped, it may have to go on for a while
def test_the_last_row_of_a_stopped_run_holds_the_numbers_of_its_own_step(tmp_path, min_steps):
    real = []
    logger = CSVLogger(tmp_path, name="", version="log")
    fit([StopAt(7)], steps=30, watch=real, logger=logger, log_every_n_steps=4, min_steps=min_steps)
    logger.save()
    rows = [row for row in csv.DictReader((tmp_path / "log" / "metrics.csv").open()) if row["train/rew"]]
    expected = [3, 6, 7, 8] if min_steps else [3, 6]
    assert [int(row["step"]) for row in rows] == expected and len(real) == expected[-1] + 1
    assert [float(row["train/rew"]) for row in rows] == pytest.approx([real[step] for step in expected], abs=1e-6)
    assert rows[0]["env/steps"] != rows[-1]["env/steps"]


def test_a_number_that_a_callback_monitors_is_there_after_every_step(tmp_path):
    fit([EarlyStopping("env/return", mode="max", patience=99, check_on_train_epoch_end=True)], log_every_n_steps=50)
    keep = ModelCheckpoint(
        str(tmp_path / "checkpoints"), monitor="train/kl", filename="{step}", every_n_train_steps=5, save_top_k=-1
    )
    fit([keep], enable_checkpointing=True, log_every_n_steps=50)
    assert len(keep.best_k_models) == 2 and len({value.item() for value in keep.best_k_models.values()}) == 2


@pytest.mark.parametrize(("monitor", "there"), [("train/loss", False), ("val/loss", False), ("train/rew", True)])
def test_other_monitors_do_not_slow_a_step_down(monitor, there):
    quiet = EarlyStopping(monitor, check_on_train_epoch_end=False)
    assert ("train/kl" in fit([quiet], steps=3, log_every_n_steps=50).callback_metrics) == there
