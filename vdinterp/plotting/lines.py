"""Curves with bands: over sampling steps, noise levels, lags, training steps."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from vdinterp.plotting.template import PALETTE, finish, level_line, need_columns

MOST_LOG_TICKS = 14  # up to here a logarithmic axis is labelled with the measured values themselves


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    x_title: str,
    y_title: str,
    color: str | None = None,
    low: str | None = None,
    high: str | None = None,
    reference: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> go.Figure:
    """Lines of column `y` over column `x`, one a value of column `color`, with a band between `low` and `high`.

    Rows are sorted by `x` within a line; gaps (NaN) interrupt it. `reference` draws labelled dashed levels.
    """
    need_columns(table, {"x": x, "y": y, "color": color, "low": low, "high": high})
    if (low is None) != (high is None):
        raise ValueError(f"a band needs both ends: got low={low!r}, high={high!r}")
    figure = go.Figure()
    groups = [None] if color is None else list(dict.fromkeys(table[color]))
    for index, group in enumerate(groups):
        part = table.sort_values(by=[x])
        if group is not None:
            part = part.loc[part[color] == group]
        shade = PALETTE[index % len(PALETTE)]
        name = "" if group is None else str(group)
        if low is not None and high is not None:
            band = part.dropna(subset=[low, high])
            red, green, blue = hex_to_rgb(shade)
            figure.add_scatter(
                x=[*band[x], *band[x][::-1]],
                y=[*band[high], *band[low][::-1]],
                mode="lines",
                fill="toself",
                fillcolor=f"rgba({red},{green},{blue},0.16)",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        figure.add_scatter(
            x=part[x],
            y=part[y],
            mode="lines+markers",
            line={"color": shade, "width": 2},
            marker={"size": 6},
            name=name,
            legendgroup=name,
            showlegend=group is not None,
            hovertemplate=f"{x_title} %{{x}}: %{{y:.4g}}<extra>{name}</extra>",
        )
    for label, value in (reference or {}).items():
        level_line(figure, value, label, log=log_y)
    finish(figure, title=title, x_title=x_title, y_title=y_title, height=440)
    if log_x:
        measured = sorted(set(table[x]))
        figure.update_xaxes(type="log", tickvals=measured if len(measured) <= MOST_LOG_TICKS else None)
    if log_y:
        figure.update_yaxes(type="log")
    return figure
