"""Curves with bands: over sampling steps, noise levels, lags, training steps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from vdinterp.plotting.template import PALETTE, finish, level_line, need_columns

MOST_WHOLE_TICKS = 20  # up to here an axis of whole numbers is labelled with all of them
DASHES, SYMBOLS = ("solid", "dash", "dot", "dashdot"), ("circle", "square-open", "diamond-open", "x")
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
    color_title: str = "",
    dash: str | None = None,
    low: str | None = None,
    high: str | None = None,
    reference: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> go.Figure:
    """Lines of column `y` over column `x`, one a value of column `color`, with a band between `low` and `high`.

    Rows are sorted by `x` within a line; gaps (NaN) interrupt it. `color_title` heads the legend. `dash`: a column
    whose values are told apart by how a line is broken, for every colour. `reference` draws labelled dashed levels. An
    axis of a few whole numbers (layers, frames) has its ticks there.
    """
    need_columns(table, {"x": x, "y": y, "color": color, "dash": dash, "low": low, "high": high})
    if (low is None) != (high is None):
        raise ValueError(f"a band needs both ends: got low={low!r}, high={high!r}")
    figure = go.Figure()
    groups = [None] if color is None else list(dict.fromkeys(table[color]))
    kinds = [None] if dash is None else list(dict.fromkeys(table[dash]))
    for (index, group), (broken, kind) in product(enumerate(groups), enumerate(kinds)):
        part = table.sort_values(by=[x])
        if group is not None:
            part = part.loc[part[color] == group]
        if kind is not None:
            part = part.loc[part[dash] == kind]
        if not len(part):
            continue
        shade = PALETTE[index % len(PALETTE)]
        name = ", ".join(str(one) for one in (group, kind) if one is not None)
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
            line={"color": shade, "width": 2, "dash": DASHES[broken % len(DASHES)]},
            marker={"size": 6, "symbol": SYMBOLS[broken % len(SYMBOLS)]},
            name=name,
            legendgroup=name,
            showlegend=bool(name),
            hovertemplate=f"{x_title} %{{x}}: %{{y:.4g}}<extra>{name}</extra>",
        )
    for label, value in (reference or {}).items():
        level_line(figure, value, label, log=log_y)
    finish(figure, title=title, x_title=x_title, y_title=y_title, height=440)
    if color_title:
        figure.update_layout(legend_title_text=f"{color_title} ")
    measured = sorted(set(table[x]))
    if not log_x and len(measured) <= MOST_WHOLE_TICKS and all(float(value).is_integer() for value in measured):
        figure.update_xaxes(tickvals=measured)
    if log_x:
        figure.update_xaxes(type="log", tickvals=measured if len(measured) <= MOST_LOG_TICKS else None)
    if log_y:
        figure.update_yaxes(type="log")
    return figure
