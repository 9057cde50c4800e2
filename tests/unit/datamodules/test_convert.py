"""Conversion: even in time, whole episodes of the data contract, in bounded memory, and the same bytes each time."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_video import counting, write_mp4, write_video

import datamodules.shards
from datamodules.convert import ConvertSettings, as_chunks, convert, even_steps, find_conversion, slack
from datamodules.experience import ExperienceError
from datamodules.index import read_index
from datamodules.shards import iter_episodes, verify

SMALL = {"size": 4, "min_frames": 2}

# ---- even in time ---------------------------------------------------------------------------------------------------

FRACTIONS = st.fractions(0, 20, max_denominator=1000)


@given(
    times=st.lists(FRACTIONS, min_size=1, max_size=40).map(sorted),
    step=st.fractions("1/50", 5, max_denominator=100),
    late=st.sampled_from([Fraction(0), Fraction(1, 2000), Fraction(1, 200)]),
)
def test_every_step_shows_the_latest_frame_that_is_there_by_then(times, step, late):
    shown = list(even_steps(zip(times, range(len(times)), strict=True), step, late))
    looks = [times[0] + k * step for k in range(len(shown))]
    assert shown == [max(i for i, time in enumerate(times) if time <= look + late) for look in looks]
    assert all(later >= earlier for earlier, later in pairwise(shown)), "time does not run backwards"
    assert looks[-1] <= times[-1] + late < looks[-1] + step, "all that was filmed is covered, and no more"


@given(
    count=st.integers(1, 90),
    fps=st.sampled_from(["24000/1001", "25", "30000/1001", "30", "50", "60000/1001"]),
    ticks=st.sampled_from([[1000], [15360], [90000], [1000, 15360], [1000, 90000], [1000, 600]]),
)
def test_footage_at_its_own_rate_stays_as_it_is_although_files_round_times(count, fps, ticks):
    """mkv knows milliseconds: 29.97 frames a second come at 0, 33, 67, 100, 133, 167 ...; another file may round again."""
    step = 1 / Fraction(fps)
    times = [n * step for n in range(count)]
    for tick in ticks:
        times = [Fraction(int(time * tick + Fraction(1, 2)), tick) for time in times]
    found = even_steps(zip(times, range(count), strict=True), step, slack(Fraction(1, ticks[-1]), step))
    assert list(found) == list(range(count))


def test_a_tick_as_long_as_a_frame_is_no_rounding():
    """avi counts frames: at 20 a second, frames of 30 a second are seen at 0, 1.5, 3, 4.5 ... of them, none early."""
    tick, step = Fraction(1, 30), Fraction(1, 20)
    frames = [(n * tick, n) for n in range(8)]
    assert list(even_steps(frames, step, slack(tick, step))) == [0, 1, 3, 4, 6]


def test_a_rate_as_fine_as_the_ticks_of_a_file_shows_every_frame_once():
    tick = Fraction(1, 1000)
    frames = [(n * tick, n) for n in range(5)]
    assert list(even_steps(frames, tick, slack(tick, tick))) == [0, 1, 2, 3, 4]


def test_no_frames_give_no_steps():
    assert list(even_steps([], Fraction(1))) == []


@given(steps=st.integers(0, 25), size=st.integers(1, 10))
def test_chunks_hold_the_pictures_in_order_and_mark_the_ends_alone(steps, size):
    pictures = [np.full((2, 2, 3), n, np.uint8) for n in range(steps)]
    chunks = list(as_chunks(iter(pictures), size))
    assert all(len(chunk["frames"]) == size for chunk in chunks[:-1])
    if chunks:
        rows = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
        np.testing.assert_array_equal(rows["frames"], np.stack(pictures))
        assert np.flatnonzero(rows["is_first"]).tolist() == [0] and not rows["is_terminal"].any()
        assert np.flatnonzero(rows["is_last"]).tolist() == [steps - 1]


# ---- files to episodes ----------------------------------------------------------------------------------------------


def converted(named, out, **options):
    """(conversion, lines that were said, for each episode the numbers that :func:`counting` drew)."""
    said: list[str] = []
    how = {key: options.pop(key) for key in ("strict", "codec", "holdout", "overwrite") if key in options}
    named = named if isinstance(named, list) else [named]
    done = convert(named, out, ConvertSettings(**(SMALL | options)), progress=False, say=said.append, **how)
    return done, said, [rows["frames"][:, 0, 0, 0].tolist() for rows in iter_episodes(out)]


def test_a_variable_rate_comes_out_even(tmp_path):
    times = [0, 0.1, 0.15, 0.2, 0.21, 0.22, 0.7, 1.0]
    for fps, expected in {10: [0, 1, 3, 5, 5, 5, 5, 6, 6, 6, 7], 5: [0, 3, 5, 5, 6, 7], 2: [0, 5, 7]}.items():
        write_video(tmp_path / "videos" / "a.mkv", counting(8), times=times)
        _, _, episodes = converted(tmp_path / "videos", tmp_path / f"at{fps}", fps=fps)
        assert episodes == [expected]


@pytest.mark.parametrize(
    ("fps", "expected"), [(30, range(31)), (10, range(0, 31, 3)), (60, [n // 2 for n in range(61)])]
)
def test_a_constant_rate_is_thinned_or_repeated(tmp_path, fps, expected):
    write_mp4(tmp_path / "a.mp4", counting(31), fps=30)
    _, said, episodes = converted(tmp_path / "a.mp4", tmp_path / "data", fps=fps)
    assert episodes == [list(expected)]
    slow = ["a.mp4: has too few frames for 60 frames/s, 30 of 61 repeat the one before"]
    assert said == (slow if fps == 60 else [])


def test_what_is_written_is_a_recording_without_actions(tmp_path):
    for n in range(6):
        write_mp4(tmp_path / "videos" / f"{n}.mp4", counting(30))
    done, said, _ = converted(tmp_path / "videos", tmp_path / "data", holdout=3, size=8, fps="10")
    index = verify(tmp_path / "data")
    assert index.complete and not index.spec.acted and index.spec.observations == {"frames": (8, 8, 3)}
    assert index.environment["id"] == "video" and index.environment["fps"] == 10 and index.environment["size"] == 8
    assert {split: counts["episodes"] for split, counts in index.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert (done.used, done.skipped, done.episodes, done.steps, done.empty) == (6, 0, 6, 180, ()) and said == []
    rows = next(iter_episodes(tmp_path / "data"))
    assert rows.keys() == {"frames", "is_first", "is_last", "is_terminal"} and not rows["is_terminal"].any()


def test_an_episode_can_be_traced_back_to_its_file_without_paths_of_the_machine(tmp_path):
    write_video(tmp_path / "videos" / "sub" / "b.mkv", counting(80))
    write_video(tmp_path / "videos" / "a.mkv", counting(20))
    converted(tmp_path / "videos", tmp_path / "data", clip_seconds=3)
    text = (tmp_path / "data" / "index.json").read_text()
    assert str(tmp_path) not in text
    index, found = read_index(tmp_path / "data"), {}
    for shard in index.shards:
        for (number, steps), source in zip(shard.episodes, shard.sources, strict=True):
            found[number] = source.file, source.seconds, steps
    assert found == {
        0: ("a.mkv", 0.0, 20),
        1: ("sub/b.mkv", 0.0, 30),
        2: ("sub/b.mkv", 3.0, 30),
        3: ("sub/b.mkv", 6.0, 20),
    }


def test_long_footage_is_cut_and_stays_on_one_side_of_the_split(tmp_path):
    for n in range(3):
        write_video(tmp_path / "videos" / f"{n}.mkv", counting(50))
    _, _, episodes = converted(tmp_path / "videos", tmp_path / "data", clip_seconds="1.5", holdout=3)
    assert episodes == 3 * [list(range(15)), list(range(15, 30)), list(range(30, 45)), list(range(45, 50))]
    files = {
        split: {source.file for shard in read_index(tmp_path / "data").of(split) for source in shard.sources}
        for split in ("train", "val", "test")
    }
    assert files == {"train": {"0.mkv"}, "val": {"1.mkv"}, "test": {"2.mkv"}}
    done, _, _ = converted(tmp_path / "videos" / "0.mkv", tmp_path / "one", clip_seconds=1, holdout=3)
    assert done.empty == ("val", "test")
    done, _, _ = converted(tmp_path / "videos" / "0.mkv", tmp_path / "two", clip_seconds=1, holdout=3, split_by="clip")
    assert done.empty == () and read_index(tmp_path / "two").splits["val"]["episodes"] == 2


def test_a_folder_of_images_is_one_episode_in_the_order_of_its_numbers(tmp_path):
    folder = tmp_path / "videos" / "run 7"
    folder.mkdir(parents=True)
    for n, picture in enumerate(counting(12)):
        Image.fromarray(picture).save(folder / f"frame{n}.png")
    _, _, episodes = converted(tmp_path / "videos", tmp_path / "data", fps=25)
    assert episodes == [list(range(12))]
    assert read_index(tmp_path / "data").shards[0].sources[0].file == "run 7"


def test_breaks_in_time_become_breaks_between_episodes(tmp_path):
    times = [*(n / 10 for n in range(20)), *(60 + n / 10 for n in range(20)), 100]
    write_video(tmp_path / "a.mkv", counting(41), times=times)
    _, said, episodes = converted(tmp_path / "a.mkv", tmp_path / "data")
    assert episodes == [list(range(20)), list(range(20, 40))] and said == []
    assert [source.seconds for source in read_index(tmp_path / "data").shards[0].sources] == [0, 60]


# ---- memory, bytes, and what is left when something goes wrong --------------------------------------------------------


def test_a_long_video_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    drawn, ahead, write_all = 0, [], datamodules.shards._write_all

    def draw(*args):
        nonlocal drawn
        drawn += 1
        return np.zeros((4, 4, 3), np.uint8)

    def write(file, data):
        ahead.append(drawn - 128 * len(ahead))
        write_all(file, data)

    monkeypatch.setattr("datamodules.video.fitted", draw)
    monkeypatch.setattr(datamodules.shards, "_write_all", write)
    write_mp4(tmp_path / "a.mp4", counting(1500))
    converted(tmp_path / "a.mp4", tmp_path / "data", fps=10)
    assert drawn == 1500 and len(ahead) == 12 + 1, "a chunk each, and the end of the file"
    assert max(ahead[:12]) <= 2 * 128, "no more than two chunks are there before the first of them is written"


def test_the_same_footage_gives_the_same_bytes(tmp_path):
    for n in range(4):
        write_mp4(tmp_path / "videos" / f"{n}.mp4", counting(40 + n))
    for name in ("one", "two"):
        converted(tmp_path / "videos", tmp_path / name, holdout=3)
    files = [sorted((tmp_path / name).iterdir()) for name in ("one", "two")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]] and len(files[0]) == 4
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()


@pytest.fixture
def mixed(tmp_path):
    """Two good videos, one that was cut short, one that is too short, and two that are none."""
    folder = tmp_path / "videos"
    write_mp4(folder / "1.mp4", counting(40))
    whole = write_mp4(folder / "2.mp4", counting(40)).read_bytes()
    (folder / "2.mp4").write_bytes(whole[: int(0.8 * len(whole))])
    (folder / "3.mp4").touch()
    write_mp4(folder / "4.mp4", counting(9))
    (folder / "5.mp4").write_text("no video " * 100)
    write_mp4(folder / "6.mp4", counting(40))
    return folder


def test_broken_files_are_said_in_a_line_each_and_the_rest_is_used(mixed, tmp_path):
    done, said, episodes = converted(mixed, tmp_path / "data", min_frames=10)
    assert (done.used, done.skipped) == (3, 3)
    assert [len(episode) for episode in episodes[::2]] == [40, 40]
    assert episodes[1] == list(range(len(episodes[1]))) and 10 <= len(episodes[1]) < 40
    assert [line.split(":")[0] for line in said] == ["2.mp4", "skipped 3.mp4", "skipped 4.mp4", "skipped 5.mp4"]
    assert said[0].startswith("2.mp4: a frame is broken at")
    assert said[0].endswith(f"; the {len(episodes[1])} frames that are whole are kept")
    assert said[2] == "skipped 4.mp4: 9 frames at 10 frames/s are fewer than min_frames 10"
    assert all("\n" not in line and str(tmp_path) not in line for line in said)
    split = [[number for number, _ in shard.episodes] for shard in read_index(tmp_path / "data").shards]
    assert split == [[0], [1], [2]], "what is skipped takes no part in the splits"


def test_strict_stops_at_the_first_broken_file_and_keeps_what_was_finished(mixed, tmp_path):
    with pytest.raises(ExperienceError, match=r"^2\.mp4: a frame is broken at .*; strict stops here$"):
        converted(mixed, tmp_path / "data", strict=True)
    index = verify(tmp_path / "data")
    assert not index.complete and sum(counts["episodes"] for counts in index.splits.values()) == 2
    (mixed / "2.mp4").unlink(), (mixed / "3.mp4").unlink(), (mixed / "5.mp4").unlink()
    done, said, _ = converted(mixed, tmp_path / "all", strict=True, min_frames=10)
    assert done.used == 2 and len(said) == 1, "what is too short is left out on purpose, not broken"


def test_nothing_usable_is_an_error_and_leaves_nothing_behind(mixed, tmp_path):
    broken = [mixed / "3.mp4", mixed / "5.mp4"]
    with pytest.raises(ExperienceError, match=r"nothing can be used of 2 found: skipped 5\.mp4"):
        converted(broken, tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["videos"]
    converted(mixed / "1.mp4", tmp_path / "data")
    before = (tmp_path / "data" / "index.json").read_bytes()
    with pytest.raises(ExperienceError, match="nothing can be used"):
        converted(broken, tmp_path / "data", overwrite=True)
    assert (tmp_path / "data" / "index.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "videos"]


@pytest.mark.parametrize("stopped_in", ["the first video", "the third"])
def test_an_interrupt_keeps_whole_episodes_alone(tmp_path, monkeypatch, stopped_in):
    for n in range(4):
        write_video(tmp_path / "videos" / f"{n}.mkv", counting(200))
    import datamodules.convert

    seen, whole, last = 0, datamodules.convert.read_frames, 150 if stopped_in == "the first video" else 550

    def read_frames(*args):
        nonlocal seen
        for frame in whole(*args):
            seen += 1
            if seen > last:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(datamodules.convert, "read_frames", read_frames)
    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path / "videos", tmp_path / "data", holdout=0)
    if stopped_in == "the first video":
        assert not (tmp_path / "data").exists()
    else:
        index = verify(tmp_path / "data")
        assert not index.complete and index.shards[0].episodes == ((0, 200), (1, 200))
        assert {path.name for path in (tmp_path / "data").iterdir()} == {"train-000000.tar", "index.json"}


def test_a_conversion_is_found_again_by_footage_and_settings(tmp_path):
    write_video(tmp_path / "videos" / "a.mkv", counting(60))
    settings, how = ConvertSettings(**SMALL), {"codec": "webp", "holdout": 10}
    assert find_conversion([tmp_path / "videos"], tmp_path / "data", settings, **how) is None
    converted(tmp_path / "videos", tmp_path / "data")
    assert find_conversion([tmp_path / "videos"], tmp_path / "data", settings, **how).complete
    others = {"fps": 5, "size": 8, "fit": "pad", "min_frames": 3, "clip_seconds": 2, "split_by": "clip"}
    for name, value in others.items():
        with pytest.raises(ExperienceError, match=f"holds a recording with {name} .*choose another folder"):
            find_conversion([tmp_path / "videos"], tmp_path / "data", ConvertSettings(**SMALL | {name: value}), **how)
    for name, value in {"codec": "npz", "holdout": 3}.items():
        with pytest.raises(ExperienceError, match=f"holds a recording with {name}"):
            find_conversion([tmp_path / "videos"], tmp_path / "data", settings, **how | {name: value})
    write_video(tmp_path / "videos" / "b.mkv", counting(60))
    with pytest.raises(ExperienceError, match="holds a recording with footage 1, not 2"):
        find_conversion([tmp_path / "videos"], tmp_path / "data", settings, **how)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": 0}, "fps is 0, it must be above 0"),
        ({"fps": "-3"}, "fps is -3"),
        ({"fps": 2000}, "at most 1000"),
        ({"size": 0}, "size is 0, it must be at least 1"),
        ({"fit": "squeeze"}, "fit 'squeeze' is not one of crop, pad, stretch"),
        ({"min_frames": 1}, "min_frames is 1, it must be at least 2"),
        ({"split_by": "frame"}, "split_by 'frame' is not one of video, clip"),
        ({"clip_seconds": 1}, "clip_seconds 1 at 10 frames/s are 10 frames, fewer than min_frames 16"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(ExperienceError, match=said):
        ConvertSettings(**options)


def test_a_tenth_of_a_second_is_a_tenth():
    assert ConvertSettings(clip_seconds=0.3, min_frames=2).clip_steps == 3
    assert ConvertSettings(fps=29.97).fps == Fraction(2997, 100)
    assert json.dumps(ConvertSettings(fps="30000/1001").to_dict())
