"""Clips that play in a notebook, small."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from vdinterp.plotting._filmstrip import to_rgb
from vdinterp.plotting.moving import ACROSS, moving_clips

LONGEST_SIDE = 144  # pixels that a larger frame is reduced to
LARGEST = 1_000_000  # characters of one animation
MOST_FRAMES = 64


class Playing:
    """Clips side by side that play over and over: the last line of a notebook's cell shows them."""

    def __init__(self, clips: Mapping[str, np.ndarray], fps: float, note: str = "") -> None:
        self.clips, self.fps, self.note = dict(clips), fps, note

    def __repr__(self) -> str:
        n_frames, _, height, width = next(iter(self.clips.values())).shape
        return f"Playing({len(self.clips)} clips of {n_frames} frames of {height}x{width})"

    def _repr_html_(self) -> str:
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f'{note}<img src="{self.address()}" alt="{html.escape(repr(self))}"/>'

    def show(self) -> None:
        """Show them in the notebook."""
        from IPython.display import display

        display(self)

    def address(self) -> str:
        """A `data:` address of the animation, below 1 MB: clips are left out for that, and then every other frame."""
        clips, fps = self.clips, self.fps
        while len(address := moving_clips(clips, fps=fps)) > LARGEST:
            if len(clips) > 1:
                clips = dict(list(clips.items())[: (len(clips) + 1) // 2])
            elif len(next(iter(clips.values()))) > 2:
                clips, fps = {name: clip[::2] for name, clip in clips.items()}, fps / 2
            else:
                break
        return address


def play(clips: Any, *, fps: float | int = 4, n: int = ACROSS, note: str = "") -> Playing:
    """Plays clips in a notebook, pixels enlarged without smoothing.

    `clips`: video in [0, 1] (values outside are clamped), `[batch frame channel height width]` or one clip
    `[frame channel height width]`, with 1 or 3 channels; or several of one shape by name. Of each the first `n` clips
    and their first 64 frames are shown. Raises ValueError for another shape and for NaN.
    """
    if not fps > 0 or n < 1:
        raise ValueError(f"fps is above 0 and n at least 1, got fps={fps}, n={n}")
    named = clips if isinstance(clips, Mapping) else {"": clips}
    parts = {f"clip {i} {name}".strip(): clip for name, some in named.items() for i, clip in enumerate(_first(some, n))}
    shapes = {name: clip.shape for name, clip in parts.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"clips that play together have one shape; got {shapes or 'none'}")
    return Playing(parts, float(fps), note)


def playing_html(clips: Any, note: str) -> str:
    """What a notebook shows of clips: the note, and them playing, or why they do not."""
    try:
        return play(clips, note=note)._repr_html_()
    except ValueError as error:  # two channels, NaN: the cell is no place for a traceback
        return f"<p>{html.escape(note)}</p><p>not played: {html.escape(str(error))}</p>"


def _first(clips: Any, n: int) -> np.ndarray:
    """The first clips [clip frame channel height width] in [0, 1], small enough to show."""
    if hasattr(clips, "detach"):  # a tensor, wherever it is
        clips = clips.detach().float().cpu()
    shape: list[int] = list(getattr(clips, "shape", ()))
    if len(shape) not in (4, 5) or 0 in shape:
        raise ValueError(
            f"clips to play are [batch frame channel height width], or one clip without batch; got {shape}"
        )
    shown = np.asarray(clips, dtype=np.float32).reshape(-1, *shape[-4:])[:n, :MOST_FRAMES]
    scale = LONGEST_SIDE / max(shape[-2:])
    if scale >= 1:
        return shown
    size = (max(1, round(shape[-1] * scale)), max(1, round(shape[-2] * scale)))
    small = [[Image.fromarray(frame).resize(size) for frame in to_rgb(clip, "clip")] for clip in shown]
    return np.asarray([[np.asarray(frame) for frame in clip] for clip in small]).transpose(0, 1, 4, 2, 3) / 255
