"""Naming: which of the heads that look at the successor are induction heads, and what speaks against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from vdinterp.analysis.induction.controls import Control
from vdinterp.analysis.induction.effects import Head, Rise
from vdinterp.analysis.induction.verdict import Evidence, Finding, HeadEvidence, Verdict
from vdinterp.analysis.intervals import bootstrap_mean

if TYPE_CHECKING:
    from vdinterp.analysis.induction.result import InductionResult


def judge(
    tried: Sequence[Head], checked: Sequence[Control], copied: pd.DataFrame, rises: Mapping[str, Rise]
) -> list[HeadEvidence]:
    """The evidence of each head by itself. `copied`: `copy_table` at the level that decides; a head of attention over
    space alone is not in it, and copies nothing from other frames."""
    copies: Any = copied.set_index(["layer", "head"])
    found = []
    for head in tried:
        gain, low = (float(copies.loc[head, name]) if head in copies.index else 0.0 for name in ("copy_gain", "low"))
        lost = bootstrap_mean(rises[f"head {_name(head)}"].lost)
        failed = [one.name for one in checked if one.head == head and one.passed is False]
        found.append(HeadEvidence(head, failed, gain, low, float(lost.value), float(lost.low)))
    return found


def chosen_heads(judged: Sequence[HeadEvidence]) -> list[Head]:
    """Those that nothing speaks against. Where none is needed by itself, those of which only that is missing: each may
    stand in for the others, and what they carry together decides."""
    named = [one.head for one in judged if not one.against]
    return named or [one.head for one in judged if not one.failed and one.copy_low > 0]


def evidence_of(
    gain: float, named: Sequence[Head], judged: Sequence[HeadEvidence], rises: Mapping[str, Rise]
) -> Evidence:
    """What the named heads come to together, against the heads of their layers that are not named."""
    against = [f"{_name(one.head)} {one.against}" for one in judged if one.head not in named]
    if not named:
        return Evidence(against=against)
    mine = [rises[f"head {_name(head)}"] for head in named]
    whole = bootstrap_mean((rises["all named"] if len(named) > 1 else mine[0]).lost)
    layers = {layer for layer, _ in named}
    others = [
        one.lost
        for one in rises.values()
        if len(one.heads) == 1 and one.heads[0] not in named and one.heads[0][0] in layers
    ]
    # Where no other head is left, what their own removal costs clips without a repeat takes the others' place.
    compared = torch.stack(others or [one.others for one in mine]).mean(0)
    alone = torch.stack([one.repeats if not others else one.lost for one in mine])
    return Evidence(
        named=named,
        gain=gain,
        lost=float(whole.value),
        lost_low=float(whole.low),
        alone=float(alone.mean()),
        random=float(bootstrap_mean(compared).high),
        lonely=not others,
        copying=sum(one.copy_gain for one in judged if one.head in named),
        against=against,
    )


def judged_table(judged: Sequence[HeadEvidence], named: Sequence[Head]) -> pd.DataFrame:
    """One row a candidate: `head named copy_gain copy_low lost lost_low against`."""
    return pd.DataFrame(
        {
            "head": [_name(one.head) for one in judged],
            "named": [one.head in named for one in judged],
            "copy_gain": [one.copy_gain for one in judged],
            "copy_low": [one.copy_low for one in judged],
            "lost": [one.lost for one in judged],
            "lost_low": [one.lost_low for one in judged],
            "against": [one.against or "-" for one in judged],
        }
    )


def finding_table(shown: Sequence[Finding], verdict: Verdict | None = None, why: str | None = None) -> pd.DataFrame:
    """One row a finding, the one that leads first: `level verdict strength why`. `verdict`, `why`: what the heads say,
    where the first one behaves as if by induction; the same behaviour at other levels is called after it."""
    rows = []
    for index, one in enumerate(shown):
        if one.verdict != "induction":
            called, reason = one.verdict, one.why
        elif verdict is None:
            called, reason = "inconclusive", f"{one.why}; heads were not looked for, as another behaviour is stronger"
        elif index == 0:
            called, reason = verdict, str(why)
        else:
            called, reason = verdict, f"{one.why}; heads were judged at noise level {shown[0].level:g}"
        rows.append({"level": one.level, "verdict": called, "strength": one.strength, "why": reason})
    return pd.DataFrame(rows)


def again_row(seed: int, found: InductionResult) -> dict[str, Any]:
    """How one search came out: `seed verdict level heads`."""
    heads = " ".join(sorted(_name(head) for head in found.heads)) or "-"
    return {"seed": seed, "verdict": found.verdict, "level": found.level, "heads": heads}


def _name(head: Head) -> str:
    return f"{head[0]}.{head[1]}"
