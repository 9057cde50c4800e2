"""Frames out of video files: their times, their pixels, and what broken files give."""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_video import corners, counting, write_mp4, write_sound, write_video

from datamodules.experience import ExperienceError
from datamodules.footage import Footage
from datamodules.video import LONGEST_PAUSE, UnreadableError, _decode, read_frames


def frames_of(path, troubles=None):
    troubles = [] if troubles is None else troubles
    return list(read_frames(Footage(path.name, (path,), False), Fraction(10), troubles, lambda size: None))


def numbers(frames):
    """What :func:`counting` drew."""
    return [int(frame.draw(1, "stretch")[0, 0, 0]) for frame in frames]


def troubles_of(path):
    troubles: list[str] = []
    return frames_of(path, troubles), troubles


# ---- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_frames_come_with_their_own_times(tmp_path, ending):
    times = [0, 0.04, 0.05, 0.5, 0.51, 2, 2.2]
    write = write_video if ending == "mkv" else write_mp4
    frames = frames_of(write(tmp_path / f"a.{ending}", counting(7), times=times))
    assert numbers(frames) == list(range(7))
    assert [float(frame.time) for frame in frames] == pytest.approx(times, abs=1e-3)
    assert {frame.stretch for frame in frames} == {0} and 0 < frames[0].tick <= Fraction(1, 1000)


def test_a_long_pause_begins_a_new_stretch(tmp_path):
    times = [0, 1, 1 + LONGEST_PAUSE, 12.5 + LONGEST_PAUSE, 23 + LONGEST_PAUSE]
    frames, troubles = troubles_of(write_video(tmp_path / "a.mkv", counting(5), times=times))
    assert [frame.stretch for frame in frames] == [0, 0, 0, 1, 2] and troubles == []
    assert float(frames[3].time) == 12.5 + LONGEST_PAUSE, "times go on"


def test_two_frames_at_one_time_are_no_leap(tmp_path):
    """As where two recordings were joined."""
    for name, begin in (("a.ts", 0.0), ("b.ts", 1.9)):
        times = [begin + n / 10 for n in range(20)]
        write_mp4(tmp_path / name, counting(20), times=times, container_options={})
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    frames, troubles = troubles_of(tmp_path / "c.ts")
    assert len(frames) == 40 and frames[19].time == frames[20].time and troubles == []
    assert {frame.stretch for frame in frames} == {0}


def test_time_that_runs_backwards_begins_a_new_stretch_and_is_said(tmp_path):
    once = write_mp4(tmp_path / "a.ts", counting(20), container_options={}).read_bytes()
    (tmp_path / "b.ts").write_bytes(once + once)
    frames, troubles = troubles_of(tmp_path / "b.ts")
    assert numbers(frames) == [*range(20), *range(20)]
    assert [frame.stretch for frame in frames] == [0] * 20 + [1] * 20
    assert troubles == ["time runs backwards at 1.9 s"]


def test_frames_without_times_are_refused(tmp_path):
    write_mp4(tmp_path / "a.h264", counting(20), container_format="h264", container_options={})
    with pytest.raises(UnreadableError, match="no time stamps"):
        frames_of(tmp_path / "a.h264")


# ---- pixels -------------------------------------------------------------------------------------------------------


def corner_colours(path):
    picture = frames_of(path)[0].draw(8, "stretch")
    name = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue", (255, 255, 255): "white"}
    return [name[tuple(picture[y, x].tolist())] for y, x in ((1, 1), (1, 6), (6, 1), (6, 6))]


UPRIGHT = ["red", "green", "blue", "white"]


@pytest.mark.parametrize(("turn", "mirrored"), product((0, 90, 180, 270), (False, True)))
def test_rotated_files_are_turned_upright(tmp_path, turn, mirrored):
    """The file stores the picture turned away from how it is to be shown, as a phone does that is held sideways."""
    stored = [np.rot90(np.fliplr(x) if mirrored else x, -turn // 90) for x in corners(3)]

    def tell(stream):
        stream.set_display_rotation(turn, hflip=mirrored)

    write_mp4(tmp_path / "turned.mp4", iter(stored), prepare=tell)
    write_mp4(tmp_path / "plain.mp4", iter(stored))
    assert corner_colours(tmp_path / "turned.mp4") == UPRIGHT
    assert (corner_colours(tmp_path / "plain.mp4") == UPRIGHT) == (turn == 0 and not mirrored)


def test_pixels_that_are_not_square_are_heeded(tmp_path):
    def tell(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(3, 4)

    path = write_mp4(tmp_path / "a.mp4", [np.full((24, 32, 3), 255, np.uint8)] * 3, prepare=tell)  # shown as 24 x 24
    padded = frames_of(path)[0].draw(24, "pad")
    assert padded.any(-1).all(), "nothing is left to pad"


def test_grey_ten_bits_and_alpha_become_rgb(tmp_path):
    ramp = np.tile(np.linspace(16, 235, 32).astype(np.uint8), (24, 1))
    grey = frames_of(write_video(tmp_path / "grey.mkv", [ramp] * 2, pixels="gray"))[0].draw(24, "crop")
    assert (grey[..., 0] == grey[..., 1]).all() and (np.diff(grey[0, :, 0].astype(int)) > 0).all()
    ten = write_video(tmp_path / "ten.mkv", corners(2), pixels="yuv444p10le")
    drawn = frames_of(ten)[0].draw(8, "stretch")
    assert np.abs(drawn[1, 1].astype(int) - (255, 0, 0)).max() < 6 and drawn.dtype == np.uint8
    veiled = np.dstack([next(corners()), np.full((24, 32), 51, np.uint8)])
    veiled[:, 16:, 3] = 0
    drawn = frames_of(write_video(tmp_path / "alpha.mov", [veiled] * 2, pixels="rgba", codec="png"))[0].draw(
        8, "stretch"
    )
    assert drawn[1, 1].tolist() == [51, 0, 0] and not drawn[:, 5:].any()


@pytest.mark.parametrize(("height", "width"), [(23, 31), (51, 15)])
def test_odd_sizes(tmp_path, height, width):
    path = write_video(tmp_path / "a.mkv", counting(3, height, width), pixels="yuv420p")
    assert frames_of(path)[2].draw(8, "pad").shape == (8, 8, 3)


# ---- what is broken -------------------------------------------------------------------------------------------------


def test_what_holds_no_video_is_refused_with_the_reason(tmp_path):
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("once upon a time\n" * 50)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "end.mp4").write_bytes(
        write_mp4(tmp_path / "a.mp4", counting(9), container_options={}).read_bytes()[:-300]
    )
    (tmp_path / "coder.mp4").write_bytes((tmp_path / "a.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    for name, reason in {
        "zero.mp4": r"is no video, or its beginning or end is lost \(Invalid data",
        "text.mp4": r"is no video, or its beginning or end is lost \(Invalid data",
        "end.mp4": r"is no video, or its beginning or end is lost",
        "gone.mp4": r"\(No such file or directory\)",
        "coder.mp4": "has no decoder for it",
    }.items():
        with pytest.raises(UnreadableError, match=reason) as error:
            frames_of(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)
    with pytest.raises(UnreadableError, match="it holds no video but sound"):
        frames_of(write_sound(tmp_path / "sound.mp4"))


def test_a_title_that_is_no_text_breaks_nothing(tmp_path):
    write_mp4(tmp_path / "a.mp4", counting(3), title="holiday")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"holiday") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"holiday", b"\xff\xfeliday"))
    assert len(frames_of(tmp_path / "a.mp4")) == 3


def test_names_that_mean_something_to_ffmpeg_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "pipe:.mp4", "frame%03d.mp4"):
        write_mp4(tmp_path / "a.mp4", counting(3)).rename(tmp_path / name)
        assert len(frames_of(tmp_path.relative_to(tmp_path) / name)) == 3


def test_a_file_that_was_cut_short_gives_what_is_there(tmp_path):
    whole = write_mp4(tmp_path / "a.mp4", counting(100)).read_bytes()
    assert troubles_of(tmp_path / "a.mp4")[1] == []
    (tmp_path / "b.mp4").write_bytes(whole[: int(0.7 * len(whole))])
    frames, troubles = troubles_of(tmp_path / "b.mp4")
    assert 10 < len(frames) < 90 and numbers(frames) == list(range(len(frames)))
    assert len(troubles) == 2 and "a frame is broken at" in troubles[0] and "header says 10.0 s" in troubles[1]
    whole = write_video(tmp_path / "a.mkv", counting(100)).read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])  # the demuxer of mkv ends without a word
    frames, troubles = troubles_of(tmp_path / "b.mkv")
    assert 10 < len(frames) < 90
    assert troubles == [f"it ends at {len(frames) / 10:.1f} s, its header says 10.0 s"]


def test_after_a_broken_frame_nothing_is_taken_before_the_next_key_frame(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", counting(60))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        spoilt = list(container.demux(video=0))[23]
    data[spoilt.pos : spoilt.pos + spoilt.size] = b"\xff" * spoilt.size
    path.write_bytes(data)
    frames, troubles = troubles_of(path)
    assert numbers(frames) == [*range(23), *range(30, 60)]
    assert [frame.stretch for frame in frames] == [0] * 23 + [1] * 30
    assert troubles and troubles[0].startswith("a frame is broken at 2.4 s")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_broken_bytes_never_escape_as_another_exception(spoilable, data):
    path, whole = spoilable[data.draw(st.integers(0, len(spoilable) - 1))]
    spoilt = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 5))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(spoilt[: data.draw(st.integers(0, len(spoilt)))])
    try:
        for frame in frames_of(path):
            assert frame.draw(8, "crop").shape == (8, 8, 3)
    except UnreadableError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def spoilable(tmp_path_factory):
    """(path, bytes) of small videos in several formats."""
    folder = tmp_path_factory.mktemp("spoilt")
    paths = [
        write_mp4(folder / "a.mp4", counting(12)),
        write_mp4(folder / "a.ts", counting(12), container_options={}),
        write_video(folder / "a.mkv", counting(12)),
        write_video(folder / "a.webm", counting(12), codec="libvpx", pixels="yuv420p"),
        write_video(folder / "a.avi", counting(12), codec="mpeg4", pixels="yuv420p"),
        write_video(folder / "a.gif", counting(12), codec="gif", pixels="rgb8"),
    ]
    return [(path, path.read_bytes()) for path in paths]


def test_a_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "rgb24"
        stream.disposition = av.stream.Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame.from_ndarray(next(counting(1)), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(UnreadableError, match="it holds no video"):
        frames_of(tmp_path / "song.mp4")


def test_a_stream_that_begins_in_mid_file_breaks_nothing(tmp_path):
    """PyAV 18.1 may raise an IndexError where such a file ends. It depends on what lies in memory, so it is played here."""

    class Container:
        def __init__(self, container):
            self.start_time, self.duration, self._packets = container.start_time, container.duration, container.demux()

        def demux(self):
            yield from self._packets
            raise IndexError("list index out of range")

    troubles: list[str] = []
    with av.open(str(write_mp4(tmp_path / "a.mp4", counting(5)))) as container:
        found = list(_decode(av, Container(container), container.streams[0], troubles, lambda size: None))
    assert len(found) == 5 and troubles == []


def test_images_are_read_in_order_and_a_broken_one_begins_a_new_stretch(tmp_path):
    for n, picture in enumerate(counting(12)):
        Image.fromarray(picture).save(tmp_path / f"{n}.png")
    files = tuple(tmp_path / f"{n}.png" for n in range(12))
    files[4].write_bytes(files[4].read_bytes()[:60])
    troubles: list[str] = []
    sizes: list[int] = []
    frames = list(read_frames(Footage("x", files, True), Fraction(5), troubles, sizes.append))
    assert numbers(frames) == [n for n in range(12) if n != 4]
    assert [frame.time for frame in frames] == [Fraction(n, 5) for n in range(12) if n != 4]
    assert [frame.stretch for frame in frames] == [0] * 4 + [1] * 7
    assert len(troubles) == 1 and troubles[0].startswith("4.png is broken (")
    assert sum(sizes) == sum(file.stat().st_size for n, file in enumerate(files) if n != 4)


def test_without_pyav_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    write_mp4(tmp_path / "a.mp4", counting(3))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ExperienceError, match=r"pip install 'lit-wm\[video\]'"):
        frames_of(tmp_path / "a.mp4")
