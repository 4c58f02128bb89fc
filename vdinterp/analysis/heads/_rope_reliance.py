"""Reliance on rotary position: what changes when one axis of it is altered in one layer or head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vdinterp import plotting
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.cases import changes
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.interventions import Ablate, Intervention, RotateRope
from vdinterp.interventions.rope import AXES, WAYS
from vdinterp.results import Result
from vdinterp.words.wording import number, with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True, eq=False)
class RopeReliance(Result):
    """How far x0 moves when rotary position is altered.

    `table`, one row an alteration: `level layer axis way x0_change low high without_attention`, and `head` where heads
    were altered one by one. `low`, `high`: a 95 % bootstrap interval over clips; `without_attention`: the change when
    the same layer's or head's attention output is zeroed, the yardstick.
    """

    title = "Reliance on rotary position"
    table: pd.DataFrame
    n_layers: int

    def plot(self) -> dict[str, go.Figure]:
        """At every noise level: layer x alteration, or a layer x head tile for every alteration."""
        axes = [axis for axis in AXES if (self.table["axis"] == axis).any()]
        ways = [way for way in WAYS if (self.table["way"] == way).any()]
        layers = range(self.n_layers)
        unit, top = "x0 change (squared, over variance)", float(self.table["x0_change"].max()) or 1.0
        figures = {}
        for level in self.table["level"].unique():
            rows = self.table[self.table["level"] == level]
            title = f"Change of x0 when rotary position is altered, noise level {level:g}"
            if "head" in rows:
                grid = rows.pivot(index="layer", columns=["way", "axis", "head"], values="x0_change").reindex(layers)
                figures[title] = plotting.tiles(
                    np.array([[grid[way][axis].to_numpy() for axis in axes] for way in ways]),
                    rows=ways,
                    columns=axes,
                    title=title,
                    x_title="axis (in a tile: head)",
                    y_title="alteration (in a tile: layer)",
                    value_title=unit,
                    cell_names=("layer", "head"),
                    zmax=top,
                )
                continue
            columns = list(product(axes, ways))
            grid = rows.pivot(index="layer", columns=["axis", "way"], values="x0_change").reindex(layers)
            figures[title] = plotting.heatmap(
                grid[columns].to_numpy(),
                x=[" ".join(column) for column in columns],
                y=[str(layer) for layer in layers],
                title=title,
                x_title="axis and alteration",
                y_title="layer",
                value_title=unit,
                zmin=0.0,
                zmax=top,
            )
        return figures

    def summary(self) -> str:
        """Where each axis matters most, at the first noise level."""
        first = self.table.loc[self.table["level"] == self.table["level"].iloc[0]]
        lines = []
        for axis in dict.fromkeys(first["axis"]):
            row = self.table.loc[first.loc[first["axis"] == axis, "x0_change"].idxmax()].to_dict()
            where = f"head {row['layer']}.{row['head']}" if "head" in row else f"layer {row['layer']}"
            lines.append(
                f"- **{axis}**: x0 changes most, by {with_interval(row['x0_change'], row['low'], row['high'])}, "
                f"when it is {row['way']} in {where}; without attention there it changes by "
                f"{number(row['without_attention'])}."
            )
        return "\n".join(lines)


@on_noised_clips
def rope_reliance(
    noised: NoisedClips,
    axes: Sequence[str] = AXES,
    ways: Sequence[str] = WAYS,
    by: str = "layer",
    seed: int = 0,
) -> RopeReliance:
    """How far x0 of the target frames moves when one axis of the rotary position is altered in one place.

    `x0_change = mean (x0_altered - x0)^2 / variance`: 0 without any reliance, no upper end. `ways`: those of
    `RotateRope`: "shifted" makes everything seem one step nearer or further, "frozen" takes position along the axis
    away, "permuted" (by `seed`) makes it wrong. `by`: "layer" alters all heads of a layer, "head" one at a time. The
    rest of the model keeps its positions. Layers whose rotation has no channels for the axis, and axes of size 1, are
    left out.

    Chance: 0 exactly. The yardstick `without_attention` is the change when the same output is zeroed: reliance near it
    says that without that axis this attention is worth nothing. Misleads: each alteration makes logits the model never
    saw, so a large change says that positions are used, not what for; a model also knows positions by an embedding
    added to the patches, or by its content; a shift moves only the queries, so tokens at the rim look outside; and a
    permutation is one draw, which on a short axis keeps most distances (three places are always turned in a circle).

    Source: after FreeFlux (arXiv 2503.16153), which alters the rotation of one layer at a time in image models.

    Raises ValueError for unknown axes, ways or `by`, and where nothing is left to alter.
    """
    _check("axes", axes, AXES)
    _check("ways", ways, WAYS)
    _check("by", [by], ("layer", "head"))
    if seed < 0:
        raise ValueError(f"need seed >= 0, got {seed=}")
    cfg, grid = noised.model.cfg, noised.grid
    places = [
        (layer, axis)
        for layer, axis in product(range(cfg.n_layers), axes)
        if (rope := cfg.rope.get(cfg.blocks[layer].axis)) is not None
        and rope.dims[AXES.index(axis)]
        and grid.shape[AXES.index(axis)] > 1
    ]
    if not places:
        known = ", ".join(f"{name} attention {rope.dims}" for name, rope in cfg.rope.items()) or "none"
        raise ValueError(
            f"nothing to alter along {', '.join(axes)}: rotated channels (frame, row, col) of {cfg.model_name}: "
            f"{known}; the clips' grid is {grid.shape}. An axis needs both channels and a size of at least 2"
        )
    units: list[list[int] | None] = [None] if by == "layer" else [[head] for head in range(cfg.n_heads)]
    tried: dict[Any, Intervention] = {}  # by index of the unit, layer, and then axis and way; without: attention zeroed
    for unit, heads in enumerate(units):
        tried |= {(unit, layer): Ablate(("z", layer), heads=heads) for layer, _ in places}
        for (layer, axis), way in product(places, ways):
            drawn = seed if way == "permuted" else 0
            altered: Any = RotateRope(axis, way, seed=drawn, layers=[layer], heads=heads)  # type: ignore[arg-type]
            tried[unit, layer, axis, way] = altered
    rows = []
    for level in noised.levels:
        moved = changes(noised, level, tried)
        for (unit, heads), (layer, axis), way in product(enumerate(units), places, ways):
            interval = bootstrap_mean(moved[unit, layer, axis, way])
            where = {"level": level, "layer": layer, **({"head": heads[0]} if heads else {}), "axis": axis, "way": way}
            ends = {"low": float(interval.low), "high": float(interval.high)}
            without = float(moved[unit, layer].mean())
            rows.append({**where, "x0_change": float(interval.value), **ends, "without_attention": without})
    return RopeReliance(table=pd.DataFrame(rows), n_layers=cfg.n_layers, meta=noised.meta(by=by, permutation_seed=seed))


def _check(what: str, given: Sequence[str], known: tuple[str, ...]) -> None:
    if isinstance(given, str) or not given or not set(given) <= set(known) or len(set(given)) < len(given):
        raise ValueError(f"{what}={given!r}: some of {', '.join(known)} are needed, each once")
