"""The part of a stored picture that is meant to be seen, where a container states one: a Matroska file's `PixelCrop..`
(RFC 9559), an mp4 file's clean aperture (`clap`, ISO/IEC 14496-12). PyAV does not hand them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

SEGMENT, TRACKS, TRACK, VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}
TO_SAMPLES = (b"mdia", b"minf", b"stbl", b"stsd")
ENTRY = 86  # bytes of a video's sample entry before its own boxes
MOST = 1 << 20  # bytes that a description of tracks may take


class Cropping(NamedTuple):
    """Stored pixels that are not shown, from each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def cropping_of(path: Path, kind: str, index: int, width: int, height: int) -> Cropping:
    """Of the stream `index` of a file of FFmpeg's format `kind`, whose pictures are stored at this size. What leaves
    nothing to be seen is not believed."""
    with path.open("rb") as file:
        try:
            found = _of_matroska(file, index) if "matroska" in kind else _of_mp4(file, index, width, height)
        except (ValueError, IndexError, StopIteration, ZeroDivisionError):  # a damaged description states nothing
            return Cropping()
    fits = min(found) >= 0 and found.left + found.right < width and found.top + found.bottom < height
    return found if fits else Cropping()


# Matroska: elements of an id, a size and a content


def _of_matroska(file: BinaryIO, index: int) -> Cropping:
    for element, content in _elements(file, {SEGMENT}):
        if element == TRACKS:
            tracks = [inside for track, inside in _inside(content) if track == TRACK]
            video = next((inside for part, inside in _inside(tracks[index]) if part == VIDEO), b"")
            return Cropping(**{CROPS[e]: int.from_bytes(value, "big") for e, value in _inside(video) if e in CROPS})
    return Cropping()


def _elements(file: BinaryIO, entered: set[int]) -> Iterator[tuple[int, bytes]]:
    """Elements of a file with their contents, those of `entered` ones among them; large ones are passed over."""
    while head := file.read(12):
        element, at = _id(head, 0)
        size, at = _size(head, at)
        file.seek(at - len(head), 1)
        if element in entered:
            continue
        if size is None:  # as long as the file: what follows cannot be found
            return
        yield element, file.read(size) if size <= MOST else b""
        if size > MOST:
            file.seek(size, 1)


def _inside(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(content):
        element, at = _id(content, at)
        size, at = _size(content, at)
        end = len(content) if size is None else at + size
        yield element, content[at:end]
        at = end


def _id(content: bytes, at: int) -> tuple[int, int]:
    """A number whose leading zeros say how long it is, and where it ends."""
    length = 9 - content[at].bit_length()
    if length > 8:
        raise ValueError("no number starts here")
    return int.from_bytes(content[at : at + length], "big"), at + length


def _size(content: bytes, at: int) -> tuple[int | None, int]:
    """Such a number without the bit that marks its length. All ones mean that the size is not known."""
    value, end = _id(content, at)
    mark = 1 << 7 * (end - at)
    return None if value == 2 * mark - 1 else value - mark, end


# mp4: boxes of a size, a name and a content


def _of_mp4(file: BinaryIO, index: int, width: int, height: int) -> Cropping:
    moov = _moov(file)
    tracks = [content for name, content in _boxes(moov) if name == b"trak"]
    content = tracks[index]
    for wanted in TO_SAMPLES:
        content = next(inside for name, inside in _boxes(content) if name == wanted)
    entry = content[8:]  # a version and a count, then the entry itself
    clap = next((inside for name, inside in _boxes(entry[ENTRY:]) if name == b"clap"), None)
    if clap is None:
        return Cropping()
    numbers = [int.from_bytes(clap[at : at + 4], "big", signed=True) for at in range(0, 32, 4)]
    wide, high, right, down = (Fraction(*numbers[at : at + 2]) for at in range(0, 8, 2))
    left, top = (width - wide) / 2 + right, (height - high) / 2 + down
    return Cropping(round(left), round(top), round(width - wide - left), round(height - high - top))


def _moov(file: BinaryIO) -> bytes:
    while head := file.read(8):
        size, start = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, start = int.from_bytes(file.read(8), "big"), 16
        if head[4:] == b"moov":
            return file.read(size - start)
        if size < start:  # 0: up to the end of the file
            break
        file.seek(size - start, 1)
    return b""


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        if size < 8:
            return
        yield content[at + 4 : at + 8], content[at + 8 : at + size]
        at += size
