"""Points: one quantity against another."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from vdinterp.plotting.template import INK, PALETTE, finish, need_columns


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
    """Column `y` over column `x`, a point a row; `label` is a column of names to show on hovering. `diagonal` draws the
    line on which both are equal."""
    need_columns(table, {"x": x, "y": y, "label": label})
    figure = go.Figure()
    if diagonal:
        both = [float(min(table[x].min(), table[y].min())), float(max(table[x].max(), table[y].max()))]
        figure.add_scatter(
            x=both, y=both, mode="lines", line={"dash": "dash", "color": INK, "width": 1.2}, hoverinfo="skip",
            name="equal",
        )  # fmt: skip
    figure.add_scatter(
        x=table[x], y=table[y], mode="markers", marker={"color": PALETTE[0], "size": 8}, showlegend=False,
        text=None if label is None else table[label],
        hovertemplate=("%{text}<br>" if label is not None else "") + "%{x:.3g}, %{y:.3g}<extra></extra>",
    )  # fmt: skip
    return finish(figure, title=title, x_title=x_title, y_title=y_title, height=440)
