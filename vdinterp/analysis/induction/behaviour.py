"""Behaviour: does the model foretell what comes back, and what does it need for that?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch

from vdinterp.analysis.bootstrap import bootstrap_mean
from vdinterp.analysis.induction.task import Task
from vdinterp.results import rows_of

WORTH = 0.1  # a gain of at least this share of the error without it is one
COVERED = 2 / 3  # of the lags (or periods) at which there has to be a gain
MANY_LAGS = 5


def behaviour_table(tasks: Mapping[str, Task]) -> pd.DataFrame:
    """Gains of every design, twin, noise level and lag (and over all lags, `lag` 0).

    `gain = error of the twin - error of the repeat`, the x0 error of the last frame over the variance; `low`, `high`: a
    95 % bootstrap interval over clips. `error`, `twin_error`: of either. `found`: the gain is above 0 for sure, and at
    least a tenth of the twin's error. Chance: 0.
    """
    rows = []
    for design, task in tasks.items():
        for level in task.levels:
            repeat = task.look(level).error
            for twin in task.repeats.twins:
                other = task.look(level, twin).error
                for lag in [0, *sorted(set(task.repeats.lag.tolist()))]:
                    chosen = task.repeats.lag == lag if lag else torch.ones(len(repeat), dtype=torch.bool)
                    rows.append(
                        {"design": design, "level": level, "twin": twin, "lag": lag, **_gain(repeat, other, chosen)}
                    )
    return pd.DataFrame(rows)


def _gain(repeat: torch.Tensor, other: torch.Tensor, chosen: torch.Tensor) -> dict[str, object]:
    interval = bootstrap_mean((other - repeat)[chosen])
    value, low, high = (float(x) for x in interval)
    error = float(other[chosen].mean())
    return {
        "gain": value, "low": low, "high": high, "error": float(repeat[chosen].mean()), "twin_error": error,
        "found": bool(low > 0 and value >= WORTH * error), "n_clips": int(chosen.sum()),
    }  # fmt: skip


@dataclass(frozen=True)
class Behaviour:
    """What the gains at one noise level say.

    `coverage`: by twin of the one-offs, the share of lags at which taking that away costs something (`pooled`, of fewer
    than five lags: whether it does on all clips together, 0 or 1); `loops`: the share of periods at which losing the
    repeat, and losing its order, do. `matching`, `order`: the gain over "no match" and
    over "reversed", in units of that over "none".
    """

    level: float
    gain: float
    coverage: dict[str, float]
    loops: float
    matching: float
    order: float
    pooled: bool

    def at(self, twin: str) -> str:
        """Where taking a twin's thing away costs something, in words."""
        if self.pooled:
            return "over all lags together" if self.coverage[twin] else "not over all lags together"
        return f"at {100 * self.coverage[twin]:.0f} % of the lags"

    @property
    def is_induction(self) -> bool:
        """The last frame is foretold at most lags, only if the frame before matches, and in that order."""
        return self.coverage["none"] >= COVERED and self.coverage["no match"] >= COVERED and self.order >= 0.5

    @property
    def matches_both_ways(self) -> bool:
        return self.coverage["no match"] >= COVERED and self.order < 0.5

    @property
    def is_duplicate(self) -> bool:
        """What comes back is used at most lags, whatever came before it."""
        return self.coverage["no content"] >= COVERED and self.coverage["no match"] < COVERED and self.matching < 0.5

    @property
    def is_periodic(self) -> bool:
        return self.loops >= COVERED and self.coverage["no match"] < COVERED

    @property
    def is_positional(self) -> bool:
        """There is a gain at some lags or periods, which does not hang on the frame before."""
        return (self.coverage["no content"] > 0 or self.loops > 0) and self.matching < 0.5


def behaviours(table: pd.DataFrame) -> list[Behaviour]:
    """One for each noise level, noisiest first."""
    found = []
    for level in sorted(table["level"].unique(), reverse=True):
        one_off = rows_of(table, design="one-off", level=level)
        total = {row.twin: row.gain for row in one_off[one_off["lag"] == 0].itertuples()}
        lags = one_off[one_off["lag"] > 0]
        pooled = lags["lag"].nunique() < MANY_LAGS  # the share of few lags jumps; there all clips together decide
        per_lag = (one_off[one_off["lag"] == 0] if pooled else lags).groupby("twin")["found"].mean()
        loops = rows_of(table, design="loop", level=level)
        periods = loops[loops["lag"] > 0].groupby("lag")["found"].all()  # over both twins
        unit = max(total["none"], 1e-9)
        found.append(
            Behaviour(
                level=float(level),
                gain=total["none"],
                coverage={str(twin): float(value) for twin, value in per_lag.items()},
                loops=float(periods.mean()),
                matching=total["no match"] / unit,
                order=total["reversed"] / unit,
                pooled=pooled,
            )
        )
    return found
