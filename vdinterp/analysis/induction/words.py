"""An induction search in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vdinterp.analysis.induction.stimuli import CONTROL_CLIPS, INTRODUCED, in_plain_words
from vdinterp.analysis.stimulus.reliability import Reliability
from vdinterp.results import rows_of
from vdinterp.words.wording import number, with_interval

if TYPE_CHECKING:
    import pandas as pd

    from vdinterp.analysis.induction.result import InductionResult

CLEAR_DROP = 0.1  # of prefix matching, from which a head is said to rely on another
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
    return f"{lead(found)}\n\n{evidence(found)}"


def lead(found: InductionResult) -> str:
    """The verdict, and what the clips are that it rests on."""
    verdict = (
        f"{caution(found)}**{found.meta.get('model', 'The model')}: {found.verdict}**, that is, "
        f"{MEANINGS[found.verdict]}. {found.reason[0].upper()}{found.reason[1:]}."
    )
    return f"{in_plain_words(verdict)}\n\n{INTRODUCED}"


def evidence(found: InductionResult) -> str:
    """The numbers."""
    lines = [*_others(found), *_again(found), _behaviour(found)]
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
    rest_of: Any = found.again[found.again["verdict"] != found.verdict]
    others = rest_of["verdict"].value_counts()
    rest = "".join(f"; {verdict}: {times}" for verdict, times in others.items())
    heads = int((found.again["heads"] == found.again["heads"].iloc[0]).sum())
    with_heads = f", {heads} of {every} with these heads" if found.heads else ""
    return [
        f"This search and {every - 1} more with other clips and noise: {same} of {every} say {found.verdict}"
        f"{with_heads}{rest}."
    ]


def _controls(found: InductionResult) -> str:
    """Of the named heads; the others' failures stand with them."""
    judged: Any = found.judged
    named = judged[judged["named"]]["head"]
    mine: Any = found.controls[found.controls["head"].isin(named)] if len(named) else found.controls
    passed = mine["outcome"].value_counts()
    dropped = "".join(f"\n- {row['head']}: {row['against']}." for row in judged[~judged["named"]].to_dict("records"))
    return (
        f"Controls of {', '.join(named) if len(named) else 'the candidates'}: {passed.get('passed', 0)} passed, "
        f"{passed.get('failed', 0)} failed, {passed.get('not measured', 0)} could not be measured."
        + (f"\n\nCandidates that are not named:\n{dropped}" if dropped else "")
    )


def caution(found: InductionResult) -> str:
    """The first paragraph where the model cannot even denoise these clips: its x0 error is above the mean frame's at
    every noise level, of every kind of repeat, whether or not the last frame came back."""
    rows = rows_of(found.behaviour, lag=0, twin="none")
    asked: dict[str, float] = {}
    if len(rows) and not (rows["error"] <= 1).any():
        least = rows.sort_values("error").iloc[0]
        asked[f"noise level {least['level']:g}, its best,"] = float(least["error"])
    name = str(found.meta.get("model", "the model"))
    without = " and ".join(what for what in ("actions", "text") if what in found.meta)
    text = Reliability(model=name, errors=asked, without=without).caution
    return f"{text}\n\n" if text else ""


def _behaviour(found: InductionResult) -> str:
    rows = rows_of(found.behaviour, design=found.design, level=found.level, lag=0).set_index("twin")
    none = rows.loc["none"]
    text = (
        f"At noise level {found.level:g} the x0 error of a last frame that came back once is {none['error']:.3f}; "
        f"where nothing came back, {none['twin_error']:.3f}. "
    )
    parts = [
        f"{rows.loc[twin]['twin_error']:.3f} with the {CONTROL_CLIPS[twin]}"
        if twin != "reversed"
        else f"{rows.loc[twin]['twin_error']:.3f} with {CONTROL_CLIPS[twin]}"
        for twin in ("no match", "no content", "no cue", "reversed")
    ]
    return text + "On the control clips: " + ", ".join(parts) + "."


def _heads(found: InductionResult) -> str:
    here = found.table[found.table["level"] == found.level].set_index(["layer", "head"])
    copies = found.copying[found.copying["level"] == found.level].set_index(["layer", "head"])
    lines = []
    for layer, head in found.candidates:
        row, copied = here.loc[(layer, head)], copies.loc[(layer, head)]
        alone = rows_of(found.ablation, set=f"head {layer}.{head}").iloc[0]
        lines.append(
            f"- head {layer}.{head}: {row['share']:.2f} of its attention to clean frames is on the earlier B (prefix "
            f"matching {with_interval(row['prefix_matching'], row['low'], row['high'])}, q {number(row['q'])}; the "
            f"distractor that gets most, {row['best_foil']}, has {row['contrast']:.2f} less), copy gain "
            f"{number(copied['copy_gain'])}; without it the error where B came back rises by "
            f"{with_interval(alone['repeats'], alone['low'], alone['high'])}."
        )
    if len(together := rows_of(found.ablation, set="all named")):
        row = together.iloc[0]
        lines.append(
            f"- all named ones together: {with_interval(row['repeats'], row['low'], row['high'])} where B came back, "
            f"{number(row['others'])} where nothing did."
        )
    if not math.isnan(found.carried):
        lines.append(
            f"- without them the model loses {100 * found.carried:.0f} % of what it gains from the repeat; "
            f"{_times(found)}."
        )
    text = "Heads that look at what came next, the earlier B (chosen on other clips):\n\n" + "\n".join(lines)
    relied = [
        f"- head {row['sender']}, of the clip with the {CONTROL_CLIPS[twin]}: the prefix matching of {row['head']} "
        f"falls from {row['prefix_matching']:.2f} to {min(row['no_match'], row['no_cue']):.2f}."
        for row in relied_on(found).drop_duplicates("sender").head(6).to_dict("records")
        for twin in ["no match" if row["no_match"] <= row["no_cue"] else "no cue"]
    ]
    if not relied:
        return text
    lead = (
        "Earlier heads that tell them where to look, found by giving one head the output that it has on a control clip:"
    )
    return f"{text}\n\n{lead}\n\n" + "\n".join(relied)


def relied_on(found: InductionResult) -> pd.DataFrame:
    """Earlier heads without whose knowledge of the clip a candidate's prefix matching clearly falls, most first."""
    if not len(found.reliance):
        return found.reliance  # a search for the verdict alone has none
    table: Any = found.reliance.sort_values("drop", ascending=False)
    return table[(table["low"] > 0) & (table["drop"] >= CLEAR_DROP)]


def _times(found: InductionResult) -> str:
    others = (found.ablation["set"].str.startswith("other ")).any() or not found.judged["named"].all()
    than = "as another head of its layer" if others else "on repeats as on clips in which nothing came back"
    if found.times_random > 100:
        return f"one of them is needed more than 100 times as much {than}"
    return f"one of them is needed at least {found.times_random:.1f} times as much {than}"
