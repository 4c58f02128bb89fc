"""StudyResult: what came out of measuring conditions, as table, figures and chapters of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8

from vdinterp import plotting
from vdinterp.analysis import bootstrap_mean
from vdinterp.analysis.stimulus.latents import pictures_of
from vdinterp.results import Result, Section
from vdinterp.words.wording import caution, interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vdinterp.studies.bench import Bench, Measurement

UNITS = {
    "x0 error": "x0 error (squared error over variance)",
    "motion error": "motion error (squared error over motion)",
    "sharpness": "sharpness (gradient energy, 1 = as the truth)",
    "PSNR": "PSNR (dB)",
    "SSIM": "SSIM (1 = equal)",
}
COLUMNS_MEAN = (
    "`rise`: x0 error minus the intact model's on the same clips; `95 %`: interval over clips; `sharpness`: 1 is as "
    "sharp as the truth; `to intact`: x0 error against the intact model's output"
)
STRIP_WIDTH = 640  # pixels of the stored image; browsers enlarge it without smoothing
COLUMNS = ("ablation", "variant", "mode", "site", "layer", "head", "protocol", "metric", "reference", "frame")
Strips = dict[str, dict[str, UInt8[torch.Tensor, "frame channel height width"]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult(Result):
    """A measured set of conditions.

    `table`, one row a number: `ablation variant mode site layer head protocol metric reference frame value low high
    n_clips`. `reference` is "truth", "intact" (the intact model's own output under the same noise) or "rise" (score
    against the truth, minus the intact model's on the same clips: paired). `frame` is a target frame's index in the
    clip, or "mean" over them. `low`, `high`: 95 % percentile bootstrap over clips, 1000 resamples.
    `strips`: for each ablation, one clip (`meta["shown clip"]`) under every condition, by label; values 0 to 255.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    table: pd.DataFrame
    strips: Strips = field(default_factory=dict)
    text: str = ""

    def pick(self, metric: str = "x0 error", reference: str = "truth", frame: str = "mean", **where: Any) -> Any:
        """The table's rows of one metric and reference, in the order they were measured.

        `frame` "all" gives every frame's and the mean's. `where`: further columns, with the value or the list of values
        to match.
        """
        table = self.table
        for column, value in (("metric", metric), ("reference", reference)):
            if value not in set(table[column]):
                raise KeyError(f"no {column} is called {value!r}; there are {', '.join(dict.fromkeys(table[column]))}")
        chosen = (table["metric"] == metric) & (table["reference"] == reference)
        if frame != "all":
            chosen &= table["frame"] == frame
        for column, value in where.items():
            wanted = value if isinstance(value, (list, tuple)) else [value]
            chosen &= table[column].isin(wanted)
        return table[chosen]

    def wide(self, **where: Any) -> pd.DataFrame:
        """One row a condition: x0 error with its interval, its rise, the other metrics (see `COLUMNS_MEAN`)."""
        rows = []
        for _, row in self.pick(**where).iterrows():
            key: dict[str, Any] = {name: row[name] for name in ("ablation", "variant", "mode", "protocol")}
            same: dict[str, Any] = {name: [value] for name, value in key.items()}
            line = {name: value for name, value in key.items() if name != "protocol"}
            if row["protocol"] != "denoise":
                del line["mode"]  # the variant says it
            line |= {"x0 error": row["value"], "95 %": interval(row["low"], row["high"]) or "–"}
            rise = self.pick(reference="rise", **same)
            if len(rise):
                ends = interval(rise["low"].iloc[0], rise["high"].iloc[0])
                line |= {"rise": rise["value"].iloc[0], "rise, 95 %": ends or "–"}
            for metric in dict.fromkeys(name for name in self.table["metric"] if name != "x0 error"):
                line[metric.replace("PSNR", "PSNR (dB)")] = self.pick(metric, **same)["value"].iloc[0]
            line["to intact"] = self.pick(reference="intact", **same)["value"].iloc[0]
            rows.append(line)
        return pd.DataFrame(rows)

    def plot(self) -> dict[str, go.Figure]:
        """Bars of the x0 error of every condition, and the film strips."""
        rows = self.pick()
        rows = rows.assign(condition=_labels(rows))
        title = "x0 error of every condition, mean over target frames, 95 % interval over clips"
        bars = plotting.bars(
            rows, x="condition", y="value", low="low", high="high", title=title, y_title=UNITS["x0 error"]
        )
        return {
            title: bars,
            **{caption: figure for name in self.strips for caption, figure in self.strip(name).items()},
        }

    def strip(self, ablation: str) -> dict[str, go.Figure]:
        """The film strip of one ablation, by caption; empty if there is none."""
        if ablation not in self.strips:
            return {}
        return self._film(f"{ablation}: one clip under every condition", self.strips[ablation])

    @property
    def why_shown(self) -> str:
        """Which clip the strips show, and why that one."""
        return (
            f"Clip {self.meta.get('shown clip', 0)}: the one that moves most, where a still picture is most wrong (of "
            "those in which most frames can be judged)"
        )

    def _film(self, title: str, strip: dict[str, Any]) -> dict[str, go.Figure]:
        clips = {label: clip.numpy() / np.float32(255) for label, clip in strip.items()}
        n_frames, _, _, width = next(iter(clips.values())).shape
        upscale = max(1, round(STRIP_WIDTH / (n_frames * width)))  # sharp enough; several strips make a report
        n_context = int(self.meta.get("context frames", 0))
        figure = plotting.filmstrip(clips, title=title, n_context=n_context, upscale=upscale)
        return {f"{title}. {self.why_shown}": figure}

    def summary(self) -> str:
        return caution(self.meta) + (self.text or super().summary())

    def sections(self) -> list[Section]:
        return [
            Section(
                title=self.title,
                text=self.summary(),
                figures=self.plot(),
                tables={f"All conditions. {COLUMNS_MEAN}": self.wide()},
            )
        ]


def tabulate(measurements: Sequence[Measurement], n_context: int, seed: int = 0) -> pd.DataFrame:
    """The tidy table of `StudyResult`. `measurements` are of one bench; the rise needs the intact one among them."""
    intact = {m.condition.protocol: m for m in measurements if m.condition.ablation == "intact"}
    intact["given"] = intact.get("sample")  # type: ignore[assignment]
    rows = []
    for measurement in measurements:
        condition = measurement.condition
        head = (condition.ablation, condition.variant, condition.mode, condition.site, condition.layer, condition.head)
        base = intact.get(condition.protocol)
        scores: dict[tuple[str, str], torch.Tensor] = dict(measurement.scores)
        if base is not None:
            for (metric, reference), score in measurement.scores.items():
                if reference == "truth":
                    scores[metric, "rise"] = score - base.scores[metric, "truth"]
        for (metric, reference), score in scores.items():
            columns = torch.cat([score.nanmean(1, keepdim=True), score], dim=1)
            value, low, high = bootstrap_mean(columns, seed=seed)
            frames = ["mean", *(str(n_context + index) for index in range(score.shape[1]))]
            n_clips = (~columns.isnan()).sum(0).tolist()
            for frame, *numbers in zip(frames, value, low, high, n_clips, strict=True):
                rows.append((*head, condition.protocol, metric, reference, frame, *numbers))
    table = pd.DataFrame(rows, columns=[*COLUMNS, "value", "low", "high", "n_clips"])
    return table.astype(
        {"layer": "Int64", "head": "Int64", "value": float, "low": float, "high": float, "n_clips": int}
    )


def film(bench: Bench, measurements: Sequence[Measurement]) -> tuple[int, Strips]:
    """One clip under every sampled condition, by ablation: the clip in which most frames can be judged, and of these
    the one that moves most (where standing still is most wrong)."""
    moves = bench.truth.diff(dim=1)[:, bench.n_context - 1 :].square().mean((1, 2, 3, 4))
    frames = bench.judged.sum(1)
    shown = int(torch.where(frames == frames.max(), moves, -1.0).argmax())
    context = bench.truth[shown : shown + 1, : bench.n_context]

    def picture(target: torch.Tensor) -> torch.Tensor:
        return _bytes(pictures_of(bench.pipe, torch.cat([context, target[shown : shown + 1]], dim=1))[0])

    drawn = [m for m in measurements if m.latents is not None]
    first = {"truth": _bytes(bench.stimulus.pictures[shown])}
    for m in drawn:
        if m.condition.ablation == "intact" and m.latents is not None:
            first["intact"] = picture(m.latents)
    strips: Strips = {}
    for m in drawn:
        full = m.condition.steps == bench.steps  # the intact sample once more
        if m.condition.ablation != "intact" and m.latents is not None and not full:
            strips.setdefault(m.condition.ablation, dict(first))[m.condition.variant] = picture(m.latents)
    return shown, strips


def build(
    kind: type[StudyResult],
    bench: Bench,
    measurements: Sequence[Measurement],
    title: str,
    strips: bool = True,
    **more: Any,
) -> Any:
    """A result of class `kind` from the measurements of a bench, with film strips unless `strips` is False."""
    shown, films = film(bench, measurements) if strips else (None, {})
    meta = {**bench.settings(), "shown clip": shown}
    table = tabulate(measurements, bench.n_context)
    return kind(title=title, table=table, strips=films, meta=meta, **more)


def _bytes(video: torch.Tensor) -> torch.Tensor:
    return (video.clamp(0, 1) * 255).round().to(torch.uint8)


def _labels(rows: pd.DataFrame) -> list[str]:
    """Unique names of conditions: ablation, variant, and the mode or protocol where there are several."""
    labels = []
    for _, row in rows.iterrows():
        label = row["variant"] if row["ablation"] == row["variant"] else f"{row['ablation']}: {row['variant']}"
        label += f" ({row['mode']})" if row["mode"] != "-" else ""
        labels.append(label + (" [one pass]" if row["protocol"] == "denoise" else ""))
    return labels
