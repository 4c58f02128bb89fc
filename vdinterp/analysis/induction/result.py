"""InductionResult: the verdict with everything it rests on, as tables, figures and plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.analysis.induction.verdict import Verdict
from vdinterp.data.repeats import MEANING, TWINS
from vdinterp.results import Result, Section, rows_of

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

MOST_ROWS = 48  # heads of a mosaic
NO_TABLE = pd.DataFrame()
MEANINGS: dict[str, str] = {
    "induction": "an induction circuit: what came next last time is looked up and copied",
    "position copying": "frames are copied from a fixed place in time, whatever they show",
    "period detector": "loops are continued, pairs that came once are not looked up",
    "duplicate matching": "the noisy frame itself is matched with a clean copy; what preceded it plays no part",
    "no behaviour": "the model makes nothing of what came back",
    "inconclusive": "something that came back helps, but induction is not shown",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class InductionResult(Result):
    """What an induction search found.

    `verdict`, one of `induction | position copying | period detector | duplicate matching | no behaviour |
    inconclusive`; `reason`; `level`: the noise level that decided. `heads`: the induction heads (layer, head), strongest
    first; empty for any other verdict. `candidates`: heads that look at the successor significantly, whatever the
    verdict.

    Tables: `behaviour` (gain by design, twin, level, lag), `table` (scores of every head and level), `ablation`,
    `copying`, `paths`, `reliance`, `composition`, `controls`, `lags`. `times_random`: effect of removing the candidates
    over that of matched random heads. `example`: a clip, and the candidates' attention over it.
    """

    title = "Induction search"
    verdict: Verdict
    reason: str
    level: float
    heads: list[tuple[int, int]]
    candidates: list[tuple[int, int]]
    behaviour: pd.DataFrame
    skipped: dict[str, str]
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
    example: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def without_heads(
        cls, verdict: Verdict, level: float, reason: str, *, scores: pd.DataFrame | None = None, **about: Any
    ) -> Self:
        """A verdict that needs no heads."""
        table = {} if scores is None else {"table": scores}
        return cls(verdict=verdict, level=level, reason=reason, heads=[], candidates=[], **table, **about)

    def to_frame(self) -> pd.DataFrame:
        """Scores of every head and noise level; the behaviour where the search ended with that."""
        return (self.table if len(self.table) else self.behaviour).copy()

    # Words

    def summary(self) -> str:
        """The verdict in plain words, with the numbers it rests on."""
        lines = [f"**{self.meta.get('model', 'The model')}: {self.verdict}**, that is, {MEANINGS[self.verdict]}. "
                 f"{self.reason[0].upper()}{self.reason[1:]}."]  # fmt: skip
        lines.append(self._behaviour_words())
        if self.candidates:
            lines.append(self._head_words())
        if len(self.controls):
            passed = self.controls["outcome"].value_counts()
            lines.append(
                f"Controls: {passed.get('passed', 0)} passed, {passed.get('failed', 0)} failed, "
                f"{passed.get('not measured', 0)} could not be measured."
            )
        if self.candidates and self.composition_note:
            lines.append(f"Composition of weights was skipped: {self.composition_note}.")
        return "\n\n".join(lines)

    def _behaviour_words(self) -> str:
        rows = rows_of(self.behaviour, design="one-off", level=self.level, lag=0).set_index("twin")
        none = rows.loc["none"]
        text = (
            f"At noise level {self.level:g} the x0 error of a last frame that came back once is {none['error']:.3f} of "
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

    def _head_words(self) -> str:
        here = self.table[self.table["level"] == self.level].set_index(["layer", "head"])
        copies = self.copying.set_index(["layer", "head"])
        lines = []
        for layer, head in self.candidates:
            row, copied = here.loc[(layer, head)], copies.loc[(layer, head)]
            alone = rows_of(self.ablation, set=f"head {layer}.{head}").iloc[0]
            lines.append(
                f"- head {layer}.{head}: {row['share']:.2f} of its attention to clean frames is on the successor "
                f"(prefix matching {row['prefix_matching']:.2f} [{row['low']:.2f}, {row['high']:.2f}], q = "
                f"{row['q']:.2g}; best foil: {row['best_foil']}, {row['contrast']:.2f} less), copy gain "
                f"{copied['copy_gain']:.2f}; without it the error on repeats rises by {alone['repeats']:.3f} "
                f"[{alone['low']:.3f}, {alone['high']:.3f}]."
            )
        if len(self.candidates) > 1:
            row = rows_of(self.ablation, set="all named").iloc[0]
            lines.append(
                f"- all {len(self.candidates)} together: {row['repeats']:.3f} [{row['low']:.3f}, {row['high']:.3f}] on "
                f"repeats, {row['others']:.3f} where nothing came back; {self._times()}."
            )
        else:
            lines.append(f"- {self._times()}.")
        senders = self.reliance.sort_values("drop", ascending=False)
        lines += [
            f"- without head {row['sender']} the prefix matching of {row['head']} falls from "
            f"{row['prefix_matching']:.2f} to {row['without']:.2f}."
            for row in senders.head(4).to_dict("records")
        ]
        return "Heads that look at what came next, on clips that they were not chosen on:\n\n" + "\n".join(lines)

    def _times(self) -> str:
        if math.isnan(self.times_random):
            return "there are no other heads in these layers to compare with"
        if math.isinf(self.times_random):
            return "random heads of the same layers do no harm"
        return f"{self.times_random:.1f} times the effect of random heads of the same layers"

    # Figures

    def plot(self) -> dict[str, go.Figure]:
        """Behaviour, mosaic of heads by level, and of the candidates: attention, lags, ablation, circuit."""
        figures = {**self._behaviour_figures()}
        if len(self.table):
            figures |= self._mosaic()
        if self.candidates:
            figures |= self._candidate_figures()
        return figures

    def _behaviour_figures(self) -> dict[str, go.Figure]:
        one_off = self.behaviour[self.behaviour["design"] == "one-off"]
        overall = one_off[one_off["lag"] == 0]
        by_level = "What a last frame that came back gains over twins, by noise level (95 % interval over clips)"
        by_lag = f"The same by lag, noise level {self.level:g}"
        gain = "gain: rise of the x0 error over variance"
        lags = one_off[(one_off["lag"] > 0) & (one_off["level"] == self.level)]
        designs = self.behaviour[(self.behaviour["lag"] == 0) & (self.behaviour["twin"] == "none")]
        relative = designs.assign(share=designs["gain"] / designs["twin_error"].clip(lower=1e-9))
        grid = relative.pivot(index="design", columns="level", values="share")
        grid = grid.loc[[name for name in MEANING if name in grid.index]]
        by_design = "Error that a repeat saves, as a share of the error without: kinds of repeats by noise level"
        return {
            by_level: plotting.lines(
                overall, x="level", y="gain", color="twin", low="low", high="high", title=by_level,
                x_title="noise level", y_title=gain, reference={"no gain": 0.0},
            ),
            by_lag: plotting.lines(
                lags, x="lag", y="gain", color="twin", low="low", high="high", title=by_lag, x_title="lag (frames)",
                y_title=gain, reference={"no gain": 0.0},
            ),
            by_design: plotting.heatmap(
                grid.to_numpy(), x=[f"{level:g}" for level in grid.columns], y=list(grid.index), title=by_design,
                x_title="noise level", y_title="kind of repeat", value_title="share saved", zmin=-1.0, zmax=1.0,
                diverging=True, number_format=".2f",
            ),
        }  # fmt: skip

    def _mosaic(self) -> dict[str, go.Figure]:
        names = [f"{layer}.{head}" for layer, head in zip(self.table["layer"], self.table["head"], strict=True)]
        grid = self.table.assign(name=names).pivot(index="name", columns="level", values="prefix_matching")
        grid = grid.loc[list(dict.fromkeys(names))]
        title = "Prefix matching of every head by noise level"
        if len(grid) > MOST_ROWS:
            title = f"Prefix matching of the {MOST_ROWS} best heads by noise level"
            grid = grid.loc[grid.max(axis=1).nlargest(MOST_ROWS).index]
        return {
            title: plotting.heatmap(
                grid.to_numpy(), x=[f"{level:g}" for level in grid.columns], y=list(grid.index), title=title,
                x_title="noise level", y_title="head", value_title="share minus chance", zmin=-1.0, zmax=1.0,
                diverging=True, number_format=".2f",
            )
        }  # fmt: skip

    def _candidate_figures(self) -> dict[str, go.Figure]:
        names = [f"{layer}.{head}" for layer, head in self.candidates]
        video = self.example["video"].numpy()
        weights = {f"head {name}": self.example[name].numpy() for name in names[:4]}
        lag = int(self.lags["lag"].iloc[0])
        at = f"(query: the noisy last frame; what follows is in frame {len(video) - 1 - lag})"
        strip = f"Attention of the candidates over one clip {at}"
        query = tuple(int(x) for x in self.example["query"])
        follow = "The lag that candidates attend to most, against the true lag"
        line = pd.DataFrame({"head": "true lag", "lag": sorted(set(self.lags["lag"]))})
        line["preferred"] = line["lag"].astype(float)
        ablation = self.ablation.melt(id_vars=["set", "heads"], value_vars=["repeats", "others"], var_name="clips")
        ablation = ablation.merge(self.ablation[["set", "low", "high"]], on="set")
        of_others = ablation["clips"] == "others"
        ablation.loc[of_others, ["low", "high"]] = np.column_stack([ablation.loc[of_others, "value"]] * 2)
        shown = ablation["set"].where(~ablation["set"].str.startswith("random"), ablation["set"] + ": "
                                      + ablation["heads"])  # fmt: skip
        mean = "Rise of the x0 error when heads are replaced by their mean (95 % interval on repeats)"
        figures = {
            strip: plotting.attention_strip(
                video, weights, title=strip, queries=dict.fromkeys(weights, query)
            ),
            follow: plotting.lines(
                pd.concat([line, self.lags]), x="lag", y="preferred", color="head", title=follow,
                x_title="true lag (frames)", y_title="preferred lag (frames)",
            ),
            mean: plotting.bars(
                ablation.assign(set=shown), x="set", y="value", color="clips", low="low", high="high", title=mean,
                x_title="heads", y_title="rise of x0 error over variance",
            ),
        }  # fmt: skip
        if len(edges := self.circuit()):
            title = "The circuit: paths from earlier heads, and what the candidates write"
            figures[title] = plotting.circuit_graph(edges, title=title, value_title="recovered")
        return figures

    def circuit(self) -> pd.DataFrame:
        """Edges `sender receiver score`: paths into keys and queries (share recovered), and copy gains to the output."""
        edges = [
            {"sender": row["sender"], "receiver": row["receiver"], "score": row["value"]}
            for row in self.paths.to_dict("records")
            if row["receiver"] != "total"
        ]
        if edges:
            edges += [
                {"sender": f"{row['layer']}.{row['head']}", "receiver": "final", "score": row["copy_gain"]}
                for row in self.copying.to_dict("records")
            ]
        return pd.DataFrame(edges, columns=["sender", "receiver", "score"])

    # The report

    def sections(self) -> list[Section]:
        figures = self.plot()
        behaviour = {name: figures.pop(name) for name in list(figures)[:3]}
        twins = "\n".join(f"- **{name}**: {text}." for name, text in TWINS.items())
        kinds = "\n".join(f"- **{name}**: {text}." for name, text in MEANING.items() if name not in self.skipped)
        kinds += "".join(f"\n- {name}: left out, {why}." for name, why in self.skipped.items())
        found = [
            Section(title="Verdict", text=self.summary(), tables={"Controls": self.controls} if len(self.controls) else {}),
            Section(
                title="Behaviour",
                text=f"Kinds of repeats:\n\n{kinds}\n\nTwins of the one-offs have the same last frame and noise:\n\n{twins}",
                figures=behaviour, tables={"Gains over twins": self.behaviour},
            ),
        ]  # fmt: skip
        if len(self.table):
            found.append(Section(title="Heads", figures=figures, tables={"Scores": self.table}))
        effects = {
            "Mean ablation": self.ablation, "Copying": self.copying, "Paths from earlier heads": self.paths,
            "Prefix matching without an earlier head": self.reliance, "Composition of weights": self.composition,
        }  # fmt: skip
        if tables := {name: table for name, table in effects.items() if len(table)}:
            found.append(Section(title="Effects", tables=tables))
        return found
