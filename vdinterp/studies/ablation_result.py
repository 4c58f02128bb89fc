"""AblationResult: the five ablations as figures and chapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vdinterp import plotting
from vdinterp.results import Section
from vdinterp.studies import ablation_text, wording
from vdinterp.studies.result import COLUMNS_MEAN, UNITS, StudyResult
from vdinterp.words.wording import caution

if TYPE_CHECKING:
    import plotly.graph_objects as go

ORDER = ("no transformer", "one step", "no AdaLN", "no attention", "no MLP")


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

    @property
    def model(self) -> str:
        return str(self.meta.get("model", "the model"))

    @property
    def round_trip(self) -> float | None:
        """PSNR (dB) of the true video encoded and decoded; None for a model of pixels."""
        if "VAE round trip" not in set(self.table["variant"]) or not self.in_pixels:
            return None
        return float(self.pick("PSNR", variant="VAE round trip")["value"].iloc[0])

    @property
    def in_pixels(self) -> bool:
        """Whether pixels were compared, which takes a VAE."""
        return "PSNR" in set(self.table["metric"])

    def check(self, ablation: str) -> None:
        """Raise KeyError for an ablation that is not in this result."""
        if ablation not in self.ablations:
            raise KeyError(f"no ablation is called {ablation!r}; this result has {', '.join(self.ablations)}")

    def plot(self) -> dict[str, go.Figure]:
        """All figures by caption: the overview, then those of each ablation."""
        figures = self.overview()
        for ablation in self.ablations:
            figures |= self.figures(ablation)
        return figures

    def overview(self) -> dict[str, go.Figure]:
        """Bars of the x0 error of every sampled condition."""
        rows = self.pick(ablation=list(self.ablations), protocol=["sample", "given"])
        rows = rows[~rows["variant"].isin(["VAE round trip", "decoded noise"]) & (rows["ablation"] != "one step")]
        few = self.pick(ablation="one step").head(1)
        rows = pd.concat([rows[rows["ablation"] == "no transformer"], few, rows[rows["ablation"] != "no transformer"]])
        rows = rows.assign(condition=[f"{a}: {v}" for a, v in zip(rows["ablation"], rows["variant"], strict=True)])
        rows = rows.sort_values("value", ascending=False, kind="stable")
        title = f"{self.model}: x0 error under every ablation, mean over target frames"
        return self._bars(rows, title, reference_copy=True)

    def figures(self, ablation: str) -> dict[str, go.Figure]:
        """The figures of one ablation. KeyError for one that is not in this result."""
        self.check(ablation)
        rows = self.pick(ablation=ablation, protocol=["sample", "given"])
        model = self.model
        figures: dict[str, go.Figure] = {}
        if ablation == "one step":
            figures |= self._step_curves(rows, model)
        elif ablation == "no transformer":
            metric, what = ("PSNR", "PSNR to the true video") if self.in_pixels else ("x0 error", "x0 error")
            figures |= self._bars(rows, f"{model}, {ablation}: {what}", metric=metric)
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
            rows,
            x="condition",
            y="value",
            low="low",
            high="high",
            title=title,
            y_title=UNITS[metric],
            x_title="condition",
            reference=lines,
        )
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
            pd.concat(curves).dropna(subset=["value"]),
            x="steps",
            y="value",
            low="low",
            high="high",
            color="score",
            title=title,
            x_title="denoising steps",
            y_title="squared error over variance (or over motion)",
            log_x=True,
            reference={"copy last frame (x0 error)": wording.copy(self)["value"]},
        )
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
            values,
            x=frames,
            y=variants,
            title=title,
            x_title="frame of the clip",
            y_title="condition",
            value_title="x0 error (over variance)",
            zmin=0.0,
        )
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
            rows,
            x="variant",
            y="value",
            low="low",
            high="high",
            color="mode",
            title=title,
            x_title="layer",
            y_title="rise of x0 error (squared error over variance)",
        )
        return {title: figure}

    # Text

    def summary(self) -> str:
        """The finding, and what each ablation costs at its worst."""
        return ablation_text.summary(self)

    def method(self) -> str:
        """How the numbers were made."""
        return ablation_text.method(self)

    def chapter(self, ablation: str) -> str:
        """What was removed, and what that does. KeyError for an ablation that is not in this result."""
        return ablation_text.chapter(self, ablation)

    # Report

    def sections(self) -> list[Section]:
        """The finding with its pictures first; the table; how it was measured; a subsection for each ablation."""
        strip = self.headline_strip()
        first = Section(
            title=self.title,
            text=self.summary(),
            moving=self.headline_clip(),
            figures={**strip, **self.overview()},
            tables={
                f"Every sampled condition. {self.model}, the largest rise first. {COLUMNS_MEAN}": by_effect(
                    self.wide(protocol=["sample", "given"])
                )
            },
        )
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
        return [first, Section(title="How it was measured", text=self.method(), level=3), *chapters]

    @classmethod
    def compare(cls, results: Sequence[AblationResult]) -> list[Section]:
        """Several models: the finding of each, and one figure of what the same ablations cost them all."""
        text = "\n\n".join(caution(one.meta) + ablation_text.finding(one) for one in results)
        moving = {caption: clip for one in results for caption, clip in one.headline_clip().items()}
        return [Section(title="At a glance", text=text, moving=moving, figures=compared(results))]

    def headline(self) -> dict[str, Any]:
        """One clip: the truth, what the intact model makes of it, and the most costly variant of every ablation."""
        chosen: dict[str, Any] = {}
        for ablation, clips in self.strips.items():
            worst = ablation_text.costliest(self, ablation)
            variant = "1 step" if ablation == "one step" else None if worst is None else worst["variant"]
            if variant in clips:
                chosen |= {name: clips[name] for name in ("truth", "intact") if name in clips}
                chosen[_named(ablation, str(variant))] = clips[variant]
        return chosen

    def headline_strip(self) -> dict[str, go.Figure]:
        """The headline as a film strip, by caption; empty without strips."""
        clips = self.headline()
        return self._film(f"{self.model}: the most costly variant of every ablation", clips) if clips else {}

    def headline_clip(self) -> dict[str, str]:
        """The headline as a moving picture, by caption; empty without strips."""
        clips = {name: clip.numpy() / np.float32(255) for name, clip in self.headline().items()}
        if not clips:
            return {}
        caption = f"{self.model}: the true clip, what the intact model makes of it, and the most costly ablations"
        moving = plotting.moving_clips(clips, n_context=int(self.meta.get("context frames", 0)))
        return {f"{caption}. {self.why_shown}": moving}

    def _singles(self, ablation: str) -> dict[str, pd.DataFrame]:
        if not len(self.pick(ablation=ablation, protocol="denoise")):
            return {}
        caption = (
            f"One at a time. {self.model}, {ablation}: one layer or head replaced in single forward passes, the "
            f"largest rise first. `mode`: what it is replaced with. {COLUMNS_MEAN}"
        )
        return {caption: by_effect(self.wide(ablation=ablation, protocol="denoise"))}


def compared(results: Sequence[AblationResult]) -> dict[str, go.Figure]:
    """Bars of what an ablation costs each model, beside what needs no model: of every ablation the variant, among those
    that all models have, that costs most (of "one step" the single step)."""
    chosen = []
    for ablation in results[0].ablations[1:]:
        variants = dict.fromkeys(results[0].pick(ablation=ablation, protocol="sample")["variant"])
        shared = [
            name
            for name in variants
            if all(len(one.pick(ablation=ablation, variant=name, protocol="sample")) for one in results)
            and (ablation != "one step" or name == "1 step")
        ]
        if shared:
            chosen.append((ablation, max(shared, key=lambda name: _mean_error(results, ablation, name))))
    models = [one.model for one in results]
    rows = []
    for index, one in enumerate(results):
        model = one.model if models.count(one.model) == 1 else f"{one.model} ({index + 1})"
        scores = {"intact": wording.intact(one), "still picture (no model)": wording.copy(one)}
        scores |= {_named(*name): wording.only(_sampled(one, *name)) for name in chosen}
        rows += [
            {"condition": name, "model": model, **{end: score[end] for end in ("value", "low", "high")}}
            for name, score in scores.items()
        ]
    title = "x0 error of every model: intact, a still picture, and the most costly variant of every ablation"
    figure = plotting.bars(
        pd.DataFrame(rows),
        x="condition",
        y="value",
        low="low",
        high="high",
        color="model",
        title=title,
        y_title=UNITS["x0 error"],
        x_title="condition",
        reference={"mean frame": 1.0},
        log=True,
    )
    return {f"{title}. Lines: 95 % intervals over clips": figure}


def _sampled(result: AblationResult, ablation: str, variant: str) -> Any:
    return result.pick(ablation=ablation, variant=variant, protocol="sample")


def _named(ablation: str, variant: str) -> str:
    return variant if ablation == "one step" else f"{ablation}: {variant}"


def _mean_error(results: Sequence[AblationResult], ablation: str, variant: str) -> float:
    """Of one variant over the models, each in units of its still picture's error."""
    errors = [wording.only(_sampled(one, ablation, variant))["value"] / wording.copy(one)["value"] for one in results]
    return float(np.mean(errors))


def by_effect(table: pd.DataFrame) -> pd.DataFrame:
    """The largest rise of the error first."""
    return table.sort_values("rise", ascending=False, kind="stable", ignore_index=True) if "rise" in table else table
