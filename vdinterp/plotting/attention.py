"""Attention rows over frames, in a strip or with a slider: where a query token looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb

from vdinterp.plotting._filmstrip import enlarge, enlargement, jpeg_uri, strip_figure, to_rgb
from vdinterp.plotting.template import color_bar, finish

COLORSCALE = "Inferno"
QUERY_COLOR = (0, 200, 255)
LOWEST_WITH_SCALE = 230  # shown pixels of a figure that a colour scale and its title fit into
LARGEST_VIDEO, VIDEO_WIDTH = 420, 640  # shown pixels of a video with a slider


def attention_strip(
    frames: Any,
    weights: Mapping[str, Any],
    *,
    title: str,
    queries: Mapping[str, tuple[int, int, int]] | None = None,
    max_weight: float | None = None,
) -> go.Figure:
    """Attention of one query token a row over `frames` [frame channel height width] in [0, 1].

    `weights` maps a row's label to [frame row col], at least 0 (a softmax row laid out on the token grid; it need
    not sum to 1 if some keys are left out). Height and width are multiples of the rows and columns. All rows share
    one colour scale from 0 to `max_weight` (default: the largest weight shown), quantised to 8 bits and laid over
    the frames in grey: black-to-yellow hides what is under it in proportion to the weight. `queries` maps a label
    to its query token (frame, row, col), which is framed in blue.
    """
    rows, top = overlaid(frames, weights, queries=queries, max_weight=max_weight)
    figure = strip_figure(list(rows.values()), list(rows), title=title)
    layout: Any = figure.layout
    figure.update_layout(height=max(layout.height, LOWEST_WITH_SCALE))
    _add_scale(figure, top)
    return figure


def attention_video(
    frames: Any,
    weights: Any,
    *,
    title: str,
    query: tuple[int, int, int] | None = None,
    max_weight: float | None = None,
) -> go.Figure:
    """A clip under the attention of one query token, frame by frame: a slider chooses the frame.

    `frames` [frame channel height width] in [0, 1], `weights` [frame row col], `query` and `max_weight` as in
    `attention_strip`; the slider starts at the query's frame, if one is given.
    """
    queries = None if query is None else {"": query}
    rows, top = overlaid(frames, {"": weights}, queries=queries, max_weight=max_weight, shown=1)
    pictures, mass = rows[""], np.asarray(weights, dtype=np.float64).sum((1, 2))
    start = 0 if query is None else query[0]
    figure = go.Figure()
    for t, image in enumerate(pictures):
        figure.add_image(source=jpeg_uri(image), hoverinfo="skip", visible=t == start)
    height, width = pictures.shape[1:3]
    shown = int(min(LARGEST_VIDEO, VIDEO_WIDTH * height / width))
    finish(figure, title=title, x_title=None, y_title=None, height=shown + 170)
    blank = {"showgrid": False, "zeroline": False, "showline": False, "ticks": "", "showticklabels": False}
    figure.update_xaxes(**blank, constrain="domain", constraintoward="left", range=[-0.5, width - 0.5])
    figure.update_yaxes(**blank, constrain="domain", range=[height - 0.5, -0.5])
    _add_scale(figure, top)
    steps = [
        {"label": str(t), "method": "update", "args": [{"visible": [*(i == t for i in range(len(pictures))), True]}]}
        for t in range(len(pictures))
    ]
    for step, share in zip(steps, mass, strict=True):
        step["args"].append({"title.text": f"{title}<br><sup>{share:.2f} of the attention lies in this frame</sup>"})
    figure.update_layout(
        sliders=[{"active": start, "steps": steps, "currentvalue": {"prefix": "frame "}, "pad": {"t": 12}}],
        title_text=f"{title}<br><sup>{mass[start]:.2f} of the attention lies in this frame</sup>",
    )
    return figure


def overlaid(
    frames: Any,
    weights: Mapping[str, Any],
    *,
    queries: Mapping[str, tuple[int, int, int]] | None = None,
    max_weight: float | None = None,
    shown: int | None = None,
) -> tuple[dict[str, np.ndarray], float]:
    """Pictures uint8 [frame height width 3] of every set of weights over the frames, and the weight of full colour.

    Arguments as of `attention_strip`; `shown`: frames side by side, which decides how far pixels are enlarged.
    """
    pixels = to_rgb(frames, "frames")
    n_frames, height, width = pixels.shape[:3]
    arrays = {str(name): np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    if not arrays:
        raise ValueError("no attention row to show")
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[0] != n_frames or height % array.shape[1] or width % array.shape[2]:
            raise ValueError(
                f"weights {name!r} have shape {array.shape}; [frame row col] for {n_frames} frames of "
                f"{height} x {width} pixels is needed, rows and columns dividing the pixels"
            )
        if not np.isfinite(array).all() or (array < 0).any():
            raise ValueError(f"weights {name!r} are not all finite and at least 0: they are no attention weights")
    top = max(float(a.max()) for a in arrays.values()) if max_weight is None else float(max_weight)
    top = top if top > 0 else 1.0
    factor = enlargement(n_frames if shown is None else shown, height, width)
    grey = enlarge(pixels, factor).mean(axis=-1, keepdims=True)
    colors = sample_colorscale(COLORSCALE, [index / 255 for index in range(256)])
    palette = np.array([unlabel_rgb(color) for color in colors])
    rows = {}
    for name, array in arrays.items():
        level = np.rint(np.clip(array / top, 0, 1) * 255).astype(np.uint8)
        cell = (grey.shape[1] // level.shape[1], grey.shape[2] // level.shape[2])
        level = level.repeat(cell[0], axis=1).repeat(cell[1], axis=2)
        # A square root keeps weak attention visible; the floor keeps the frame readable where nothing is attended.
        alpha = (0.35 + 0.6 * np.sqrt(level / 255))[..., None]
        row = (alpha * palette[level] + (1 - alpha) * grey).round().clip(0, 255).astype(np.uint8)
        if queries and name in queries:
            _frame_token(row, queries[name], cell)
        rows[name] = row
    return rows, top


def _add_scale(figure: go.Figure, top: float) -> None:
    """The colour scale of the pictures, from 0 to `top`."""
    layout: Any = figure.layout
    bar = color_bar("attention weight", layout.height)
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"color": [0], "cmin": 0, "cmax": top, "colorscale": COLORSCALE, "showscale": True, "colorbar": bar},
        showlegend=False,
        hoverinfo="skip",
    )


def _frame_token(row: np.ndarray, token: tuple[int, int, int], cell: tuple[int, int]) -> None:
    """Draw the border of one token into `row` [frame height width 3], in place."""
    frame, token_row, token_col = token
    sizes = (row.shape[0], row.shape[1] // cell[0], row.shape[2] // cell[1])
    if not all(0 <= index < size for index, size in zip(token, sizes, strict=True)):
        raise ValueError(f"query token {token} (frame, row, col) lies outside the grid {sizes}")
    top, left = token_row * cell[0], token_col * cell[1]
    box = row[frame, top : top + cell[0], left : left + cell[1]]
    thick = max(1, min(cell) // 6)
    for edge in (box[:thick], box[-thick:], box[:, :thick], box[:, -thick:]):
        edge[...] = QUERY_COLOR
