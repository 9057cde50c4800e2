"""The target moves once per update and only then, resume keeps its schedule, and what it is there for: no collapse."""

import pytest
import torch
from jepa_examples import batch_of, moving_square, small
from lightning import Trainer
from torch.utils.data import DataLoader

from lit_wm.jepa import module as jepa_module
from lit_wm.jepa.schedules import momentum


def trainer(path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", default_root_dir=path, **(quiet | {"enable_checkpointing": False} | options))


def clips(n: int) -> DataLoader:
    """n batches, the same every time."""
    return DataLoader([batch_of(2, 4, seed) for seed in range(n)], batch_size=None)


@pytest.fixture
def moves(monkeypatch):
    """Every momentum with which the target was moved."""
    seen = []
    moved = jepa_module.ema_update
    monkeypatch.setattr(jepa_module, "ema_update", lambda t, o, m: (seen.append(m), moved(t, o, m)))
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_target_moves_once_per_update(tmp_path, moves, accumulate):
    trainer(tmp_path, max_steps=4, accumulate_grad_batches=accumulate).fit(small(), clips(4 * accumulate))
    assert moves == [momentum(i, 4, 0.996) for i in range(4)]


def test_target_moves_after_the_optimizer(tmp_path, moves):
    model = small(
        target={"momentum_start": 0.0, "momentum_end": 0.0}
    )  # the target is then the encoder as the update left it
    trainer(tmp_path, max_steps=2).fit(model, clips(2))
    for online, target in zip(model.task.encoder.parameters(), model.task.target_encoder.parameters(), strict=True):
        assert torch.equal(online, target)
    assert moves == [0.0, 0.0]


def test_resume_keeps_schedule_and_target(tmp_path, moves):
    straight, stopped, resumed = (small(optimizer={"steps": 6}) for _ in range(3))
    same = DataLoader([batch_of(2, 4)] * 20, batch_size=None)  # where a plain loader goes on does not matter here
    trainer(tmp_path, max_steps=6).fit(straight, same)
    whole = moves.copy()
    run = trainer(tmp_path, max_steps=3)
    run.fit(stopped, same)
    run.save_checkpoint(tmp_path / "half.ckpt")
    moves.clear()
    trainer(tmp_path, max_steps=6).fit(resumed, same, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert moves == whole[3:]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_alone_rebuilds_the_model(tmp_path):
    model = small(actions=False, predictor={"history": 2}, target={"momentum_start": 0.9})
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, clips(2))
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = type(model).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    batch = batch_of()
    assert torch.equal(again.features(again.observe(batch)), model.features(model.observe(batch)))
    assert not torch.equal(again.targets(batch), again.features(again.observe(batch)))  # the target came along


def learn(steps: int, **options) -> list[dict[str, float]]:
    """Fit on the moving square by hand; the logged numbers of every update."""
    options = {
        "predictor": {"depth": 1},
        "optimizer": {"lr": 3e-3, "steps": steps},
        "loss": {"distance": "l2"},
    } | options
    model = small(**options)
    optimizer = model.configure_optimizers()["optimizer"]
    pool, log, target = moving_square(512), [], model.target_settings
    for i in range(steps):
        rows = torch.randint(0, 512, (32,))
        losses = model.losses({key: value[rows] for key, value in pool.items()})
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if not name.startswith("_")).backward()
        optimizer.step()
        if target.kind == "ema":
            m = momentum(i, steps, target.momentum_start, target.momentum_end)
            jepa_module.ema_update(model.task.target_encoder, model.task.encoder, m)
        log.append({name: float(value.detach()) for name, value in losses.items()})
    return log


def test_learns_a_toy_world_without_collapse():
    log = learn(200)
    assert log[-1]["_nmse"] < 0.6 < 1 < log[0]["_nmse"]
    assert log[-1]["_target_std"] > 0.5 * log[0]["_target_std"]


def test_collapses_where_gradients_reach_the_target():
    """Zero loss is one constant away, and nothing forbids it."""
    log = learn(200, target={"kind": "online"})
    assert log[-1]["_target_std"] < 0.1 * log[0]["_target_std"]
    assert log[-1]["prediction"] < 1e-2 * log[0]["prediction"]


def test_the_variance_term_holds_where_gradients_reach_the_target():
    log = learn(200, target={"kind": "online"}, regularizers={"variance": 1.0, "samples": "batch_and_time"})
    assert log[-1]["_target_std"] > 0.5 * log[0]["_target_std"]
