"""Arrays of heads as tables, and tables of heads as maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


def head_names(n_layers: int, n_heads: int) -> list[str]:
    """`layer.head`, layer by layer."""
    return [f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads)]


def tidy(values: torch.Tensor, **axes: Sequence[Any] | None) -> pd.DataFrame:
    """A table with one row a number (`value`), and for each axis, in order, its label there (None: the index)."""
    index = np.indices(values.shape).reshape(values.ndim, -1)
    columns = {
        name: at if labels is None else np.asarray(labels, dtype=object if isinstance(labels[0], str) else None)[at]
        for (name, labels), at in zip(axes.items(), index, strict=True)
    }
    return pd.DataFrame({**columns, "value": values.flatten().numpy()})


def largest(result: Result) -> pd.DataFrame:
    """The table of a result, the largest values first."""
    return result.to_frame().sort_values("value", ascending=False, kind="stable", ignore_index=True)


def mass_map(rows: pd.DataFrame, columns: Mapping[str, str], *, title: str, x_title: str) -> go.Figure:
    """Attention masses of every head (`layer`, `head`) as a map: `columns` of the table by what they are called."""
    return plotting.heatmap(
        rows[list(columns)].to_numpy(),
        x=list(columns.values()),
        y=[f"{layer}.{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True)],
        title=title,
        x_title=x_title,
        y_title="head",
        value_title="attention mass, 0 to 1",
        zmin=0.0,
        zmax=1.0,
    )
