"""InductionResult: the verdict with everything it rests on, as tables, figures and plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from vdinterp.analysis.induction import figures, words
from vdinterp.analysis.induction.behaviour import KINDS
from vdinterp.analysis.induction.scores import UNITS
from vdinterp.analysis.induction.verdict import Verdict
from vdinterp.data.repeats import TWINS
from vdinterp.results import Result, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self


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
    it.
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
        """Edges `sender receiver score`: paths into keys and queries (share recovered), and copy gains to the output;
        without those below a fiftieth of the strongest."""
        return figures.circuit(self)

    def _sorted_scores(self) -> pd.DataFrame:
        """The level that decided first, best heads on top."""
        here = self.table["level"] == self.level
        order = ["decided", "level", "prefix_matching"]
        return self.table.assign(decided=here).sort_values(order, ascending=False).drop(columns="decided")

    def sections(self) -> list[Section]:
        drawn, behaviour = self.plot(), figures.behaviour_figures(self)
        of_heads = {name: figure for name, figure in drawn.items() if name not in behaviour}
        shown = set(self.behaviour["design"])
        twins = "\n".join(f"- **{name}**: {text}." for name, text in TWINS.items())
        kinds = "\n".join(f"- **{name}**: {text}." for name, text in KINDS.items() if name in shown)
        kinds += "".join(f"\n- {name}: left out, {why}." for name, why in self.skipped.items())
        beside = {
            "What every noise level shows, strongest first": self.findings, "Further searches": self.again,
            "Candidates": self.judged, "Controls": self.controls,
        }  # fmt: skip
        beside = {name: table for name, table in beside.items() if len(table)}
        gains = self.behaviour.sort_values(["level", "lag"], ascending=[False, True], kind="stable")
        found = [
            Section(
                title="Verdict",
                text=self.summary(),
                tables=beside,
            ),
            Section(
                title="Behaviour",
                text=f"Kinds of repeats:\n\n{kinds}\n\nTwins have the same last frame and noise, but:\n\n{twins}",
                figures=behaviour,
                tables={"Gains over twins, noisiest level first; lag 0: all lags": gains},
            ),
        ]
        if len(self.table):
            meanings = "\n".join(f"- `{name}`: {text}." for name, text in UNITS.items())
            found.append(
                Section(
                    title="Heads",
                    text=f"Scores:\n\n{meanings}",
                    figures=of_heads,
                    tables={"Scores": self._sorted_scores()},
                )
            )
        effects = {
            "Mean ablation": self.ablation, "Copying": self.copying, "Paths from earlier heads": self.paths,
            "Prefix matching when an earlier head tells of a twin": self.reliance,
            "Composition of weights": self.composition,
        }  # fmt: skip
        if tables := {name: table for name, table in effects.items() if len(table)}:
            found.append(Section(title="Effects", tables=tables))
        return found
