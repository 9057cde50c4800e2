"""What there is to convert: the videos and the folders of images among the files and folders that were named."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from datamodules.experience import ExperienceError

# by these names files are looked for in folders; a file that is named itself may be called anything
VIDEO = re.compile(
    r".+\.(3g2|3gp|asf|avi|divx|f4v|flv|gif|h264|hevc|ivf|m2ts|m2v|m4v|mjpeg|mjpg|mkv|mov|mp4|mpeg|mpg|mts|mxf|nut|ogm|ogv|qt"
    r"|rm|rmvb|ts|vob|webm|wmv|y4m)",
    re.IGNORECASE,
)
IMAGE = re.compile(r".+\.(bmp|jpeg|jpg|png|tif|tiff|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class Footage:
    """A video file, or the images of one folder as the frames of one.

    Args:
        name: of the file or folder, below the folder that holds all that was named; with ``/``, on any system.
        files: the video, or the images in the order of their numbers.
        images: which of both.
    """

    name: str
    files: tuple[Path, ...]
    images: bool

    @cached_property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(map(_size, self.files))


def natural(name: str) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """A key that sorts names as people count: ``frame9`` before ``frame10``, whatever the case."""
    pieces = re.findall(r"\d+|\D+", name.casefold())
    return tuple((0, int(x)) if x.isdecimal() else (1, x) for x in pieces), name


def find_footage(named: Sequence[str | Path]) -> list[Footage]:
    """All footage in files and folders, each once, in natural order of its names.

    A folder is searched with all below it. What begins with a dot is left alone, as are files that are by their names
    neither video nor image.

    Raises:
        ExperienceError: something named does not exist, or there is no footage at all.
    """
    paths = [Path(os.path.abspath(path)) for path in named]
    for path in paths:
        if not path.exists():
            raise ExperienceError(f"{path} does not exist: name videos, or folders of videos or images")
    top = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
    videos: set[Path] = set()
    images: dict[Path, set[Path]] = {}  # folder -> its images
    for file in chain.from_iterable(map(_files, paths)):
        if IMAGE.fullmatch(file.name):
            images.setdefault(file.parent, set()).add(file)
        elif VIDEO.fullmatch(file.name) or file in paths:
            videos.add(file)
    found = [Footage(video.relative_to(top).as_posix(), (video,), False) for video in videos]
    for folder, files in images.items():
        name = folder.name if folder == top else folder.relative_to(top).as_posix()
        found.append(Footage(name, tuple(sorted(files, key=lambda file: natural(file.name))), True))
    if not found:
        raise ExperienceError(f"no video and no image in {', '.join(map(str, named))}: name videos, or folders of them")
    return sorted(found, key=lambda each: natural(each.name))


def _files(path: Path) -> Iterator[Path]:
    """A file, or the files in a folder and below it. Links to folders are followed, into each folder once."""
    if path.is_file():
        yield path
        return
    seen: set[str] = set()
    for folder, below, names in os.walk(path, followlinks=True):
        again = os.path.realpath(folder) in seen
        seen.add(os.path.realpath(folder))
        below[:] = [] if again else sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not again and not name.startswith("."))


def fingerprint(footage: Sequence[Footage]) -> str:
    """A hash of all names and sizes, which tells whether it is the same footage without reading it."""
    digest = hashlib.sha256()
    for each in footage:
        for file in each.files:
            digest.update(f"{each.name}\0{file.name}\0{_size(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _size(file: Path) -> int:
    """Bytes of a file; 0 of a link to nothing, which will be said when it is read."""
    return file.stat().st_size if file.exists() else 0
