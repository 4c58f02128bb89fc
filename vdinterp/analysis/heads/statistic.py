"""HeadStatistic: one number a head at every noise level, as a table with intervals and a layer x head figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.results import Result, Section, rows_of
from vdinterp.words.wording import caution, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVES = 6  # heads, those that score highest at any level
PerClip = Float[torch.Tensor, "clip layer head"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadStatistic(Result):
    """Scores of all heads.

    `table`, one row a head, noise level and score: `level score layer head value low high chance`; `low`, `high` are a
    95 % bootstrap interval over clips; `chance` is what uniform attention scores (a gap where that means nothing).
    `units` says in words what each score is, with its range.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    table: pd.DataFrame
    units: dict[str, str]

    def values(self, score: str | None = None, level: float | None = None) -> np.ndarray:
        """One score at one noise level, `[layer head]`. Default: the first score, the first level."""
        score = next(iter(self.units)) if score is None else score
        level = self.table["level"].iloc[0] if level is None else level
        rows = rows_of(self.table, score=score, level=level)
        if not len(rows):
            levels = ", ".join(f"{one:g}" for one in self.table["level"].unique())
            raise KeyError(f"no score {score!r} at level {level}: there are {', '.join(self.units)} at {levels}")
        return rows.pivot(index="layer", columns="head", values="value").to_numpy()

    def plot(self) -> dict[str, go.Figure]:
        """A layer x head grid for every score and noise level, all levels of a score on one colour scale; of several
        levels also the highest heads' curves over them."""
        figures = {}
        for score, unit in self.units.items():
            rows = rows_of(self.table, score=score)
            low, high = float(rows["value"].min()), float(rows["value"].max())
            limits = {"zmin": min(low, 0.0), "zmax": high} if low >= 0 else {}
            for level in rows["level"].unique():
                title = f"{self.title}: {score}, noise level {level:g}"
                figures[title] = plotting.layer_head(self.values(score, level), title=title, value_title=unit, **limits)
            if rows["level"].nunique() > 1:
                title = f"{self.title}: {score} over the noise level"
                figures[title] = self._curves(rows, title, unit)
        return figures

    def _curves(self, rows: pd.DataFrame, title: str, unit: str) -> go.Figure:
        """One score of the heads that reach highest, with what uniform attention gives the first of them."""
        named = rows.assign(name=rows["layer"].astype(str) + "." + rows["head"].astype(str))
        highest = named.sort_values("value", ascending=False)["name"].unique()[:CURVES]
        shown = pd.concat([rows_of(named, name=name) for name in highest])
        chance = shown["chance"].dropna()
        return plotting.lines(
            shown,
            x="level",
            y="value",
            low="low",
            high="high",
            color="name",
            color_title="head",
            title=title,
            x_title="noise level",
            y_title=unit,
            reference={"uniform attention": float(chance.iloc[0])} if chance.nunique() == 1 else None,
        )

    def summary(self) -> str:
        """The heads that score highest, at the first noise level."""
        lines = []
        for score, unit in self.units.items():
            first = rows_of(self.table, score=score, level=self.table["level"].iloc[0])
            top = first.nlargest(3, "value")
            named = ", ".join(
                f"{row.layer}.{row.head} ({number(row.value)}"
                + (")" if np.isnan(row.chance) else f", uniform attention {number(row.chance)})")
                for row in top.itertuples()
            )
            lines.append(f"- **{score}** ({unit}): highest in heads {named}.")
        return caution(self.meta) + "\n".join(lines)

    def sections(self) -> list[Section]:
        """Summary, figures and the table, the highest values of each score first."""
        units = "; ".join(f"`{score}`, {unit}" for score, unit in self.units.items())
        caption = f"{self.title}, every head. Scores: {units}; `low`, `high`: 95 % interval over clips"
        table = self.table.sort_values(["score", "level", "value"], ascending=[True, False, False], ignore_index=True)
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={caption: table})]


def head_rows(
    values: PerClip, *, level: float, score: str, chance: Float[torch.Tensor, " layer"] | None = None
) -> pd.DataFrame:
    """Scores of every clip as rows of a `HeadStatistic`'s table: mean and interval over clips."""
    interval = bootstrap_mean(values)
    layers, heads = np.indices(interval.value.shape)
    each = np.full(len(interval.value), np.nan) if chance is None else chance.numpy().astype(float)
    return pd.DataFrame(
        {
            "level": level,
            "score": score,
            "layer": layers.ravel(),
            "head": heads.ravel(),
            "value": interval.value.ravel(),
            "low": interval.low.ravel(),
            "high": interval.high.ravel(),
            "chance": each.repeat(interval.value.shape[1]),
        }
    )


def head_statistic(
    title: str, rows: list[pd.DataFrame], units: Mapping[str, str], meta: dict[str, Any]
) -> HeadStatistic:
    """A `HeadStatistic` of such rows."""
    return HeadStatistic(title=title, table=pd.concat(rows, ignore_index=True), units=dict(units), meta=meta)
