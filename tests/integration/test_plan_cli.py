"""``lit-wm plan``: the floors and the ceiling without any run, what is written, and mistakes in one line."""

import json

import pytest

from lit_wm.cli.main import main


def test_floors_and_ceiling_are_played_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["plan", "--size", "32", "--episodes", "4", "--side_by_side", "2", "--samples", "150", "--out", "card"])
    card = json.loads((tmp_path / "card" / "plan.json").read_text())
    assert [row["player"] for row in card["players"]] == ["random", "straight", "true world"]
    assert card["options"]["size"] == 32 and all(row["episodes"] == 4 for row in card["players"])
    assert card["players"][2]["success"] > card["players"][0]["success"]
    table = (tmp_path / "card" / "plan.md").read_text()
    assert "the same planner in the true world" in table and "Wilson" in table
    assert "4 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--episodes", "0"], "--episodes is 0"),
        (["--data", "here"], "--data is read with --cost probe alone"),
        (["--samples", "1"], "samples of the CEM planner is 1, it must be at least 2"),
        (["--execute", "99"], "execute of the planner is 99, but a plan has 24 steps"),
        (["runs/none"], "no run at runs/none"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["plan", *words])
    assert stop.value.code == 2 and says in capsys.readouterr().err
