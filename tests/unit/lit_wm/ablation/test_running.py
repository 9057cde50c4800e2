"""What is trained, what is not trained again, and what a failure leaves alone."""

import fcntl
import json
from pathlib import Path

import pytest

from lit_wm.ablation import report
from lit_wm.ablation.definition import Ablation, Claim
from lit_wm.ablation.running import LOCK, Runner, options
from lit_wm.errors import UserError


def ablation(tmp_path, first=(), arms=("one", "two"), measures=("codes",), columns=("score",)):
    (tmp_path / "configs").mkdir(exist_ok=True)
    base = tmp_path / "configs" / "base.yaml"
    base.write_text("name: base\n")
    claim = Claim("one beats two", "nobody", "1.91", "score", arms[0], arms[-1])
    before = {name: {"number": -place} for place, name in enumerate(first, 1)}
    overrides = {arm: {"number": place} for place, arm in enumerate(arms)}
    for arm, name in zip(overrides, first, strict=False):
        overrides[arm]["from"] = f"{{{name}}}"
    return Ablation("small", "quick", "Which?", base, before, overrides, measures, columns, (claim,))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """``make(**ablation arguments)``: a runner whose trainings and judgements are counted in ``.done`` and ``.judged``."""
    done, judged, fails = [], [], set()

    def train(self, overrides, seed, folder):
        every = self.ablation.first | self.ablation.arms
        arm = next(name for name, of in every.items() if of is overrides)
        done.append((arm, seed))
        folder.mkdir(parents=True, exist_ok=True)
        return ("exit code 1: broken" if (arm, seed) in fails else ""), 2.0

    def judge(folder, measures):
        if ("judge", folder) in fails:
            raise UserError("the shards are not those")
        judged.append((folder.name, tuple(measures)))
        return {part: {"score": {"value": 1.0 if "seed0" in folder.name else 2.0}} for part in measures}

    monkeypatch.setattr(Runner, "train", train)

    def build(**given):
        runner = Runner(ablation(tmp_path, **given), tmp_path / "runs", judge, threads=1)
        runner.done, runner.judgements, runner.fails = done, judged, fails
        return runner

    return build


def test_what_is_trained_and_judged_is_not_done_again(make):
    first = make().run([0, 1], jobs=2)
    runner = make()
    assert sorted(runner.done) == [("one", 0), ("one", 1), ("two", 0), ("two", 1)] and len(runner.judgements) == 4
    assert runner.run([0, 1], jobs=1) == first
    assert len(runner.done) == 4 and len(runner.judgements) == 4
    assert [o.numbers["score"] for o in first] == [1.0, 1.0, 2.0, 2.0] and first[0].cost == {"cpu_s": 2.0}


def test_a_new_measure_judges_and_does_not_train(make):
    make().run([0], jobs=1)
    runner = make(measures=("codes", "pictures"))
    runner.run([0], jobs=1)
    assert len(runner.done) == 2 and {parts for _, parts in runner.judgements[2:]} == {("pictures",)}


def test_a_failed_arm_leaves_the_others_alone_and_is_tried_again(make):
    runner = make()
    runner.fails.add(("one", 1))
    outcomes = runner.run([0, 1], jobs=2)
    assert [(o.arm, o.seed) for o in outcomes if o.failed] == [("one", 1)]
    page = report.markdown(runner.ablation, outcomes, "2026-01-01")
    assert "one, seed 1, failed: exit code 1: broken" in page and "1.000 failed" in page
    runner.fails.clear()
    again = runner.run([0, 1], jobs=2)
    assert not [o for o in again if o.failed] and runner.done.count(("one", 1)) == 2 and len(runner.done) == 5
    assert next(o for o in again if (o.arm, o.seed) == ("one", 1)).cost == {"cpu_s": 4.0}, "of both tries"


def test_a_run_that_cannot_be_judged_leaves_the_others_alone_and_is_not_trained_again(make):
    runner = make()
    bad = ("judge", runner.folder(runner.ablation.arms["one"], 1))
    runner.fails.add(bad)
    outcomes = runner.run([0, 1], jobs=2)
    assert [(o.arm, o.seed, o.failed) for o in outcomes if o.failed] == [("one", 1, "the shards are not those")]
    table = report.markdown(runner.ablation, outcomes, "2026-01-01")
    assert "| one | 1.000 (1 of 2) |" in table
    runner.fails.clear()
    assert not [o for o in runner.run([0, 1], jobs=1) if o.failed] and len(runner.done) == 4


def test_a_column_that_no_measure_gives_stops_it_after_the_first_run(make):
    runner = make(columns=("score", "scores/one"))
    with pytest.raises(UserError, match="small: 'scores/one' is no number of codes; near it: score"):
        runner.run([0, 1], jobs=1)
    assert len(runner.done) < 4


def test_scores_that_cannot_be_read_are_said_in_one_line(make):
    runner = make()
    runner.run([0], jobs=1)
    (runner.folder(runner.ablation.arms["one"], 0) / "scores.json").write_text("{")
    one, two = runner.run([0], jobs=2)
    assert "scores.json cannot be read (" in one.failed and "): delete it" in one.failed and not two.failed


def test_arms_that_ask_for_the_same_share_one_training(make):
    runner = make()
    runner.ablation.arms["two"]["number"] = runner.ablation.arms["one"]["number"]
    outcomes = runner.run([0], jobs=2)
    assert len(runner.done) == 1 and [o.numbers["score"] for o in outcomes] == [1.0, 1.0]


def test_a_run_that_another_process_trains_is_left_alone(tmp_path):
    runner = Runner(ablation(tmp_path), tmp_path / "runs", judge=lambda *_: {}, threads=1)
    folder = runner.folder(runner.ablation.arms["one"], 0)
    folder.mkdir(parents=True)
    with (folder / LOCK).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = runner.one("one", 0, {})
    assert outcome.failed == f"another process trains {folder}: wait for that, or end it"
    assert not (folder / "fit.log").read_text() and not (folder / "scores.json").exists(), "it is the other's"


def test_what_goes_before_is_trained_once_a_seed_and_first(make):
    runner = make(first=("before",), arms=("one", "two", "three"))
    runner.run([0, 1], jobs=2)
    assert (
        sorted(runner.done[:2]) == [("before", 0), ("before", 1)]
        and len(runner.done) == 8
        and len(runner.judgements) == 6
    )
    words = runner.command(runner.ablation.arms["one"], 1)
    before = str(runner.folder(runner.ablation.first["before"], 1) / "checkpoints" / "last.ckpt")
    assert words[words.index("--from") + 1] == before and words[words.index("--seed_everything") + 1] == "1"
    assert "--from" not in runner.command(runner.ablation.arms["two"], 1)


def test_arms_whose_preparatory_run_failed_are_not_trained(make):
    runner = make(first=("before",))
    runner.fails.add(("before", 1))
    outcomes = runner.run([0, 1], jobs=1)
    assert [(o.arm, o.seed) for o in outcomes if o.failed] == [("one", 1)] and ("one", 1) not in runner.done
    assert next(o for o in outcomes if o.failed).failed == "its preparatory run before: exit code 1: broken"


def test_values_keep_their_kind_on_the_command_line():
    said = {"a.b": 0.0, "c": False, "d": [1, 2], "e": "max", "f": None, "g": "{x}"}
    words = ["--a.b", "0.0", "--c", "false", "--d", "[1, 2]", "--e", "max", "--f", "null", "--g", "x.ckpt"]
    assert list(options(said, lambda name: f"{name}.ckpt")) == words


def test_a_training_that_fails_says_its_last_line(tmp_path):
    runner = Runner(ablation(tmp_path), tmp_path / "runs", judge=lambda *_: {}, threads=1)
    (outcome,) = [o for o in runner.run([0], jobs=2) if o.arm == "one"]
    assert outcome.failed.startswith("exit code 2: lit-wm: error:") and outcome.cost["cpu_s"] > 0


def test_every_number_is_in_the_results(make, tmp_path):
    runner = make()
    outcomes = runner.run([0, 1], jobs=1)
    table = report.write(runner.ablation, [0, 1], outcomes, "2026-01-01", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["arms"]["one"]["runs"]["1"]["numbers"] == {"score": 2.0} and found["seeds"] == [0, 1]
    assert found["claims"][0]["verdict"]["word"] == "undecided at this budget"
    assert "| one | 1.50 [-4.85, 7.85] | 1.000 2.00 | 2 |" in table
    assert "published: 1.91" in table and (tmp_path / "out" / "plot.png").stat().st_size > 1000
    assert (tmp_path / "out" / "table.md").read_text() == table
    assert Path(found["base"]).name == "base.yaml"
