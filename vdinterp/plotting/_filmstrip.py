"""Filmstrips: clips side by side, one row a clip, one column a frame; and the image canvas under them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from vdinterp.plotting.template import INK, finish

GAP = 6  # pixels of the canvas between two frames
BOXED = "#D55E00"
SHOWN_WIDTH = 980  # pixels a browser gives the figure in a report, labels and all
LABEL_WIDTH = 7.2  # pixels of one character of a row's label
LARGEST_FRAME = 120  # shown pixels of a frame's longer side


def jpeg_uri(image: Any, quality: int = 88) -> str:
    """A `data:` address of `image` [height width 3] uint8 as JPEG without chroma subsampling (it smears pixel art)."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, dtype=np.uint8)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def to_rgb(clip: Any, name: str) -> np.ndarray:
    """`clip` [frame channel height width] in [0, 1], 1 or 3 channels -> uint8 [frame height width 3].

    Values outside are clamped. Raises ValueError for another shape, channel count or NaN, naming the row `name`.
    """
    clip = np.asarray(clip, dtype=np.float32)
    if clip.ndim != 4 or clip.shape[1] not in (1, 3) or 0 in clip.shape:
        raise ValueError(f"{name!r} has shape {clip.shape}; a clip is [frame channel height width], 1 or 3 channels")
    if not np.isfinite(clip).all():
        raise ValueError(f"{name!r} holds NaN or infinite pixels")
    pixels = (clip.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    """Nearest-neighbour enlargement of `frames` [frame height width ...]: a pixel becomes a square of pixels."""
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def enlargement(n_frames: int, height: int, width: int) -> int:
    """How many times to enlarge a frame so that a strip is sharp at its shown size and stays small as a file."""
    wanted = -(-LARGEST_FRAME // max(height, width))
    return max(1, min(wanted, 2400 // (n_frames * width)))


def strip_figure(
    rows: Sequence[np.ndarray],
    labels: Sequence[str],
    *,
    title: str,
    frame_labels: Sequence[str] | None = None,
    n_context: int = 0,
    x_title: str = "frame",
    largest: int = LARGEST_FRAME,
) -> go.Figure:
    """A figure of uint8 `rows`, each [frame height width 3] with one shape, labelled; see `filmstrip`. `largest`: shown
    pixels of a frame's longer side."""
    n_frames, height, width = rows[0].shape[:3]
    canvas = np.full((len(rows) * (height + GAP) - GAP, n_frames * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, row in enumerate(rows):
        top = index * (height + GAP)
        for frame in range(n_frames):
            left = frame * (width + GAP)
            canvas[top : top + height, left : left + width] = row[frame]
    names = [str(frame) for frame in range(n_frames)] if frame_labels is None else [str(f) for f in frame_labels]
    figure = go.Figure(go.Image(source=jpeg_uri(canvas), hoverinfo="skip"))
    step = -(-n_frames // 32)
    figure.update_xaxes(
        tickvals=[frame * (width + GAP) + width / 2 for frame in range(0, n_frames, step)],
        ticktext=names[::step],
    )
    figure.update_yaxes(tickvals=[i * (height + GAP) + height / 2 for i in range(len(rows))], ticktext=list(labels))
    if n_context:
        edge = n_context * (width + GAP) - GAP / 2
        figure.add_vline(x=edge - 0.5, line={"color": INK, "width": 2, "dash": "dot"})
        figure.add_annotation(
            x=edge, y=1, yref="paper", yanchor="bottom", xanchor="right", text="context ", showarrow=False, font_size=12
        )
        figure.add_annotation(
            x=edge, y=1, yref="paper", yanchor="bottom", xanchor="left", text=" target", showarrow=False, font_size=12
        )
    room = max(300.0, SHOWN_WIDTH - 60 - LABEL_WIDTH * max(map(len, labels)))
    # The aspect ratio is fixed, so the height must follow from the width that the labels leave.
    scale = min(room / canvas.shape[1], largest / max(height, width))
    finish(figure, title=title, x_title=x_title, y_title=None)
    layout: Any = figure.layout
    margin = layout.margin.t + (14 if n_context else 0)
    figure.update_layout(height=int(canvas.shape[0] * scale + margin + 64), margin={"t": margin, "b": 56, "l": 20})
    blank = {"showgrid": False, "zeroline": False, "showline": False, "ticks": "", "constrain": "domain"}
    figure.update_xaxes(**blank, range=[-0.5, canvas.shape[1] - 0.5], constraintoward="left")
    figure.update_yaxes(**blank, range=[canvas.shape[0] - 0.5, -0.5], constraintoward="top", ticklabelstandoff=8)
    return figure


def filmstrip(
    clips: Mapping[str, Any],
    *,
    title: str,
    n_context: int = 0,
    frame_labels: Sequence[str] | None = None,
    upscale: int | None = None,
    x_title: str = "frame",
    boxed: Mapping[str, Sequence[int]] | None = None,
) -> go.Figure:
    """Clips under one another, one row each, labelled with the mapping's keys, frame by frame.

    A clip is [frame channel height width] in [0, 1] with 1 or 3 channels; all have one size. `n_context` marks the
    first frames as given. Pixels are enlarged without smoothing, `upscale` times or to about 120 pixels a frame.
    `boxed` puts a box around some frames of a row, by the row's label.
    """
    if not clips:
        raise ValueError("no clip to show")
    rows = {str(name): to_rgb(clip, str(name)) for name, clip in clips.items()}
    shapes = {name: row.shape[:3] for name, row in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"clips of one filmstrip have one size (frame, height, width); got {shapes}")
    n_frames, height, width = next(iter(shapes.values()))
    if not 0 <= n_context <= n_frames:
        raise ValueError(f"n_context is {n_context}, the clips have {n_frames} frames")
    if frame_labels is not None and len(frame_labels) != n_frames:
        raise ValueError(f"{len(frame_labels)} frame labels for {n_frames} frames")
    factor = enlargement(n_frames, height, width) if upscale is None else upscale
    figure = strip_figure(
        [enlarge(row, factor) for row in rows.values()],
        list(rows),
        title=title,
        frame_labels=frame_labels,
        n_context=0 if n_context == n_frames else n_context,
        x_title=x_title,
    )
    for name, frames in (boxed or {}).items():
        top = list(rows).index(name) * (height * factor + GAP)
        for frame in frames:
            left = frame * (width * factor + GAP)
            x0, y0 = left - 0.5, top - 0.5
            box = {"x0": x0, "y0": y0, "x1": x0 + width * factor, "y1": y0 + height * factor}
            figure.add_shape(type="rect", **box, line={"color": BOXED, "width": 2.5})
    return figure
