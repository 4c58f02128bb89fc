"""What a modulation atlas holds, its figures and its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.results import Result, rows_of
from vdinterp.words.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go

OFF = 0.1  # share of its own maximum below which a gate counts as closed
NONE = "none"
SQUARE = 820  # shown pixels of the levels x levels figure


@dataclass(frozen=True, kw_only=True, eq=False)
class ModulationAtlas(Result):
    """Shift, scale and gate of every sublayer; see `modulation_atlas`.

    `table`, one row a level, site ("0.attn" .. "final"), action and part: `level site action part mean rms mean_abs
    max_abs from_none`. `depth`, one row a level: `level effective_depth open gate_rms`. `off`, one row a range of
    levels in which a sublayer is switched off: `site from_level to_level lowest maximum maximum_level` (gate rms).
    `similarity` `[level level]`. All but `table` are of no action.
    """

    title = "Modulation atlas"
    table: pd.DataFrame
    depth: pd.DataFrame
    off: pd.DataFrame
    similarity: Float[torch.Tensor, "level level"]
    levels: tuple[float, ...]

    def values(self, part: str = "gate", action: str = NONE) -> pd.DataFrame:
        """Root mean square of "gate", "scale" or "shift" over channels, sites down and levels across."""
        rows = rows_of(self.table, part=part, action=action)
        if not len(rows):
            known = ", ".join(dict.fromkeys(self.table["part"]))
            raise KeyError(f"no {part!r} for action {action!r}: there are {known}, for {', '.join(self.actions)}")
        wide = rows.pivot(index="site", columns="level", values="rms")
        return wide.reindex(index=list(dict.fromkeys(rows["site"])))

    @property
    def actions(self) -> list[str]:
        """Names of the actions, "none" first."""
        return list(dict.fromkeys(self.table["action"]))

    def action_change(self) -> pd.DataFrame:
        """How far an action moves the modulation of a site, sites down and actions across: root mean square of the
        change over that of the modulation without, over all parts and levels."""
        squares: Any = self.table.assign(change=self.table["from_none"] ** 2, size=self.table["rms"] ** 2)
        sums = squares.groupby(["site", "action"], sort=False)[["change", "size"]].sum().unstack("action")
        moved = sums["change"]
        return (moved.div(sums["size"][NONE], axis=0) ** 0.5).loc[self._sites, self.actions[1:]]

    @property
    def _moved(self) -> bool:
        """Whether there are actions, and a modulation to compare with."""
        return len(self.actions) > 1 and bool(np.isfinite(self.action_change().to_numpy()).all())

    @property
    def _sites(self) -> list[str]:
        return list(dict.fromkeys(self.table["site"]))

    def plot(self) -> dict[str, go.Figure]:
        """Gates and scales by sublayer and level, effective depth, similarity of levels, and the effect of actions."""
        across = "noise level"
        names, figures = [f"{level:g}" for level in self.levels], {}
        units = {"gate": "gate, root mean square", "scale": "scale, root mean square"}
        for part, unit in units.items():
            if (self.table["part"] == part).any():
                wide, title = self.values(part), f"Size of the {part} of every sublayer, by noise level"
                figures[title] = plotting.heatmap(
                    wide.to_numpy(),
                    x=names,
                    y=list(wide.index),
                    title=title,
                    x_title=across,
                    y_title="sublayer",
                    value_title=unit,
                    zmin=0.0,
                )
        if len(self.depth):
            title = "Effective depth: how many sublayers are open, by noise level"
            named = {"effective_depth": "effective depth", "open": f"gates over {OFF:.0%} of their maximum"}
            long = self.depth.melt("level", list(named), "measure").assign(measure=lambda t: t["measure"].map(named))
            figures[title] = plotting.lines(
                long,
                x="level",
                y="value",
                color="measure",
                title=title,
                x_title=across,
                y_title="sublayers",
                reference={"all": float(len(self.values("gate")))},
            ).update_yaxes(rangemode="tozero")
        title = "Similarity of the modulations at two noise levels"
        if bool(self.similarity.isfinite().any()):
            figures[title] = plotting.heatmap(
                self.similarity.numpy(),
                x=names,
                y=names,
                title=title,
                x_title=across,
                y_title="noise level",
                value_title="cosine",
                diverging=False,
            ).update_layout(height=SQUARE)
        if self._moved:
            wide, title = self.action_change(), "How far an action moves the modulation of a sublayer"
            figures[title] = plotting.heatmap(
                wide.to_numpy(),
                x=list(wide.columns),
                y=list(wide.index),
                title=title,
                x_title="action",
                y_title="sublayer",
                value_title="change over size without action",
                zmin=0.0,
            )
        return figures

    def summary(self) -> str:
        """Which sublayers are open when, in words."""
        first, last = self.levels[0], self.levels[-1]
        text = [f"{self.meta['model']}: {len(self.levels)} noise levels from {first:g} to {last:g}."]
        if len(self.depth):
            gates = self.values("gate")
            depth = self.depth["effective_depth"]
            most, least = self.depth.loc[depth.idxmax()], self.depth.loc[depth.idxmin()]
            widest = gates.max(axis=1).idxmax()
            text.append(
                f"Effective depth is {most['effective_depth']:.1f} of {len(gates)} sublayers at level "
                f"{most['level']:g} and {least['effective_depth']:.1f} at level {least['level']:g}. The widest gate is "
                f"that of {widest} "
                f"({number(gates.loc[widest].max())} at level {gates.loc[widest].idxmax():g})."
            )
            closed = [_closed(row) for row in self.off.to_dict("records")]
            text.append(
                f"Switched off (gate below {OFF:.0%} of its own maximum): {'; '.join(closed)}."
                if closed
                else f"No gate falls below {OFF:.0%} of its own maximum."
            )
        else:
            text.append("No sublayer has a gate: all of them always write.")
        if bool(self.similarity[0, -1].isfinite()):
            text.append(f"Modulations at the two ends have a cosine of {float(self.similarity[0, -1]):.2f}.")
        if self._moved:
            moved = self.action_change()
            site = moved.max(axis=1).idxmax()
            text.append(
                f"Of {len(self.actions) - 1} actions, {moved.loc[site].idxmax()!r} moves {site} most, by "
                f"{moved.loc[site].max():.0%} of the size of its modulation; the median over sublayers and actions is "
                f"{float(np.median(moved.to_numpy())):.0%}."
            )
        return " ".join(text)


def _closed(row: Mapping[Any, Any]) -> str:
    if not row["maximum"]:
        return f"{row['site']} at all levels (its gate is zero)"
    return (
        f"{row['site']} from level {row['from_level']:g} to {row['to_level']:g} (down to "
        f"{number(row['lowest'])}, at most {number(row['maximum'])})"
    )
