"""Bars with intervals, one a condition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vdinterp.plotting.template import INK, PALETTE, finish, level_line, need_columns


def bars(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    y_title: str,
    x_title: str = "",
    color: str | None = None,
    low: str | None = None,
    high: str | None = None,
    reference: Mapping[str, float] | None = None,
    horizontal: bool = True,
    log: bool = False,
) -> go.Figure:
    """Bars of column `y` (the value) over column `x` (the condition), grouped by column `color`.

    Conditions and groups stand in the order of their first row. `low` and `high` are columns with the ends of an
    interval (absolute values, not distances). `reference` draws labelled dashed lines at values. Horizontal bars
    (the default) leave room for long condition names. `log` sets a logarithmic value axis. One row a bar: raises
    ValueError if a condition has two, KeyError for a missing column.
    """
    need_columns(table, {"x": x, "y": y, "color": color, "low": low, "high": high})
    if (low is None) != (high is None):
        raise ValueError(f"an interval needs both ends: got low={low!r}, high={high!r}")
    keys = [x] if color is None else [x, color]
    twice = table[table.duplicated(keys)]
    if len(twice):
        first = twice.iloc[0][keys].to_dict()
        raise ValueError(f"two rows for one bar, {first}; filter or average the table, or set color=")
    conditions = list(dict.fromkeys(table[x].astype(str)))
    groups = [None] if color is None else list(dict.fromkeys(table[color]))
    figure = go.Figure()
    for index, group in enumerate(groups):
        part = table if group is None else table[table[color] == group]
        values = part[y].astype(float)
        error = None
        if low is not None and high is not None:
            error = {
                "type": "data",
                "symmetric": False,
                "array": np.maximum(part[high] - values, 0),
                "arrayminus": np.maximum(values - part[low], 0),
                "color": INK,
                "thickness": 1.2,
                "width": 3,
            }
        names = part[x].astype(str)
        hover = f"%{{{'y' if horizontal else 'x'}}}: %{{{'x' if horizontal else 'y'}:.4g}}"
        figure.add_bar(
            x=values if horizontal else names,
            y=names if horizontal else values,
            error_x=error if horizontal else None,
            error_y=None if horizontal else error,
            orientation="h" if horizontal else "v",
            name="" if group is None else str(group),
            showlegend=group is not None,
            marker_color=PALETTE[index % len(PALETTE)],
            hovertemplate=hover + (f"<extra>{group}</extra>" if group is not None else "<extra></extra>"),
        )
    # Horizontal bars get a free strip under the last one, a row for each label: on a bar it could not be read.
    strip = 0.6 * len(reference or {}) if horizontal else 0.0
    for index, (label, value) in enumerate((reference or {}).items()):
        line = {"dash": "dash", "color": INK, "width": 1.2}
        note = {"text": label, "font": {"size": 12}, "showarrow": False, "xanchor": "left"}
        if horizontal:
            figure.add_vline(x=value, line=line)
            position = float(np.log10(value)) if log else value  # annotations on a log axis are placed by exponent
            figure.add_annotation(x=position, y=len(conditions) - 0.2 + 0.6 * index, xshift=3, **note)
        else:
            level_line(figure, value, label, log=log)
    category = {"type": "category", "categoryorder": "array", "categoryarray": conditions}
    row = max(24, 15 * len(groups) + 8)
    height = max(300, 150 + int((len(conditions) + strip) * row)) if horizontal else 460
    figure.update_layout(barmode="group", bargap=0.25)
    finish(
        figure,
        title=title,
        x_title=y_title if horizontal else (x_title or x),
        y_title=(x_title or x) if horizontal else y_title,
        height=height,
    )
    if horizontal:
        figure.update_yaxes(**category, range=[len(conditions) - 0.5 + strip, -0.5], ticklabelstandoff=4)
        # Legend and first bar in the same order, top down.
        figure.update_layout(legend_traceorder="normal")
    else:
        figure.update_xaxes(**category)
    if log:
        (figure.update_xaxes if horizontal else figure.update_yaxes)(type="log")
    return figure
