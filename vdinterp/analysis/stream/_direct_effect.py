"""Direct against total effect: what a head writes into the prediction itself, and what is lost without it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.analysis.agreement import rank_correlation
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.cases import head_effects
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.analysis.stream.readout import Readout
from vdinterp.models import ActivationCache
from vdinterp.progress import bar
from vdinterp.results import Result, Section
from vdinterp.words.wording import caution

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectEffect(Result):
    """Rise of the target frames' x0 error when a head is replaced by its mean: `direct`, only where it writes into the
    prediction itself, and `total`, everywhere.

    `table`, one row a noise level and head: `level layer head direct direct_low direct_high total low high` (95 %
    intervals over clips). `rank_correlation`, one row a level: `level spearman low high chance heads`, Spearman's over
    heads, its 95 % interval over clips, and within which 95 % of the correlations of shuffled heads lie.
    """

    title = "Direct and total effect of heads"
    table: pd.DataFrame
    rank_correlation: pd.DataFrame

    def plot(self) -> dict[str, go.Figure]:
        """Total against direct effect, a point a head."""
        figures = {}
        for level in self.table["level"].unique():
            rows: Any = self.table[self.table["level"] == level]
            named = rows["layer"].astype(str) + "." + rows["head"].astype(str)
            title = f"Direct and total effect of every head, noise level {level:g}"
            figures[title] = plotting.scatter(
                rows.assign(name=named),
                x="direct",
                y="total",
                label="name",
                title=title,
                diagonal=True,
                x_title="direct effect (rise of x0 error)",
                y_title="total effect (rise of x0 error)",
            )
        return figures

    def summary(self) -> str:
        """Rank correlation, and the heads that work through others most."""
        lines = []
        for row in self.rank_correlation.to_dict("records"):
            mine: Any = self.table[self.table["level"] == row["level"]]
            through = mine.assign(rest=mine["total"] - mine["direct"]).nlargest(3, "rest")
            named = ", ".join(
                f"{one['layer']}.{one['head']} ({one['total']:.3f}, directly {one['direct']:.3f})"
                for one in through.to_dict("records")
            )
            lines.append(
                f"- noise level {row['level']:g}: Spearman {row['spearman']:.2f} [{row['low']:.2f}, {row['high']:.2f}] "
                f"over {row['heads']} heads, {_said(row)}. Largest effects through later components: {named}."
            )
        lead = "Rise of the x0 error when a head is at its mean, in total and by what it writes itself (directly):"
        return f"{caution(self.meta)}{lead}\n\n" + "\n".join(lines)

    def sections(self) -> list[Section]:
        """Summary, figures and the table, the largest total effects of the noisiest level first."""
        caption = (
            "Every head. Its direct and total effect, the largest first. `direct`: only what it writes into the "
            "prediction; `total`: everything; each with the ends of its 95 % interval over clips"
        )
        table = self.table.sort_values(["level", "total"], ascending=False, kind="stable", ignore_index=True)
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={caption: table})]


def _said(row: dict[str, Any]) -> str:
    """What a correlation is beside chance."""
    if math.isnan(row["spearman"]):
        return "as all of one kind are the same"
    if abs(row["spearman"]) > row["chance"]:
        return f"more than by chance (within {row['chance']:.2f} of 0)"
    return f"no more than by chance (within {row['chance']:.2f} of 0)"


@on_noised_clips
def direct_effect(noised: NoisedClips) -> DirectEffect:
    """Direct effect of every head against its total effect.

    Both replace a head's output z by its mean over clips, frames and positions. Direct: `error(x0 - part + mean part) -
    error(x0)`, with `part` the head's in the direct attribution (LayerNorm's scales held). Total: the error with the
    head ablated, minus the error without. Range: any; 0 for a head that is not needed. Chance: 0, and no correlation.

    Where they part: a head that others read (a previous-frame head of an induction circuit) has a total and no direct
    effect; one whose work a later one takes over, or undoes, has a direct and no total effect; and LayerNorm answers to
    what is removed.
    """
    cfg = noised.model.cfg
    rows, correlations = [], []
    for level in noised.levels:
        means = noised.means(level)
        batches = bar(noised.batches, desc=f"direct effects, noise level {level:g}", unit="batch")
        direct = torch.cat([_direct(noised, level, clips, means) for clips in batches])  # clip layer head
        total = head_effects(noised, level, means)
        one, other = bootstrap_mean(direct), bootstrap_mean(total)
        for layer, head in np.ndindex(cfg.n_layers, cfg.n_heads):
            at = (layer, head)
            rows.append(
                {
                    "level": level,
                    "layer": layer,
                    "head": head,
                    "direct": one.value[at],
                    "direct_low": one.low[at],
                    "direct_high": one.high[at],
                    "total": other.value[at],
                    "low": other.low[at],
                    "high": other.high[at],
                }
            )
        found = rank_correlation(direct.flatten(1).numpy(), total.flatten(1).numpy(), seed=noised.seed)
        correlations.append({"level": level, **found, "heads": one.value.size})
    return DirectEffect(table=pd.DataFrame(rows), rank_correlation=pd.DataFrame(correlations), meta=noised.meta())


@torch.no_grad()
def _direct(noised: NoisedClips, level: float, clips: slice, means: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[clip layer head]`."""
    cache = noised.cache(level, None, clips)
    held = {name: mean.expand_as(cache[name]) for name, mean in means.items()}
    replaced = ActivationCache({**cache.tensors, **held}, cache.grid, cache.model)
    readout = Readout(noised.pipe, cache, noised.target)
    x0, truth = readout.total(), noised.latents[clips][:, noised.target].to(readout.total())
    error = (x0 - truth).square().mean((1, 2, 3, 4))
    found = torch.zeros(len(x0), noised.model.cfg.n_layers, noised.model.cfg.n_heads)
    stacks = (one.stack_head_results(return_labels=True, pos_slice=readout.tokens) for one in (cache, replaced))
    parts, others = (dict(zip(names, heads, strict=True)) for heads, names in stacks)
    for layer, head in np.ndindex(*found.shape[1:]):
        name = f"{layer}.{head}"
        changed = x0 + readout.linear(others[name] - parts[name])
        found[:, layer, head] = (((changed - truth).square().mean((1, 2, 3, 4)) - error) / noised.variance).cpu()
    return found
