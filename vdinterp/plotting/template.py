"""The "vdinterp" plotly template, the display configuration, and the titles that every figure must have."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

TEMPLATE = "vdinterp"

# Okabe and Ito's colours: told apart with every common colour vision; the pale yellow is left out on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
SEQUENTIAL = "Blues"
DIVERGING = "RdBu_r"
INK = "#1f2430"
GRID = "#e7e9ee"

# For fig.show(config=CONFIG) and the report. The cloud button uploads the reader's data: it is off here and in the
# template, which reaches figures shown without this configuration.
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["sendChartToCloud", "lasso2d", "select2d"],
}


def _template() -> go.layout.Template:
    axis = {
        "automargin": True,
        "showline": True,
        "linecolor": "#9aa0ad",
        "gridcolor": GRID,
        "zerolinecolor": "#9aa0ad",
        "ticks": "outside",
        "tickcolor": "#9aa0ad",
        "title": {"standoff": 10},
    }
    layout = {
        "font": {"family": "Inter, 'Helvetica Neue', Arial, sans-serif", "size": 13, "color": INK},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12, "t": 14}, "yanchor": "top", "y": 1},
        "colorway": list(PALETTE),
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 70, "r": 30, "t": 64, "b": 60},
        "xaxis": axis,
        "yaxis": axis,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0},
        "hoverlabel": {"align": "left"},
        "modebar": {
            "remove": ["sendChartToCloud", "lasso2d", "select2d"],
            "bgcolor": "rgba(255,255,255,0)",
            "color": "#9aa0ad",
            "activecolor": INK,
        },
    }
    return go.layout.Template(layout=layout)


def finish(
    figure: go.Figure, *, title: str, x_title: str | None, y_title: str | None, height: int | None = None
) -> go.Figure:
    """Give a figure the template, a wrapped title and titled axes. An axis that is not shown takes `None`.

    Raises ValueError for an empty title: a figure that says nothing of itself is a defect wherever it ends up.
    """
    given = {"title": title, "x_title": x_title, "y_title": y_title}
    for name, value in given.items():
        if value is not None and not value.strip():
            raise ValueError(f"{name} is empty; say what is shown, with its unit (None only for an axis without one)")
    wrapped = textwrap.wrap(title, 95)
    if TEMPLATE not in pio.templates:
        pio.templates[TEMPLATE] = _template()  # here, not at import: building it takes a quarter of a second
    figure.update_layout(template=TEMPLATE, title={"text": "<br>".join(wrapped)}, height=height)
    has_legend = any(trace.name and trace.type in ("bar", "scatter") for trace in figure.data)
    figure.update_layout(showlegend=has_legend, margin={"t": 42 + 20 * len(wrapped) + (26 if has_legend else 0)})
    if x_title is not None:
        figure.update_xaxes(title={"text": x_title})
    if y_title is not None:
        # An upright title longer than the figure is high would be cut off: plotly wraps nothing by itself.
        room = max(12, ((height or 450) - 150) // 9)
        figure.update_yaxes(title={"text": "<br>".join(textwrap.wrap(y_title, room))})
    return figure


def level_line(figure: go.Figure, value: float, label: str, *, log: bool) -> None:
    """A labelled dashed level across the figure, at a value of the upright axis."""
    figure.add_hline(y=value, line={"dash": "dash", "color": INK, "width": 1.2})
    position = math.log10(value) if log else value  # annotations on a log axis are placed by exponent
    note = {"text": label, "font": {"size": 12}, "showarrow": False, "xanchor": "right", "yanchor": "bottom"}
    figure.add_annotation(x=1, xref="x domain", y=position, **note)


def color_bar(title: str, height: int) -> dict[str, Any]:
    """A colour bar whose upright title is wrapped to fit a figure of `height` pixels."""
    if not title.strip():
        raise ValueError("value_title is empty; say what the colours mean, with the unit")
    text = "<br>".join(textwrap.wrap(title, max(8, (height - 120) // 8)))
    return {"title": {"text": text, "side": "right"}, "thickness": 14, "outlinewidth": 0}


def need_columns(table: Any, names: dict[str, str | None]) -> None:
    """Raise KeyError unless every named column is in the table; `names` maps the argument to the column given."""
    for argument, column in names.items():
        if column is not None and column not in table.columns:
            raise KeyError(f"{argument}={column!r} is not a column of the table; it has {list(table.columns)}")
    if not len(table):
        raise ValueError("the table has no rows: there is nothing to draw")
