"""Lens curves: how far the stream is from the prediction, and from the truth, by layer and noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.analysis.stream._lens import NEEDED, READ_OFF, TunedLens
from vdinterp.analysis.stream.readout import Readout
from vdinterp.progress import bar
from vdinterp.results import Result, Section
from vdinterp.words.wording import caution, with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True, eq=False)
class LensCurve(Result):
    """`table`, one row a noise level, layer, lens and target: `level layer lens to error low high`.

    `to`: "the prediction" or "the truth". `error`: squared distance of x0 over the variance of the clips, 95 %
    bootstrap interval over clips: 0 equal, 1 what the mean frame has of the truth.
    """

    title = "What the stream holds, layer by layer"
    table: pd.DataFrame

    def plot(self) -> dict[str, go.Figure]:
        """Error over layers to either target: a colour a noise level, the tuned lens broken."""
        figures = {}
        last = int(self.table["layer"].max())
        for to in dict.fromkeys(self.table["to"]):
            rows: Any = self.table[self.table["to"] == to]
            both = len(set(rows["lens"])) > 1
            title = f"x0 error of the lens{' and the tuned lens' if both else ''} to {to}, by layer and noise level"
            figures[title] = plotting.lines(
                rows.assign(level=rows["level"].map("{:g}".format)),
                x="layer",
                y="error",
                color="level",
                color_title="noise level",
                dash="lens" if both else None,
                low="low",
                high="high",
                title=title,
                x_title=f"stream before block ({last}: after all blocks)",
                y_title="squared error over variance",
                log_y=to == "the truth",
            )
        return figures

    def summary(self) -> str:
        """From which block on the prediction can be read off, and how much of the last block's work is left, by level;
        over all clips."""
        lines = []
        last = int(self.table["layer"].max())
        mine: Any = self.table[self.table["to"] == "the prediction"]
        for (level, lens), rows in mine.groupby(["level", "lens"], sort=False):
            # The lens may come close and go away again: it counts from where it stays.
            far = rows[rows["error"] > READ_OFF]["layer"]
            first = 0 if not len(far) else int(far.max()) + 1
            before = rows[rows["layer"] == last - 1].iloc[0]
            where = f"from the stream before block {first} on" if first < last else "only after the last block"
            lines.append(
                f"- noise level {level:g}, {lens}: {where}; before the last block "
                f"{with_interval(before['error'], before['low'], before['high'])} of the variance is missing."
            )
        clips = self.meta.get("clips", "these clips")
        return (
            f"{caution(self.meta)}From where on the prediction can be read off, to a tenth of the clips' variance "
            f"(mean over {clips}):\n\n" + "\n".join(lines)
        )

    def sections(self) -> list[Section]:
        """Summary, figures and the table."""
        caption = (
            "Every layer. Error of what the lens reads before each block. `to`: what it is compared with; `low`, "
            "`high`: 95 % interval over clips"
        )
        table = self.table.sort_values("level", ascending=False, kind="stable", ignore_index=True)
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={caption: table})]


@on_noised_clips
def lens_curve(noised: NoisedClips, tuned: TunedLens | None = None) -> LensCurve:
    """`lens` on all clips and noise levels, of the noised frames; streams are not kept.

    Formula, chance and pitfalls: `vdinterp.analysis.stream._lens.lens`.
    """
    rows = []
    n_layers = noised.model.cfg.n_layers
    for level in bar(noised.levels, desc="lens", unit="level"):
        found: dict[tuple[str, int, str], list[torch.Tensor]] = {}
        for cache, clips in zip(noised.caches(level, list(NEEDED)), noised.batches, strict=True):
            readout = Readout(noised.pipe, cache, noised.target)
            final, truth = readout.total(), noised.latents[clips][:, noised.target].to(readout.total())
            streams = [cache["resid_pre", layer] for layer in range(n_layers)] + [cache["resid_post", -1]]
            with torch.no_grad():
                for layer, stream in enumerate(streams):
                    made = {"lens": readout.normalised(stream)}
                    if tuned is not None:
                        made["tuned lens"] = readout.normalised(tuned(stream, layer)) if layer < n_layers else final
                    for name, x0 in made.items():
                        for to, target in (("the prediction", final), ("the truth", truth)):
                            error = (x0 - target).square().mean((1, 2, 3, 4)) / noised.variance
                            found.setdefault((name, layer, to), []).append(error.cpu())
        for (name, layer, to), parts in found.items():
            interval = bootstrap_mean(torch.cat(parts))
            rows.append(
                {
                    "level": level,
                    "layer": layer,
                    "lens": name,
                    "to": to,
                    "error": float(interval.value),
                    "low": float(interval.low),
                    "high": float(interval.high),
                }
            )
    return LensCurve(table=pd.DataFrame(rows), meta=noised.meta(tuned=tuned is not None))
