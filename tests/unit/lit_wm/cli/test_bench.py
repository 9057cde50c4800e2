"""lit-wm bench: every route's full training step is measured, at the sizes asked for."""

import json

import pytest
import torch

from lit_wm.cli import bench
from lit_wm.cli import main as cli
from lit_wm.cli.bench_models import Subject, build_subject
from lit_wm.evaluation.cost import train_step_runs

TINY_CODER = ["dim=16", "heads=2", "ffn=16", "encoder_blocks=1", "decoder_blocks=1", "patch=16"]
TINY = {
    "dreamer": ["size_overrides={deter: 32, hidden: 8, classes: 4, depth: 2, units: 8, stoch: 4}"],
    "genie": [
        *(f"{part}.{word}" for part in ("tokenizer", "lam") for word in TINY_CODER),
        *(f"dynamics.{word}" for word in ("dim=16", "heads=2", "ffn=16", "blocks=1")),
    ],
    "jepa": [
        "encoder.patch=16",
        "encoder.dim=16",
        "encoder.depth=1",
        "encoder.heads=2",
        "predictor.dim=16",
        "predictor.depth=1",
        "predictor.heads=2",
    ],
}


def words(route: str, *more: str) -> list[str]:
    return ["bench", route, "--batch", "1", "--length", "4", *more, *(w for s in TINY[route] for w in ("--set", s))]


@pytest.mark.parametrize(
    ("route", "more"),
    [
        ("dreamer", []),
        ("genie", []),
        *(("genie", ["--part", part]) for part in ("world", "latent_action", "dynamics")),
        ("jepa", ["--action-free"]),
    ],
)
def test_every_route_is_measured(route, more, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        cli.main(words(route, "--runs", "3", "--threads", "1", "--json", str(tmp_path / "new" / "b.json"), *more))
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "new" / "b.json").read_text())
    assert result["name"].startswith(route) and result["name"].endswith(" ".join(TINY[route]))
    assert result["threads"] == 1 and 0 < result["parameters"] < 200_000, "the sizes asked for"
    assert len(result["cpu_ms_runs"]) == 3 and result["cpu_ms_min"] == min(result["cpu_ms_runs"])
    assert result["cpu_ms_min"] <= result["cpu_ms_median"] <= max(result["cpu_ms_runs"])
    assert result["flops"] > 1e4 and 0 < result["share_of_ceiling"] < 2
    assert "GFLOP per step" in capsys.readouterr().out


def test_the_precision_asked_for_is_the_trainers(capsys):
    seen = []

    class Model(type(built("genie").model)):
        def training_step(self, batch, batch_idx):
            seen.append(self.trainer.precision)
            return super().training_step(batch, batch_idx)

    model = built("genie").model
    model.__class__ = Model
    train_step_runs(model, built("genie").batch, 0, 1, "bf16-mixed")
    assert seen == ["bf16-mixed"] * 2
    cli.main(words("genie", "--runs", "1", "--precision", "bf16-mixed"))
    assert "training step, bf16-mixed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["bench", "genie", "--part", "sample", "--precision", "bf16-mixed"])
    assert "leave it out with --part sample" in capsys.readouterr().err


def built(route: str, *more: str) -> Subject:
    return build_subject(bench.parse(words(route, *more)[1:]))


def test_a_part_counts_its_own_parameters():
    parts = {part: built("genie", "--part", part) for part in bench.GENIE_PARTS}
    genie = parts["sample"].model
    assert parts["tokenizer"].parameters == sum(p.numel() for p in genie.tokenizer.parameters())
    assert parts["world"].parameters == parts["latent_action"].parameters + parts["dynamics"].parameters
    assert parts["sample"].parameters == parts["world"].parameters + parts["tokenizer"].parameters


def test_a_played_frame_is_measured(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        cli.main(words("genie", "--part", "sample", "--runs", "2", "--json", str(tmp_path / "b.json")))
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["name"].startswith("genie sample 1x4") and result["name"].endswith("25 steps a frame")
    assert len(result["cpu_ms_runs"]) == len(result["wall_ms_runs"]) == 2
    assert result["cpu_ms_unending"] > 0
    assert "CPU ms per frame" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["bench", "genie", "--part", "sample", "--length", "3"])
    assert [bench.parse(["genie", "--part", part]).batch for part in ("sample", "dynamics")] == [1, 4]
    assert "leaves no past to play from" in capsys.readouterr().err


def test_the_step_holds_what_follows_the_optimizer(monkeypatch):
    followed = []
    from lit_wm.dreamer import module as dreamer
    from lit_wm.jepa import module as jepa

    for route, where in (("dreamer", dreamer), ("jepa", jepa)):
        monkeypatch.setattr(where, "ema_update", lambda *_, route=route: followed.append(route))
        _, model, batch, _ = built(route)
        assert len(train_step_runs(model, batch, 0, 2)) == 2
    assert followed == ["dreamer"] * 3 + ["jepa"] * 3, "one step warms up"


def test_flops_are_those_of_one_step():
    _, model, batch, _ = built("jepa")
    assert bench.step_flops(model, batch) == bench.step_flops(model, batch)
    half = {key: value[:, :2] for key, value in batch.items()}
    assert bench.step_flops(model, half) < bench.step_flops(model, batch)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "encoder.dimm=3"], "--set: nothing reads encoder.dimm=3"),
        (["--set", "dim=wide"], "dim"),
        (["--set", "dim"], "KEY=VALUE"),
        (["--set", "encoder.dim=15"], "sizes do not fit"),
        (["--runs", "0"], "positive"),
        (["--json", "."], "is a folder"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line_before_it_is_tried(more, message, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "jepa", *more])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_a_result_cannot_lie_inside_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        cli.main(["bench", "jepa", "--json", str(tmp_path / "file" / "b.json")])
    assert "is not a folder" in capsys.readouterr().err
