"""Many small matrices in one figure: a pattern, kernel or frame-to-frame matrix for every layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from vdinterp.plotting._heatmap import diverging_ends
from vdinterp.plotting.template import SEQUENTIAL, color_bar, finish

GAP = 0.12  # of a tile's longer side, between tiles
TILE = 240  # shown pixels of a tile's longer side at most
WIDTH, HEIGHT = 860, 700  # shown pixels of all tiles, which they fill


def tiles(
    values: Any,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x_title: str,
    y_title: str,
    value_title: str,
    cell_x: Sequence[Any] | None = None,
    cell_y: Sequence[Any] | None = None,
    cell_names: tuple[str, str] = ("row", "column"),
    marks: Any = None,
    diverging: bool = False,
    zmax: float | None = None,
) -> go.Figure:
    """Matrices `values` `[tile_row tile_column y x]` (array-like) as tiles on one colour scale from 0 (or around 0).

    `rows`, `columns` label the tiles; `cell_y`, `cell_x` are what a tile's own rows and columns mean, for hovering, and
    `cell_names` what to call them. `marks` (boolean, shape of `values` or broadcastable) frames single cells. NaN is
    drawn empty.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 4 or values.shape[:2] != (len(rows), len(columns)):
        wanted = f"[tile row, tile column, y, x] with {len(rows)} and {len(columns)} labels"
        raise ValueError(f"values have shape {values.shape}; {wanted} is needed")
    if not np.isfinite(values).any():
        raise ValueError("no finite value to draw")
    n_rows, n_columns, height, width = values.shape
    cell_y = range(height) if cell_y is None else cell_y
    cell_x = range(width) if cell_x is None else cell_x
    if (len(cell_y), len(cell_x)) != (height, width):
        raise ValueError(f"{len(cell_y)} x {len(cell_x)} names for the {height} x {width} cells of a tile")
    gap = max(1, round(GAP * max(height, width)))
    step_y, step_x = height + gap, width + gap
    canvas = np.full((n_rows * step_y - gap, n_columns * step_x - gap), np.nan)
    hover = np.full(canvas.shape, "", dtype=object)
    for i in range(n_rows):
        for j in range(n_columns):
            at = slice(i * step_y, i * step_y + height), slice(j * step_x, j * step_x + width)
            canvas[at] = values[i, j]
            hover[at] = [
                [f"{rows[i]}, {columns[j]}<br>{cell_names[0]} {y}, {cell_names[1]} {x}" for x in cell_x] for y in cell_y
            ]
    top = float(np.nanmax(np.abs(values))) or 1.0 if zmax is None else zmax
    ends: dict[str, Any] = {"zmin": 0.0, "zmax": top, "colorscale": SEQUENTIAL}
    if diverging:
        ends = diverging_ends(values[np.isfinite(values)], top)
    scale = min(TILE / max(height, width), WIDTH / canvas.shape[1], HEIGHT / canvas.shape[0])
    shown = int(canvas.shape[0] * scale)
    height_of_figure = max(220, shown + 130)
    right = min(1.0, canvas.shape[1] * scale / WIDTH)  # of the figure's width: the colour bar stands beside the tiles
    bar = color_bar(value_title, height_of_figure) | {
        "x": right,
        "xpad": 12,
        "lenmode": "pixels",
        "y": 1,
        "yanchor": "top",
    }
    bar["len"] = max(120, shown)
    figure = go.Figure(
        go.Heatmap(
            z=canvas,
            text=hover,
            hovertemplate="%{text}: %{z:.3g}<extra></extra>",
            hoverongaps=False,
            **ends,
            colorbar=bar,
        )
    )
    finish(figure, title=title, x_title=x_title, y_title=y_title, height=height_of_figure)
    plain = {"showgrid": False, "zeroline": False, "showline": False, "ticks": "", "constrain": "domain"}
    figure.update_xaxes(
        **plain,
        tickvals=[j * step_x + (width - 1) / 2 for j in range(n_columns)],
        ticktext=[str(label) for label in columns],
        range=[-0.5, canvas.shape[1] - 0.5],
        domain=[0, right],
        constraintoward="right",
    )
    figure.update_yaxes(
        **plain,
        tickvals=[i * step_y + (height - 1) / 2 for i in range(n_rows)],
        ticktext=[str(label) for label in rows],
        range=[canvas.shape[0] - 0.5, -0.5],
        scaleanchor="x",
        constraintoward="top",
    )
    for i in range(n_rows):
        for j in range(n_columns):
            x0, y0 = j * step_x - 0.5, i * step_y - 0.5
            _box(figure, x0, y0, x0 + width, y0 + height, "#9aa0ad", 0.8)
    if marks is not None:
        for i, j, y, x in np.argwhere(np.broadcast_to(np.asarray(marks, dtype=bool), values.shape)):
            x0, y0 = j * step_x + x - 0.5, i * step_y + y - 0.5
            _box(figure, x0, y0, x0 + 1, y0 + 1, "#D55E00", 1.6)
    return figure


def _box(figure: go.Figure, x0: float, y0: float, x1: float, y1: float, color: str, width: float) -> None:
    figure.add_shape(type="rect", x0=x0, y0=y0, x1=x1, y1=y1, line={"color": color, "width": width})
