"""What is found to convert, how it is called, and in which order."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.experience import ExperienceError
from datamodules.footage import find_footage, fingerprint, natural


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def names(*named: Path) -> list[str]:
    return [each.name for each in find_footage(named)]


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_are_sorted_as_numbers(numbers):
    assert sorted((f"Frame{n}.png" for n in numbers), key=natural) == [f"Frame{n}.png" for n in sorted(numbers)]


@given(st.lists(st.text(), unique=True), st.randoms())
def test_any_names_have_one_order(words, random):
    shuffled = random.sample(words, len(words))
    assert sorted(words, key=natural) == sorted(shuffled, key=natural)


def test_folders_are_searched_for_videos_and_for_folders_of_images(tmp_path):
    touch(tmp_path, "b10.mp4", "b9.MKV", "sub/x.webm", "deep/run/f2.png", "deep/run/f10.PNG", "deep/run/f1.jpg")
    touch(tmp_path, "notes.txt", ".hidden.mp4", ".cache/x.mp4", "._b9.MKV", "sub/x.srt")
    found = find_footage([tmp_path])
    assert [each.name for each in found] == ["b9.MKV", "b10.mp4", "deep/run", "sub/x.webm"]
    assert [each.images for each in found] == [False, False, True, False]
    assert [file.name for file in found[2].files] == ["f1.jpg", "f2.png", "f10.PNG"]
    assert found[0].bytes == len("b9.MKV")


def test_what_is_named_counts_once_and_may_have_any_ending(tmp_path):
    touch(tmp_path, "a/x.mp4", "b/x.mp4", "b/film.data", "b/1.png", "b/2.png")
    assert names(tmp_path / "a", tmp_path / "b") == ["a/x.mp4", "b", "b/x.mp4"]
    assert names(tmp_path / "a" / "x.mp4") == ["x.mp4"]
    assert names(tmp_path, tmp_path / "a", tmp_path / "a" / "x.mp4") == ["a/x.mp4", "b", "b/x.mp4"]
    assert names(tmp_path / "b" / "film.data") == ["film.data"]
    assert names(tmp_path / "b" / "2.png", tmp_path / "b" / "1.png") == ["b"], "images of one folder are one episode"
    assert names(tmp_path / "b") == ["b", "x.mp4"]


def test_paths_are_the_same_from_wherever_they_are_named(tmp_path, monkeypatch):
    touch(tmp_path, "videos/a.mp4", "videos/sub/b.mp4")
    monkeypatch.chdir(tmp_path / "videos")
    assert names(Path(".")) == names(Path("../videos")) == names(tmp_path / "videos") == ["a.mp4", "sub/b.mp4"]


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "real/a.mp4", "videos/b.mp4")
    (tmp_path / "videos" / "more").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert names(tmp_path / "videos") == ["b.mp4", "gone.mp4", "more/a.mp4"]


def test_nothing_there_is_an_error(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ExperienceError, match="no video and no image in"):
        find_footage([tmp_path])
    with pytest.raises(ExperienceError, match=r"x\.mp4 does not exist"):
        find_footage([tmp_path / "x.mp4"])


def test_the_fingerprint_tells_other_footage_apart(tmp_path):
    touch(tmp_path, "a.mp4", "frames/1.png")
    before = fingerprint(find_footage([tmp_path]))
    os.utime(tmp_path / "a.mp4", (0, 0))
    assert fingerprint(find_footage([tmp_path])) == before, "a copy is the same"
    for change in (
        lambda: touch(tmp_path, "frames/2.png"),
        lambda: (tmp_path / "a.mp4").write_bytes(b"longer than before"),
        lambda: (tmp_path / "a.mp4").rename(tmp_path / "c.mp4"),
    ):
        change()
        before, last = fingerprint(find_footage([tmp_path])), before
        assert before != last
