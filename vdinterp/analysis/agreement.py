"""How well estimates agree with exact values: rank correlation and overlap of the top entries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vdinterp.results import Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement(Result):
    """`spearman`: rank correlation, -1 to 1, chance 0; NaN where all exact (or all estimated) values are the same.
    `top_overlap`: share of the exact `top_k` largest changes (by size) that are among the estimated ones, 0 to 1,
    chance `top_k / n`. `n`: entries compared. Spearman misleads where most entries are near 0: their order is noise."""

    title = "Agreement with exact patching"
    spearman: float
    top_overlap: float
    top_k: int
    n: int

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame(
            [{"spearman": self.spearman, "top_overlap": self.top_overlap, "top_k": self.top_k, "n": self.n}]
        )

    def sentence(self) -> str:
        return (
            f"Spearman {self.spearman:.2f}, {self.top_overlap:.0%} of the top {self.top_k}, on {self.n} entries "
            "patched exactly"
        )


def agreement(table: pd.DataFrame, top_k: int, signed: bool = True) -> Agreement:
    """Of the columns `exact` and `estimate`. Unsigned estimates are compared with the sizes of exact values."""
    known = table.dropna(subset=["exact", "estimate"])
    exact, estimate = known["exact"].to_numpy(), known["estimate"].to_numpy()
    top_k = min(top_k, len(known))
    top = set(np.argsort(-np.abs(exact), kind="stable")[:top_k])
    found = set(np.argsort(-np.abs(estimate), kind="stable")[:top_k])
    return Agreement(
        spearman=spearman(exact if signed else np.abs(exact), estimate), top_overlap=len(top & found) / max(1, top_k),
        top_k=top_k, n=len(known),
    )  # fmt: skip


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks) or len(one) < 2:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
