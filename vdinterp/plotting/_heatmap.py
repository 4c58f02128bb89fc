"""Heatmaps: layer x head, layer x sublayer, any two labelled axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from vdinterp.plotting.template import DIVERGING, SEQUENTIAL, color_bar, finish
from vdinterp.words import wording

MOST_CELLS_WITH_TEXT = 240
COLORS = 33  # of a diverging scale, from which it is interpolated


def heatmap(
    values: Any,
    *,
    x: Sequence[str],
    y: Sequence[str],
    title: str,
    x_title: str,
    y_title: str,
    value_title: str,
    diverging: bool | None = None,
    zmin: float | None = None,
    zmax: float | None = None,
    number_format: str | None = None,
) -> go.Figure:
    """A heatmap of `values` [row column] (array-like) with `y` labels for rows, top first, and `x` for columns.

    NaN is drawn as an empty cell. `diverging` colours around 0 with symmetric limits, of which the part that occurs is
    shown; `None` decides it by whether both signs occur. `value_title` names the colour bar, with its unit. Numbers
    stand in the cells when they fit, with two digits that matter, or in `number_format`.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != (len(y), len(x)):
        raise ValueError(f"values have shape {values.shape}, the labels are for {(len(y), len(x))} (rows, columns)")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no finite value to draw")
    if diverging is None:
        diverging = bool(finite.min() < 0 < finite.max())
    ends: dict[str, Any] = {
        "zmin": float(finite.min()) if zmin is None else zmin,
        "zmax": float(finite.max()) if zmax is None else zmax,
        "colorscale": SEQUENTIAL,
    }
    if diverging:
        limit = max(abs(end) for end in (zmin, zmax) if end is not None) if (zmin, zmax) != (None, None) else None
        ends = diverging_ends(finite, limit)
    text = None
    if values.size <= MOST_CELLS_WITH_TEXT:
        text = [[number(value, number_format) for value in row] for row in values]
    height = int(np.clip(150 + 34 * len(y), 300, 1200))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[str(label) for label in x],
            y=[str(label) for label in y],
            **ends,
            text=text,
            texttemplate="%{text}" if text is not None else None,
            hovertemplate=f"{y_title} %{{y}}, {x_title} %{{x}}: %{{z:.4g}}<extra></extra>",
            xgap=1,
            ygap=1,
            hoverongaps=False,
            colorbar=color_bar(value_title, height),
        )
    )
    finish(figure, title=title, x_title=x_title, y_title=y_title, height=height)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return figure


def diverging_ends(values: np.ndarray, limit: float | None = None) -> dict[str, Any]:
    """`zmin zmax colorscale` of colours around 0 (white), full at `limit` (default: the largest size) on either side.

    Only the part between the smallest and the largest value, and 0, is shown: a colour that no value has would make
    the rest harder to tell apart. The same value has the same colour in all figures of one limit.
    """
    limit = (float(np.abs(values).max()) or 1.0) if limit is None else limit
    low, high = max(-limit, min(0.0, float(values.min()))), min(limit, max(0.0, float(values.max())))
    if low == high:
        low, high = -limit, limit
    shares = np.linspace(0, 1, COLORS)
    places = (low + shares * (high - low) + limit) / (2 * limit)
    colors = sample_colorscale(DIVERGING, [float(np.clip(place, 0, 1)) for place in places])
    return {
        "zmin": low,
        "zmax": high,
        "colorscale": [[float(at), color] for at, color in zip(shares, colors, strict=True)],
    }


def number(value: float, number_format: str | None) -> str:
    """A cell's text: nothing for NaN, and no minus sign before a zero."""
    if not np.isfinite(value):
        return ""
    if number_format is None and float(value).is_integer():
        return str(int(value))
    if number_format is None:
        return "0" if abs(value) < 5e-4 else wording.number(value, digits=2, decimals=3)
    shown = f"{value:{number_format}}"
    return shown.lstrip("-") if float(shown.rstrip("%")) == 0 else shown


def layer_head(values: Any, *, title: str, value_title: str, **options: Any) -> go.Figure:
    """`heatmap` of a score [layer head]. Other arguments as there."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"a layer x head score is [layer head], got shape {values.shape}")
    layers, heads = ([str(index) for index in range(size)] for size in values.shape)
    return heatmap(
        values, x=heads, y=layers, title=title, x_title="head", y_title="layer", value_title=value_title, **options
    )
