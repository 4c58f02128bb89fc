"""Points: one quantity against another."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vdinterp.plotting.template import INK, PALETTE, finish, need_columns

ALL_NAMED, MOST_NAMED = 20, 12  # points up to which all have their name written, and how many of more


def scatter(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    x_title: str,
    y_title: str,
    label: str | None = None,
    diagonal: bool = False,
) -> go.Figure:
    """Column `y` over column `x`, a point a row; `label` is a column of names, which stand beside the points that lie
    furthest out and show on hovering for all. `diagonal` draws the line on which both are equal."""
    need_columns(table, {"x": x, "y": y, "label": label})
    figure = go.Figure()
    if diagonal:
        both = [float(min(table[x].min(), table[y].min())), float(max(table[x].max(), table[y].max()))]
        figure.add_scatter(
            x=both, y=both, mode="lines", line={"dash": "dash", "color": INK, "width": 1.2}, hoverinfo="skip",
            name="equal",
        )  # fmt: skip
    names = None if label is None else table[label].astype(str)
    shown = None if names is None else [
        name if out else "" for name, out in zip(names, _outermost(table[x], table[y]), strict=True)
    ]  # fmt: skip
    figure.add_scatter(
        x=table[x], y=table[y], mode="markers" if shown is None else "markers+text", text=shown,
        textposition="top center", textfont={"size": 11, "color": INK}, cliponaxis=False,
        marker={"color": PALETTE[0], "size": 8, "opacity": 0.8}, showlegend=False, customdata=names,
        hovertemplate=("%{customdata}<br>" if label is not None else "") + "%{x:.3g}, %{y:.3g}<extra></extra>",
    )  # fmt: skip
    return finish(figure, title=title, x_title=x_title, y_title=y_title, height=440)


def _outermost(x: pd.Series, y: pd.Series) -> np.ndarray:
    """Which points get a name: all of a few; of many those furthest from the middle, in units of the spread."""
    if len(x) <= ALL_NAMED:
        return np.ones(len(x), bool)
    away = np.zeros(len(x))
    for values in (x.to_numpy(float), y.to_numpy(float)):
        away += ((values - np.nanmedian(values)) / (np.nanstd(values) or 1.0)) ** 2
    named = np.zeros(len(x), bool)
    named[np.argsort(-np.nan_to_num(away), kind="stable")[:MOST_NAMED]] = True
    return named
