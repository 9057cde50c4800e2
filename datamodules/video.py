"""Footage to frames with their times: video files by PyAV, folders of images by Pillow. Frame by frame, nothing is kept.

Real files are damaged, cut short, or jump in time. What can be decoded is handed on; a new *stretch* begins wherever the
time between two frames is not known to be what the stamps say, so that no model is shown a leap as if it were a movement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.experience import ExperienceError
from datamodules.footage import Footage
from datamodules.pictures import BROKEN, fitted, on_black, read_picture, upright

if TYPE_CHECKING:
    import av

LONGEST_PAUSE = (
    10  # seconds for which a picture may stand still before it counts as a leap: nothing is learnt from more
)
MISSING_END = 1.0  # seconds by which a file may fall short of the length that its header names


class UnreadableError(ExperienceError):
    """Footage of which nothing can be read; the message is the reason."""


@dataclass(frozen=True)
class Frame:
    """A frame, not yet converted.

    Args:
        stretch: number of the stretch of footage that it lies in.
        time: seconds since the first frame of the footage.
        tick: seconds to which the times of this footage are rounded.
        draw: ``draw(size, fit)`` gives it upright as (size,size,3) uint8, see :func:`datamodules.pictures.fitted`.
    """

    stretch: int
    time: Fraction
    tick: Fraction
    draw: Callable[[int, str], np.ndarray]


def read_frames(
    footage: Footage, fps: Fraction, troubles: list[str], advance: Callable[[int], None]
) -> Iterator[Frame]:
    """All frames of some footage that can be decoded, in order of time.

    Args:
        footage: what to read.
        fps: images of a folder are so many to the second; videos have their own times.
        troubles: what is wrong with the footage is appended here.
        advance: called with the bytes that were read.

    Raises:
        UnreadableError: nothing can be read.
        ExperienceError: PyAV is missing.
    """
    frames = (
        _read_images(footage, fps, troubles, advance) if footage.images else _read_video(footage, troubles, advance)
    )
    empty = True
    for frame in frames:
        empty = False
        yield frame
    if empty:
        raise UnreadableError(troubles[0] if troubles else "it holds no frame")


def _read_images(
    footage: Footage, fps: Fraction, troubles: list[str], advance: Callable[[int], None]
) -> Iterator[Frame]:
    stretch = 0
    for number, file in enumerate(footage.files):
        try:
            pixels = read_picture(file)
        except BROKEN as error:
            troubles.append(f"{file.name} is broken ({one_line(error)})")
            stretch += 1
            continue
        advance(file.stat().st_size)
        yield Frame(stretch, number / fps, Fraction(0), partial(fitted, pixels))


def _read_video(footage: Footage, troubles: list[str], advance: Callable[[int], None]) -> Iterator[Frame]:
    av = _import_av()
    try:
        path = str(footage.files[0].absolute())  # because FFmpeg takes 12:30.mp4 for an address
        container = av.open(path, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(f"it is no video, or its beginning or end is lost ({one_line(error)})") from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise UnreadableError("it holds no video" + " but sound" * bool(container.streams.audio))
        if streams[0].codec_context is None:
            raise UnreadableError("PyAV has no decoder for it")
        aspect = float(streams[0].sample_aspect_ratio or 1)
        tick, begin, last, stretch = streams[0].time_base, None, None, 0
        for frame, lost in _decode(av, container, streams[0], troubles, advance):
            if frame.pts is None:
                raise UnreadableError("its frames have no time stamps: put it into a container that has, such as mkv")
            time = frame.pts * tick
            begin = time if begin is None else begin
            if last is not None and time < last and not lost:
                troubles.append(f"time runs backwards at {float(last - begin):.1f} s")
            if last is not None and (lost or not 0 <= time - last <= LONGEST_PAUSE):
                stretch += 1
            last = time
            yield Frame(stretch, time - begin, tick, partial(_draw, frame, aspect))


def _decode(
    av: ModuleType, container: Any, stream: Any, troubles: list[str], advance: Callable[[int], None]
) -> Iterator[tuple[av.VideoFrame, bool]]:
    """(frame, whether something before it was lost). After a loss nothing is whole before the next key frame."""
    lost, whole_end = False, 0.0
    packets = container.demux()  # of all streams: sound tells how much of a file is there as well
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # the latter where a stream began in mid-file (PyAV 18.1)
            break
        except av.FFmpegError as error:
            troubles.append(f"it breaks off at {_since_start(whole_end, container):.1f} s ({one_line(error)})")
            return
        if packet.pts is not None:
            whole_end = max(whole_end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        advance(packet.size)
        if packet.stream.index != stream.index:
            continue
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            troubles.append(f"a frame is broken at {_since_start(whole_end, container):.1f} s ({one_line(error)})")
            lost = True
            continue
        for frame in frames:
            if frame.is_corrupt:
                troubles.append(f"a frame is broken at {_since_start(float(frame.time or 0), container):.1f} s")
                lost = True
            elif frame.key_frame or not lost:
                yield frame, lost
                lost = False
    there, named = _since_start(whole_end, container), (container.duration or 0) / av.time_base
    if there < named - MISSING_END:
        troubles.append(f"it ends at {there:.1f} s, its header says {named:.1f} s")


def _since_start(seconds: float, container: Any) -> float:
    """A time as a player shows it."""
    return max(0.0, seconds - (container.start_time or 0) / 1_000_000)


def _draw(frame: av.VideoFrame, aspect: float, size: int, fit: str) -> np.ndarray:
    """A decoded frame of any pixel format, see :class:`Frame`. A square is turned, which costs less and is the same."""
    if any(component.is_alpha for component in frame.format.components):
        pixels = on_black(frame.to_ndarray(format="rgba"))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    square = fitted(pixels, size, fit, aspect)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return square if matrix is None else upright(square, np.frombuffer(matrix, np.int32).tolist())


def _import_av() -> ModuleType:
    try:
        import av
        import av.stream
    except ImportError as error:
        raise ExperienceError(f"video needs PyAV: pip install 'lit-wm[video]' ({error})") from error
    return av


def one_line(error: Exception) -> str:
    """What an error says, in one line, without its number and the file's name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
