"""Video files in and out, through PyAV: mp4, webm, gif and whatever else FFmpeg reads."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float

from vdinterp.data.clips import Clips

CODECS = {".mp4": ("libx264", {"crf": "16"}), ".webm": ("libvpx-vp9", {"crf": "16", "b": "0"})}


def read_video(
    path: str | Path,
    n_frames: int | None = None,
    size: tuple[int, int] | None = None,
    stride: int = 1,
    start: int = 0,
    channels: int = 3,
) -> Float[torch.Tensor, "frame channel height width"]:
    """Frames of a video file, values in [0, 1].

    `n_frames` frames from frame `start` on, every `stride`-th (None: all that there are). `size` (height, width): the
    largest centred window of that aspect ratio, resampled with antialiasing. `channels` 1 averages the colours.

    Raises FileNotFoundError if there is no such file, and ValueError for a folder, an empty file, a file without a
    video stream, one that cannot be decoded, and one with too few frames: the message says how many it has.
    """
    path = Path(path)
    _check_request(n_frames, size, stride, start, channels)
    frames = []
    last = None if n_frames is None else start + stride * (n_frames - 1)
    found = 0
    for index, pixels in enumerate(_decode(path)):
        found = index + 1
        if index >= start and (index - start) % stride == 0:
            frames.append(_fit(pixels, size, channels))
        if index == last:
            break
    if not frames or (n_frames is not None and len(frames) < n_frames):
        wanted = f"{n_frames} frames (every {stride}. from frame {start} on)" if n_frames else f"a frame {start}"
        raise ValueError(f"{path} has {found} frames, too few for {wanted}; give a longer video or a smaller stride")
    return torch.stack(frames)


def read_clips(
    path: str | Path, n: int, n_frames: int, size: tuple[int, int], stride: int = 1, channels: int = 3
) -> Clips:
    """Up to `n` clips of `n_frames` frames from one file, as `Clips` of kind "file" without ground truth.

    The clips do not overlap and are spread evenly over the file; a file too short for `n` gives as many as it has
    (at least one, else ValueError as in `read_video`).
    """
    if n < 1:
        raise ValueError(f"need at least one clip, got n={n}")
    _check_request(n_frames, size, stride, 0, channels)
    everything = read_video(path, None, size, stride, 0, channels)
    fitting = len(everything) // n_frames
    if fitting < 1:
        raise ValueError(
            f"{path} has {len(everything)} frames at stride {stride}, too few for one clip of {n_frames}; "
            "give a longer video or a smaller stride"
        )
    n = min(n, fitting)
    spare = len(everything) - n * n_frames
    starts = [index * n_frames + spare * index // max(1, n - 1) for index in range(n)]
    return Clips(kind="file", video=torch.stack([everything[first : first + n_frames] for first in starts]))


def write_video(
    path: str | Path,
    video: Float[torch.Tensor, "frame channel height width"],
    fps: int = 8,
    enlarge: int = 1,
) -> Path:
    """Write frames in [0, 1] (others are clamped), 1 or 3 channels, to an .mp4 (H.264) or .webm (VP9) file.

    `enlarge` makes a square of pixels of each pixel. Codecs need even sizes: an odd one gets its last row or column
    twice. Raises ValueError for another ending or shape, before anything is written.
    """
    import av

    if not isinstance(path, (str, Path)) or not isinstance(video, torch.Tensor):
        given = f"{type(path).__name__} and {type(video).__name__}"
        raise ValueError(f"write_video takes a path and then a video, got {given}; for example ('clip.mp4', video)")
    path = Path(path)
    if path.suffix.lower() not in CODECS:
        raise ValueError(f"cannot write {path}: the name must end in {' or '.join(CODECS)}")
    if video.ndim != 4 or video.shape[1] not in (1, 3) or 0 in video.shape:
        raise ValueError(f"a video is [frame channel height width] with 1 or 3 channels, got {tuple(video.shape)}")
    if fps < 1 or enlarge < 1:
        raise ValueError(f"fps and enlarge are at least 1, got fps={fps}, enlarge={enlarge}")
    pixels = (video.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    if pixels.shape[2] % 2:
        pixels = torch.cat([pixels, pixels[:, :, -1:]], dim=2)
    if pixels.shape[3] % 2:
        pixels = torch.cat([pixels, pixels[:, :, :, -1:]], dim=3)
    codec, options = CODECS[path.suffix.lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = pixels.shape[2], pixels.shape[3], "yuv420p"
        for image in rearrange(pixels, "frame channel height width -> frame height width channel").numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def _check_request(n_frames: int | None, size: tuple[int, int] | None, stride: int, start: int, channels: int) -> None:
    if n_frames is not None and n_frames < 1:
        raise ValueError(f"n_frames is at least 1 (None: all frames), got {n_frames}")
    if stride < 1 or start < 0:
        raise ValueError(f"stride is at least 1 and start at least 0, got stride={stride}, start={start}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size is (height, width) in pixels, got {size!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels is 1 (grey) or 3 (red, green, blue), got {channels}")


def _decode(path: Path) -> Iterator[torch.Tensor]:
    """Frames [height width channel] uint8, one at a time."""
    import av
    import av.error

    readable = "an mp4, webm or gif file, or another that FFmpeg reads"
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; give {readable}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give {readable}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); give {readable}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
                raise ValueError(f"{path} has no video in it, only {', '.join(kinds)}; give {readable}")
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24"))
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as video ({error.strerror}); give {readable}") from error


def _fit(pixels: torch.Tensor, size: tuple[int, int] | None, channels: int) -> torch.Tensor:
    """One frame [height width channel] uint8 -> [channel height width] in [0, 1], cropped and resampled to `size`."""
    frame = rearrange(pixels, "height width channel -> channel height width").float() / 255
    if size is not None and tuple(frame.shape[1:]) != tuple(size):
        height, width = frame.shape[1:]
        scale = min(height / size[0], width / size[1])
        crop_height, crop_width = (max(1, round(side * scale)) for side in size)
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        frame = frame[:, top : top + crop_height, left : left + crop_width]
        frame = F.interpolate(frame[None], size=tuple(size), mode="bilinear", antialias=True, align_corners=False)[0]
        frame = frame.clamp(0, 1)
    return frame.mean(dim=0, keepdim=True) if channels == 1 else frame
