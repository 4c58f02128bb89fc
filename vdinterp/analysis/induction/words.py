"""An induction search in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vdinterp.results import rows_of

if TYPE_CHECKING:
    from vdinterp.analysis.induction.result import InductionResult

MEANINGS: dict[str, str] = {
    "induction": "an induction circuit: what came next last time is looked up and copied",
    "position copying": "frames are copied from a fixed place in time, whatever they show",
    "period detector": "loops are continued, pairs that came once are not looked up",
    "duplicate matching": "the noisy frame itself is matched with a clean copy; what preceded it plays no part",
    "no behaviour": "the model makes nothing of what came back",
    "inconclusive": "something that came back helps, but induction is not shown",
}


def summary(found: InductionResult) -> str:
    """The verdict in plain words, with the numbers it rests on."""
    lines = [f"**{found.meta.get('model', 'The model')}: {found.verdict}**, that is, {MEANINGS[found.verdict]}. "
             f"{found.reason[0].upper()}{found.reason[1:]}."]  # fmt: skip
    lines.append(_behaviour(found))
    if found.candidates:
        lines.append(_heads(found))
    if len(found.controls):
        passed = found.controls["outcome"].value_counts()
        lines.append(
            f"Controls: {passed.get('passed', 0)} passed, {passed.get('failed', 0)} failed, "
            f"{passed.get('not measured', 0)} could not be measured."
        )
    if found.candidates and found.composition_note:
        lines.append(f"Composition of weights was skipped: {found.composition_note}.")
    return "\n\n".join(lines)


def _behaviour(found: InductionResult) -> str:
    rows = rows_of(found.behaviour, design="one-off", level=found.level, lag=0).set_index("twin")
    none = rows.loc["none"]
    text = (
        f"At noise level {found.level:g} the x0 error of a last frame that came back once is {none['error']:.3f} of "
        f"its variance; where it did not come back, {none['twin_error']:.3f}. "
    )
    parts = [
        f"{rows.loc[twin]['twin_error']:.3f} without {what}"
        for twin, what in (
            ("no match", "the frame that preceded it"), ("no content", "the frame itself"),
            ("no cue", "the cue"), ("reversed", "their order"),
        )
    ]  # fmt: skip
    return text + "With one thing taken away: " + ", ".join(parts) + "."


def _heads(found: InductionResult) -> str:
    here = found.table[found.table["level"] == found.level].set_index(["layer", "head"])
    copies = found.copying[found.copying["level"] == found.level].set_index(["layer", "head"])
    lines = []
    for layer, head in found.candidates:
        row, copied = here.loc[(layer, head)], copies.loc[(layer, head)]
        alone = rows_of(found.ablation, set=f"head {layer}.{head}").iloc[0]
        lines.append(
            f"- head {layer}.{head}: {row['share']:.2f} of its attention to clean frames is on the successor "
            f"(prefix matching {row['prefix_matching']:.2f} [{row['low']:.2f}, {row['high']:.2f}], q = "
            f"{row['q']:.2g}; best foil: {row['best_foil']}, {row['contrast']:.2f} less), copy gain "
            f"{copied['copy_gain']:.2f}; without it the error on repeats rises by {alone['repeats']:.3f} "
            f"[{alone['low']:.3f}, {alone['high']:.3f}]."
        )
    if len(found.candidates) > 1:
        row = rows_of(found.ablation, set="all named").iloc[0]
        lines.append(
            f"- all {len(found.candidates)} together: {row['repeats']:.3f} [{row['low']:.3f}, {row['high']:.3f}] on "
            f"repeats, {row['others']:.3f} where nothing came back."
        )
    lines.append(f"- {100 * found.carried:.0f} % of what the repeat gains goes with them; {_times(found)}.")
    senders = found.reliance.sort_values("drop", ascending=False).drop_duplicates("sender")
    senders = senders[(senders["low"] > 0) & (senders["drop"] >= 0.1)]
    lines += [
        f"- if head {row['sender']} tells {row['head']} of the clip without {what}, its prefix matching falls from "
        f"{row['prefix_matching']:.2f} to {min(row['no_match'], row['no_cue']):.2f}."
        for row in senders.head(6).to_dict("records")
        for what in ["the predecessor" if row["no_match"] <= row["no_cue"] else "the cue"]
    ]
    return "Heads that look at what came next (chosen on other clips):\n\n" + "\n".join(lines)


def _times(found: InductionResult) -> str:
    if math.isnan(found.times_random):
        return "there are no other heads in these layers to compare with"
    if math.isinf(found.times_random):
        return "other heads of the same layers do no harm by their absence"
    if found.times_random > 100:
        return "one of them is needed more than 100 times as much as another head of its layer"
    return f"one of them is needed {found.times_random:.1f} times as much as another head of its layer"
