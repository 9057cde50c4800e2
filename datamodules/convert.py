"""Videos and folders of images to shards: even in time, square, cut into episodes in the data contract's form."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import chain, groupby, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec
from datamodules.footage import Footage, find_footage, fingerprint
from datamodules.index import INDEX_NAME, Index, Source, read_index
from datamodules.pictures import FITS
from datamodules.progress import Bar, progress_bar
from datamodules.recording_folder import Recording, require_same
from datamodules.video import Frame, UnreadableError, read_frames

if TYPE_CHECKING:
    from datamodules.shards import ShardWriter

SPLIT_BY = ("video", "clip")
MILLISECOND = Fraction(1, 1000)
FEW_NEW = 0.75  # share of steps that show a frame not shown before, below which the footage is slower than its steps
Rows = dict[str, np.ndarray]
T = TypeVar("T")


@dataclass(frozen=True)
class ConvertSettings:
    """What becomes of footage.

    Args:
        fps: steps a second, the same for all footage, because how far things move in a step is what a model learns. The
            default is that of Genie's platformer videos (arXiv:2402.15391).
        size: side of the pictures.
        fit: how a picture becomes a square, see :func:`datamodules.pictures.fitted`.
        min_frames: episodes of fewer steps are left out. The default is the longest clip that the default models learn from.
        clip_seconds: longer footage is cut into episodes of so many seconds; None: it stays whole.
        split_by: ``video``: all episodes of a video are in one of train, val and test. ``clip``: each goes its own way, so
            that what is held out has neighbours in training: for a single long video, which could else not be split.

    Raises:
        ExperienceError: a value that cannot work.
    """

    fps: Fraction = Fraction(10)
    size: int = 64
    fit: str = "crop"
    min_frames: int = 16
    clip_seconds: Fraction | None = None
    split_by: str = "video"

    def __post_init__(self) -> None:
        for name in ("fps", "clip_seconds"):  # by way of text: 0.1 is to be a tenth
            number = getattr(self, name)
            object.__setattr__(self, name, None if number is None else Fraction(str(number)))
        for name, value, known in (("fit", self.fit, FITS), ("split_by", self.split_by, SPLIT_BY)):
            if value not in known:
                raise ExperienceError(f"{name} '{value}' is not one of {', '.join(known)}")
        for name, number, least in (("size", self.size, 1), ("min_frames", self.min_frames, 2)):
            if number < least:
                raise ExperienceError(f"{name} is {number}, it must be at least {least}")
        if not 0 < self.fps <= 1000:
            raise ExperienceError(f"fps is {float(self.fps):g}, it must be above 0 and at most 1000")
        if self.clip_steps is not None and self.clip_steps < self.min_frames:
            raise ExperienceError(
                f"clip_seconds {float(self.clip_seconds):g} at {float(self.fps):g} frames/s are {self.clip_steps} frames,"
                f" fewer than min_frames {self.min_frames}: raise one or lower the other"
            )

    @property
    def clip_steps(self) -> int | None:
        """Steps of the longest episode."""
        return None if self.clip_seconds is None else math.floor(self.clip_seconds * self.fps)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {key: float(x) if isinstance(x, Fraction) else x for key, x in asdict(self).items()}


@dataclass(frozen=True)
class Conversion(Recording):
    """What was converted: beside the counts of a recording, how much footage was used, how much skipped, and which of
    train, val and test hold nothing."""

    used: int
    skipped: int
    empty: tuple[str, ...]


def convert(
    named: Sequence[str | Path],
    out: str | Path,
    settings: ConvertSettings | None = None,
    *,
    strict: bool = False,
    codec: str = "webp",
    holdout: int = 10,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert files and folders to shards. The same footage and settings give the same bytes.

    Args:
        named: videos, and folders of videos or images, see :func:`datamodules.footage.find_footage`.
        out: a folder that does not hold a recording yet.
        settings: what becomes of the footage.
        strict: footage that is broken is an error. Else what can be used of it is used, and a line said.
        codec, holdout, overwrite: see :class:`datamodules.shards.ShardWriter`; ``holdout`` counts what ``split_by`` says.
        progress: show a bar, if the error stream is a terminal.
        say: takes the lines about footage that was not used as a whole; None: they are printed on the error stream.

    Raises:
        ExperienceError: an argument that cannot work, an occupied folder, nothing to convert or nothing usable in it, and
            whatever ``strict`` forbids.
        KeyboardInterrupt: on Ctrl-C, after what was finished has been written.
    """
    settings = settings or ConvertSettings()
    footage, out = find_footage(named), Path(out)
    spec = ExperienceSpec({"frames": (settings.size, settings.size, 3)}, ActionSpace("none", ()))
    from datamodules.shards import ShardWriter  # here, because webdataset loads torch, which takes seconds

    began, is_new = time.perf_counter(), not out.exists()
    writer = ShardWriter(
        out,
        spec,
        environment=environment(footage, settings),
        policy="none",
        seed=0,
        codec=codec,
        holdout=holdout,
        overwrite=overwrite,
    )
    used = 0
    try:
        megabytes = sum(each.bytes for each in footage) / 1e6
        with writer, progress_bar("converting", "MB", megabytes, progress, digits=1) as bar:
            for each in footage:
                done = _convert_one(each, writer, used, settings, bar)
                if done.troubles and strict:
                    raise ExperienceError(f"{each.name}: {done.troubles[0]}; strict stops here")
                line = done.said(each.name, settings)
                if line:
                    (say or bar.say)(line)
                used += done.steps > 0
            if not used:
                raise ExperienceError(f"nothing can be used of {len(footage)} found: {line}")
    finally:
        if is_new and out.exists() and not any(out.iterdir()):
            out.rmdir()
    index = writer.close()
    empty = tuple(split for split, counts in index.splits.items() if not counts["episodes"])
    seconds = time.perf_counter() - began
    return Conversion.of(out, index, seconds, used=used, skipped=len(footage) - used, empty=empty)


def environment(footage: Sequence[Footage], settings: ConvertSettings) -> dict[str, Any]:
    """What ``index.json`` says of where the data comes from: all that determines it."""
    return {"id": "video", **settings.to_dict(), "footage": len(footage), "fingerprint": fingerprint(footage)}


def find_conversion(
    named: Sequence[str | Path], out: str | Path, settings: ConvertSettings, *, codec: str, holdout: int
) -> Index | None:
    """The index in ``out`` if it is of what these arguments of :func:`convert` make, ``complete`` or not.

    Raises:
        ExperienceError: another recording, or a broken one, lies there.
    """
    if not (Path(out) / INDEX_NAME).exists():
        return None
    index, made = read_index(out), environment(find_footage(named), settings)
    there = index.environment
    wanted = [(name, str(there.get(name)), str(value)) for name, value in made.items()]
    require_same(out, [*wanted, ("codec", index.codec, codec), ("holdout", index.holdout, holdout)])
    return index


@dataclass
class _Outcome:
    """What became of one piece of footage.

    Args:
        troubles: what was wrong with it, in order.
        steps: that were written.
        longest: steps of the longest episode that was too short to be written.
        drawn: frames that were shown at least once.
        shown: steps that they were shown for.
    """

    troubles: list[str] = field(default_factory=list)
    steps: int = 0
    longest: int = 0
    drawn: int = 0
    shown: int = 0

    def said(self, name: str, settings: ConvertSettings) -> str:
        """One line about footage called ``name``, empty if all is well."""
        fps, trouble = f"{float(settings.fps):g} frames/s", ""
        if self.troubles:
            others = f", and {len(self.troubles) - 1} more" if len(self.troubles) > 1 else ""
            trouble = self.troubles[0] + others
        if not self.steps:
            short = f"{self.longest} frames at {fps} are fewer than min_frames {settings.min_frames}"
            return f"skipped {name}: " + "; ".join(filter(None, [trouble, short * bool(self.longest)]))
        if trouble:
            return f"{name}: {trouble}; the {self.steps} frames that are whole are kept"
        if self.drawn < FEW_NEW * self.shown:
            return (
                f"{name}: has too few frames for {fps}, {self.shown - self.drawn} of {self.shown} repeat the one before"
            )
        return ""


def _convert_one(footage: Footage, writer: ShardWriter, number: int, settings: ConvertSettings, bar: Bar) -> _Outcome:
    """Write the episodes of some footage, which is the ``number``-th that can be used."""
    done, read = _Outcome(), 0

    def advance(size: int) -> None:
        nonlocal read
        read += size
        bar.advance(size / 1e6)

    try:
        for begin, pictures in _episodes(read_frames(footage, settings.fps, done.troubles, advance), settings, done):
            head = list(islice(pictures, settings.min_frames))
            if len(head) < settings.min_frames:
                done.longest = max(done.longest, len(head))
                continue
            group = number if settings.split_by == "video" else writer.episodes
            chunks = as_chunks(chain(head, pictures), writer.chunk_steps)
            done.steps += writer.write_chunks(chunks, Source(footage.name, begin), group)
    except UnreadableError as error:
        done.troubles = list(dict.fromkeys([str(error), *done.troubles]))
    bar.advance((footage.bytes - read) / 1e6)
    return done


def _episodes(
    frames: Iterator[Frame], settings: ConvertSettings, done: _Outcome
) -> Iterator[tuple[float, Iterator[np.ndarray]]]:
    """(second in the footage where it begins, pictures) of each episode. One is to be used up before the next is asked for."""
    step, length = 1 / settings.fps, settings.clip_steps
    for _, stretch in groupby(frames, key=lambda frame: frame.stretch):
        first = next(stretch)
        steps = even_steps(((x.time, x) for x in chain([first], stretch)), step, slack(first.tick, step))
        pictures = enumerate(_drawn(steps, settings, done))
        for clip, numbered in groupby(pictures, key=lambda pair: pair[0] // length if length else 0):
            begin = first.time + clip * (length or 0) * step
            yield round(float(begin), 6), (picture for _, picture in numbered)


def slack(tick: Fraction, step: Fraction) -> Fraction:
    """Seconds by which a frame may come late and yet be seen: by so much its time may have been rounded up.

    Times are rounded to the tick of the file, and often before that to a millisecond, as on the way through mkv or a stream. A
    tick of more than 10 ms is taken for the time that a frame lasts, to which nothing was rounded.
    """
    return min((tick + MILLISECOND) / 2, 5 * MILLISECOND, step / 2)


def even_steps(frames: Iterable[tuple[Fraction, T]], step: Fraction, late: Fraction = Fraction(0)) -> Iterator[T]:
    """What a viewer would see at even times: at 0, ``step``, 2 ``step`` ... after the first frame, up to the last.

    Args:
        frames: (time, frame), times not descending.
        step: between two looks.
        late: a frame that comes by so little after a look is seen by it, see :func:`slack`.

    Yields:
        For each look the latest frame that is there by then.
    """
    looks, begin, shown = 0, None, None
    for moment, frame in frames:
        if begin is None:
            begin = moment
        else:
            due = max(looks, math.ceil((moment - begin - late) / step))  # looks before this frame
            yield from repeat(shown, due - looks)
            looks = due
        last, shown = moment, frame
    if begin is not None:
        yield from repeat(shown, math.floor((last - begin + late) / step) + 1 - looks)


def _drawn(steps: Iterator[Frame], settings: ConvertSettings, done: _Outcome) -> Iterator[np.ndarray]:
    """Pictures of the steps; a frame that is shown for several is converted once."""
    now, picture = None, None
    for frame in steps:
        if frame is not now:
            now, picture = frame, frame.draw(settings.size, settings.fit)
            done.drawn += 1
        done.shown += 1
        yield picture


def as_chunks(pictures: Iterator[np.ndarray], size: int) -> Iterator[Rows]:
    """An episode of pictures (H,W,C) in chunks of ``size`` steps of the data contract. That it ends tells nothing about the
    world, so the end is that of a time limit: ``is_last`` without ``is_terminal``."""
    chunk, is_first = list(islice(pictures, size)), True
    while chunk:
        following = list(islice(pictures, size))
        flags = {key: np.zeros(len(chunk), bool) for key in ("is_first", "is_last", "is_terminal")}
        flags["is_first"][0], flags["is_last"][-1] = is_first, not following
        yield {"frames": np.stack(chunk), **flags}
        chunk, is_first = following, False
