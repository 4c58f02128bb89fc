"""Video files in and out, through PyAV: mp4, webm, gif and whatever else FFmpeg reads, as a player shows them."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float

from vdinterp import store
from vdinterp.data.clips import Clips
from vdinterp.data.film import Film

log = logging.getLogger("vdinterp")
CODECS = {".mp4": ("libx264", {"crf": "16"}), ".webm": ("libvpx-vp9", {"crf": "16", "b": "0"}), ".gif": ("gif", {})}
GIF_TICKS = 2  # hundredths of a second for which players show a frame of a gif at least
LARGEST = 100_000  # of a count, a side or a rate: beyond it a number is a mistake


def read_video(
    path: str | Path,
    n_frames: int | None = None,
    size: tuple[int, int] | None = None,
    stride: int = 1,
    start: int = 0,
    channels: int = 3,
    fps: float | int | None = None,
) -> Float[torch.Tensor, "frame channel height width"]:
    """Frames of a video file, values in [0, 1].

    `n_frames` frames from frame `start` on, every `stride`-th (None: all that there are). `size` (height, width): the
    largest centred window of that aspect ratio, resampled with antialiasing. `channels` 1 averages the colours.
    `fps`: as many frames a second, each the one then on the screen, whatever the file's own rate (`start` and
    `stride` count these); None takes the file's frames one by one.

    Frames are as a player shows them: turned and mirrored as the container says, with square pixels, BT.601, BT.709,
    BT.2020, PQ and HLG colours as sRGB, transparent parts black; of several streams the film, not a preview or cover.
    Warns of damage with its counts, of a rate that varies (unless `fps` is given), of sizes that change.
    Raises FileNotFoundError if there is no such file, and ValueError for a folder, an empty file, a file without a
    video stream, one that cannot be decoded, and one with too few frames: the message says how many it has.
    """
    _check_request(n_frames, size, stride, start, channels, fps)
    with Film(path) as film:
        # Frames are fitted one by one: what is kept is small, however large the film.
        wanted = islice(_shown(film, start, stride, fps), n_frames)
        frames = _alike([_fit(film.picture(frame), size, channels) for frame in wanted], film.path)
        everything = n_frames is None and stride == 1 and start == 0 and fps is None
        film.warn_of_damage(len(frames) if everything else None)
        if not frames or (n_frames is not None and len(frames) < n_frames):
            raise ValueError(_too_short(film, n_frames, stride, start, fps))
        if fps is None:
            _warn_of_rate(film)
    return torch.stack(frames)


def read_clips(
    path: str | Path,
    n: int,
    n_frames: int,
    size: tuple[int, int],
    stride: int = 1,
    channels: int = 3,
    fps: float | int | None = None,
) -> Clips:
    """Up to `n` clips of `n_frames` frames from one file, as `Clips` of kind "file" without ground truth.

    The clips do not overlap and are spread evenly over the file; a file too short for `n` gives as many as it has
    (at least one, else ValueError as in `read_video`). What lies between them is jumped over, so a long film costs no
    more than a short one. `meta` says from which file they are, their rate (`fps`) and where they start (`seconds`).
    """
    _check_count("n", n, 1)
    _check_request(n_frames, size, stride, 0, channels, fps)
    with Film(path) as film:
        if film.n_frames is None or (fps is None and not film.steady and film.moments is None):
            film.scan()
        found = _clips_of(film, n, n_frames, size, stride, channels, fps)
        if found is None:  # fewer frames than the file promises: find out what is there
            film.scan()
            found = _clips_of(film, n, n_frames, size, stride, channels, fps)
        if found is None:
            raise ValueError(
                f"{path} has frames that cannot be read where a clip of {n_frames} should be; give fewer clips"
            )
        film.warn_of_damage()
        if fps is None:
            _warn_of_rate(film)
        videos, starts = found
        rate = float(film.rate) if fps is None else float(fps)
        meta = {
            "file": film.path.name,
            "fps": rate / stride,
            "seconds": [round(start * stride / rate, 3) for start in starts],
        }
    return Clips(kind="file", video=torch.stack(videos), meta=meta)


def _clips_of(
    film: Film, n: int, n_frames: int, size: tuple[int, int], stride: int, channels: int, fps: float | int | None
) -> tuple[list[torch.Tensor], list[int]] | None:
    """The clips and their first frames (counted with `stride` and `fps`); None where one comes out too short."""
    promised = film.n_frames or 0
    length = promised if fps is None else math.floor(promised / float(film.rate) * fps)
    length = math.ceil(length / stride)
    if length < n_frames:
        raise ValueError(
            f"{film.path} has {length} frames at stride {stride}{_at(fps)}, too few for one clip of {n_frames}; "
            "give a longer video or a smaller stride"
        )
    n = min(n, length // n_frames)
    spare = length - n * n_frames
    starts = [index * n_frames + spare * index // max(1, n - 1) for index in range(n)]
    videos = []
    for start in starts:
        frames = islice(_shown(film, start * stride, stride, fps), n_frames)
        clip = [_fit(film.picture(frame), size, channels) for frame in frames]
        if len(clip) < n_frames:
            return None
        videos.append(torch.stack(clip))
    return videos, starts


def _shown(film: Film, start: int, stride: int, fps: float | int | None) -> Iterator[Any]:
    """Every `stride`-th frame from frame `start` on, at the file's own rate or at `fps`."""
    if fps is not None:
        yield from _resampled(film, start / fps, stride / fps)
        return
    moment = film.moment_of(start) if start else 0.0
    if moment is None:
        frames = islice(film.frames(), start, None)
    else:  # a quarter of a frame later that frame is on the screen, however the clock is rounded
        frames = film.frames(moment + 0.25 / float(film.rate) if start else 0.0)
    yield from (frame for _, frame in islice(frames, 0, None, stride))


def _resampled(film: Film, first: float, step: float) -> Iterator[Any]:
    """The frames on the screen at `first`, `first + step`, .. until the film ends."""
    index, last, before = 0, None, 0.0
    for moment, frame in film.frames(first + film.clock):
        while last is not None and first + index * step + film.clock < moment:
            index += 1
            yield last
        before, last = moment, frame
    end = before + 1 / float(film.rate)
    while last is not None and first + index * step + film.clock < end:
        index += 1
        yield last


def _alike(frames: list[torch.Tensor], path: Path) -> list[torch.Tensor]:
    """All frames in the size of the first, saying so where a film changes its size."""
    others = [index for index, frame in enumerate(frames) if frame.shape != frames[0].shape]
    if not others:
        return frames
    warnings.warn(
        f"{path} changes its size: {len(others)} frames from frame {others[0]} on are brought to that of the first, "
        f"{list(frames[0].shape[1:])}",
        stacklevel=3,
    )
    size = (frames[0].shape[1], frames[0].shape[2])
    return [_resampled_to(frame, size) for frame in frames]


def _warn_of_rate(film: Film) -> None:
    if film.steady:
        return
    lengths = "" if film.moments is None else f" ({1000 * np.diff(film.moments).min():.0f} to "
    lengths += "" if film.moments is None else f"{1000 * np.diff(film.moments).max():.0f} ms a frame)"
    warnings.warn(
        f"{film.path} has a variable frame rate{lengths}: frames are taken one by one, so motion is uneven; "
        f"give fps={float(film.rate):.3g} to take them by time",
        stacklevel=3,
    )


def _too_short(film: Film, n_frames: int | None, stride: int, start: int, fps: float | int | None) -> str:
    found = sum(1 for _ in _shown(film, 0, 1, fps))
    if not found:
        return f"{film.path} cannot be read as video (not one frame can be decoded)"
    wanted = f"{n_frames} frames (every {stride}. from frame {start} on)" if n_frames else f"a frame {start}"
    return f"{film.path} has {found} frames{_at(fps)}, too few for {wanted}; give a longer video or a smaller stride"


def _at(fps: float | int | None) -> str:
    return "" if fps is None else f" at {fps:g} a second"


def write_video(
    path: str | Path,
    video: Float[torch.Tensor, "frame channel height width"],
    fps: float | int = 8,
    enlarge: int = 1,
) -> Path:
    """Write frames in [0, 1] (others are clamped), 1 or 3 channels, to an .mp4 (H.264), .webm (VP9) or .gif file.

    `enlarge` makes a square of pixels of each pixel. Codecs need even sizes: an odd one gets its last row or column
    twice. A .gif keeps its size, repeats for ever, and has 50 frames a second at most; a warning is logged where `fps`
    is more. Raises ValueError for another ending or shape and for values that are not finite, before anything is
    written.
    """
    if isinstance(path, torch.Tensor):
        raise ValueError("write_video takes the path first: write_video('clip.mp4', video)")
    path = store.as_path(path)
    if path.suffix.lower() not in CODECS:
        raise ValueError(
            f"cannot write {path}: the name must end in {', '.join(list(CODECS)[:-1])} or {list(CODECS)[-1]}"
        )
    if not isinstance(video, torch.Tensor):
        raise ValueError(f"a video is a tensor [frame channel height width], got {type(video).__name__}")
    if video.ndim != 4 or video.shape[1] not in (1, 3) or 0 in video.shape:
        raise ValueError(f"a video is [frame channel height width] with 1 or 3 channels, got {tuple(video.shape)}")
    if not isinstance(fps, Real) or isinstance(fps, bool) or not 0 < fps <= 1000:
        raise ValueError(f"fps is the number of frames a second, up to 1000, got {fps!r}")
    _check_count("enlarge", enlarge, 1)
    if not video.isfinite().all():
        bad = (~video.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"frames {bad[:5]} of the video hold values that are not finite (NaN or infinite)")
    pixels = (video.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    images = rearrange(pixels, "frame channel height width -> frame height width channel").numpy()
    encode = _write_gif if path.suffix.lower() == ".gif" else _write_film
    return store.write(path, lambda unfinished: encode(unfinished, images, fps))


def _write_film(path: Path, images: np.ndarray, fps: float | int) -> None:
    import av

    even = ((0, 0), (0, images.shape[1] % 2), (0, images.shape[2] % 2), (0, 0))
    images = np.pad(images, even, mode="edge")
    codec, options = CODECS[path.suffix.lower()]
    with av.open(f"file:{path}", "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, images: np.ndarray, fps: float | int) -> None:
    import av
    from PIL import Image

    # A gif's clock ticks a hundred times a second: rounding the moments keeps the rate right on average.
    moments = [round(100 * index / fps) for index in range(len(images) + 1)]
    delays = [max(GIF_TICKS, after - before) for before, after in pairwise(moments)]
    if fps > 100 / GIF_TICKS:
        log.warning("a gif has %d frames a second at most: it is written so, not with %g", 100 // GIF_TICKS, fps)
    options = {"loop": "0", "final_delay": str(delays[-1])}
    with av.open(f"file:{path}", "w", options=options) as container:  # Pillow would drop frames that repeat
        stream: Any = container.add_stream("gif", rate=100)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "pal8"
        for image, moment in zip(images, np.cumsum([0, *delays[:-1]]), strict=True):
            quantized = Image.fromarray(image).quantize(256, dither=Image.Dither.NONE)
            colours = np.array(quantized.getpalette(), np.uint8).reshape(-1, 3)
            palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
            palette[: len(colours), 1:] = colours
            frame = av.VideoFrame.from_ndarray((np.asarray(quantized), palette), format="pal8")  # type: ignore[arg-type]
            frame.pts, frame.time_base = int(moment), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= LARGEST:
        raise ValueError(f"{name} is a whole number from {least} to {LARGEST}, got {value!r}")


def _check_request(
    n_frames: int | None, size: tuple[int, int] | None, stride: int, start: int, channels: int, fps: float | int | None
) -> None:
    if n_frames is not None:
        _check_count("n_frames", n_frames, 1)
    _check_count("stride", stride, 1)
    if not isinstance(start, Integral) or isinstance(start, bool) or start < 0:
        raise ValueError(f"start is a whole number, 0 or more, got {start!r}")
    if size is not None:
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise ValueError(f"size is (height, width) in pixels, got {size!r}")
        for side in size:
            _check_count("size is (height, width) in pixels: each", side, 1)
    if isinstance(channels, bool) or channels not in (1, 3):
        raise ValueError(f"channels is 1 (grey) or 3 (red, green, blue), got {channels!r}")
    if fps is not None and (not isinstance(fps, Real) or isinstance(fps, bool) or not 0 < fps <= 1000):
        raise ValueError(f"fps is the number of frames a second, up to 1000 (None: the file's own), got {fps!r}")


def _fit(pixels: np.ndarray, size: tuple[int, int] | None, channels: int) -> torch.Tensor:
    """One frame [height width channel] uint8 -> [channel height width] in [0, 1], cropped and resampled to `size`."""
    frame = rearrange(torch.from_numpy(pixels), "height width channel -> channel height width").float() / 255
    if size is not None and tuple(frame.shape[1:]) != tuple(size):
        height, width = frame.shape[1:]
        scale = min(height / size[0], width / size[1])
        crop_height, crop_width = (max(1, round(side * scale)) for side in size)
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        frame = _resampled_to(frame[:, top : top + crop_height, left : left + crop_width], (size[0], size[1]))
    return frame.mean(dim=0, keepdim=True) if channels == 1 else frame


def _resampled_to(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    resampled = F.interpolate(frame[None], size=tuple(size), mode="bilinear", antialias=True, align_corners=False)[0]
    return resampled.clamp(0, 1)
