"""Effects of neurons: what is lost when one is held at its mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from vdinterp import plotting, sweep
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.neurons.directions import layers_with_mlp
from vdinterp.analysis.neurons.labels import checked_labels
from vdinterp.analysis.stimulus.cases import TargetError, cases_of
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.interventions import Ablate
from vdinterp.results import Result, rows_of
from vdinterp.site import Site
from vdinterp.words.wording import number, with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

Neuron = tuple[int, int]  # layer, neuron
CONTROLS = 8  # random other neurons of a layer
MOST_BARS = 24
FEW_CLIPS = 5  # a label that fewer show says little, and is not drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronEffects(Result):
    """What is lost without single neurons.

    `table`, one row a noise level and neuron: `level layer neuron effect low high control control_high`; `low`, `high`
    are a 95 % bootstrap interval over clips; `control`, `control_high` the mean and the largest effect of up to 8
    random other neurons of the layer (gaps where there are no others). `by_label`, if labels were given: the same on
    the target tokens of each label alone, with `label` and `n_clips`, how many clips have such tokens. `error`: of the
    untouched model, by level.
    """

    title = "Effects of MLP neurons"
    table: pd.DataFrame
    by_label: pd.DataFrame | None = None
    error: dict[str, float]

    def plot(self) -> dict[str, go.Figure]:
        """At every noise level the neurons with the largest effects, beside the mean of random others; and the effects
        on the tokens of each label."""
        figures = {}
        for level in self.table["level"].unique():
            rows = rows_of(self.table, level=level).nlargest(MOST_BARS, "effect")
            title = f"Rise of the x0 error when one neuron is held at its mean, noise level {level:g}"
            control = float(rows["control"].mean())
            figures[title] = plotting.bars(
                rows.assign(name=_names(rows)),
                x="name",
                y="effect",
                low="low",
                high="high",
                title=title,
                x_title="neuron",
                y_title="rise of x0 error over variance",
                reference=None if np.isnan(control) else {"mean of random others": control},
            )
            part = self._of_labels(level)
            if len(part):
                table = part.assign(name=_names(part)).pivot(index="name", columns="label", values="effect")
                table = table.loc[list(dict.fromkeys(_names(part)))[:MOST_BARS], list(dict.fromkeys(part["label"]))]
                title = f"Rise of the x0 error on the tokens of each label, noise level {level:g}"
                figures[title] = plotting.heatmap(
                    table.to_numpy(),
                    x=list(table.columns),
                    y=list(table.index),
                    title=title,
                    x_title="label",
                    y_title="neuron held at its mean",
                    value_title="rise of x0 error over variance",
                    diverging=True,
                    number_format=".1g",
                )
        return figures

    def summary(self) -> str:
        """The largest effects, at the level where the largest is."""
        level = self.table.loc[self.table["effect"].idxmax(), "level"]
        rows = rows_of(self.table, level=level).nlargest(5, "effect")
        lines = [
            f"- neuron {row.layer}.{row.neuron}: {with_interval(row.effect, row.low, row.high)} (random others of "
            f"its layer {number(row.control)}, the largest {number(row.control_high)})"
            for row in rows.itertuples()
        ]
        part = self._of_labels(level)
        if len(part):
            for row in part[part["low"] > 0].nlargest(3, "effect").itertuples():
                lines.append(
                    f"- neuron {row.layer}.{row.neuron} on the tokens of **{row.label}** ({row.n_clips} clips): "
                    f"{with_interval(row.effect, row.low, row.high)} (random others {number(row.control)})"
                )
        intact = self.error[f"{level:g}"]
        return (
            f"At noise level {level:g} the x0 error of the target frames is {number(intact)} of their variance. It "
            "rises most when these neurons are held at their mean:\n\n" + "\n".join(lines)
        )

    def _of_labels(self, level: float) -> Any:
        """Effects by label at a level, for labels that enough clips show."""
        if self.by_label is None:
            return ()
        part = rows_of(self.by_label, level=level)
        return part[part["n_clips"] >= FEW_CLIPS]


@dataclass(frozen=True)
class LabelError:
    """Squared error of x0 over the variance, summed over the target tokens of one label."""

    label: int

    def __call__(self, x0: torch.Tensor, moment: sweep.Moment) -> Float[torch.Tensor, " clip"]:
        about = moment.case.about
        truth, labels = about["truth"].to(x0), about["labels"].to(x0.device)
        error = (x0[:, -truth.shape[1] :] - truth).square().mean(2)
        patch = (error.shape[2] // labels.shape[2], error.shape[3] // labels.shape[3])
        of_token = torch.nn.functional.avg_pool2d(error, patch)
        return (of_token * (labels == self.label)).sum((1, 2, 3)) / about["variance"]


@on_noised_clips
def ablation_effects(
    noised: NoisedClips,
    neurons: Sequence[Neuron],
    *,
    labels: Int[torch.Tensor, "clip frame row col"] | None = None,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    engine: Literal["inline", "ray"] = "inline",
    sweep_options: Mapping[str, Any] | None = None,
) -> NeuronEffects:
    """Rise of the target frames' x0 error when one neuron is held at its mean, at every noise level of the clips.

    >>> vd.neurons.ablation_effects(noised, result.most_selective(2))

    `effect = error(neuron at its mean) - error`, in units of the variance, mean over clips; the mean is that over the
    clips, frames and positions at this level. Range: any; 0 for a neuron that is not needed. Chance: what the random
    other neurons do (drawn by `seed`, without the named ones). On the tokens of a label: mean over the clips that have
    such target tokens.

    Misleads: one neuron of many rarely matters by itself, as others do the same; an effect says that the neuron is
    used, not what for; all frames are changed, so a target token may suffer from what is lost in the context; and a
    label that few clips show (`n_clips`) has an interval that is too narrow.

    Args:
        neurons: pairs (layer, neuron); a negative layer counts from the end.
        labels, label_names: as of `top_patches`, for effects by label.
        engine, sweep_options: see `vdinterp.sweep.run` (`out`, `workers`, `progress`, ...). With `out` a noise level
            has a folder in it.

    Raises ValueError for no neurons, or some that the model does not have, and for labels that do not fit.
    """
    model = noised.model
    chosen = checked_neurons(model, neurons)
    given = checked_labels(noised, labels, label_names)
    _ = noised.variance  # refuses clips that all look the same, before anything is measured
    others = {layer: _others(model.cfg.d_mlp, layer, chosen, seed) for layer in dict.fromkeys(at for at, _ in chosen)}
    everyone = [*chosen, *((layer, neuron) for layer, group in others.items() for neuron in group)]
    shown = given.values.unflatten(1, noised.grid.shape)[:, noised.target] if given.names else None
    counts = {} if shown is None else {i: (shown == i).sum((1, 2, 3)).double() for i in shown.unique().tolist()}
    metrics = {"error": TargetError(), **{f"label {label}": LabelError(label) for label in counts}}
    options: dict[str, Any] = dict(sweep_options or {})
    out = options.pop("out", None)
    rows, by_label, errors = [], [], {}
    for level in noised.levels:
        means = mean_activations(noised, level, sorted(others))
        trials = [_without(neuron, means, index) for index, neuron in enumerate(everyone)]
        options["out"] = None if out is None else Path(out) / f"level-{level:g}"
        cases = cases_of(noised, level)
        if shown is not None:
            parts = [shown[clips] for clips in noised.batches]
            cases = [
                replace(case, about={**case.about, "labels": part}) for case, part in zip(cases, parts, strict=True)
            ]
        found = sweep.run(noised.pipe, cases, trials, metrics, engine=engine, **options)
        errors[f"{level:g}"] = float(found.untouched("base", "error").mean())
        rises = _rises(found, everyone)
        for neuron in chosen:
            about = {"level": level, "layer": neuron[0], "neuron": neuron[1]}
            controls = [(neuron[0], other) for other in others[neuron[0]]]
            rows.append(about | _row(rises["error"], neuron, controls))
            for label, count in counts.items():
                each = {at: value / count for at, value in rises[f"label {label}"].items()}  # 0 / 0, NaN: has none
                named = {"label": given.names[label], "n_clips": int((count > 0).sum())}
                by_label.append(about | named | _row(each, neuron, controls))
    return NeuronEffects(
        table=pd.DataFrame(rows),
        by_label=pd.DataFrame(by_label) if by_label else None,
        error=errors,
        meta=noised.meta(control_seed=seed),
    )


def checked_neurons(model: Any, neurons: Any) -> list[Neuron]:
    """The neurons, each once, layers counted from the start. Raises `ValueError` for ones that the model lacks."""
    found = {}
    for one in neurons:
        if not isinstance(one, Sequence) or len(one) != 2 or not all(isinstance(part, int) for part in one):
            raise ValueError(f"neuron {one!r}: give pairs (layer, neuron), for example (2, 113)")
        layer = layers_with_mlp(model, [one[0]])[0]
        if not 0 <= one[1] < model.cfg.d_mlp:
            raise ValueError(f"neuron {one!r}: {model.cfg.model_name} has neurons 0..{model.cfg.d_mlp - 1} a layer")
        found[layer, one[1]] = None
    if not found:
        raise ValueError("no neurons were named: give pairs (layer, neuron), for example [(2, 113)]")
    return list(found)


def mean_activations(
    noised: NoisedClips, level: float, layers: Sequence[int]
) -> dict[str, Float[torch.Tensor, "1 1 d_mlp"]]:
    """Mean of `hook_post` over clips, frames and positions, by hook name: for mean ablation."""
    names = [Site(layer, "mlp", "post") for layer in layers]
    total: dict[str, torch.Tensor] = {}
    for cache in noised.caches(level, names):
        for name in names:
            total[name] = total.get(name, 0.0) + cache[name].double().mean(1, keepdim=True).sum(0, keepdim=True)
    return {name: (value / len(noised.clips)).float() for name, value in total.items()}


def _without(neuron: Neuron, means: Mapping[str, torch.Tensor], index: int) -> sweep.Trial:
    layer, channel = neuron
    site = Site(layer, "mlp", "post")
    ablation = Ablate(site, channels=[channel], mode="mean", reference={site: means[site]})
    return sweep.Trial(interventions=(ablation,), label={"which": index, "layer": layer, "neuron": channel})


def _others(d_mlp: int, layer: int, chosen: Sequence[Neuron], seed: int) -> list[int]:
    """Random neurons of a layer that are not among the chosen ones."""
    left = [neuron for neuron in range(d_mlp) if (layer, neuron) not in chosen]
    drawn = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))
    return [left[index] for index in drawn[:CONTROLS].tolist()]


def _rises(found: sweep.SweepResult, everyone: Sequence[Neuron]) -> dict[str, dict[Neuron, torch.Tensor]]:
    """By metric and neuron, how much it rose in each clip."""
    found.check_whole()
    return {
        metric: dict(
            zip(everyone, found.per_clip({"which": range(len(everyone))}, "base", metric).unbind(1), strict=True)
        )
        for metric in found.table["metric"].unique()
    }


def _row(rises: Mapping[Neuron, torch.Tensor], neuron: Neuron, controls: Sequence[Neuron]) -> dict[str, float]:
    interval = bootstrap_mean(rises[neuron])
    control = [float(rises[other].nanmean()) for other in controls]
    return {
        "effect": float(interval.value),
        "low": float(interval.low),
        "high": float(interval.high),
        "control": sum(control) / len(control) if control else float("nan"),
        "control_high": max(control, default=float("nan")),
    }


def _names(rows: Any) -> list[str]:
    return [f"{row.layer}.{row.neuron}" for row in rows.itertuples()]
