"""Film: one video stream of a file, a frame at a time, from any moment on, with what is damaged counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vdinterp import store
from vdinterp.data.cropping import Cropping, cropping_of
from vdinterp.data.picture import WHOLE, shown, warn_of

READABLE = "an mp4, webm or gif file, or another that FFmpeg reads"
PLAYLISTS = {"hls", "concat", "dash", "imf"}  # formats that open other files than the one named
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these drop the alpha channel
UNEVEN = 1.5  # frames are at a variable rate if one stays this many times as long as another
GIF_END = b";"
CLOCK = 0.002  # seconds that containers may round a frame's moment by


class Film:
    """The film in a video file, open inside a `with` block: `for moment, frame in film.frames(): film.picture(frame)`.

    Moments are seconds from the first frame on. Raises FileNotFoundError if there is no such file, and ValueError for
    a folder, an empty file, a list of other files, a file without a video stream, and one that cannot be decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = store.as_path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"no file {path}; give {READABLE}")
        if self.path.is_dir():
            raise ValueError(f"{path} is a folder; give {READABLE}")
        if self.path.stat().st_size == 0:
            raise ValueError(f"{path} is empty (0 bytes); give {READABLE}")
        self.spoilt = self.unreadable = self.missing = 0  # frames damaged, packets refused, frames that are not there
        self._scanned: np.ndarray | None = None
        self._looked = False
        self._open()
        if self._is_gif:
            self.scan()

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> None:
        import av
        import av.error

        try:
            # The prefix keeps a name with a colon from being read as an address; the list keeps the network out.
            self._container: Any = av.open(f"file:{self.path}", options={"protocol_whitelist": "file"})
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path} cannot be read as video ({error.strerror}); give {READABLE}") from error
        try:
            if PLAYLISTS & set(self._container.format.name.split(",")):
                raise ValueError(f"{self.path} is a list of other files; give one of these, {READABLE}")
            self._stream: Any = self._choose()
            self._decoder: Any = self._alpha_decoder() or self._stream.codec_context
        except BaseException:
            self._container.close()
            raise

    def _choose(self) -> Any:
        """The film itself: not a cover picture, the default before a preview, the longest, the largest."""
        streams = self._container.streams
        if not streams.video:
            kinds = sorted({stream.type for stream in streams}) or ["nothing"]
            raise ValueError(f"{self.path} has no video in it, only {', '.join(kinds)}; give {READABLE}")
        films = [stream for stream in streams.video if not _marked(stream, "attached_pic")]
        if not films:
            raise ValueError(f"{self.path} has no video in it, only a cover picture; give {READABLE}")

        def rank(stream: Any) -> tuple[Any, ...]:
            length = stream.frames or float((stream.duration or 0) * (stream.time_base or 0))
            return _marked(stream, "default"), length, stream.codec_context.width * stream.codec_context.height

        return max(films, key=rank)

    def _alpha_decoder(self) -> Any:
        """Another decoder where the usual one would show the colours beneath transparent parts."""
        import av

        metadata = {key.lower(): value for key, value in self._stream.metadata.items()}
        if metadata.get("alpha_mode") != "1":
            return None
        name = ALPHA_DECODERS.get(self._stream.codec_context.name, "")
        if name not in av.codecs_available:
            warnings.warn(f"{self.path} has transparent parts, which cannot be told here", stacklevel=5)
            return None
        decoder = av.CodecContext.create(name, "r")
        decoder.extradata = self._stream.codec_context.extradata
        return decoder

    # How long, how fast

    @cached_property
    def rate(self) -> Fraction:
        """Frames a second, as the container states it; the average where it varies."""
        if self._is_gif and self._stream.frames and self._stream.duration:  # a gif states each frame's time, no rate
            return _of_clock(self._stream.frames, self._stream.duration, 1 / Fraction(self._stream.time_base))
        stated = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
        return Fraction(stated) if stated else Fraction(25)

    @property
    def moments(self) -> np.ndarray | None:
        """When each frame is shown, where the file has an index of all of them or was scanned for one."""
        return self._indexed if self._scanned is None else self._scanned

    @cached_property
    def _indexed(self) -> np.ndarray | None:
        entries = [entry for entry in getattr(self._stream, "index_entries", ()) if not entry.is_discard]
        if not self._stream.frames or len(entries) != self._stream.frames:
            return None
        # An index holds decoding times: the moments shown, in another order, by one constant.
        return _from_first([entry.timestamp * self._stream.time_base for entry in entries])

    @property
    def n_frames(self) -> int | None:
        """How many frames there are, as far as the file says; exactly, once it was scanned."""
        return self.promised if self._scanned is None else len(self._scanned)

    @cached_property
    def promised(self) -> int | None:
        """How many frames the file promises, None where it does not say."""
        if self._stream.frames:
            return self._stream.frames
        if self._stream.duration:
            return round(self._stream.duration * self._stream.time_base * self.rate)
        return round(Fraction(self._container.duration, 1_000_000) * self.rate) if self._container.duration else None

    @property
    def steady(self) -> bool:
        """Whether the frames follow one another at one rate, as far as the file says."""
        if self.moments is None or len(self.moments) < 3:
            guess = self._stream.guessed_rate
            return not guess or abs(float(guess / self.rate) - 1) < 0.05
        gaps = np.diff(self.moments)
        if self._is_gif and gaps.max() - gaps.min() < 1.5 * float(self._stream.time_base):  # as even as its clock can
            return True
        return bool(gaps.max() <= UNEVEN * max(gaps.min(), 1e-9))

    @property
    def clock(self) -> float:
        """Seconds that a frame's moment may be rounded by."""
        return max(CLOCK, 0.51 * float(self._stream.time_base)) if self._is_gif else CLOCK

    @property
    def _is_gif(self) -> bool:
        return self._container.format.name == "gif"

    def scan(self) -> None:
        """Find every frame's moment by reading the file through, without decoding: for files that do not say."""
        self._restart()
        whole = [packet for packet in self._packets() if packet.pts is not None and not packet.is_corrupt]
        self._scanned = _from_first([packet.pts * self._stream.time_base for packet in whole])
        self._restart()

    def moment_of(self, index: int) -> float | None:
        """When frame `index` is shown; None where that cannot be known without decoding."""
        if self.moments is not None:
            return float(self.moments[index]) if index < len(self.moments) else None
        return index / float(self.rate) if self.steady else None

    # Frames

    def frames(self, moment: float = 0.0) -> Iterator[tuple[float, Any]]:
        """`(moment, frame)` of the frames from `moment` on, the one then on the screen first.

        It jumps to the key frame before, so that the cost does not grow with the length of the film.
        """
        if moment > 0 and (found := self._after_jump(moment)) is not None:
            return found
        self._restart()
        return _from_moment(self._decode(), moment)

    def picture(self, frame: Any) -> np.ndarray:
        """`[height width 3]` uint8, as a player shows the frame."""
        if not self._looked:
            self._looked = True
            warn_of(frame, str(self.path))
        return shown(frame, self._stream.sample_aspect_ratio, self._hidden)

    @cached_property
    def _hidden(self) -> Cropping:
        """Stored pixels that the container says are not shown."""
        kind = self._container.format.name
        if not {"matroska", "mp4"} & set(kind.split(",")):
            return WHOLE
        coded = self._stream.codec_context
        return cropping_of(self.path, kind, self._stream.index, coded.width, coded.height)

    def _after_jump(self, moment: float) -> Iterator[tuple[float, Any]] | None:
        """None where the jump did not lead to a frame at or before that moment."""
        import av.error

        try:
            target = round((moment + self._origin) / float(self._stream.time_base))
            self._container.seek(target, stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return None
        self._decoder.flush_buffers()
        frames = self._decode()
        first = next(frames, None)
        if first is None or first[0] > moment + 0.5 / float(self.rate):
            return None
        return _from_moment(chain([first], frames), moment)

    def _restart(self) -> None:
        self._container.close()
        self._open()

    @cached_property
    def _origin(self) -> float:
        """The moment of the first frame by the stream's own clock."""
        return float((self._stream.start_time or 0) * self._stream.time_base)

    def _decode(self) -> Iterator[tuple[float, Any]]:
        """What is left of the stream."""
        import av.error

        before, count = None, 0
        for packet in self._packets():
            try:
                frames, complaints = self._heard(packet)
            except av.error.FFmpegError:
                self.unreadable += 1
                continue
            for number, frame in enumerate(frames):
                self.spoilt += bool(frame.is_corrupt) or (complaints and not number)
                moment = count / float(self.rate) if frame.time is None else float(frame.time) - self._origin
                if before is not None and self.steady:
                    self.missing += max(0, round((moment - before) * float(self.rate)) - 1)
                before, count = moment, count + 1
                yield moment, frame

    def _heard(self, packet: Any) -> tuple[list[Any], bool]:
        """The frames of a packet, and whether the decoder complained of what it then concealed."""
        import av.logging

        level = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as complaints:
                return self._decoder.decode(packet), bool(complaints)
        finally:
            av.logging.set_level(level)

    def _packets(self) -> Iterator[Any]:
        """Packets of the stream; a file that breaks off ends here, as it does for a player."""
        import av.error

        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError:
            self.unreadable += 1

    def warn_of_damage(self, seen: int | None = None) -> None:
        """Warn of frames that could not be read as they were made. `seen`: how many, where all were asked for."""
        found = []
        if seen is None and self._scanned is not None:
            seen = len(self._scanned)
        if seen is not None and self.promised is not None and seen < self.promised - 1:
            found.append(f"{seen} of {self.promised} frames can be read")
        if self._stream.codec_context.name == "gif" and not self._ends_as_gif():
            found.append("the file breaks off")
        found += [f"{count} {what}" for count, what in self._counts() if count]
        if found:
            warnings.warn(f"{self.path} is damaged: {', '.join(found)}", stacklevel=3)

    def _counts(self) -> list[tuple[int, str]]:
        return [
            (self.spoilt, "of them shown with faults"),
            (self.unreadable, "packets unreadable"),
            (self.missing, "missing between others"),
        ]

    def _ends_as_gif(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == GIF_END


def _from_moment(frames: Iterator[tuple[float, Any]], moment: float) -> Iterator[tuple[float, Any]]:
    """Frames from the one that is on the screen at `moment` on."""
    for (start, frame), (end, _) in pairwise(chain(frames, [(float("inf"), None)])):
        if end > moment + 1e-6:
            yield start, frame


def _from_first(moments: list[Fraction]) -> np.ndarray:
    ordered = np.sort(np.array([float(moment) for moment in moments]))
    return ordered - ordered[:1]


def _of_clock(n_frames: int, ticks: int, clock: Fraction) -> Fraction:
    """The rate of frames that take so many ticks together: the whole number that rounding makes such, if one does."""
    rate = n_frames * clock / ticks
    shortest, longest = (n_frames * clock / (ticks + Fraction(half, 2)) for half in (1, -1))
    return Fraction(round(rate)) if shortest <= round(rate) <= longest else rate


def _marked(stream: Any, flag: str) -> bool:
    return flag in (getattr(stream.disposition, "name", None) or "").split("|")
