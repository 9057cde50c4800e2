"""Killed with SIGKILL and resumed from its last checkpoint, a fit goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_routes

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
    script = Path(tiny_routes.__file__)
    killed = subprocess.run(
        [sys.executable, str(script), route, str(root), str(broken), "12", str(workers), "1", str(kill_at)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
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
