"""ProbeResult: what linear probes read, beside what the input alone gives, and the directions that they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.plotting.template import level_line
from vdinterp.results import Result, Section, rows_of
from vdinterp.words.wording import caution, number, plural

if TYPE_CHECKING:
    import plotly.graph_objects as go

# What the probe is compared with. "clean latents" is what a model was not given of noised frames.
BASELINES = {
    "untrained": "the same layer with shuffled weights",
    "shuffled": "the same activations, the labels of another clip",
    "noisy input": "the token's own latents, as given",
    "noisy input, neighbours": "with the 3 x 3 patches around, in this frame and the one before",
    "earlier frames, actions": "with the frame two before, the action, and the frame before moved by it",
    "constant": "the most frequent class, or the mean",
    "clean latents": "the token's own latents without noise",
}
BY_LAYER = ("probe", "untrained", "shuffled")
ASIDE = 0.12  # of the axis: what the lines of one layer are spread over
SYMBOLS = ("circle", "square-open", "diamond-open", "triangle-up-open", "x", "cross", "star-open")
# made of what the model was given
FAIR = ("untrained", "shuffled", "noisy input", "noisy input, neighbours", "earlier frames, actions")


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeResult(Result):
    """Scores of linear probes on held-out clips, and the directions that they read.

    `table`, one row a layer, noise level and kind: `level layer kind value low high chance gain gain_low gain_high n
    clips`. `kind` is "probe" or one of `BASELINES` (those that know no layer stand in every layer's rows). `gain`: what
    the probe of that layer scores above this kind, on the same draws of clips; over "shuffled" it is the selectivity.
    `n`: samples scored.

    `weight` [level layer class ..], `bias` [level layer class]: of probes fitted to all clips, in the activation's own
    units; the last axes are the activation's (d_model, or head d_head). `association`, of the same shape: each class's
    mean activation less that of all; for numbers the covariance with the standardised number. `names`: of the classes,
    or of the numbers.
    """

    title = "Linear probes"
    table: pd.DataFrame
    weight: Float[torch.Tensor, "level layer class *channels"]
    bias: Float[torch.Tensor, "level layer class"]
    association: Float[torch.Tensor, "level layer class *channels"]
    names: list[str]
    levels: list[float]
    layers: list[int]
    what: str
    site: str
    is_class: bool

    @property
    def unit(self) -> str:
        return "balanced accuracy, 0 to 1" if self.is_class else "R^2, at most 1"

    def _at(self, layer: int, level: float | None) -> tuple[int, int]:
        level = self.levels[0] if level is None and len(self.levels) == 1 else level
        if layer not in self.layers or level not in self.levels:
            raise KeyError(f"no probe of layer {layer} at level {level}: layers {self.layers}, levels {self.levels}")
        return self.levels.index(level), self.layers.index(layer)

    def directions(self, layer: int, level: float | None = None) -> Float[torch.Tensor, "class *channels"]:
        """Unit vectors along which the probe's read-out of each class (or number) rises fastest: for `vd.Steer`.

        `vd.Steer((site, layer), result.directions(layer, level)[c], strength)` moves the read-out of `c` by `strength`
        times the norm of its weights. Those of two classes are opposite, those of more sum to 0 when weighted: to
        erase, use `subspace`. `level` may be left out if there is one. Misleads: a direction that is good to read is
        not one the model writes; see what steering does. KeyError for a layer or level that was not probed.
        """
        weight = self.weight[self._at(layer, level)]
        flat = weight.flatten(1)
        return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).view(weight.shape)

    def subspace(self, layer: int, level: float | None = None) -> Float[torch.Tensor, "k channel"]:
        """Orthonormal `[k channel]` that holds all differences of class means (k: classes - 1, or the numbers).

        With this component at one value, `vd.Ablate((site, layer), mode="mean", reference=cache, subspace=..)`, all
        classes have the same mean, and then no linear fit to these samples gains over a constant (Belrose et al. 2023,
        arXiv 2306.03819, section 3; their own projection changes less). Erasing `directions` guarantees nothing:
        a probe also leans on channels that only cancel noise. Other clips have slightly other means; the same clips
        refitted score below chance, since without the mean of all, held-out means are opposite to the training ones.
        ValueError for activations with a head axis, which `subspace=` does not take.
        """
        found = self.association[self._at(layer, level)].double()
        if found.ndim > 2:
            raise ValueError(
                f"{self.site!r} has a head axis, subspace= takes channels only: probe what is written to the stream, "
                "such as 'attn_out'"
            )
        _, sizes, basis = torch.linalg.svd(found, full_matrices=False)
        k = len(self.names) - self.is_class
        return basis[: int((sizes[:k] > 1e-6 * sizes[0]).sum())].float()

    def readout(
        self, activation: Float[torch.Tensor, "*batch"], layer: int, level: float | None = None
    ) -> Float[torch.Tensor, "*rest"]:
        """What the probe fitted to all clips says of activations `[.. channels]`: class scores (logits, of which
        differences count) or numbers, `[.. class]`. Linear: a pooled frame's is the mean of its tokens'."""
        weight, bias = (part[self._at(layer, level)].to(activation) for part in (self.weight, self.bias))
        channels = list(weight.shape[1:])
        if list(activation.shape[-len(channels) :]) != channels:
            raise ValueError(f"activations {list(activation.shape)} must end in {channels}, as {self.site!r} does")
        return activation.flatten(-len(channels)) @ weight.flatten(1).T + bias

    def values(self, kind: str = "probe", column: str = "value") -> np.ndarray:
        """A column of the table for one kind, `[layer level]`."""
        rows = rows_of(self.table, kind=kind)
        if not len(rows) or column not in rows.columns:
            raise KeyError(f"no {kind!r}, {column!r}: kinds {', '.join(self.table['kind'].unique())}")
        return rows[column].to_numpy().reshape(len(self.levels), len(self.layers)).T

    def plot(self) -> dict[str, go.Figure]:
        """The probe by layer, a line a noise level; every level against its baselines; layer x level grids."""
        figures, head = {}, f"{self.what}, read from {self.site}"
        probe = rows_of(self.table, kind="probe")
        chance = float(probe["chance"].iloc[0])
        axes: dict[str, Any] = {
            "x": "layer",
            "y": "value",
            "low": "low",
            "high": "high",
            "x_title": "layer",
            "y_title": self.unit,
        }
        title = f"{head}: by layer and noise level, 95 % interval over clips"
        figures[title] = plotting.lines(
            probe.assign(noise=[f"noise level {level:g}" for level in probe["level"]]),
            color="noise",
            title=title,
            reference={"chance": chance, "clean latents": float(self.values("clean latents")[0, 0])},
            **axes,
        )
        for level in self.levels:
            rows = rows_of(self.table, level=level)
            rows = rows[rows["kind"] != "constant"]
            rows = rows.assign(**{end: rows[end].where(rows["kind"] == "probe") for end in ("low", "high")})
            title = f"{head}: the probe and its baselines, noise level {level:g}"
            # Lines that coincide would hide one another: each is moved aside a little, with a marker of its own.
            kinds = list(dict.fromkeys(rows["kind"]))
            step = ASIDE * (max(self.layers) - min(self.layers) or 1) / max(1, len(kinds))
            aside = {kind: step * (index - (len(kinds) - 1) / 2) for index, kind in enumerate(kinds)}
            moved = rows.assign(layer=rows["layer"] + rows["kind"].map(aside))
            figures[title] = plotting.lines(moved, color="kind", title=title, **axes)
            drawn: Any = figures[title].data
            for trace in drawn:
                if trace.name in aside:
                    index = kinds.index(trace.name)
                    dash = "solid" if trace.name == "probe" else "dot" if trace.name in BY_LAYER else "dash"
                    trace.update(line_dash=dash, marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8})
            level_line(figures[title], chance, "chance", log=False)
        for figure in figures.values():
            figure.update_xaxes(tickvals=self.layers, ticktext=[str(layer) for layer in self.layers], zeroline=False)
        grid: dict[str, Any] = {
            "x": [f"{level:g}" for level in self.levels],
            "y": [str(layer) for layer in self.layers],
            "x_title": "noise level",
            "y_title": "layer",
            "number_format": ".2f",
        }
        title = f"{head}: held-out score of the probe"
        figures[title] = plotting.heatmap(self.values(), title=title, value_title=self.unit, **grid)
        title = f"{head}: gain over the best baseline that is made of the model's input"
        gain = np.min([self.values(kind, "gain") for kind in FAIR], axis=0)
        unit = f"gain in {self.unit.split(',')[0]}"
        figures[title] = plotting.heatmap(gain, title=title, value_title=unit, diverging=True, **grid)
        return figures

    def summary(self) -> str:
        """At every noise level the best layer, its gain over each baseline, and the baselines that it does not beat."""
        first = self.table.iloc[0]
        of = f"{len(self.names)} classes" if self.is_class else plural(len(self.names), "number")
        score = self.unit.split(",")[0]
        text = caution(self.meta) + (
            f"{self.what}: {of}, {first['n']} held-out samples, {first['clips']} clips. {score[0].upper()}{score[1:]} "
            f"of a linear probe on `{self.site}`, chance {number(first['chance'])}, 95 % intervals over clips; in the "
            f"best of {len(self.layers)} layers, so a little too good.\n\n"
        )
        return text + "\n".join(self._level_line(level) for level in self.levels)

    def _level_line(self, level: float) -> str:
        rows = rows_of(self.table, level=level)
        probes = rows_of(rows, kind="probe")
        best = probes.loc[probes["value"].idxmax()]
        rivals = rows_of(rows, layer=best["layer"]).set_index("kind")
        shuffled = rivals.loc["shuffled"]
        nearest = rivals.loc[rivals.loc[list(FAIR), "gain"].idxmin()]
        gain = f"gain {nearest['gain']:.3f} [{nearest['gain_low']:.3f}, {nearest['gain_high']:.3f}]"
        if nearest["gain_low"] > 0:
            verdict = f"It beats all that is made of the input; nearest is {nearest.name}, {gain}."
        else:
            how = "wins" if nearest["gain_high"] < 0 else "does as well"
            verdict = f"**A baseline {how}**: {nearest.name}, {gain}."
        others = ", ".join(f"{kind} {rivals.loc[kind, 'value']:.3f}" for kind in (*FAIR, "clean latents"))
        return (
            f"- noise level {level:g}: {best['value']:.3f} [{best['low']:.3f}, {best['high']:.3f}] in layer "
            f"{best['layer']}, selectivity {shuffled['gain']:.3f} [{shuffled['gain_low']:.3f}, "
            f"{shuffled['gain_high']:.3f}]; {others}. {verdict}"
        )

    def sections(self) -> list[Section]:
        """Summary, figures and the table, probes beside their baselines layer by layer."""
        kinds = "; ".join(f"`{kind}`, {meaning}" for kind, meaning in BASELINES.items())
        caption = (
            f"Held-out scores. {self.unit[0].upper()}{self.unit[1:]}, of the probe and its baselines, with 95 % "
            f"intervals over clips. `gain`: what the probe has more than this kind. Kinds: {kinds}"
        )
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={caption: self.table})]
