"""A heatmap with a slider: one more axis than paper has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from vdinterp.plotting._heatmap import diverging_ends, heatmap, number


def sliced_heatmap(values: Any, *, slices: Sequence[str], title: str, **options: Any) -> go.Figure:
    """Heatmaps `values` [slice row column] of which a slider shows one, all on one colour scale.

    `slices` names them, for example "frame 3". Other arguments as `heatmap`.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 3 or len(values) != len(slices):
        raise ValueError(f"values have shape {values.shape}; [slice row column] with {len(slices)} slices is needed")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no finite value to draw")
    low, high = float(finite.min()), float(finite.max())
    diverging = options.pop("diverging", None)
    diverging = low < 0 < high if diverging is None else diverging
    ends: dict[str, Any] = {}
    if diverging:
        given = [abs(options[end]) for end in ("zmin", "zmax") if options.get(end) is not None]
        ends = diverging_ends(finite, max(given) if given else None)
    else:
        options = {"zmin": low, "zmax": high, **options}
    strongest = int(np.nanargmax(np.nanmax(np.abs(np.where(np.isfinite(values), values, 0)), axis=(1, 2))))
    blank = np.where(np.isfinite(values[0]), values[0], 0.0)  # a slice without any number is drawn empty
    figure = heatmap(blank, title=title, diverging=diverging, **options)
    drawn: Any = figure.data[0]
    drawn.update(ends)  # one scale for all slices
    number_format = options.get("number_format")
    pictures = []
    for index, slice_ in enumerate(values):
        trace = go.Heatmap(drawn)
        text = None
        if drawn.text is not None:
            text = [[number(value, number_format) for value in row] for row in slice_]
        trace.update(z=slice_, text=text, visible=index == strongest)
        pictures.append(trace)
    layout: Any = figure.layout
    figure = go.Figure(pictures, layout)
    steps = [
        {"label": str(name), "method": "update", "args": [{"visible": [i == index for i in range(len(slices))]}]}
        for index, name in enumerate(slices)
    ]
    figure.update_layout(
        sliders=[{"active": strongest, "steps": steps, "currentvalue": {"prefix": ""}, "pad": {"t": 62}}],
        height=layout.height + 110,
        margin={"b": 60},
    )
    return figure
