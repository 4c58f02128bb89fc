"""Points: one quantity against another."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vdinterp.plotting.template import INK, PALETTE, finish, need_columns

MOST_NAMED = 24  # points that have their name written
ROOM = np.array([0.04, 0.06])  # of the figure's width and height that a name takes
POINTS = {"color": PALETTE[0], "size": 8, "opacity": 0.8}
NAMES = {"textposition": "top center", "textfont": {"size": 11, "color": INK}, "cliponaxis": False}


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
        line = {"dash": "dash", "color": INK, "width": 1.2}
        figure.add_scatter(x=both, y=both, mode="lines", line=line, hoverinfo="skip", name="equal")
    names = None if label is None else table[label].astype(str)
    shown = None if names is None else list(names.where(_outermost(table[x], table[y]), ""))
    figure.add_scatter(
        x=table[x],
        y=table[y],
        **NAMES,
        marker=POINTS,
        showlegend=False,
        mode="markers" if shown is None else "markers+text",
        text=shown,
        customdata=names,
        hovertemplate=("%{customdata}<br>" if label is not None else "") + "%{x:.3g}, %{y:.3g}<extra></extra>",
    )
    return finish(figure, title=title, x_title=x_title, y_title=y_title, height=440)


def _outermost(x: pd.Series, y: pd.Series) -> np.ndarray:
    """Which points get a name: those furthest from the middle, in units of the spread, that are not so close to another
    one with a name that the two could not be read."""
    points = np.stack([x.to_numpy(float), y.to_numpy(float)], 1)
    width = np.nanmax(points, 0) - np.nanmin(points, 0)
    spread = np.nanstd(points, 0)
    away = np.nansum(np.square((points - np.nanmedian(points, 0)) / np.where(spread > 0, spread, 1)), 1)
    places = points / np.where(width > 0, width, 1)
    chosen: list[int] = []
    for at in np.argsort(-away, kind="stable"):
        apart = np.abs(places[chosen] - places[at]) if chosen else np.ones((1, 2))
        if np.isfinite(places[at]).all() and ((apart > ROOM).any(1)).all() and len(chosen) < MOST_NAMED:
            chosen.append(int(at))
    named = np.zeros(len(x), bool)
    named[chosen] = True
    return named
