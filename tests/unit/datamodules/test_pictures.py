"""Any picture becomes a small upright one of RGB."""

import contextlib
import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.pictures import BROKEN, FITS, fitted, on_black, read_picture, upright

NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.integers(1, 40),
    fit=st.sampled_from(FITS),
    aspect=st.floats(0.1, 10),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_every_shape_becomes_a_square_and_one_colour_stays_it(shape, size, fit, aspect, colour):
    found = fitted(np.full((*shape, 3), colour, np.uint8), size, fit, aspect)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    outside = (found != np.uint8(colour)).any(-1)
    assert not outside.all()
    assert fit == "pad" or not outside.any()
    assert (found[outside] == 0).all(), "padding is black"


def test_what_is_made_smaller_neither_flickers_nor_shifts():
    """A dot of 4 pixels that moves over a picture, reduced 2.5 times, keeps its light and its middle at every place."""
    picture, places = np.zeros((100, 100, 3), np.uint8), np.arange(20, 70)
    for place in places:
        picture[:] = 0
        picture[40:44, place : place + 4] = 200
        light = fitted(picture, 40, "crop")[..., 0].astype(float)
        assert light.sum() == pytest.approx(200 * 16 / 2.5**2, rel=0.1)
        middle = (light.sum(0) * (np.arange(40) + 0.5)).sum() / light.sum()
        assert middle == pytest.approx((place + 2) / 2.5, abs=0.1)


def test_crop_takes_the_middle_and_pad_and_stretch_take_all():
    np.testing.assert_array_equal(fitted(NOISE, 12, "crop"), NOISE[:, 4:16])
    np.testing.assert_array_equal(fitted(NOISE, 20, "pad")[4:16], NOISE)
    assert not fitted(NOISE, 20, "pad")[[*range(4), *range(16, 20)]].any()
    np.testing.assert_array_equal(fitted(NOISE[:, ::2], 12, "stretch")[:, 0], NOISE[:, 0])
    np.testing.assert_array_equal(fitted(NOISE[:, ::2], 12, "stretch")[:, -1], NOISE[:, 18])


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), fit=st.sampled_from(FITS), colour=st.integers(1, 255))
def test_frames_that_are_not_square_are_filled_too(rows, columns, fit, colour):
    found = fitted(np.full((12, 20, 3), colour, np.uint8), (rows, columns), fit)
    assert found.shape == (rows, columns, 3) and found.any()
    assert fit == "pad" or (found == colour).all()


def test_crop_keeps_proportions_whatever_the_frame_is_like():
    np.testing.assert_array_equal(fitted(NOISE, (12, 10), "crop"), NOISE[:, 5:15])
    np.testing.assert_array_equal(fitted(NOISE, (4, 20), "crop"), NOISE[4:8])
    np.testing.assert_array_equal(fitted(NOISE, (16, 20), "pad")[2:14], NOISE)
    np.testing.assert_array_equal(fitted(NOISE, (12, 26), "pad")[:, 3:23], NOISE)


def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are_meant():
    y, x = np.mgrid[:48, :80]
    smooth = np.stack([3 * x, 5 * y, 255 - 3 * x], -1).astype(np.uint8)
    for fit in FITS:
        found, expected = (
            fitted(p, 12, fit, a).astype(int) for p, a in ((smooth, 2.0), (np.repeat(smooth, 2, 1), 1.0))
        )
        assert np.abs(found - expected).max() <= 6
    assert np.abs(found - fitted(smooth, 12, "crop")).max() > 20


@pytest.mark.parametrize(("turned", "x", "y"), product((False, True), (1, -1), (1, -1)))
def test_the_display_matrix_says_where_every_pixel_goes(turned, x, y):
    """x' = a x + c y, y' = b x + d y, moved so that the picture begins at 0."""
    a, b, c, d = (0, y, x, 0) if turned else (x, 0, 0, y)
    rows, columns = np.mgrid[: NOISE.shape[0], : NOISE.shape[1]]
    to_column, to_row = a * columns + c * rows, b * columns + d * rows
    to_column, to_row = to_column - to_column.min(), to_row - to_row.min()
    expected = np.zeros((to_row.max() + 1, to_column.max() + 1, 3), np.uint8)
    expected[to_row, to_column] = NOISE
    one = 1 << 16
    found = upright(NOISE, (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30))
    np.testing.assert_array_equal(found, expected)


def test_what_is_nearly_a_quarter_turn_is_one():
    turned = upright(NOISE, (3000, -65000, 0, 65000, 3000, 0, 0, 0, 1 << 30))
    np.testing.assert_array_equal(turned, np.rot90(NOISE))


def test_transparency_shows_black():
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
    assert on_black(pixels).tolist() == [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]]


def saved(path, picture, **options):
    picture.save(path, **options)
    return read_picture(path)


def test_image_files_of_all_kinds_become_rgb(tmp_path):
    grey = NOISE[..., 0]
    as_grey = np.repeat(grey[..., None], 3, 2)
    np.testing.assert_array_equal(saved(tmp_path / "a.png", Image.fromarray(grey)), as_grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(saved(tmp_path / "b.png", deep), as_grey)
    half = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (20, 12), 51)))
    assert np.abs(saved(tmp_path / "c.png", half) - as_grey / 5.0).max() <= 1
    palette = Image.fromarray(NOISE).quantize(16)
    clear = saved(tmp_path / "d.png", palette, transparency=palette.getpixel((0, 0)))
    assert not clear[0, 0].any() and clear.any()
    ink = saved(tmp_path / "e.jpg", Image.new("CMYK", (20, 12), (0, 255, 255, 0)))
    assert ink.shape == (12, 20, 3) and ink[0, 0, 0] > 200 and ink[0, 0, 2] < 60


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    found = saved(tmp_path / "a.png", Image.fromarray(NOISE), exif=exif)
    np.testing.assert_array_equal(found, np.rot90(NOISE, -1))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_broken_bytes_never_escape_as_another_exception(tmp_path_factory, data):
    ending = data.draw(st.sampled_from(["png", "jpg", "webp", "tif", "bmp"]))
    path = tmp_path_factory.getbasetemp() / f"broken.{ending}"
    Image.fromarray(NOISE).save(path)
    spoilt = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(spoilt[: data.draw(st.integers(0, len(spoilt)))])
    with contextlib.suppress(*BROKEN), warnings.catch_warnings(action="ignore"):
        assert read_picture(path).shape[2] == 3


def test_a_picture_that_claims_to_be_huge_is_broken(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.bmp")
    data = bytearray((tmp_path / "a.bmp").read_bytes())
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(BROKEN, match="exceeds limit"):
        read_picture(tmp_path / "a.bmp")
