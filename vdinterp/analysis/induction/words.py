"""An induction search in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vdinterp.results import rows_of

if TYPE_CHECKING:
    from vdinterp.analysis.induction.result import InductionResult

MEANINGS: dict[str, str] = {
    "induction": "an induction circuit: what came next last time is looked up and copied",
    "reversal": "what preceded last time is looked up and copied: sequences run backwards",
    "position copying": "frames are copied from a fixed place in time, whatever they show",
    "period detector": "loops are continued whatever their last frames show, pairs that came once are not looked up",
    "duplicate matching": "the noisy frame itself is matched with a clean copy; what preceded it plays no part",
    "no behaviour": "the model makes nothing of what came back",
    "inconclusive": "something that came back helps, but induction is not shown",
}


def summary(found: InductionResult) -> str:
    """The verdict in plain words, with the numbers it rests on."""
    lines = [f"**{found.meta.get('model', 'The model')}: {found.verdict}**, that is, {MEANINGS[found.verdict]}. "
             f"{found.reason[0].upper()}{found.reason[1:]}."]  # fmt: skip
    lines += [*_others(found), *_again(found), _behaviour(found)]
    if found.candidates:
        lines.append(_heads(found))
    if len(found.controls):
        lines.append(_controls(found))
    if found.candidates and found.composition_note:
        lines.append(f"Composition of weights was skipped: {found.composition_note}.")
    return "\n\n".join(lines)


def _others(found: InductionResult) -> list[str]:
    """What other noise levels show, by verdict."""
    rows = found.findings.iloc[1:]
    rows = rows[~rows["verdict"].isin([found.verdict, "no behaviour", "inconclusive"])]
    named = [
        f"{verdict} at noise level {', '.join(f'{level:g}' for level in mine['level'])} (saves up to "
        f"{mine['strength'].max():.3f}, here {found.findings['strength'].iloc[0]:.3f})"
        for verdict, mine in rows.groupby("verdict", sort=False)
    ]
    return [f"Weaker beside it: {'; '.join(named)}."] if named else []


def _again(found: InductionResult) -> list[str]:
    same, every = found.reproduced
    if every < 2:
        return []
    others = found.again[found.again["verdict"] != found.verdict]["verdict"].value_counts()
    rest = "".join(f"; {verdict}: {number}" for verdict, number in others.items())
    heads = int((found.again["heads"] == found.again["heads"].iloc[0]).sum())
    with_heads = f", {heads} of {every} with these heads" if found.heads else ""
    return [f"This search and {every - 1} more with other clips and noise: {same} of {every} say {found.verdict}"
            f"{with_heads}{rest}."]  # fmt: skip


def _controls(found: InductionResult) -> str:
    """Of the named heads; the others' failures stand with them."""
    named = found.judged[found.judged["named"]]["head"]
    mine = found.controls[found.controls["head"].isin(named)] if len(named) else found.controls
    passed = mine["outcome"].value_counts()
    dropped = "".join(f"\n- {row['head']}: {row['against']}." for row in
                      found.judged[~found.judged["named"]].to_dict("records"))  # fmt: skip
    return (
        f"Controls of {', '.join(named) if len(named) else 'the candidates'}: {passed.get('passed', 0)} passed, "
        f"{passed.get('failed', 0)} failed, {passed.get('not measured', 0)} could not be measured."
        + (f"\n\nCandidates that are not named:\n{dropped}" if dropped else "")
    )


def _behaviour(found: InductionResult) -> str:
    rows = rows_of(found.behaviour, design=found.design, level=found.level, lag=0).set_index("twin")
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
    if len(together := rows_of(found.ablation, set="all named")):
        row = together.iloc[0]
        lines.append(
            f"- all named ones together: {row['repeats']:.3f} [{row['low']:.3f}, {row['high']:.3f}] on "
            f"repeats, {row['others']:.3f} where nothing came back."
        )
    if not math.isnan(found.carried):
        lines.append(f"- {100 * found.carried:.0f} % of what the repeat gains goes with them; {_times(found)}.")
    lines += _told(found)
    return "Heads that look at what came next (chosen on other clips):\n\n" + "\n".join(lines)


def _told(found: InductionResult) -> list[str]:
    """Who tells the heads what to look for."""
    if not len(found.reliance):
        return []
    senders = found.reliance.sort_values("drop", ascending=False).drop_duplicates("sender")
    senders = senders[(senders["low"] > 0) & (senders["drop"] >= 0.1)]
    return [
        f"- if head {row['sender']} tells {row['head']} of the clip without {what}, its prefix matching falls from "
        f"{row['prefix_matching']:.2f} to {min(row['no_match'], row['no_cue']):.2f}."
        for row in senders.head(6).to_dict("records")
        for what in ["the predecessor" if row["no_match"] <= row["no_cue"] else "the cue"]
    ]


def _times(found: InductionResult) -> str:
    others = (found.ablation["set"].str.startswith("other ")).any() or not found.judged["named"].all()
    than = "as another head of its layer" if others else "on repeats as on clips in which nothing came back"
    if found.times_random > 100:
        return f"one of them is needed more than 100 times as much {than}"
    return f"one of them is needed at least {found.times_random:.1f} times as much {than}"
