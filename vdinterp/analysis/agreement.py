"""How well two orders of the same things agree: rank correlation, its interval and chance range, top entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from vdinterp.analysis.intervals import resamples, tails
from vdinterp.results import Result

PERMUTATIONS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement(Result):
    """`spearman`: rank correlation, -1 to 1, chance 0; NaN where all exact (or all estimated) values are the same.
    `low`, `high`: its 95 % interval over clips; `chance`: 95 % of the correlations of shuffled entries lie within minus
    and plus that. `top_overlap`: share of the exact `top_k` largest changes (by size) that are among the estimated
    ones, 0 to 1, chance `top_k / n`. `n`: entries compared. Spearman misleads where most entries are near 0: their
    order is noise."""

    title = "Agreement with exact patching"
    spearman: float
    low: float
    high: float
    chance: float
    top_overlap: float
    top_k: int
    n: int

    def to_frame(self) -> pd.DataFrame:
        names = ("spearman", "low", "high", "chance", "top_overlap", "top_k", "n")
        return pd.DataFrame([{name: getattr(self, name) for name in names}])

    def sentence(self) -> str:
        return (
            f"Spearman {self.spearman:.2f} [{self.low:.2f}, {self.high:.2f}] (by chance within {self.chance:.2f} of "
            f"0), {self.top_overlap:.0%} of the top {self.top_k}, on {self.n} entries patched exactly"
        )


def agreement(
    exact: Float[np.ndarray, "clip entry"],
    estimate: Float[np.ndarray, "clip entry"],
    top_k: int,
    signed: bool = True,
    seed: int = 0,
) -> Agreement:
    """Of the means over clips; entries that are NaN in either are left out. Unsigned estimates are compared with the
    sizes of exact values."""
    known = ~np.isnan(exact.mean(0) + estimate.mean(0))
    exact, estimate = exact[:, known], estimate[:, known]
    found: dict[str, Any] = rank_correlation(exact, estimate, signed, seed)
    top_k = min(top_k, exact.shape[1])
    top, tried = (set(np.argsort(-np.abs(one.mean(0)), kind="stable")[:top_k].tolist()) for one in (exact, estimate))
    return Agreement(**found, top_overlap=len(top & tried) / max(1, top_k), top_k=top_k, n=exact.shape[1])


def rank_correlation(
    one: Float[np.ndarray, "clip entry"], other: Float[np.ndarray, "clip entry"], signed: bool = True, seed: int = 0
) -> dict[str, float]:
    """Spearman's correlation of the means over clips: `spearman`; `low`, `high`, its 95 % interval over clips (the same
    draws of clips for both; NaN for one clip); `chance`, within which 95 % of correlations of shuffled entries lie. A
    correlation within its chance range says nothing, however narrow its interval: the clips are no more heads.

    Unsigned: `one` by its size. The interval misleads where entries are near 0: noise in their order pulls every draw
    towards 0, so that it can lie below the value.
    """
    draws = resamples(len(one), 1000, seed) / len(one)
    means = [np.concatenate([values.mean(0, keepdims=True), draws @ values]) for values in (one, other)]
    if not signed:
        means[0] = np.abs(means[0])
    value, *drawn = spearman(*means)
    rng = np.random.default_rng(seed)
    shuffled = np.stack([rng.permutation(means[1][0]) for _ in range(PERMUTATIONS)])
    shuffled = spearman(np.broadcast_to(means[0][0], shuffled.shape), shuffled)
    quantiles = tails(len(one))
    measured = not np.isnan([*quantiles, value]).any()
    low, high = np.nanquantile(drawn, quantiles) if measured else (np.nan, np.nan)
    chance = float(np.quantile(np.abs(shuffled), 0.95))
    return {"spearman": float(value), "low": float(low), "high": float(high), "chance": chance}


def spearman(one: Float[np.ndarray, "*rows entry"], other: Float[np.ndarray, "*rows entry"]) -> Any:
    """Spearman's rank correlation, ties at their mean rank, of each row; NaN where one side is all the same."""
    ranks = [pd.DataFrame(np.atleast_2d(values)).rank(axis=1).to_numpy() for values in (one, other)]
    first, second = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    spread = np.sqrt(np.square(first).sum(1) * np.square(second).sum(1))
    found = np.divide((first * second).sum(1), spread, out=np.full(len(spread), np.nan), where=spread > 0)
    return found if one.ndim > 1 else float(found[0])
