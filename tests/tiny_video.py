"""Small videos for tests, made by PyAV. Lossless, so that what was drawn can be found again to the number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK = Fraction(1, 1000)


def counting(count: int, height: int = 24, width: int = 32) -> Iterator[np.ndarray]:
    """Pictures of one colour each: picture n is all (n, 2n, 255 - n), modulo 256."""
    for n in range(count):
        yield np.full((height, width, 3), (n % 256, 2 * n % 256, (255 - n) % 256), np.uint8)


def corners(count: int = 20, height: int = 24, width: int = 32) -> Iterator[np.ndarray]:
    """Pictures whose corners are red, green (right), blue (below) and white."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[:h, w:], picture[h:, :w], picture[h:, w:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    yield from (picture for _ in range(count))


def write_video(
    path: Path,
    pictures: Iterator[np.ndarray] | Sequence[np.ndarray],
    *,
    fps: float = 10,
    times: Sequence[float] | None = None,
    codec: str = "ffv1",
    pixels: str = "bgr0",
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container_format: str | None = None,
    title: str = "",
) -> Path:
    """Write a video.

    Args:
        path: its ending chooses the container; mkv takes everything.
        pictures: (H,W,3) uint8 each, or whatever ``pixels`` is called as a numpy array.
        fps: pictures a second.
        times: or the second of each picture.
        codec, pixels: encoder and pixel format; the defaults keep RGB exactly.
        prepare: sets what the stream is to have besides, such as a rotation.
        codec_options, container_options, container_format: for FFmpeg.
        title: in the metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container_format, options=container_options or {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.codec_context.time_base = CLOCK
        stream.pix_fmt, stream.options = pixels, codec_options or {}
        prepare(stream)
        for n, picture in enumerate(pictures):
            if n == 0:
                stream.height, stream.width = picture.shape[:2]
            same = picture.ndim == 2 or picture.shape[-1] == 4
            frame = av.VideoFrame.from_ndarray(picture, format=pixels if same else "rgb24")
            frame.pts, frame.time_base = round((n / fps if times is None else times[n]) / CLOCK), CLOCK
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())
    return path


def write_mp4(path: Path, pictures: Iterator[np.ndarray], **options: object) -> Path:
    """An mp4 file of lossless H.264, its index first, a key frame every 10 pictures and nowhere else."""
    defaults = {
        "codec": "libx264rgb",
        "pixels": "rgb24",
        "codec_options": {"crf": "0", "g": "10", "bf": "0", "sc_threshold": "0"},
        "container_options": {"movflags": "faststart"},
    }
    return write_video(path, pictures, **(defaults | options))


def write_sound(path: Path) -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
