"""What an imitation experiment writes, draws and prints."""

import json

import pytest
from PIL import Image
from rich.console import Console

from lit_wm.cli.imitation_report import Result, draw_curve, show, summary, write_json
from lit_wm.evaluation.statistics import paired_t

FACTS = {"run": "a", "episodes": 4, "environment": {"id": "sprites"}}


def result(seeds):
    found = Result(FACTS, [5, 6, 7], {n: [n / 10 + seed for seed in range(seeds)] for n in (0, 10)})
    found.baselines["oracle"] = [2.0 + 2 * seed for seed in range(seeds)]
    found.baselines["random"] = [0.25] * seeds
    found.reasons["expert"] = "nobody knows it"
    found.accuracy["codes"] = [0.5] * seeds
    return found


def test_a_summary_is_of_all_seeds_and_claims_no_interval_for_one():
    many = summary([1.0, 2.0, 3.0])
    assert (many["by_seed"], many["mean"]) == ([1, 2, 3], 2)
    assert (many["low_95"], many["high_95"]) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert summary([3.0]) == {"by_seed": [3.0], "mean": 3.0}
    assert summary([]) == {"by_seed": [], "mean": None}


def test_an_experiment_that_goes_on_says_which_seeds_are_done(tmp_path):
    write_json(result(seeds=2), tmp_path / "imitation.json")
    found = json.loads((tmp_path / "imitation.json").read_text())
    assert found["seeds"] == [5, 6] and found["unfinished_seeds"] == [7]
    less = dict(zip(("mean", "low_95", "high_95"), paired_t([1, 2], [2, 4]), strict=True))
    assert found["imitation"][1] == {"labels": 10} | summary([1.0, 2.0]) | {"less_oracle": less}
    assert found["expert"] == {"by_seed": [], "mean": None, "reason": "nobody knows it"}
    assert found["held_out_accuracy"] == {"codes": summary([0.5, 0.5])} and found["episodes"] == 4


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_curve_is_drawn_with_and_without_intervals(tmp_path, seeds):
    draw_curve(result(seeds), tmp_path / "imitation.png")
    assert len(Image.open(tmp_path / "imitation.png").convert("L").getcolors()) > 50


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_table_pairs_seeds_with_the_oracles(seeds):
    console = Console(width=80)
    with console.capture() as capture:
        show(result(seeds), console)
    lines = capture.get().splitlines()
    assert not any("…" in line for line in lines)
    (line,) = (line for line in lines if "n=10" in line)
    if seeds == 3:
        less = paired_t([1, 2, 3], [2, 4, 6])
        assert f"{less[0]:.2f} [{less[1]:.2f}, {less[2]:.2f}]" in line and "1.00 2.00 3.00" in line
    else:
        assert "[" not in line
    assert any("expert: n/a, nobody knows it" in line for line in lines)
