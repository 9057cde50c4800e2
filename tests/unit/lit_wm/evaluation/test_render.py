"""Pictures of rollouts: titles that fit, and a sheet that holds every frame."""

import numpy as np
import pytest
import torch
from PIL import ImageFont

from lit_wm.evaluation.render import animation, contact_sheet, strips, wrapped

ROWS = {"truth": (2, 5), "a_run_with_a_very_long_name_indeed_seed0: common decoder": (2, 5), "b: own decoder": (2, 5)}


@pytest.mark.parametrize(("pixels", "size"), [(190, 12), (130, 11)])
def test_no_line_of_a_title_is_wider_than_its_place(pixels, size):
    font = ImageFont.load_default(size)
    for title in ["genie_sprites_seed0: common decoder", "dreamer_pong: common decoder", "m" * 30 + ": own decoder"]:
        lines = wrapped(title, pixels, size).split("\n")
        assert "".join(lines).replace(" ", "") == title.replace(": ", "").replace(" ", "")
        if "m" * 30 not in title:  # the widest letter of all may stand out
            assert all(font.getlength(line) <= pixels for line in lines), lines


def test_every_frame_stands_in_the_sheet_and_in_the_animation():
    shades = torch.arange(10, 30, 2).view(2, 5)
    rows = {title: shades[..., None, None, None].expand(2, 5, 3, 8, 8).byte() for title in ROWS}
    colours = {colour for _, colour in contact_sheet(rows, 2).getcolors(1 << 20)}
    assert {(shade,) * 3 for shade in shades.flatten().tolist()} <= colours
    pictures = animation(rows, 2)
    assert len(pictures) == 5
    for t, picture in enumerate(pictures):
        shown = {colour for _, colour in picture.getcolors(1 << 20)}
        assert {(int(shade),) * 3 for shade in shades[:, t]} <= shown


def test_strips_hold_every_frame_without_loss_in_the_order_of_the_sheet():
    frames = {c: torch.randint(256, (2, 5, c, 8, 6), generator=torch.Generator().manual_seed(c)).byte() for c in (3, 1)}
    pixels = np.asarray(strips({"colour": frames[3], "grey": frames[1]})).reshape(4, 8, 5, 6, 3)
    for clip in range(2):
        for t in range(5):
            assert (pixels[2 * clip, :, t] == frames[3][clip, t].permute(1, 2, 0).numpy()).all()
            assert (pixels[2 * clip + 1, :, t] == frames[1][clip, t].permute(1, 2, 0).numpy()).all()


def test_other_heads_stand_in_the_place_of_the_usual_ones():
    rows = {"a": torch.zeros(1, 3, 3, 8, 8).byte()}
    usual, named = (contact_sheet(rows, 1, "clip", heads) for heads in (None, ["seen", "+1", "+2"]))
    assert (np.asarray(usual) == np.asarray(named)).all()
    assert (np.asarray(usual) != np.asarray(contact_sheet(rows, 1, "clip", ["seen", "+1", "up"]))).any()
    assert (np.asarray(usual) != np.asarray(contact_sheet(rows, 1, "sample"))).any()
    assert animation(rows, 1, ["x", "y", "z"])[1] != animation(rows, 1, ["x", "n", "z"])[1]
