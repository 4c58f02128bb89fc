"""A circuit: components by layer, and the edges between them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from vdinterp.plotting.template import INK, finish, need_columns
from vdinterp.words.wording import number

POSITIVE, NEGATIVE = "#0072B2", "#D55E00"
WIDEST = 6.0  # shown pixels of the strongest edge
MOST_WRITTEN = 24  # edges that have their score written on them

_QUIET = {"hoverinfo": "skip", "showlegend": False}
_FONT = {"size": 11, "color": INK}
EDGE = {"mode": "lines", "line_shape": "spline", **_QUIET}
HOVERED = {"mode": "markers", "marker": {"size": 9, "opacity": 0}, "showlegend": False}
WRITTEN = {"showarrow": False, "font": _FONT, "bgcolor": "rgba(255,255,255,0.85)", "borderpad": 1}
_DISC = {"size": 40, "color": "white", "line": {"color": INK, "width": 1.2}}
NODE = {"mode": "markers+text", "marker": _DISC, "textfont": _FONT, **_QUIET}


def circuit_graph(
    table: pd.DataFrame,
    *,
    title: str,
    value_title: str,
    meaning: tuple[str, str] = ("raises the metric", "lowers the metric"),
) -> go.Figure:
    """Edges `sender receiver score` as lines from sender to receiver, as wide as the score is large; blue is above 0,
    orange below, with what that says in `meaning`. The strongest edges have their score written on them. Components
    stand in rows, the embedding at the bottom, the final layer on top, and heads of one number in one column, MLPs to
    the right. A head's query, key and value are one place; hovering the middle of an edge says which."""
    need_columns(table, {"sender": "sender", "receiver": "receiver", "score": "score"})
    nodes = sorted({*table["sender"], *(_component(name) for name in table["receiver"])}, key=_row)
    rows = sorted({_row(name) for name in nodes})
    columns = 1 + max((int(name.split(".")[-1]) for name in nodes if _row(name)[1] < 2 and "." in name), default=0)
    place = {name: (_column(name, columns), rows.index(_row(name))) for name in nodes}
    top = float(table["score"].abs().max()) or 1.0
    figure = go.Figure()
    written = set(table["score"].abs().nlargest(MOST_WRITTEN).index)
    row: Any
    for at, row in table.sort_values("score", key=abs).iterrows():
        (x0, y0), (x1, y1) = place[row["sender"]], place[_component(row["receiver"])]
        bend = min(0.45, 0.11 * (y1 - y0 - 1))  # past the rows between
        share = abs(row["score"]) / top
        middle = ((x0 + x1) / 2 + bend, (y0 + y1) / 2)
        line = {"color": POSITIVE if row["score"] > 0 else NEGATIVE, "width": max(0.8, WIDEST * share)}
        path = {"x": [x0, middle[0], x1], "y": [y0, middle[1], y1]}
        figure.add_scatter(**path, **EDGE, line=line, opacity=0.25 + 0.7 * share)
        said = f"{row['sender']} → {row['receiver']}<br>{value_title} {row['score']:.3g}<extra></extra>"
        figure.add_scatter(x=[middle[0]], y=[middle[1]], **HOVERED, hovertemplate=said)
        if at in written:
            part = f"{row['receiver'][-1]} " if _component(row["receiver"]) != row["receiver"] else ""
            # A third of the way up, where edges to one component have not met yet.
            spot = (x0 + 0.36 * (x1 - x0) + 0.9 * bend, y0 + 0.36 * (y1 - y0))
            score = number(row["score"], digits=2, decimals=2)
            figure.add_annotation(x=spot[0], y=spot[1], text=f"{part}{score}", **WRITTEN)
    xs, ys = zip(*(place[name] for name in nodes), strict=True)
    figure.add_scatter(x=xs, y=ys, text=nodes, **NODE)
    signs = {meaning[0]: POSITIVE} if (table["score"] > 0).any() else {}
    signs |= {meaning[1]: NEGATIVE} if (table["score"] < 0).any() else {}
    for name, color in signs.items():
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": color, "width": 3}, name=name)
    finish(figure, title=title, x_title=None, y_title=None, height=max(360, 150 + 84 * len(rows)))
    plain = {"showgrid": False, "zeroline": False, "showline": False, "ticks": "", "showticklabels": False}
    figure.update_xaxes(**plain)
    figure.update_yaxes(**plain, range=[-0.6, len(rows) - 0.4])
    return figure


def _component(receiver: str) -> str:
    """The head behind `1.0.q`; everything else is itself."""
    return receiver[:-2] if receiver.endswith((".q", ".k", ".v")) else receiver


def _row(name: str) -> tuple[int, int]:
    """(layer, within the layer): heads, cross-attention, MLP."""
    if name == "embed":
        return -1, 0
    if name == "final":
        return 1_000_000, 0
    parts = name.split(".")
    if parts[0] in ("mlp", "cross"):
        return int(parts[1]), 2 if parts[0] == "mlp" else 1
    return int(parts[0]), 0


def _column(name: str, n_heads: int) -> float:
    if name in ("embed", "final"):
        return (n_heads - 1) / 2
    return float(n_heads) if name.startswith("mlp") else float(name.split(".")[-1])
