"""Validation by play: the same episodes every time, nothing learnt from them, and the best weights kept."""

import pytest
import tiny_online
import tiny_routes
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.experience import ExperienceError
from lit_wm.callbacks.best import BestWeights
from lit_wm.callbacks.checkpoint import StepCheckpoint
from lit_wm.errors import UserError

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Returns(Callback):
    """What each validation came to, and the weights it was of; scripted returns in place of the played ones, if there are any."""

    def __init__(self, scripted=()):
        self.scripted, self.seen = list(scripted), []

    def on_validation_start(self, trainer, pl_module):
        if self.scripted:
            value = float(self.scripted.pop(0))
            pl_module.validation_step = lambda batch, batch_idx: pl_module.log("val/return", value, batch_size=1)

    def on_validation_end(self, trainer, pl_module):
        weights = {name: x.clone() for name, x in pl_module.state_dict().items()}
        self.seen.append((trainer.global_step, float(trainer.callback_metrics["val/return"]), weights))


def fit(out, steps, callbacks=(), resume=None, val_episodes=4, every=2, **options):
    torch.set_num_threads(1)
    data = tiny_online.data_module(val_episodes=val_episodes, **options)
    model = tiny_routes.tiny("dreamer", data.spec, lr=1e-3)
    checkpoints = StepCheckpoint(every_n_train_steps=2)
    checkpoints.dirpath = str(out / "checkpoints")
    trainer = Trainer(
        max_steps=steps, val_check_interval=every, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=[*callbacks, checkpoints, tiny_online.Witness(out)], **QUIET,
    )  # fmt: skip
    out.mkdir(exist_ok=True)
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model


def test_playing_to_be_judged_changes_nothing_of_the_training(tmp_path):
    fit(tmp_path / "judged", 6)
    tiny_online.fit(tmp_path / "plain", 6)
    judged, plain = tiny_online.seen(tmp_path / "judged"), tiny_online.seen(tmp_path / "plain")
    assert judged == plain and len(judged) == 6


def test_the_same_agent_plays_the_same_episodes_every_time(tmp_path):
    data = tiny_online.data_module(val_episodes=5)
    model = tiny_routes.tiny("dreamer", data.spec)
    trainer = Trainer(**QUIET)
    first, again = (trainer.validate(model, datamodule=data, verbose=False)[0] for _ in range(2))
    assert first == again and first["val/return"] > 5 and first["val/return"] == first["val/length"]


def test_the_weights_of_the_best_validation_are_kept_the_later_of_two(tmp_path):
    returns = Returns([3, 7, 5, 7, 6])
    model = fit(tmp_path, 10, [returns, BestWeights("val/return")])
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert [step for step, _, _ in returns.seen] == [2, 4, 6, 8, 10] and best["global_step"] == 8
    assert all(torch.equal(x, returns.seen[3][2][name]) for name, x in best["state_dict"].items())
    assert any(not torch.equal(x, model.state_dict()[name]) for name, x in best["state_dict"].items())
    assert "ReplayDataModule" not in best and "optimizer_states" not in best


def test_the_replay_is_tidied_beside_the_best_weights(tmp_path):
    """They name no replay, so they keep none of its files."""
    fit(tmp_path / "with", 20, [BestWeights("val/return")])
    fit(tmp_path / "without", 20)
    with_best, without = (sorted(p.suffix for p in (tmp_path / n / "replay").iterdir()) for n in ("with", "without"))
    assert with_best == without


def test_lower_may_be_better(tmp_path):
    fit(tmp_path, 6, [Returns([3, 2, 4]), BestWeights("val/return", "min")])
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 4


def test_a_resumed_run_compares_with_the_best_before(tmp_path):
    """What the file says counts: last.ckpt is written before the validation of the same update."""
    fit(tmp_path / "run", 4, [Returns([3, 9]), BestWeights("val/return")])
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 4
    fit(tmp_path / "run", 8, [Returns([5, 8]), BestWeights("val/return")], resume=last)
    assert best.read_bytes() == before
    fit(tmp_path / "run", 10, [Returns([10]), BestWeights("val/return")], resume=last)
    assert torch.load(best, weights_only=True)["global_step"] == 10


def test_what_is_no_number_is_never_best(tmp_path):
    fit(tmp_path, 8, [Returns([float("nan"), 9, float("nan"), 3]), BestWeights("val/return")])
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 4 and best["best_value"] == 9


def test_a_run_that_was_stopped_early_begins_anew_without_what_it_left(tmp_path):
    with pytest.raises(KeyError):
        fit(tmp_path, 8, [Returns([9]), BestWeights("val/return"), Stops(3)], start_after=12)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()  # as if it had been stopped before the first
    fit(tmp_path, 4, [Returns([2, 1]), BestWeights("val/return")])
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["best_value"] == 2


class Stops(Callback):
    def __init__(self, update):
        self.update = update

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.update:
            raise KeyError(self.update)


def test_environments_are_gone_before_training_goes_on(tmp_path):
    class Looks(Callback):
        def on_train_batch_start(self, trainer, *arguments):
            assert all(player._env is None for player in trainer.datamodule._players)

    fit(tmp_path, 4, [Looks()])


def test_a_validation_of_the_shortest_episodes_is_refused(tmp_path):
    data = tiny_online.data_module(val_episodes=5)
    with pytest.raises(ExperienceError, match="limit_val_batches 2 would count the episodes that end first"):
        Trainer(limit_val_batches=2, **QUIET).fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)


def test_what_is_not_logged_cannot_be_watched(tmp_path):
    with pytest.raises(
        UserError, match="watches val/score, which the validation does not log but val/length, val/return"
    ):
        fit(tmp_path, 2, [BestWeights("val/score")])


def test_what_will_never_be_validated_is_refused(tmp_path):
    with pytest.raises(UserError, match="watches a validation, but there is none"):
        fit(tmp_path, 2, [BestWeights("val/return")], val_episodes=0)
    with pytest.raises(UserError, match="monitor of BestWeights is train/loss"):
        BestWeights("train/loss")


def test_without_val_episodes_there_is_nothing_to_validate(tmp_path):
    data = tiny_online.data_module()
    with pytest.raises(ExperienceError, match="nothing to validate: give val_episodes"):
        Trainer(**QUIET).validate(tiny_routes.tiny("dreamer", data.spec), datamodule=data)
