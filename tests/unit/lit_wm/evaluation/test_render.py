"""Pictures of rollouts: titles that fit, and a sheet that holds every frame."""

import pytest
import torch
from PIL import ImageFont

from lit_wm.evaluation.render import animation, contact_sheet, wrapped

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
