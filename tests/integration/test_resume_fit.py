"""Killed with SIGKILL and resumed from its last checkpoint, a fit goes on as if nothing had happened."""

import signal

import another_process
import pytest
import tiny_routes
import torch

from datamodules.experience import ActionSpace, ExperienceSpec

SPEC = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (4,)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "workers", "kill_at"), [("dreamer", 0, 5), ("genie", 1, 8), ("jepa", 2, 7), ("dreamer", 2, 6)]
)
def test_killed_and_resumed_equals_uninterrupted(make_recording, tmp_path, route, workers, kill_at):
    root = make_recording([9, 20, 16, 7, 12, 31, 18, 9, 14, 6, 25, 17], spec=SPEC)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tiny_routes.fit(route, root, whole, 12, workers)
    killed = another_process.start(tiny_routes.fit, route, root, broken, 12, workers, kill_at=kill_at)
    assert another_process.exit_code(killed) == -signal.SIGKILL
    saved = 3 * ((kill_at - 1) // 3)  # the witness kills before the checkpoint of its own step is written
    assert saved > 0, "without a checkpoint there is nothing to resume"
    before = tiny_routes.seen(broken)
    assert [entry["step"] for entry in before] == list(range(1, kill_at + 1))
    (broken / "seen-0.jsonl").unlink()
    checkpoint = broken / "checkpoints" / "last.ckpt"
    tiny_routes.fit(route, root, broken, 12, workers, resume=checkpoint)
    assert before == tiny_routes.seen(whole)[:kill_at]
    assert tiny_routes.seen(broken) == tiny_routes.seen(whole)[saved:]
    assert (broken / "weights-0").read_text() == (whole / "weights-0").read_text()


@pytest.mark.parametrize("end", [4, 6])
def test_a_finished_run_that_is_made_longer_equals_one_that_was_longer_from_the_start(make_recording, tmp_path, end):
    """Whether it ended with a checkpoint that was due (every third update) or with one more."""
    root = make_recording([9, 20, 16, 7, 12, 31, 18, 9, 14, 6, 25, 17], spec=SPEC)
    tiny_routes.fit("jepa", root, tmp_path / "long", 8)
    tiny_routes.fit("jepa", root, tmp_path / "short", end)
    tiny_routes.fit("jepa", root, tmp_path / "short", 8, resume=tmp_path / "short" / "checkpoints" / "last.ckpt")
    assert tiny_routes.seen(tmp_path / "short") == tiny_routes.seen(tmp_path / "long")
    assert (tmp_path / "short" / "weights-0").read_text() == (tmp_path / "long" / "weights-0").read_text()


FAST = {"lr": 3e-3, "warmup_steps": 1, "decay": "constant"}
CHANGED = {
    "dreamer": ({"lr": 3e-3, "beta2": 0.9, "agc": 0.1}, {"betas": (0.9, 0.9), "clip": 0.1}),
    "genie": (
        {f"{part}_optimizer": FAST for part in ("tokenizer", "lam", "dynamics")} | {"betas": (0.5, 0.8)},
        {"betas": (0.5, 0.8)},
    ),
    "jepa": (
        {"optimizer": {"lr": 3e-3, "weight_decay": 0.5, "steps": 50, "warmup_steps": 1}},
        {"weight_decay": 0.5},
    ),
}


@pytest.mark.parametrize("route", CHANGED)
def test_what_was_changed_before_resuming_is_what_runs(make_recording, tmp_path, route):
    """From the first update on, and the optimizer's own state goes on from the checkpoint."""
    root = make_recording([9, 20, 16, 7, 12, 31, 18, 9, 14, 6, 25, 17], spec=SPEC)
    out, (options, expected) = tmp_path / "out", CHANGED[route]
    tiny_routes.fit(route, root, out, 6)
    checkpoint = out / "checkpoints" / "last.ckpt"
    same = tiny_routes.fit(route, root, tmp_path / "same", 7, resume=checkpoint)
    changed = tiny_routes.fit(route, root, tmp_path / "changed", 7, resume=checkpoint, **options)
    (before,), (after,) = same.trainer.optimizers, changed.trainer.optimizers
    (schedule,) = (config.scheduler for config in changed.trainer.lr_scheduler_configs)
    assert set(schedule.base_lrs) == {3e-3} and schedule.last_epoch == 7
    (update_before,), (update_after,) = tiny_routes.seen(tmp_path / "same"), tiny_routes.seen(tmp_path / "changed")
    assert update_after["rates"] == pytest.approx([3 * rate for rate in update_before["rates"]], rel=0.01)
    for old, new in zip(before.param_groups, after.param_groups, strict=True):
        assert new["lr"] == pytest.approx(3 * old["lr"], rel=0.01) and old.get("step") == new.get("step")
    assert {name: after.param_groups[0][name] for name in expected} == expected
    assert any(not torch.equal(p, q) for p, q in zip(same.parameters(), changed.parameters(), strict=True))
