"""Verdict: what all the evidence comes to, by rules that are written down here."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vdinterp.analysis.induction.behaviour import COVERED, Behaviour, Pairs
from vdinterp.analysis.induction.effects import Head

Verdict = Literal[
    "induction",
    "reversal",
    "position copying",
    "period detector",
    "duplicate matching",
    "no behaviour",
    "inconclusive",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TIMES_RANDOM = 3.0  # removing a named head hurts repeats so many times as much as removing another of its layer
CARRIES = 0.25  # of what the repeat gains, the named heads have to carry at least so much
COPIES = 0.1  # and copy as much of what they look at, together
FIXED = 0.5  # nearness to the frame at one distance that makes a behaviour positional
LEAST = 0.001  # of the gain: effects of other heads below it count as so much


@dataclass(frozen=True)
class Finding:
    """What a model does at one noise level. `strength`: the x0 error that it saves where it helps, over the variance;
    `vague`: something helps, and no rule says how. `pairs`: of induction, those that showed it."""

    verdict: Verdict
    level: float
    strength: float
    why: str
    vague: bool = False
    pairs: Pairs | None = None


def findings(found: Sequence[Behaviour], looks: Collection[float]) -> list[Finding]:
    """What each noise level shows, the strongest first; vague ones after all others.

    `looks`: levels at which some head looks at what came back, significantly. "induction" stands here for behaviour
    alone: heads are judged afterwards.
    """
    every = [finding for one in found for finding in _at_level(one, one.level in looks)]
    return sorted(every, key=lambda one: (one.vague, -one.strength, -one.level))


def _at_level(one: Behaviour, looks: bool) -> list[Finding]:
    level, pairs = one.level, one.one_off
    if (shown := one.induction) is not None:
        cue = "the frame before it" if shown is pairs else "a longer cue"
        why = f"what came back once is foretold {shown.at('no match')}, after {cue} and in that order"
        return [Finding("induction", level, shown.gain * shown.matching, why, pairs=shown)]
    made = []
    if one.distance is not None:
        why = (
            f"the prediction is near the frame {one.distance} before, whatever that shows (nearness {one.nearness:.2f})"
        )
        made.append(Finding("position copying", level, one.saved, why))
    if one.is_reversal:
        why = (
            f"what preceded the cue last time is foretold at {_percent(one.turned[1])} of the lags, what followed less"
        )
        made.append(Finding("reversal", level, one.turned[0], why))
    elif pairs.matches_both_ways:
        made.append(
            Finding(
                "inconclusive",
                level,
                pairs.gain,
                "what came back helps only after the frame that preceded it, but in reversed order as well: a match of "
                "neighbours on both sides, not of what comes next",
            )
        )
    elif pairs.is_duplicate and looks:
        made.append(
            Finding(
                "duplicate matching",
                level,
                pairs.gains["no content"],
                f"what came back helps {pairs.at('no content')}, whatever preceded it, and heads look at it: the noisy "
                "frame itself is matched",
            )
        )
    elif one.is_periodic:
        made.append(
            Finding(
                "period detector",
                level,
                one.loops[0],
                f"loops are foretold at {_percent(one.loops[1])} of the periods, also when the last frames before the "
                f"end are others, and pairs that came once are foretold {pairs.at('no match')}, with a longer cue no "
                "better",
            )
        )
    if made:
        return made
    if not one.gains:
        return [Finding("no behaviour", level, 0.0, "nothing that came back makes a last frame easier", vague=True)]
    return [Finding("inconclusive", level, _vague_gain(one), _vague(one, looks), vague=True)]


def _vague_gain(one: Behaviour) -> float:
    return max(0.0, one.one_off.gain, one.loops[0])


def _vague(one: Behaviour, looks: bool) -> str:
    """Why a gain says nothing definite."""
    if one.loops_only:
        return f"loops are foretold at {_percent(one.loops[1])} of the periods, but {_not_periodic(one)}"
    if one.one_off.is_duplicate and not looks:
        return "what came back helps by being there, but no head looks at it"
    if one.one_off.coverage["no match"] > 0:
        return "the frame that preceded it is matched at some lags, at most of them not"
    return "something that came back helps, but no rule says how it is found"


def _not_periodic(one: Behaviour) -> str:
    if one.long_cue is None:
        return "clips are too short to try a longer cue, so nothing says whether a period or a cue is found"
    if one.long_cue.coverage["no match"] >= COVERED:
        return "so are pairs that came once, after a longer cue: that is no matter of a period"
    if math.isnan(one.uncued):
        return "no period is long enough to take all cues away, so nothing says whether a period or a cue is found"
    return "not when the last frames before the end are others: they hang on a cue of some other kind"


@dataclass(frozen=True)
class HeadEvidence:
    """What was found about one head that looks at the successor. `failed`: its controls that did; `copy_gain`, `lost`
    (what the repeat gains less without it), with the lower ends of their 95 % intervals."""

    head: Head
    failed: Sequence[str]
    copy_gain: float
    copy_low: float
    lost: float
    lost_low: float

    @property
    def against(self) -> str:
        """Why it is not named; empty where nothing speaks against it."""
        if self.failed:
            return f"fails: {', '.join(self.failed)}"
        if not self.copy_low > 0:
            return f"surely copies nothing (copy gain {self.copy_gain:.3f})"
        if not self.lost_low > 0:
            return f"is not needed (without it the repeat gains {self.lost:.3f} less, not surely above 0)"
        return ""


@dataclass(frozen=True)
class Evidence:
    """What was found about the named heads together, and why other candidates are none (`against`).

    `gain`: of the repeat over the twin without. `lost`, `lost_low`: how much less that is without all of them. `alone`:
    the mean loss without one of them, `random` the upper end of that of other heads of these layers, or, where none is
    left (`lonely`), of what their own removal does to clips in which nothing came back. `copying`: sum of copy gains.
    """

    named: Sequence[Head] = ()
    gain: float = math.nan
    lost: float = math.nan
    lost_low: float = math.nan
    alone: float = math.nan
    random: float = math.nan
    lonely: bool = False
    copying: float = 0.0
    against: Sequence[str] = ()

    @property
    def times_random(self) -> float:
        """At least so many times as much as another head is one of them needed. Another's effect counts as a
        thousandth of the gain where it is smaller, so that this is never infinite; NaN where no head is named."""
        return self.alone / max(self.random, LEAST * self.gain)

    @property
    def carried(self) -> float:
        """Share of the behaviour's gain that goes with the named heads."""
        return self.lost / self.gain


def from_heads(evidence: Evidence) -> tuple[Verdict, str]:
    """Verdict and why, for a model that behaves as if by induction."""
    if not evidence.named:
        if not evidence.against:
            return "inconclusive", "the model foretells what came back, but no single head looks at it significantly"
        return "inconclusive", f"heads look at what came back, but none is one by all tests: {_list(evidence.against)}"
    if evidence.copying < COPIES:
        return (
            "inconclusive",
            f"heads look at what came back, but copy hardly anything of it ({evidence.copying:.2f} of its content)",
        )
    if not evidence.lost_low >= CARRIES * evidence.gain:
        return (
            "inconclusive",
            f"heads look at what came back, but carry only {_percent(evidence.carried)} of what the repeat gains: "
            "others do the work",
        )
    if evidence.times_random < TIMES_RANDOM:
        compared = (
            "their removal costs clips in which nothing came back about as much"
            if evidence.lonely
            else "other heads of these layers are needed about as much"
        )
        return "inconclusive", f"heads look at what came back, but {compared}"
    lonely = (
        " (no other head is left in these layers: compared with clips in which nothing came back)"
        if evidence.lonely
        else ""
    )
    return "induction", f"heads look at what came next last time, copy it, and are needed for it{lonely}"


def _list(against: Sequence[str]) -> str:
    return "; ".join(against)


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
