"""Verdict: what all the evidence comes to, by rules that are written down here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import pandas as pd

from vdinterp.analysis.induction.behaviour import Behaviour
from vdinterp.analysis.induction.controls import Control

Verdict = Literal[
    "induction", "position copying", "period detector", "duplicate matching", "no behaviour", "inconclusive"
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TIMES_RANDOM = 3.0  # removing a named head hurts repeats so many times as much as removing another of its layer
CARRIES = 0.25  # of what the repeat gains, the named heads have to carry at least so much
COPIES = 0.1  # and copy as much of what they look at, together
FIXED = 0.5  # share of a head's attention at one distance that makes it positional


@dataclass(frozen=True)
class Evidence:
    """What was found about the heads of a model that behaves as if by induction."""

    named: Sequence[tuple[int, int]] = ()
    gain: float = math.nan  # of the repeat over the twin without
    effect: float = math.nan  # rise of the error on repeats without all named heads, beyond that on the twins
    effect_low: float = math.nan
    alone: float = math.nan  # mean rise without one named head
    random: float = math.nan  # the same of other heads of these layers
    copying: float = 0.0  # sum of copy gains
    copies: bool = False  # whether one of them surely does
    controls: Sequence[Control] = field(default_factory=tuple)

    @property
    def times_random(self) -> float:
        """Effect of a named head over that of another; infinite where others have none, NaN where there are none."""
        return math.inf if self.random <= 0 else self.alone / self.random

    @property
    def carried(self) -> float:
        """Share of the behaviour's gain that goes with the named heads."""
        return self.effect / self.gain


def nothing_learned(table: pd.DataFrame) -> bool:
    """Whether no design shows a gain from what was repeated, at any noise level."""
    overall = table[(table["lag"] == 0) & table["twin"].isin(["none", "no content"])]
    return not bool(overall["found"].any())


def from_behaviour(
    found: Sequence[Behaviour], looks: Collection[float], positional: Collection[float]
) -> tuple[Verdict, float, str]:
    """Verdict, the noise level that decides, and why; for a model that does not behave as if by induction.

    `looks`: levels at which some head looks at what came back, significantly. `positional`: levels at which a head
    looks at one distance, and the lags and periods with a gain are those that it predicts. Noisier levels decide first:
    they leave less to go by.
    """
    for one in found:
        if one.matches_both_ways:
            return (
                "inconclusive", one.level,
                "what came back helps only after the frame that preceded it, but in reversed order as well: a match of "
                "neighbours on both sides, not of what comes next",
            )  # fmt: skip
        if one.is_duplicate and one.level in looks:
            return (
                "duplicate matching", one.level,
                f"what came back helps {one.at('no content')}, whatever preceded it, and "
                "heads look at it: the noisy frame itself is matched",
            )  # fmt: skip
        if one.is_periodic:
            return (
                "period detector", one.level,
                f"loops are foretold at {_share(one.loops)} of the periods, pairs that came once are foretold "
                f"{one.at('no match')}",
            )  # fmt: skip
    for one in found:
        if one.is_positional and one.level in positional:
            return (
                "position copying", one.level,
                f"there is a gain {one.at('no content')} and at {_share(one.loops)} of the periods, "
                "those at which a head that looks at one place in time finds the answer there",
            )  # fmt: skip
    if any(one.is_duplicate for one in found):
        return "inconclusive", found[0].level, "what came back helps by being there, but no head looks at it"
    if any(one.coverage["no match"] > 0 for one in found):
        return "inconclusive", found[0].level, "the frame that preceded it is matched at some lags, at most of them not"
    return "inconclusive", found[0].level, "something that came back helps, but no rule says how it is found"


def from_heads(level: float, evidence: Evidence) -> tuple[Verdict, str]:
    """Verdict and why, for a model that does."""
    if not evidence.named:
        return "inconclusive", "the model foretells what came back, but no single head looks at it significantly"
    failed = [one.name for one in evidence.controls if one.passed is False]
    if failed:
        return "inconclusive", f"heads look at what came back, but these controls failed: {', '.join(failed)}"
    if not evidence.copies or evidence.copying < COPIES:
        return (
            "inconclusive",
            f"heads look at what came back, but copy hardly anything of it ({evidence.copying:.2f} of its content)",
        )
    if not evidence.effect_low >= CARRIES * evidence.gain:
        return (
            "inconclusive",
            f"heads look at what came back, but carry only {_share(evidence.carried)} of what the repeat gains: others "
            "do the work",
        )
    if evidence.times_random < TIMES_RANDOM:
        return "inconclusive", "heads look at what came back, but other heads of these layers are needed about as much"
    lonely = " (no other heads in these layers to compare with)" if math.isnan(evidence.times_random) else ""
    return "induction", f"heads look at what came next last time, copy it, and are needed for it{lonely}"


def positional_levels(table: pd.DataFrame, distances: Mapping[float, Collection[int]]) -> set[float]:
    """Noise levels at which the lags and periods with a gain are those that a head at a fixed distance predicts.

    `distances`: by level, those at which some head has half of its attention on clips without a repeat. A head that far
    back finds the answer in one-offs of that lag, and in loops whose period divides the distance.
    """
    found = set()
    gains = table[(table["lag"] > 0) & table["found"]]
    for level, far in distances.items():
        here = gains[gains["level"] == level]
        lags = set(here[(here["design"] == "one-off") & (here["twin"] == "no content")]["lag"])
        periods = set(here[(here["design"] == "loop") & (here["twin"] == "none")]["lag"])
        if (lags or periods) and any(
            lags <= {distance} and all(distance % period == 0 for period in periods) for distance in far
        ):
            found.add(level)
    return found


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
