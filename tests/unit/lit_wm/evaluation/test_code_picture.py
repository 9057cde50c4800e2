"""The picture of what each code does: what it holds, and that it is drawn."""

import dataclasses

import numpy as np
import pytest
import torch
from fake_codes import Vectored
from fake_worlds import MOVES, QUICK, SPEC, Coded, Oracle, make_clips, splits
from PIL import Image

from lit_wm.evaluation import code_picture, render_codes
from lit_wm.evaluation.code_picture import HELD, picture_codes, roomy_clips
from lit_wm.evaluation.effects import UNDEFINED
from lit_wm.evaluation.obedience import learn_obedience
from lit_wm.evaluation.steering import Steering

CLIPS = splits(24, 2, 12)
LAW = learn_obedience(CLIPS["train"], SPEC)


def picture(model, obedience=LAW):
    steering = Steering(model, CLIPS, SPEC, QUICK)
    return picture_codes(model, CLIPS["test"], steering, SPEC, obedience, lambda x: x, QUICK)


def red(frames):
    """(...,C,H,W) -> (...,2) x, y of the red dot."""
    place = frames[..., 0, :, :].flatten(-2).argmax(-1)
    return torch.stack([place % 16, place // 16], -1)


def test_each_code_is_shown_with_its_share_its_movements_and_what_it_leads_to():
    shown = picture(Coded())
    assert shown.titles == [f"code {i}" for i in range(5)] and shown.left_out == 0
    assert sum(shown.shares) == pytest.approx(1)
    assert sum(map(len, shown.moved)) == (LAW.effects(CLIPS["test"], SPEC) != UNDEFINED).sum(), "without blocked steps"
    for code in range(5):
        move = MOVES[Coded.PERMUTATION.tolist().index(code)]
        assert len(shown.moved[code]) > 20 and (shown.moved[code] == move).all()
        assert torch.equal(red(shown.imagined[:, code]), red(shown.starts) + HELD * move)


def test_pictures_begin_where_there_is_room():
    rows = roomy_clips(CLIPS["test"], LAW, dataclasses.replace(QUICK, shown=3))
    assert len(CLIPS["test"]["episode"][rows].unique()) == 3
    places = CLIPS["test"]["state"][rows, QUICK.context - 1, :2]
    assert places.min() >= HELD and places.max() <= 15 - HELD


def test_the_most_used_are_shown_and_the_rest_counted(monkeypatch):
    monkeypatch.setattr(code_picture, "MOST", 2)
    every, some = picture(Coded()).shares, picture(Coded())
    assert len(some.titles) == 2 and some.left_out == 3 and min(some.shares) >= sorted(every)[-2]
    assert some.imagined.shape[1] == 2


def test_vectors_are_shown_by_the_action_they_stand_for():
    shown = picture(Vectored())
    assert shown.titles == list(SPEC.action.names) and sum(shown.shares) == pytest.approx(1)
    for action in range(5):
        assert (shown.moved[action] == MOVES[action]).all()
        assert torch.equal(red(shown.imagined[:, action]), red(shown.starts) + HELD * MOVES[action])


def test_models_without_codes_have_no_picture_and_without_truth_it_shows_frames_alone():
    assert picture(Oracle()) is None
    blind = picture(Coded(), "the data holds no true state")
    assert blind.moved is None and blind.imagined.shape[:2] == (QUICK.shown, 5)
    whole = picture(Coded())
    heights = [render_codes.code_sheet(p, "run").height for p in (whole, blind)]
    assert heights[0] - heights[1] == pytest.approx(render_codes.CELL * render_codes.DPI, abs=1)


def test_the_sheet_holds_the_frames_and_the_arrows(tmp_path):
    shown = picture(Coded())
    sheet = render_codes.code_sheet(shown, "a run")
    colours = {colour for _, colour in sheet.getcolors(1 << 24)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours, "the dots, unsmoothed"
    assert tuple(int(render_codes.ARROW[i : i + 2], 16) for i in (1, 3, 5)) in colours
    sheet.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as again:
        assert again.size == sheet.size


def test_a_paddle_that_moves_along_one_axis_and_a_code_that_never_moved_freely_are_drawn_too():
    shown = picture(Coded())
    upright = dataclasses.replace(shown, moved=[m[:, 1:] for m in shown.moved[:4]] + [torch.zeros(0, 1)])
    still = dataclasses.replace(shown, moved=[torch.zeros_like(m) for m in shown.moved])
    pictures = [np.asarray(render_codes.code_sheet(p, "run")) for p in (shown, upright, still)]
    assert not (pictures[0] == pictures[1]).all() and not (pictures[0] == pictures[2]).all()
    assert render_codes.reach([torch.zeros(0, 2)]) == 1 == render_codes.reach([torch.zeros(9, 2)])


def test_a_long_name_fits():
    few = dataclasses.replace(picture(Coded()), titles=["code 0"], shares=[1.0], moved=None)
    name = "a_run_whose_name_is_long_indeed_and_that_has_one_code_alone_seed0"
    sheet = np.asarray(render_codes.code_sheet(few, name))
    heading = sheet[: int(0.4 * render_codes.DPI)]
    assert (heading[:, -4:] == 255).all() and not (heading == 255).all()


def test_a_grey_picture_is_drawn():
    grey = make_clips(range(2))["frames"][:2, 0, :1]
    shown = dataclasses.replace(picture(Coded()), starts=grey, imagined=grey[:, None].expand(-1, 5, -1, -1, -1))
    assert render_codes.code_sheet(shown, "grey").width > 500
