"""FSDP2 over two processes: the same training as DDP, resumed in the middle, and one checkpoint that anyone can open."""

from pathlib import Path

import another_process
import pytest
import tiny_routes
import torch
import yaml

import lit_wm
from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.checkpoint_file import read_checkpoint
from lit_wm.cli import main

MACHINES = Path(__file__).parents[2] / "configs" / "machine"
SPEC = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (4,)))
FAST = {"lr": 1e-3, "warmup_steps": 1, "decay": "constant"}
STARTED = {"codebook": "ema", "kmeans_start": True, "restart_below": 0.5}
GENIE = {
    "frames": 6,
    "order": "staged",
    "tokenizer_steps": 2,
    "tokenizer": {**tiny_routes.CODER, "codes": 16, **STARTED},
    "lam": {**tiny_routes.CODER, **STARTED, "continuous_warmup": 2},
    "dynamics": {"dim": 16, "heads": 2, "ffn": 16, "blocks": 1},
    **{f"{part}_optimizer": FAST for part in ("tokenizer", "lam", "dynamics")},
}


ALARM = "lit_wm.callbacks.collapse_alarm.CollapseAlarm"  # which looks at the model between two steps
SIZES = {
    "encoder": {"patch": 16, "dim": 16, "depth": 2, "heads": 2},
    "optimizer": {"lr": 1e-3, "warmup_steps": 1, "steps": 6},
}
ROUTES = {
    "genie": ("lit_wm.genie.module.GenieModule", GENIE, ("lam.", "dynamics.")),
    "jepa": (
        "lit_wm.jepa.module.JEPAModule",
        {**SIZES, "predictor": {"dim": 16, "depth": 1, "heads": 2}, "regularizers": {"variance": 1.0, "sigreg": 0.1, "slices": 16}},
        ("task.encoder.", "task.target_encoder.", "task.predictor."),
    ),
    "masked jepa": (
        "lit_wm.jepa.module.JEPAModule",
        {**SIZES, "task": "image", "predictor": {"dim": 16, "depth": 2, "heads": 2}, "masks": [{"least_context": 1, "targets": 2}]},
        ("task.encoder.", "task.target_encoder.", "task.predictor."),
    ),
}  # fmt: skip


@pytest.fixture(params=ROUTES)
def route(request):
    return request.param


@pytest.fixture
def fit(make_recording, tmp_path, route):
    """``fit(name, machine, *words)``: two processes, and the checkpoint they leave."""
    root = make_recording([9, 20, 16, 7, 12, 31, 18, 9, 14, 6, 25, 17, 11], spec=SPEC)
    data = {"root": str(root), "batch_size": 2, "clip_length": 6}
    config = {
        "model": {"class_path": ROUTES[route][0].replace(".module.", "."), "init_args": ROUTES[route][1]},
        "data": {"class_path": "datamodules.episodes.EpisodeDataModule", "init_args": data},
        "trainer": {
            "gradient_clip_val": 1.0,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "callbacks": [{"class_path": ALARM, "init_args": {"every_n_steps": 2, "batches": 2}}],
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))

    def run(name, machine, *words):
        options = ["--name", name, "--runs", str(tmp_path / "runs"), "--trainer.limit_val_batches", "1"]
        configs = ["-c", str(tmp_path / "tiny.yaml"), "-c", str(MACHINES / machine)]
        another_process.run_as_two_ranks(main.run, ["fit", *configs, *options, *words])
        return read_checkpoint(tmp_path / "runs" / name / "checkpoints" / "last.ckpt")

    return run


def with_a_gradient(name: str, value: torch.Tensor) -> torch.Tensor:
    """Less the bias of attention's keys, which changes nothing: its gradient is rounding, of which Adam makes whole steps."""
    return value.unflatten(0, (3, -1))[[0, 2]] if name.endswith("qkv.bias") else value


@pytest.mark.slow
def test_sharded_and_resumed_it_learns_what_ddp_learns(fit, tmp_path, route):
    class_path, _, learning = ROUTES[route]
    ddp = fit("ddp", "ddp.yaml", "--trainer.max_steps", "6")
    half = fit("fsdp2", "fsdp2.yaml", "--trainer.max_steps", "3")
    whole = fit("fsdp2", "fsdp2.yaml", "--trainer.max_steps", "6", "--ckpt_path", "last")
    assert half["global_step"] == 3 and whole["global_step"] == ddp["global_step"] == 6
    assert ddp["lit_wm"]["class_path"] == whole["lit_wm"]["class_path"] == class_path
    assert ddp["state_dict"].keys() == whole["state_dict"].keys()
    for name in ddp["state_dict"]:
        one, other = (with_a_gradient(name, run["state_dict"][name]) for run in (ddp, whole))
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    moved = [n for n, value in half["state_dict"].items() if not torch.equal(value, whole["state_dict"][n])]
    assert all(any(name.startswith(part) for name in moved) for part in learning)
    assert lit_wm.load(tmp_path / "runs" / "fsdp2").route == route.split()[-1], "in one process, without FSDP2"
