"""What is written: JSON, Markdown, pictures and TensorBoard, read back."""

import dataclasses
import json

import pytest
from fake_worlds import QUICK, SPEC, Aimless, Coded, CopyLast, MeanPredictor, splits
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_wm.cli import compare
from lit_wm.evaluation import render, report, report_tables, tensorboard_log
from lit_wm.evaluation.judge import judge
from lit_wm.evaluation.scorecard import Scorecard
from lit_wm.evaluation.statistics import Number

SETTINGS = dataclasses.replace(QUICK, draws=30, decoder_steps=2)
DATA = {
    "hash": "0123456789abcdef0123",
    "environment": "id=toy",
    "policy": "random",
    "resolution": "16x16x3",
    "splits": {name: {"clips": 8, "episodes": 4} for name in ("train", "val", "test")},
    "threads": 1,
    "machine": "here",
}


@pytest.fixture(scope="module")
def clips():
    return splits(24, 8, 12)


@pytest.fixture(scope="module")
def card(clips):
    runs = []
    for seed, (name, model) in enumerate([("codes", Coded()), ("copy", CopyLast()), ("mean", MeanPredictor())]):
        run = judge(model, Aimless(), clips, SPEC, SETTINGS, name)
        run.facts = {"route": name, "updates": 10 * seed, "frames_seen": None, "seed": seed, "recipe": name}
        runs.append(run)
    return Scorecard(DATA, SETTINGS, runs)


@pytest.fixture(scope="module")
def written(card, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("scorecard")
    compare.write(card, clips["test"], out)
    compare.write(card, clips["test"], out)  # a second time replaces the first
    return out


def test_json_holds_every_number_with_its_n_or_its_reason(card, written):
    plain = json.loads((written / "scorecard.json").read_text())
    assert [run["name"] for run in plain["runs"]] == ["codes", "copy", "mean"]
    for run, scores in zip(plain["runs"], card.runs, strict=True):
        assert run["numbers"].keys() == scores.numbers.keys()
        for tag, number in run["numbers"].items():
            assert number["value"] is not None or number["reason"], tag
            assert "reason" not in number or number["value"] is None, tag
    assert plain["settings"]["context"] == 4 and plain["data"]["hash"].startswith("0123")


def test_every_route_has_the_same_state_frame_and_collapse_tags(card):
    common = [{t for t in run.numbers if not t.startswith("codes/") and "oracle" not in t} for run in card.runs]
    assert common[0] == common[1] == common[2]


def test_page_shows_privileges_floors_ceilings_reasons_and_no_overall_score(written):
    page = (written / "scorecard.md").read_text()
    for words in (
        "labels used",
        "mapped codes",
        "floor: copy with random weights",
        "floor: 8x8 pixels",
        "floor: copy the last frame",
        "ceiling: the true state",
        "*privileged*: codes with oracle codes",
        "n/a: the model has no decoder of its own",
        "majority class",
        "It misleads alone",
        "counterfactual",
        "Hungarian",
        "**all exogenous things**",
        "n/a: the model takes no actions",
        "RankMe",
        "ball_vx (velocity)",
    ):
        assert words in page, words
    tables = [block for block in page.split("\n\n") if block.lstrip().startswith("|")]
    for block in tables:
        widths = {line.count("|") for line in block.strip().splitlines() if line.startswith("|")}
        assert len(widths) == 1, block
    assert "nan" not in page and "None" not in page


def test_pictures_hold_a_row_per_run_and_decoder(card, clips, written):
    rows = render.rows(card, clips["test"])
    assert list(rows) == [
        "truth",
        "floor: copy last frame",
        "codes: own decoder",
        "codes: common decoder",
        "copy: own decoder",
        "copy: common decoder",
        "mean: common decoder",
    ]
    assert (rows["copy: own decoder"] == rows["floor: copy last frame"])[:, 3:].all()
    assert (rows["codes: own decoder"] == rows["truth"])[:, :4].all()
    with Image.open(written / "rollouts.gif") as gif:
        assert gif.n_frames == SETTINGS.length
        corner = (0, 2 * render.LINE)
        assert gif.convert("RGB").getpixel(corner) == render.SEEN
        gif.seek(gif.n_frames - 1)
        assert gif.convert("RGB").getpixel(corner) == render.IMAGINED
    with Image.open(written / "rollouts.png") as sheet:
        side = render.tile(rows["truth"][0, 0], True).width + render.GAP
        assert sheet.width == render.LABEL + SETTINGS.length * side
        left_edges = [sheet.getpixel((render.LABEL + t * side, render.LINE + 5)) for t in range(SETTINGS.length)]
    assert left_edges == [render.SEEN] * 4 + [render.IMAGINED] * 8


def test_tensorboard_has_the_same_tags_for_every_run_a_layout_and_pictures(card, written):
    readers = [EventAccumulator(str(written / "tensorboard" / run.name)).Reload() for run in card.runs]
    state = [{t for t in reader.Tags()["scalars"] if t.startswith("scorecard/state_skill/")} for reader in readers]
    assert state[0] >= state[1] == state[2] and "scorecard/state_skill/k4/task" in state[1]
    point = readers[1].Scalars("scorecard/state_skill/k4/task")
    assert [event.step for event in point] == [10], "one point at the run's updates, the older file being replaced"
    assert point[0].value == pytest.approx(card.runs[1].numbers["state_skill/k4/task"].value, abs=1e-5)
    curve = readers[0].Scalars("horizon/state_r2/task")
    assert [event.step for event in curve] == [0, 1, 4, 8]
    top = EventAccumulator(str(written / "tensorboard")).Reload()
    assert set(top.Tags()["images"]) == {"rollouts/contact_sheet", "rollouts/animation"}
    picture = readers[0].Images("codes/what_each_does")[0]
    assert picture.encoded_image_string == (written / "codes_codes.png").read_bytes() and picture.step == 0
    assert [reader.Tags()["images"] for reader in readers[1:]] == [[], []]
    assert {path.name for path in written.glob("codes_*")} == {"codes_codes.png"}, "of runs with codes alone"
    assert "custom_scalars__config__" in top.Tags()["tensors"]
    assert top.Images("rollouts/animation")[0].encoded_image_string == (written / "rollouts.gif").read_bytes()


def test_tensorboard_forgets_the_runs_of_an_earlier_scorecard(card, written, tmp_path):
    folder, (first, *others) = tmp_path / "tensorboard", card.runs
    (folder / others[0].name).mkdir(parents=True)
    (folder / others[0].name / "notes").touch()
    for runs in ([first, *others], [first]):
        tensorboard_log.write(Scorecard(DATA, SETTINGS, runs), "", {"sheet": written / "rollouts.png"}, {}, folder)
    assert {path.parent.name for path in folder.rglob("events.*")} == {first.name, "tensorboard"}
    assert (folder / others[0].name / "notes").exists() and not (folder / others[1].name).exists()


def test_runs_that_differ_by_seed_alone_get_intervals_over_seeds(card):
    def variants(name, values):
        base = next(run for run in card.runs if run.name == name)
        tag = "state_skill/k8/task"
        return [
            dataclasses.replace(
                base,
                name=f"{name}{seed}",
                numbers={**base.numbers, tag: Number(value, 8)},
                facts={**base.facts, "seed": seed},
            )
            for seed, value in enumerate(values)
        ]

    many = Scorecard(DATA, SETTINGS, [*variants("copy", [0.2, 0.3, 0.4]), *variants("mean", [0.1, 0.2, 0.3])])
    assert list(many.groups) == ["copy0 and 2 more seeds", "mean0 and 2 more seeds"]
    number = many.over_seeds()["copy0 and 2 more seeds"]["state_skill/k8/task"]
    assert number.value == pytest.approx(0.3) and number.n == 3 and number.low < 0.2 < 0.4 < number.high
    (difference,) = many.differences("state_skill/k8/task").values()
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert "copy0 and 2 more seeds, less mean0 and 2 more seeds" in report.markdown(many)
    assert "codes/transfer_accuracy" not in report.markdown(many), "what no seed has is left out"
    codes = Scorecard(DATA, SETTINGS, variants("codes", [0.1, 0.2]))
    for tag in ("delta_psnr/k4/codes", "codes/effect_hungarian", "codes/transfer_accuracy", "codes/leak_r2"):
        assert f"| codes0 and 1 more seed | {tag} |" in report.markdown(codes)
    assert not card.groups, "different recipes are not seeds of one"
    twice = [dataclasses.replace(run, name=run.name + "again") for run in card.runs]
    assert not Scorecard(DATA, SETTINGS, [*card.runs, *twice]).groups, "the same seed twice is no second seed"


def test_a_run_that_was_stopped_early_is_no_seed_of_the_finished_ones(card):
    def variant(seed, updates):
        facts = {**card.runs[0].facts, "seed": seed, "updates": updates}
        return dataclasses.replace(card.runs[0], name=f"codes{seed}", facts=facts)

    finished, stopped = [variant(0, 100), variant(1, 100)], variant(2, 40)
    groups = Scorecard(DATA, SETTINGS, [stopped, *finished]).groups
    assert {title: [run.name for run in group] for title, group in groups.items()} == {
        "codes0 and 1 more seed": ["codes0", "codes1"]
    }
    assert not Scorecard(DATA, SETTINGS, [stopped, finished[0]]).groups


def test_cells():
    notes = report_tables.Notes()
    assert notes.cell(Number(0.714, 9, 0.66, 0.75), report_tables.fixed(2)) == "0.71 [0.66, 0.75]"
    assert notes.cell(Number(-0.001, 9), report_tables.fixed(2)) == "0.00"
    assert notes.cell(Number(None, reason="too few"), report_tables.fixed(2)) == "n/a (1)"
    assert notes.cell(None, report_tables.fixed(2)) == "n/a (2)"
    assert notes.cell(Number(None, reason="too few"), report_tables.fixed(2)) == "n/a (1)"
    assert notes.lines()[1:] == ["(1) n/a: too few.  ", "(2) n/a: not measured.  "]
