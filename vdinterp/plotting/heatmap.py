"""Heatmaps: layer x head, layer x sublayer, any two labelled axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from vdinterp.plotting.template import DIVERGING, SEQUENTIAL, color_bar, finish

MOST_CELLS_WITH_TEXT = 240


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
    number_format: str = ".2g",
) -> go.Figure:
    """A heatmap of `values` [row column] (array-like) with `y` labels for rows, top first, and `x` for columns.

    NaN is drawn as an empty cell. `diverging` colours around 0 with symmetric limits; `None` decides it by whether
    both signs occur. `value_title` names the colour bar, with its unit. Numbers stand in the cells when they fit.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != (len(y), len(x)):
        raise ValueError(f"values have shape {values.shape}, the labels are for {(len(y), len(x))} (rows, columns)")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no finite value to draw")
    if diverging is None:
        diverging = bool(finite.min() < 0 < finite.max())
    limit = float(np.abs(finite).max()) or 1.0
    low, high = (-limit, limit) if diverging else (float(finite.min()), float(finite.max()))
    text = None
    if values.size <= MOST_CELLS_WITH_TEXT:
        text = [[number(value, number_format) for value in row] for row in values]
    height = int(np.clip(150 + 34 * len(y), 300, 1200))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[str(label) for label in x],
            y=[str(label) for label in y],
            zmin=low if zmin is None else zmin,
            zmax=high if zmax is None else zmax,
            colorscale=DIVERGING if diverging else SEQUENTIAL,
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


def number(value: float, number_format: str) -> str:
    """A cell's text: nothing for NaN, and no minus sign before a zero."""
    if not np.isfinite(value):
        return ""
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
