"""AblationResult: the five ablations as figures and chapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vdinterp import plotting
from vdinterp.results import Section
from vdinterp.studies import wording
from vdinterp.studies.result import UNITS, StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

ORDER = ("no transformer", "one step", "no AdaLN", "no attention", "no MLP")
METHOD = {
    "no transformer": "Without any model: `VAE round trip` encodes and decodes the true video (in latents its error is "
    "0 by definition; its PSNR is the best that any latents can reach), `decoded noise` decodes the noise that "
    "sampling starts from, `copy last frame` repeats the last context frame.",
    "one step": "The same model and noise, with fewer denoising steps (deterministic DDIM over evenly spaced levels).",
    "no AdaLN": "Every sublayer's input is scaled and shifted, and its output gated, by vectors made from the frame's "
    "noise level (and action).\n"
    "- `identity`: shift 0, scale 0, gate 1.\n"
    "- `constant`: one vector per site, the mean over reference clips, frames and steps; `constant in attn`, `mlp`, "
    "`final`: in those sublayers only.\n"
    "- `same at every step`: each frame's own modulation, averaged over the steps: only the progress of the denoising "
    "is taken away. `frozen at the first step`, `frozen half-way`: held at that step's noise level.\n"
    "- `gates only`: shift and scale constant, gates vary; `shift and scale only`: the reverse.\n"
    "- `no action`: the action's embedding is left out; `another clip's action`: actions of the next clip.",
    "no attention": "`all off`: the output of every attention is 0; `all at their mean`: its mean over the reference "
    "clips. `own frame only` and `same position only` forbid attention to other frames, or to other places. `context "
    "to target cut`: target frames do not see the context (context frames still see everything).",
    "no MLP": "The output of every MLP, or of a single one, is replaced by 0 or by its mean over the reference clips.",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class AblationResult(StudyResult):
    """The five ablations; `table` and `strips` as in `StudyResult`."""

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(self.pick(site=["head", "layer"])["mode"]))

    @property
    def ablations(self) -> list[str]:
        """Those that were run, in order."""
        there = set(self.table["ablation"])
        return [ablation for ablation in ORDER if ablation in there]

    def plot(self) -> dict[str, go.Figure]:
        """All figures by caption: the overview, then those of each ablation."""
        figures = self.overview()
        for ablation in self.ablations:
            figures |= self.figures(ablation)
        return figures

    def overview(self) -> dict[str, go.Figure]:
        """Bars of the x0 error of every sampled condition."""
        model = self.meta.get("model", "the model")
        rows = self.pick(ablation=list(self.ablations), protocol=["sample", "given"])
        rows = rows[~rows["variant"].isin(["VAE round trip", "decoded noise"]) & (rows["ablation"] != "one step")]
        few = self.pick(ablation="one step").head(1)
        rows = pd.concat([rows[rows["ablation"] == "no transformer"], few, rows[rows["ablation"] != "no transformer"]])
        rows = rows.assign(condition=[f"{a}: {v}" for a, v in zip(rows["ablation"], rows["variant"], strict=True)])
        return self._bars(rows, f"{model}: x0 error under every ablation, mean over target frames", reference_copy=True)

    def figures(self, ablation: str) -> dict[str, go.Figure]:
        """The figures of one ablation. KeyError for one that is not in this result."""
        if ablation not in self.ablations:
            raise KeyError(f"no ablation is called {ablation!r}; this result has {', '.join(self.ablations)}")
        rows = self.pick(ablation=ablation, protocol=["sample", "given"])
        model = self.meta.get("model", "the model")
        figures: dict[str, go.Figure] = {}
        if ablation == "one step":
            figures |= self._step_curves(rows, model)
        elif ablation == "no transformer":
            figures |= self._bars(rows, f"{model}, {ablation}: PSNR to the true video", metric="PSNR")
        else:
            figures |= self._bars(
                rows.assign(condition=rows["variant"]), f"{model}, {ablation}: x0 error", reference_copy=True
            )
            figures |= self._per_frame(ablation, model)
        figures |= self.strip(ablation)
        if ablation == "no attention":
            figures |= self._heads(model)
        if ablation in ("no attention", "no MLP"):
            figures |= self._layers(ablation, model)
        return figures

    def _bars(
        self, rows: pd.DataFrame, title: str, metric: str = "x0 error", reference_copy: bool = False
    ) -> dict[str, go.Figure]:
        if metric != "x0 error":
            rows = self.pick(metric, ablation=list(rows["ablation"].unique()), protocol=list(rows["protocol"].unique()))
        if "condition" not in rows:
            rows = rows.assign(condition=rows["variant"])
        base = wording.only(self.pick(metric, ablation="intact", protocol="sample"))["value"]
        lines = {"intact": base}
        if reference_copy:
            lines["copy last frame"] = wording.copy(self)["value"]
        title += ", 95 % interval over clips"
        figure = plotting.bars(
            rows, x="condition", y="value", low="low", high="high", title=title, y_title=UNITS[metric],
            x_title="condition", reference=lines,
        )  # fmt: skip
        return {title: figure}

    def _step_curves(self, rows: pd.DataFrame, model: str) -> dict[str, go.Figure]:
        curves: list[Any] = []
        for label, metric, reference in (
            ("x0 error against the truth", "x0 error", "truth"),
            ("motion error against the truth", "motion error", "truth"),
            ("x0 error against the full number of steps", "x0 error", "intact"),
        ):
            part = self.pick(metric, reference, ablation="one step")
            steps = [int(variant.split()[0]) for variant in part["variant"]]
            curves.append(part.assign(steps=steps, score=label))
        title = f"{model}, one step: error over the number of denoising steps, band: 95 % interval over clips"
        figure = plotting.lines(
            pd.concat(curves).dropna(subset=["value"]), x="steps", y="value", low="low", high="high", color="score",
            title=title, x_title="denoising steps", y_title="squared error over variance (or over motion)", log_x=True,
            reference={"copy last frame (x0 error)": wording.copy(self)["value"]},
        )  # fmt: skip
        return {title: figure}

    def _per_frame(self, ablation: str, model: str) -> dict[str, go.Figure]:
        rows: Any = pd.concat(
            [
                self.pick(frame="all", ablation="intact", protocol="sample"),
                self.pick(frame="all", ablation="no transformer", variant="copy last frame"),
                self.pick(frame="all", ablation=ablation, protocol="sample"),
            ]
        )
        rows = rows[rows["frame"] != "mean"].dropna(subset=["value"])
        variants, frames = list(dict.fromkeys(rows["variant"])), list(dict.fromkeys(rows["frame"]))
        if len(frames) < 2:
            return {}
        values = rows.pivot(index="variant", columns="frame", values="value").loc[variants, frames]
        title = f"{model}, {ablation}: x0 error by target frame"
        figure = plotting.heatmap(
            values, x=frames, y=variants, title=title, x_title="frame of the clip", y_title="condition",
            value_title="x0 error (over variance)", zmin=0.0,
        )  # fmt: skip
        return {title: figure}

    def _heads(self, model: str) -> dict[str, go.Figure]:
        figures = {}
        limit = self.pick(reference="rise", ablation="no attention", site="head")["value"].abs().max() or 1.0
        for mode in self.modes:
            rows = self.pick(reference="rise", ablation="no attention", site="head", mode=mode)
            if not len(rows):
                continue
            layers, heads = rows["layer"].astype(int), rows["head"].astype(int)
            values = np.full((layers.max() + 1, heads.max() + 1), np.nan)
            values[layers, heads] = rows["value"]
            title = f"{model}: rise of the one-pass x0 error when one head is replaced ({mode})"
            figures[title] = plotting.layer_head(
                values, title=title, value_title="rise of x0 error", diverging=True, zmin=-limit, zmax=limit
            )
        return figures

    def _layers(self, ablation: str, model: str) -> dict[str, go.Figure]:
        rows = self.pick(reference="rise", ablation=ablation, site="layer")
        if not len(rows):
            return {}
        what = "attention" if ablation == "no attention" else "MLP"
        title = (
            f"{model}: rise of the one-pass x0 error when the {what} of one layer is replaced, 95 % interval over clips"
        )
        figure = plotting.bars(
            rows, x="variant", y="value", low="low", high="high", color="mode", title=title, x_title="layer",
            y_title="rise of x0 error (squared error over variance)",
        )  # fmt: skip
        return {title: figure}

    # Text

    def summary(self) -> str:
        """What was done, and what each ablation costs at its worst."""
        base, still, meta = wording.intact(self), wording.copy(self), self.meta
        noise = wording.only(self.pick(variant="decoded noise"))
        lines = [
            line for ablation in self.ablations[1:] if (line := self._cost_of(ablation, base["value"], still["value"]))
        ]
        steps = f"{meta.get('steps')} step{'s' if meta.get('steps') != 1 else ''}"
        return (
            f"`{meta.get('model')}` continues {meta.get('clips')} from {meta.get('context frames')} of "
            f"{meta.get('frames')} frames. Intact, in {steps}, its x0 error is {wording.with_interval(base)}; the mean "
            f"frame scores 1.\n\n- **no transformer**: copying the last context frame scores "
            f"{wording.with_interval(still)}, decoded noise {wording.number(noise['value'])}.\n" + "\n".join(lines)
        )

    def _cost_of(self, ablation: str, base: float, still: float) -> str:
        """One line of the summary: what one ablation costs at its worst; one step is what it is."""
        table = wording.rises(self, ablation=ablation, protocol="sample")
        if ablation == "one step":
            table = table[table["variant"] == "1 step"]
        if not len(table):
            return ""
        worst = table.iloc[0]
        if not worst["clear"] and ablation != "one step":
            return f"- **{ablation}**: no variant raises the x0 error measurably."
        beside = "worse" if worst["error"] > still else "better"
        lead = "" if ablation == "one step" else f"{wording.name(worst)} costs most: "
        return (
            f"- **{ablation}**: {lead}x0 error {wording.number(worst['error'])}, {wording.times(worst['error'], base)} "
            f"and {beside} than a still picture."
        )

    def method(self) -> str:
        """How the numbers were made."""
        meta = self.meta
        target = (int(meta["frames"]) - int(meta["context frames"])) * int(str(meta["clips"]).split()[0])
        judged = ""
        if meta["judged frames"] < target:
            judged = (
                f" Only frames that follow from the context are judged ({meta['judged frames']} of {target}): what "
                "comes as a surprise in the clip cannot be generated by any model."
            )
        levels = wording.listing([f"{level:g}" for level in meta["levels"]])
        return (
            f"**Same for all conditions**: clips, context, initial noise (seed {meta['seed']}), full-sequence schedule "
            f"of {meta['steps']} DDIM steps.{judged} Single layers and heads are judged in one forward pass instead, "
            f"all target frames noised to level {levels} (averaged), so that nothing accumulates over steps.\n\n"
            "**Scores**, per target frame, against the truth and against the intact model's output: x0 error (mean "
            "squared error of the latents over their variance around the mean frame; 0 perfect, 1 the mean frame), "
            "motion error (the same of frame differences; 1 is standing still), PSNR and SSIM of pixels. `rise` is the "
            "x0 error minus the intact model's on the same clips. Intervals: 95 % bootstrap over clips.\n\n"
            f"**Replacements**: `mean` averages over {meta.get('means over', 'the reference clips')} "
            f"({meta.get('reference', '')}); `zero` also removes what is always there, which can hurt for reasons that "
            "have nothing to do with information; `resample` takes another clip's activation, `frozen` this clip's at "
            "the noisiest step."
        )

    def chapter(self, ablation: str) -> str:
        """What was removed, and what that does. KeyError for an ablation that is not in this result."""
        if ablation not in self.ablations:
            raise KeyError(f"no ablation is called {ablation!r}; this result has {', '.join(self.ablations)}")
        base, still = wording.intact(self), wording.copy(self)
        parts = [METHOD[ablation]]
        if ablation == "no transformer":
            best, noise = (self.pick("PSNR", variant=v)["value"].iloc[0] for v in ("VAE round trip", "decoded noise"))
            own = self.pick("PSNR", ablation="intact", protocol="sample")["value"].iloc[0]
            gap = wording.only(self.pick(reference="rise", variant="copy last frame"))  # paired, clip by clip
            lead = "better than" if gap["low"] > 0 else "worse than" if gap["high"] < 0 else "not measurably unlike"
            parts.append(
                f"The model's x0 error of {wording.with_interval(base)} is {lead} that of "
                f"a still picture, {wording.with_interval(still)}. In pixels, the round trip alone reaches {best:.1f} "
                f"dB, the model {own:.1f} dB, decoded noise {noise:.1f} dB."
            )
        elif ablation == "one step":
            parts.append(self._steps_text(base))
        else:
            parts.append(" ".join(wording.ranking(self, ablation=ablation)))
            site = {"no attention": ("layer", "head"), "no MLP": ("layer",)}.get(ablation, ())
            singles = [wording.components(self, ablation, one, mode) for one in site for mode in self.modes]
            if any(singles):
                parts.append("One at a time:\n" + "\n".join(f"- {single}" for single in singles if single))
        return "\n\n".join(part for part in parts if part)

    def _steps_text(self, base: Any) -> str:
        table = wording.rises(self, ablation="one step")
        table = table.assign(steps=[int(v.split()[0]) for v in table["variant"]]).sort_values("steps")
        one, motion = table.iloc[0], self.pick("motion error", variant=table.iloc[0]["variant"])["value"].iloc[0]
        full = self.pick("motion error", ablation="intact", protocol="sample")["value"].iloc[0]
        enough = next((row["steps"] for _, row in table.iterrows() if not row["clear"]), None)
        text = (
            f"With {one['steps']} step the x0 error is {wording.number(one['error'])}, "
            f"{wording.times(one['error'], base['value'])} with {table['steps'].max()}; the motion error is "
            f"{wording.number(motion)} against {wording.number(full)}."
        )
        if enough is not None:
            text += f" More than {enough} step{'s' if enough > 1 else ''} do not lower the x0 error measurably."
        lowest = table.loc[table["error"].idxmin()]
        if lowest["high"] < 0:
            text += (
                f" It is lowest with {lowest['steps']} step{'s' if lowest['steps'] > 1 else ''}: squared error rewards "
                "the average of all possible futures, which few steps give, over one sharp one."
            )
        return text

    def sections(self) -> list[Section]:
        """A chapter for the model, a subsection for each ablation; the summary table first."""
        first = Section(
            title=self.title,
            text=self.summary(),
            tables={f"{self.meta.get('model')}: every sampled condition": self.wide(protocol=["sample", "given"])},
        )
        side_by_side = Section(title="All ablations side by side", figures=self.overview(), level=3)
        method = Section(title="How it was measured", text=self.method(), level=3)
        chapters = [
            Section(
                title=ablation[0].upper() + ablation[1:],
                text=self.chapter(ablation),
                figures=self.figures(ablation),
                tables=self._singles(ablation),
                level=3,
            )
            for ablation in self.ablations
        ]
        return [first, side_by_side, method, *chapters]

    def _singles(self, ablation: str) -> dict[str, pd.DataFrame]:
        if not len(self.pick(ablation=ablation, protocol="denoise")):
            return {}
        caption = f"{self.meta.get('model')}, {ablation}: one layer or head at a time, single forward passes"
        return {caption: self.wide(ablation=ablation, protocol="denoise")}
