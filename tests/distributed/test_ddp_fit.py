"""Two processes over gloo: equal batches, no hang, and the same weights on both ranks."""

import os
import subprocess
import sys
from pathlib import Path

import another_process
import pytest
import tiny_routes

from datamodules.experience import ActionSpace, ExperienceSpec

SPEC = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (4,)))


@pytest.mark.slow
@pytest.mark.parametrize("route", ["dreamer", "genie", "jepa"])
def test_two_ranks_agree(make_recording, tmp_path, route):
    root = make_recording([9, 20, 16, 7, 12, 31, 18, 9, 14, 6, 25, 17, 11], spec=SPEC)
    out = tmp_path / "out"
    another_process.run_as_two_ranks(tiny_routes.fit, route, root, out, 7, devices=2)
    first, second = tiny_routes.seen(out, 0), tiny_routes.seen(out, 1)
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second] == list(range(1, 8))
    assert {entry["size"] for entry in first + second} == {2}
    assert not {entry["batch"] for entry in first} & {entry["batch"] for entry in second}
    assert not {entry["random"] for entry in first} & {entry["random"] for entry in second}, "ranks draw the same noise"
    assert (out / "weights-0").read_text() == (out / "weights-1").read_text()


@pytest.mark.slow
def test_where_one_rank_fails_both_say_so_in_one_line(make_recording, tmp_path):
    """Corruption above the limit, met by one rank: the other only sees that its peer is gone."""
    root = make_recording([40] * 24, spec=SPEC, shard_steps=40)
    data = (root / "train-000003.tar").read_bytes()
    size = len(data) // 2
    (root / "train-000003.tar").write_bytes(data[:size] + bytes(len(data) - size))
    root_dir = Path(__file__).parents[2]
    configs = ["-c", str(root_dir / "configs/jepa/pong.yaml"), "-c", str(root_dir / "configs/machine/ddp.yaml")]
    options = ["--data.init_args.root", str(root), "--data.init_args.max_corrupt", "0", "--trainer.max_steps", "50"]
    options += [
        "--runs",
        str(tmp_path / "runs"),
        "--data.init_args.batch_size",
        "2",
        "--trainer.limit_val_batches",
        "0",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lit_wm", "fit", *configs, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("lit-wm: error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert len(said) == 2 and sum("train-000003" in line for line in said) == 1
    assert sum("another process of this run failed" in line for line in said) == 1
