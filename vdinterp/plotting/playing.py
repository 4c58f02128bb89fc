"""Clips that play where they are shown, small."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vdinterp.plotting.filmstrip import GAP, enlarge, to_rgb

LONGEST_SIDE = 144  # pixels that a frame is enlarged to, or reduced to
LARGEST = 1_000_000  # bytes of one animation
MOST_FRAMES = 64
MOST_CLIPS = 6


class Playing:
    """Clips side by side that play over and over: the last line of a notebook's cell shows them."""

    def __init__(self, rows: Mapping[str, np.ndarray], fps: float, note: str = "") -> None:
        self.rows, self.fps, self.note = dict(rows), fps, note

    def __repr__(self) -> str:
        n_clips, n_frames, height, width = next(iter(self.rows.values())).shape[:4]
        return f"Playing({n_clips} clips of {n_frames} frames of {height}x{width}, rows {list(self.rows)})"

    def _repr_html_(self) -> str:
        animation, width, height = self.animation()
        address = "data:image/webp;base64," + base64.b64encode(animation).decode("ascii")
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        names = "; ".join(name for name in self.rows if name)
        label = f"<p>{'Rows' if len(self.rows) > 1 else 'Row'}: {html.escape(names)}</p>" if names else ""
        shown = f'<img src="{address}" width="{width}" height="{height}" alt="{html.escape(repr(self))}"/>'
        return f"{note}{label}{shown}"

    def show(self) -> None:
        """Show it in the notebook."""
        from IPython.display import display

        display(self)

    def animation(self) -> tuple[bytes, int, int]:
        """An animated WebP of at most 1 MB, its width and height: clips are left out, then every other frame."""
        rows, seconds = self.rows, 1 / self.fps
        while True:
            frames = _canvas(rows)
            packed = _webp(frames, seconds, lossless=max(_frame(rows)) <= LONGEST_SIDE // 2)
            n_clips, n_frames = next(iter(rows.values())).shape[:2]
            if len(packed) <= LARGEST or (n_clips == 1 and n_frames <= 2):
                return packed, frames.shape[2], frames.shape[1]
            if n_clips > 1:
                rows = {name: clips[: (n_clips + 1) // 2] for name, clips in rows.items()}
            else:
                rows, seconds = {name: clips[:, ::2] for name, clips in rows.items()}, 2 * seconds


def play(clips: Any, *, fps: float = 4, n: int = MOST_CLIPS, note: str = "") -> Playing:
    """Plays clips in a notebook, pixels enlarged without smoothing.

    `clips`: video in [0, 1] (values outside are clamped), `[batch frame channel height width]` or one clip
    `[frame channel height width]`, with 1 or 3 channels; or several of one shape by name, one row each. The first `n`
    clips and the first 64 frames are shown. Raises ValueError for another shape and for NaN.
    """
    if not fps > 0 or n < 1:
        raise ValueError(f"fps is above 0 and n at least 1, got fps={fps}, n={n}")
    named = clips if isinstance(clips, Mapping) else {"": clips}
    if not named:
        raise ValueError("no clip to play")
    rows = {str(name): _rgb_clips(clip, str(name), n) for name, clip in named.items()}
    shapes = {name: row.shape for name, row in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"clips that play together have one shape; got {shapes}")
    return Playing(rows, fps, note)


def _rgb_clips(clips: Any, name: str, n: int) -> np.ndarray:
    """uint8 [clip frame height width 3] of the first clips and frames."""
    if hasattr(clips, "detach"):  # a tensor, wherever it is
        clips = clips.detach().float().cpu()
    shape = tuple(getattr(clips, "shape", ()))
    if len(shape) == 4:
        clips = clips[None]
    elif len(shape) != 5 or 0 in shape:
        raise ValueError(f"{name or 'video'!r} has shape {shape}; clips are [batch frame channel height width], "
                         "or one clip [frame channel height width]")  # fmt: skip
    return np.stack([to_rgb(clip[:MOST_FRAMES], name or "video") for clip in clips[:n]])


def _frame(rows: Mapping[str, np.ndarray]) -> Sequence[int]:
    return next(iter(rows.values())).shape[2:4]


def _canvas(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint8 [frame height width 3]: the clips of a row side by side, rows under one another."""
    height, width = _frame(rows)
    factor = max(1, LONGEST_SIDE // max(height, width))
    n_clips, n_frames = next(iter(rows.values())).shape[:2]
    if max(height, width) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rows = {name: _reduced(clips, size) for name, clips in rows.items()}
    height, width = (side * factor for side in _frame(rows))
    canvas = np.full((n_frames, len(rows) * (height + GAP) - GAP, n_clips * (width + GAP) - GAP, 3), 255, np.uint8)
    for row, clips in enumerate(rows.values()):
        for column, clip in enumerate(clips):
            top, left = row * (height + GAP), column * (width + GAP)
            canvas[:, top : top + height, left : left + width] = enlarge(clip, factor)
    return canvas


def _reduced(clips: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([[np.asarray(Image.fromarray(frame).resize(size)) for frame in clip] for clip in clips])


def _webp(frames: np.ndarray, seconds: float, *, lossless: bool) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer, "WEBP", save_all=True, append_images=others, duration=max(20, round(1000 * seconds)), loop=0,
        lossless=lossless, quality=70,
    )  # fmt: skip
    return buffer.getvalue()
