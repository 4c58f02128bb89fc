"""Verdict: what all the evidence comes to, by rules that are written down here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import pandas as pd

from vdinterp.analysis.induction.behaviour import Behaviour
from vdinterp.analysis.induction.controls import Control

Verdict = Literal[
    "induction", "position copying", "period detector", "duplicate matching", "no behaviour", "inconclusive"
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TIMES_RANDOM = 3.0  # removing the named heads hurts repeats so many times as much as removing others
FIXED = 0.5  # share of a head's attention at one distance, or on the first frame, that makes it positional


@dataclass(frozen=True)
class Evidence:
    """What was found about the heads of a model that behaves as if by induction."""

    named: Sequence[tuple[int, int]] = ()
    effect: float = math.nan
    effect_low: float = math.nan
    random: float = math.nan
    copies: bool = False
    controls: Sequence[Control] = field(default_factory=tuple)

    @property
    def times_random(self) -> float:
        """Effect of the named heads over that of matched random ones; infinite where those have none."""
        return math.inf if self.random <= 0 else self.effect / self.random


def nothing_learned(table: pd.DataFrame) -> bool:
    """Whether no design shows a gain from what was repeated, at any noise level."""
    overall = table[(table["lag"] == 0) & table["twin"].isin(["none", "no content"])]
    return not bool(overall["found"].any())


def from_behaviour(found: Sequence[Behaviour], positional_head: bool) -> tuple[Verdict, float, str]:
    """Verdict, the noise level that decides, and why; for a model that does not behave as if by induction. Noisier
    levels decide first: they leave less to go by."""
    for one in found:
        if one.matches_both_ways:
            return (
                "inconclusive", one.level,
                "what came back helps only after the frame that preceded it, but in reversed order as well: a match of "
                "neighbours on both sides, not of what comes next",
            )  # fmt: skip
        if one.is_duplicate:
            return (
                "duplicate matching", one.level,
                f"what came back helps at {_share(one.coverage['no content'])} of the lags, whatever preceded it: the "
                "noisy frame itself is matched",
            )  # fmt: skip
        if one.is_periodic:
            return (
                "period detector", one.level,
                f"loops are foretold at {_share(one.loops)} of the periods, pairs that came once at only "
                f"{_share(one.coverage['no match'])} of the lags",
            )  # fmt: skip
    for one in found:
        if one.is_positional and positional_head:
            return (
                "position copying", one.level,
                f"there is a gain at {_share(one.coverage['no content'])} of the lags and {_share(one.loops)} of the "
                "periods, and a head that looks at one place in time, whatever stands there",
            )  # fmt: skip
    return "inconclusive", found[0].level, "something that came back helps, but no rule says how it is found"


def from_heads(level: float, evidence: Evidence) -> tuple[Verdict, str]:
    """Verdict and why, for a model that does."""
    if not evidence.named:
        return "inconclusive", "the model foretells what came back, but no single head looks at it significantly"
    failed = [one.name for one in evidence.controls if one.passed is False]
    if failed:
        return "inconclusive", f"heads look at what came back, but these controls failed: {', '.join(failed)}"
    if not evidence.copies:
        return "inconclusive", "heads look at what came back, but none of them copies what it looks at"
    if not evidence.effect_low > 0 or evidence.times_random < TIMES_RANDOM:
        return (
            "inconclusive",
            "heads look at what came back, but without them repeats suffer no more than without other heads",
        )
    return "induction", "heads look at what came next last time, copy it, and are needed for it"


def is_positional(scores: pd.DataFrame, kernels: pd.DataFrame) -> bool:
    """Whether a head looks at one distance or at the first frame at any level, whatever the clip."""
    return bool((kernels["share"] >= FIXED).any() or (scores["first_frame"] >= FIXED).any())


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
