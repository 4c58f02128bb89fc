"""NeuronResult: what every MLP neuron fires for, as a table, figures and a page to browse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8

from vdinterp import plotting
from vdinterp.analysis.neurons.effects import Neuron, NeuronEffects
from vdinterp.analysis.neurons.labels import PADDING
from vdinterp.plotting.crops import patch_strip
from vdinterp.plotting.page import written
from vdinterp.results import Result, Section
from vdinterp.words.wording import caution, number, with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

LARGEST_PAGE = 8_000_000  # bytes
MOST_ROWS, MOST_SHOWN = 12, 6  # neurons in a figure; patches of each in the strip


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronResult(Result):
    """Every MLP neuron's top patches and statistics; see `top_patches` for what they are.

    `table`, one row a neuron: `layer neuron mean std active top` (the largest activation), and with labels `label
    selectivity control`. `layers`: those that the first axis of the tensors counts. `levels`: noise levels of a token's
    frame, 0 for clean ones. `patches`: (clip, frame, row, col) of the most active patches, best first, with their
    `activations`, noise level and label (-1: no labels); `picture` is the index of its frame in `frames`, or -1.
    `by_level`, `by_label`: mean activation there. `label_shares`: of all tokens. `writes`: what one unit of activation
    adds to the x0 of its patch at each noise level but clean (`write_directions`); `pixel_map`: what one unit of each
    latent there changes in the pixels, the decoder linearised. `effects`: the table of `ablation_effects`, if added
    with `with_effects`.
    """

    title = "MLP neurons"
    table: pd.DataFrame
    layers: list[int]
    levels: list[float]
    grid: tuple[int, int, int]
    patches: Int[torch.Tensor, "layer neuron rank 4"]
    activations: Float[torch.Tensor, "layer neuron rank"]
    patch_levels: Float[torch.Tensor, "layer neuron rank"]
    patch_labels: Int[torch.Tensor, "layer neuron rank"]
    by_level: Float[torch.Tensor, "layer neuron level"]
    by_label: Float[torch.Tensor, "layer neuron label"]
    selectivity: Float[torch.Tensor, "layer neuron label"]
    control: Float[torch.Tensor, "layer neuron label"]
    label_names: list[str]
    label_shares: list[float]
    writes: Float[torch.Tensor, "layer neuron step channel patch_h patch_w"]
    pixel_map: Float[torch.Tensor, "channel patch_h patch_w pixel_channel pixel_h pixel_w"]
    frames: UInt8[torch.Tensor, "picture height width 3"]
    picture: Int[torch.Tensor, "layer neuron rank"]
    effects: pd.DataFrame | None = None

    def with_effects(self, effects: NeuronEffects) -> NeuronResult:
        """The same result with the effects of some neurons, for its summary and page.

        Where these were measured by label, with the effect on the tokens of the neuron's own label: `label_effect
        label_low label_high label_control label_n_clips`. Raises ValueError for effects of another model.
        """
        if effects.meta.get("model") != self.meta.get("model"):
            raise ValueError(f"effects of {effects.meta.get('model')}, neurons of {self.meta.get('model')}")
        table = effects.table
        if effects.by_label is not None and self.label_names:
            own = effects.by_label.merge(self.table[["layer", "neuron", "label"]], on=["layer", "neuron", "label"])
            own = own.drop(columns=["label", "control_high"])
            key = ["level", "layer", "neuron"]
            own.columns = [name if name in key else f"label_{name}" for name in own.columns]
            table = table.merge(own, on=key, how="left")
        return replace(self, effects=table)

    def index(self, layer: int, neuron: int) -> tuple[int, int]:
        """Where a neuron stands in the tensors. Raises `KeyError` for one that was not looked at."""
        n_neurons = self.activations.shape[1]
        if layer not in self.layers or not 0 <= neuron < n_neurons:
            raise KeyError(f"no neuron {layer}.{neuron}: there are layers {self.layers}, neurons 0..{n_neurons - 1}")
        return self.layers.index(layer), neuron

    def top(self, layer: int, neuron: int) -> pd.DataFrame:
        """The top patches of one neuron: `rank clip frame row col activation level`, and `label` if there are any."""
        at = self.index(layer, neuron)
        table = pd.DataFrame(self.patches[at].numpy(), columns=["clip", "frame", "row", "col"])
        table.insert(0, "rank", range(len(table)))
        table["activation"], table["level"] = self.activations[at].numpy(), self.patch_levels[at].numpy()
        if self.label_names:
            table["label"] = [self.label_names[label] for label in self.patch_labels[at].tolist()]
        return table

    def most_selective(self, n: int = 1, label: str | None = None) -> list[Neuron]:
        """The `n` neurons (layer, neuron) with the highest selectivity for a label, or for each label, best first.

        Without labels the `n` with the largest activations. Neurons whose selectivity is not above 0 are left out.
        Raises ValueError for another label, or n below 1.
        """
        if n < 1:
            raise ValueError(f"n={n}: at least 1")
        if label is not None and label not in self.label_names:
            raise ValueError(f"no label {label!r}; there are {', '.join(self.label_names) or 'none'}")
        if not self.label_names:
            rows = self.table.nlargest(n, "top")
            return list(zip(rows["layer"].tolist(), rows["neuron"].tolist(), strict=True))
        labels = range(len(self.label_names)) if label is None else [self.label_names.index(label)]
        found: dict[Neuron, float] = {}
        for each in labels:
            scores = self.selectivity[..., each].flatten().nan_to_num(-2)
            for at in scores.argsort(descending=True, stable=True)[:n].tolist():
                if scores[at] > 0:
                    where = (self.layers[at // self.selectivity.shape[1]], at % self.selectivity.shape[1])
                    found[where] = max(float(scores[at]), found.get(where, 0.0))
        padded = {neuron for neuron in found if self._label_of(neuron) in PADDING}
        return sorted(found, key=lambda neuron: (neuron in padded, -found[neuron]))

    def _label_of(self, neuron: Neuron) -> str:
        """The label that a neuron is most selective for."""
        at = self.index(*neuron)
        return str(self.table["label"].iloc[at[0] * self.activations.shape[1] + neuron[1]])

    def plot(self, neurons: Sequence[Neuron] | None = None) -> dict[str, go.Figure]:
        """Selectivity for every label, top patches, and mean activation by noise level of some neurons (default: the
        most selective for each label, at most 12; without labels the most active); sparsity of all."""
        chosen = list(dict.fromkeys(neurons or ()))
        if neurons is None:
            chosen = self.most_selective(1 if self.label_names else MOST_ROWS)[:MOST_ROWS]
        places = {f"{layer}.{neuron}": self.index(layer, neuron) for layer, neuron in chosen}
        figures = {}
        if self.label_names and places:
            title = "Selectivity of neurons for every label"
            values = np.stack([self.selectivity[at].numpy() for at in places.values()])
            known = np.flatnonzero(np.isfinite(values).any(0)).tolist()
            if known:
                figures[title] = plotting.heatmap(
                    values[:, known],
                    x=[self.label_names[at] for at in known],
                    y=list(places),
                    title=title,
                    x_title="label",
                    y_title="neuron",
                    value_title="correlation with the label, -1 to 1",
                    zmin=-1.0,
                    zmax=1.0,
                    diverging=True,
                    number_format=".2f",
                )
        if places:
            title = "Patches at which neurons are most active, each beside its frame"
            figures[title] = self.strip(chosen)
            title = "Mean activation of neurons by noise level of the frame"
            figures[title] = plotting.heatmap(
                np.stack([self.by_level[at].numpy() for at in places.values()]),
                x=[level_name(k) for k in self.levels],
                y=list(places),
                title=title,
                x_title="noise level",
                y_title="neuron",
                value_title="mean activation",
            )
        title = "Sparsity: how often neurons are active, and how much at most"
        shown = self.table.assign(
            name="neuron " + self.table["layer"].astype(str) + "." + self.table["neuron"].astype(str)
        )
        figures[title] = plotting.scatter(
            shown,
            x="active",
            y="top",
            label="name",
            title=title,
            x_title="share of tokens with a positive activation",
            y_title="largest activation",
        )
        return figures

    def strip(self, neurons: Sequence[Neuron]) -> go.Figure:
        """Top patches of some neurons, a row each: the patch enlarged, and its frame with the patch in a box."""
        rows = {}
        for layer, neuron in neurons:
            at = self.index(layer, neuron)
            name = f"{layer}.{neuron}"
            if self.label_names:
                name += f" {self._label_of((layer, neuron))}"
            pictures = self.picture[at][:MOST_SHOWN].tolist()
            rows[name] = [
                (picture, row, col)
                for picture, (_, _, row, col) in zip(pictures, self.patches[at].tolist(), strict=False)
                if picture >= 0
            ]
        title = "Patches at which neurons are most active, each beside its frame"
        return patch_strip(self.frames.numpy(), rows, grid=self.grid[1:], title=title)

    def pixel_writes(self, layer: int, neuron: int) -> Float[np.ndarray, "step pixel_channel pixel_h pixel_w"]:
        """What one unit of activation changes in the pixels of its patch, by noise level (see `pixel_map`)."""
        latents = self.writes[self.index(layer, neuron)]
        return torch.einsum("schw,chwpij->spij", latents, self.pixel_map).numpy()

    def summary(self) -> str:
        """How sparse the neurons are, the most selective ones, and what is lost without them."""
        dead = int((self.table["active"] == 0).sum())
        lead = (
            f"{len(self.table)} neurons of {len(self.layers)} layers on {self.meta.get('tokens', 0):,} tokens. In the "
            f"median one {self.table['active'].median():.1%} of the tokens are active; {dead} are never."
        )
        lines = []
        if self.label_names:
            content: Any = self.table[~self.table["label"].isin(PADDING)]
            for row in content.nlargest(6, "selectivity").to_dict("records"):
                if row["selectivity"] > 0:
                    lines.append(
                        f"- neuron {row['layer']}.{row['neuron']} fires for **{row['label']}**: selectivity "
                        f"{row['selectivity']:.2f} (with the labels of other clips {row['control']:.2f})"
                    )
            lead += " The most selective:" if lines else ""
        text = caution(self.meta) + "\n\n".join([lead, "\n".join(lines)] if lines else [lead])
        if self.effects is not None and len(self.effects):
            most = self.effects.loc[self.effects["effect"].idxmax()]
            text += (
                f"\n\nOf those tried, neuron {int(most['layer'])}.{int(most['neuron'])} is needed most: with it at its "
                f"mean the x0 error changes by {with_interval(most['effect'], most['low'], most['high'])} at noise "
                f"level {most['level']:g} (random others of its layer: {number(most['control'])})."
            )
        return text

    def sections(self) -> list[Section]:
        """Summary, figures and the table, the most selective (or most active) neurons first."""
        by = "selectivity" if self.label_names else "top"
        table: Any = self.table.sort_values(by, ascending=False, ignore_index=True)
        if self.label_names:  # padding last
            padded = table["label"].isin(PADDING)
            table = pd.concat([table[~padded], table[padded]], ignore_index=True)
        labelled = (
            "; `label`: what it is most selective for; `selectivity`: correlation with that label; `control`: the same "
            "with the labels of other clips"
            if self.label_names
            else ""
        )
        tables = {
            f"All neurons. The {'most selective' if self.label_names else 'largest activations'} first. `mean`, `std`: "
            f"of its activation; `active`: share of tokens above 0; `top`: largest activation{labelled}": table
        }
        if self.effects is not None:
            caption = (
                "What is lost without single neurons. `effect`: rise of the x0 error with the neuron at its mean, with "
                "the ends of its 95 % interval; `control`: the mean of random other neurons of its layer; `label_..`: "
                "the same on tokens of the neuron's own label"
            )
            tables[caption] = self.effects.sort_values("effect", ascending=False, ignore_index=True)
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables=tables)]

    @overload
    def to_html(self, *, neurons: Sequence[Neuron] | None = None, max_bytes: int = LARGEST_PAGE) -> str: ...

    @overload
    def to_html(
        self, path: str | Path, *, neurons: Sequence[Neuron] | None = None, max_bytes: int = LARGEST_PAGE
    ) -> Path: ...

    def to_html(
        self, path: str | Path | None = None, *, neurons: Sequence[Neuron] | None = None, max_bytes: int = LARGEST_PAGE
    ) -> str | Path:
        """A page to browse the neurons that works offline: returned as a string, or written and its path returned.

        `neurons` leaves out the others. Patches whose frames do not fit into `max_bytes` are left out, the least active
        first; the page says how many are shown. Raises ValueError when not even the best patch of each neuron fits.
        """
        from vdinterp.analysis.neurons.page import render

        everyone: Any = [(layer, neuron) for layer in self.layers for neuron in range(self.activations.shape[1])]
        page = render(self, everyone if neurons is None else list(neurons), max_bytes)
        return written(page, path)


def level_name(level: float) -> str:
    """How a frame's noise level is written."""
    return "clean" if level == 0 else f"{level:g}"
