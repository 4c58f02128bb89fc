"""InductionResult: the verdict with everything it rests on, as tables, figures and plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype

from vdinterp.analysis.induction import figures, words
from vdinterp.analysis.induction.behaviour import KINDS
from vdinterp.analysis.induction.scores import UNITS
from vdinterp.analysis.induction.stimuli import CONTROL_CLIPS, in_plain_words, strip
from vdinterp.analysis.induction.verdict import Verdict
from vdinterp.data.repeats import TWINS
from vdinterp.results import Result, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

GAINS = (
    "Gains. What the repeat gains over each control clip, noisiest level first. `gain`: x0 error on the control clip "
    "minus that on the clip, with the ends of its 95 % interval; `lag` 0: all lags; `found`: a gain that is "
    "surely above 0"
)
EFFECT = (
    "Rise of the x0 error with heads at their mean: `repeats`, where B came back (`low`, `high`: 95 % interval); "
    "`others`, where nothing did"
)
PATHS = (
    "Share of the way from the clip to a control clip that x0 goes when one head's key or query hears another head's "
    "output of the control clip; `taken`: which control clip"
)
RELIANCE = (
    "`prefix_matching` of `head` as it is, and with the output of `sender` taken from a control clip; `drop`: the "
    "larger loss, with the ends of its 95 % interval; `ablated`: with the sender at its mean"
)
# Column names of the tables, as a report says them.
PLAIN = {
    "twin": "control clip",
    "twin_error": "error on control",
    "no_match": "earlier A replaced",
    "no_cue": "last A replaced",
    "best_foil": "best distractor",
    "taken": "control clip",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class InductionResult(Result):
    """What an induction search found.

    `verdict`, one of `induction | reversal | position copying | period detector | duplicate matching | no behaviour |
    inconclusive`, of the strongest behaviour; `reason`; `level`: the noise level that decided; `design`: the kind of
    repeats that heads were judged on. `heads`: the induction heads (layer, head), strongest first; empty for any other
    verdict. `candidates`: heads that look at the successor significantly, whatever the verdict.

    Tables: `findings` (what every noise level shows, strongest first), `again` (the verdict of this search and of
    further ones with other seeds, see `reproduced`), `behaviour` (gain by design, twin, level, lag), `positions`
    (nearness to the frame at every distance), `table` (scores of every head and level), `judged` (candidates: named or
    not, and why), `ablation`, `copying`, `paths`, `reliance`, `composition`, `controls`, `lags`. `times_random`: at
    least so many times as much as another head of its layer is a named one needed; `carried`: share of the repeat's
    gain that goes with all of them; both NaN where none is named. `example`: a clip, and the candidates' attention over
    it. `stimuli`: a clip, its control clips (see `CONTROL_CLIPS` in `analysis/induction/stimuli.py`) and its lag.
    """

    title = "Induction search"
    verdict: Verdict
    reason: str
    level: float
    heads: list[tuple[int, int]]
    candidates: list[tuple[int, int]]
    behaviour: pd.DataFrame
    skipped: dict[str, str]
    design: str = "one-off"
    findings: pd.DataFrame = field(default_factory=pd.DataFrame)
    again: pd.DataFrame = field(default_factory=pd.DataFrame)
    positions: pd.DataFrame = field(default_factory=pd.DataFrame)
    judged: pd.DataFrame = field(default_factory=pd.DataFrame)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    ablation: pd.DataFrame = field(default_factory=pd.DataFrame)
    copying: pd.DataFrame = field(default_factory=pd.DataFrame)
    paths: pd.DataFrame = field(default_factory=pd.DataFrame)
    reliance: pd.DataFrame = field(default_factory=pd.DataFrame)
    composition: pd.DataFrame = field(default_factory=pd.DataFrame)
    composition_note: str = ""
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)
    lags: pd.DataFrame = field(default_factory=pd.DataFrame)
    times_random: float = math.nan
    carried: float = math.nan
    example: dict[str, torch.Tensor] = field(default_factory=dict)
    stimuli: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def without_heads(
        cls, verdict: Verdict, level: float, reason: str, *, scores: pd.DataFrame | None = None, **about: Any
    ) -> Self:
        """A verdict that needs no heads."""
        table = {} if scores is None else {"table": scores}
        return cls(verdict=verdict, level=level, reason=reason, heads=[], candidates=[], **table, **about)

    @property
    def reproduced(self) -> tuple[int, int]:
        """How many searches came to this verdict, of how many (this one counts)."""
        return int((self.again["verdict"] == self.verdict).sum()), len(self.again)

    def to_frame(self) -> pd.DataFrame:
        """Scores of every head and noise level; the behaviour where the search ended with that."""
        return (self.table if len(self.table) else self.behaviour).copy()

    def summary(self) -> str:
        """The verdict in plain words, with the numbers it rests on."""
        return words.summary(self)

    def plot(self) -> dict[str, go.Figure]:
        """Behaviour, mosaic of heads by level, and of the candidates: attention, lags, ablation, circuit."""
        return figures.figures(self)

    def circuit(self) -> pd.DataFrame:
        """Edges `sender receiver score`: earlier heads that a candidate relies on (drop of its prefix matching), and
        the candidates' copy gains to the output; without those below a fiftieth of the strongest."""
        return figures.circuit(self)

    def _sorted_scores(self) -> pd.DataFrame:
        """The level that decided first, best heads on top."""
        here = self.table["level"] == self.level
        order = ["decided", "level", "prefix_matching"]
        return self.table.assign(decided=here).sort_values(order, ascending=False).drop(columns="decided")

    def sections(self) -> list[Section]:
        drawn, behaviour, first = self.plot(), figures.behaviour_figures(self), strip(self.stimuli)
        of_heads = {name: figure for name, figure in drawn.items() if name not in behaviour and name not in first}
        lead, evidence = words.lead(self), words.evidence(self)
        shown = set(self.behaviour["design"])
        controls_of = "\n".join(f"- **{CONTROL_CLIPS[name]}**: {text}." for name, text in TWINS.items())
        kinds = "\n".join(f"- **{name}**: {text}." for name, text in KINDS.items() if name in shown)
        kinds += "".join(f"\n- {name}: left out, {why}." for name, why in self.skipped.items())
        beside = {
            "What every noise level shows, strongest first": self.findings,
            "Further searches. The verdict of this search and of others with other seeds": self.again,
            "Candidates. Which heads are named, and why others are not": self.judged,
            "Controls. What else could explain it, and whether it does": self.controls,
        }
        beside = {name: _plainly(table) for name, table in beside.items() if len(table)}
        gains = self.behaviour.sort_values(["level", "lag"], ascending=[False, True], kind="stable")
        found = [
            Section(title="Verdict", text=lead, figures=first),
            Section(title="Evidence", text=evidence, tables=beside),
            Section(
                title="Behaviour",
                text=f"Kinds of repeats:\n\n{kinds}\n\nControl clips have the same last frame and noise, but:\n\n"
                f"{controls_of}",
                figures=behaviour,
                tables={GAINS: _plainly(gains)},
            ),
        ]
        if len(self.table):
            meanings = "\n".join(f"- `{name}`: {in_plain_words(text)}." for name, text in UNITS.items())
            found.append(
                Section(
                    title="Heads",
                    text=f"Scores:\n\n{meanings}",
                    figures=of_heads,
                    tables={
                        "Scores. Every head, the deciding noise level and the best heads first": _plainly(
                            self._sorted_scores()
                        )
                    },
                )
            )
        effects = {
            f"Mean ablation. {EFFECT}": self.ablation,
            "Copying. `copy_gain`: how far x0 goes towards the content that the head alone may see, 0 to 1": (
                self.copying.sort_values(["level", "copy_gain"], ascending=False, kind="stable")
                if len(self.copying)
                else self.copying
            ),
            f"Paths from earlier heads. {PATHS}": self.paths,
            f"Which earlier heads say where to look. {RELIANCE}": self.reliance,
            "Composition of weights. `beyond`: score minus that of random matrices": self.composition,
        }
        if tables := {name: table for name, table in effects.items() if len(table)}:
            plain = {name: _plainly(table) for name, table in tables.items()}
            found.append(Section(title="Effects", tables=plain))
        return found


def _plainly(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the names and words that a report explains."""
    shown = table.rename(columns=PLAIN)
    if "control clip" in shown:
        shown = shown.assign(**{"control clip": shown["control clip"].map(lambda name: CONTROL_CLIPS.get(name, name))})
    texts = [column for column in shown if not is_numeric_dtype(shown[column].dtype)]
    return shown.assign(
        **{
            column: [in_plain_words(cell) if isinstance(cell, str) else cell for cell in shown[column]]
            for column in texts
        }
    )
