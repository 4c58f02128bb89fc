"""Activation patching: put activations of one run into another and see how much of the difference comes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting, sweep
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.patching.judging import UNITS, Judge, find_metric
from vdinterp.analysis.stimulus.contrast import Contrast, Direction
from vdinterp.analysis.stimulus.noised_clips import checkpoint, weights_id
from vdinterp.checks.counts import check_indices
from vdinterp.interventions import Intervention, Patch, TransferAttention
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.results import Result, Section
from vdinterp.site import Site
from vdinterp.words.wording import caution, listing, number, plural, with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

AXES = ("layer", "head", "frame", "region", "token", "level", "step")
MOST_TRIALS = 200_000  # beyond this somebody meant something else
EXPLAINED = {
    UNITS[
        "recovered"
    ]: "`recovered` says how far x0 went along the line from the corrupted run (0) to the clean one (1)",
    UNITS["error"]: "The x0 error is the squared distance to the true clean latents over their variance",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchingResult(Result):
    """What patching did.

    `values`: the metric, mean over clips, one axis for every name in `over` (NaN: not measured). `per_clip`: the same
    with clips in front. `coordinates`: what the entries of each axis stand for. `table`, one row an entry: the names in
    `over`, then `value low high n_clips` (95 % bootstrap interval over clips). `untouched`: the metric of the clean and
    of the corrupted run. `failures`: what gave no number, and why. `missing`: trials that other shards have to do.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    over: tuple[str, ...]
    values: Float[torch.Tensor, "..."]
    per_clip: Float[torch.Tensor, "clip ..."]
    coordinates: dict[str, list[Any]]
    table: pd.DataFrame
    untouched: dict[str, float]
    unit: str
    failures: pd.DataFrame
    missing: int = 0

    def plot(self) -> dict[str, go.Figure]:
        """Bars for one axis, a heatmap for two (first axis down, second across), with a slider for further ones.

        Noising with `recovered` is shown as what was needed, 1 - value: the more colour, the more is lost.
        """
        flip = self.needed
        values = 1 - self.values.numpy() if flip else self.values.numpy()
        unit = "needed: 1 - recovered (0 nothing is lost, 1 all)" if flip else self.unit
        limits = {}
        if self.unit == UNITS["recovered"]:
            top = max(1.0, float(np.nanmax(np.abs(values))))
            limits = {"zmin": -top, "zmax": top, "diverging": True, "number_format": ".2f"}
        if len(self.over) == 1:
            name = self.over[0]
            shown = self.table.assign(**{name: self.table[name].astype(str)})
            lines = dict(self.untouched)
            if flip:
                ends = {"value": 1 - shown["value"], "low": 1 - shown["high"], "high": 1 - shown["low"]}
                shown, lines = shown.assign(**ends), {run: 1 - value for run, value in lines.items()}
            figure = plotting.bars(
                shown,
                x=name,
                y="value",
                low="low",
                high="high",
                title=self.title,
                x_title=name,
                y_title=unit,
                reference={f"{run} run": value for run, value in lines.items() if not np.isnan(value)},
            )
            return {f"{self.title}. Lines: 95 % intervals over pairs of clips": figure}
        y, x, *rest = self.over
        labels = {name: [str(value) for value in self.coordinates[name]] for name in self.over}
        axes = {"x": labels[x], "y": labels[y], "x_title": x, "y_title": y, "value_title": unit, **limits}
        caption = f"{self.title}, mean over {plural(len(self.per_clip), 'pair')} of clips. Colour: {unit}"
        if not rest:
            return {caption: plotting.heatmap(values, title=self.title, **axes)}
        slices = np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)
        names = [
            ", ".join(f"{name} {value}" for name, value in zip(rest, combination, strict=True))
            for combination in product(*(labels[name] for name in rest))
        ]
        return {caption: plotting.sliced_heatmap(slices, slices=names, title=self.title, **axes)}

    @property
    def needed(self) -> bool:
        """Whether the question is what is needed: corrupted activations in the clean run, judged by `recovered`."""
        return self.meta.get("direction") == "noising" and self.unit == UNITS["recovered"]

    def summary(self) -> str:
        """What was patched into what, and the entries that matter most, with intervals."""
        base = self.untouched["clean" if self.meta["direction"] == "noising" else "corrupted"]
        ranked: Any = self.table.assign(effect=(self.table["value"] - base).abs()).nlargest(5, "effect")
        lines = [
            f"- {', '.join(f'{name} {row[name]}' for name in self.over)}: "
            f"{with_interval(row['value'], row['low'], row['high'])}"
            for row in ranked.to_dict("records")
        ]
        into = (
            "the clean run is put into the corrupted one"
            if self.meta["direction"] == "denoising"
            else ("the corrupted run is put into the clean one")
        )
        lead = (
            f"`{self.meta.get('site')}` of {into}, one place at a time, {plural(len(self.per_clip), 'pair')} of clips, "
            f"{self._when()}. The corrupted run is {self.meta.get('corrupted', 'another clip')}, with the same noise. "
            f"{EXPLAINED.get(self.unit, self.unit)}. Untouched: clean {number(self.untouched['clean'])}, corrupted "
            f"{number(self.untouched['corrupted'])}. "
        )
        lead += "The lower, the more was needed:" if self.needed else "Furthest from the run that is patched:"
        notes = f"\n\n{plural(len(self.failures), 'trial')} failed." if len(self.failures) else ""
        notes += f"\n\n{plural(self.missing, 'trial')} not recorded so far." if self.missing else ""
        return f"{caution(self.meta)}{lead}\n\n" + "\n".join(lines) + notes

    def _when(self) -> str:
        """At what noise."""
        if self.meta.get("steps"):
            return f"whole trajectories of {plural(int(self.meta['steps']), 'denoising step')}"
        levels = [str(level) for level in self.meta.get("levels", [])]
        if levels == ["given"]:
            return "noise levels as given"
        return f"{plural(len(levels), 'noise level').split(' ', 1)[1]} {listing(levels)}" if levels else "one pass"

    def sections(self) -> list[Section]:
        """Summary, figure and the table, the largest effects first."""
        base = self.untouched["clean" if self.meta["direction"] == "noising" else "corrupted"]
        order = (self.table["value"] - base).abs().sort_values(ascending=False, kind="stable").index
        caption = (
            f"Every place. The furthest from the run that is patched first. `value`: {self.unit}; "
            "`low`, `high`: 95 % interval over pairs of clips"
        )
        tables = {caption: self.table.loc[order].reset_index(drop=True)}
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables=tables)]


def activation_patch(
    model: VideoDiffusion | HookedVideoDiT,
    clean: Any,
    corrupted: Any,
    noise_levels: Any = None,
    *,
    site: str = "z",
    over: Sequence[str] = ("layer", "head"),
    metric: Any = "recovered",
    direction: Direction = "denoising",
    regions: Mapping[str, Sequence[int]] | None = None,
    at: Literal["step", "from"] = "step",
    subspace: torch.Tensor | None = None,
    engine: Literal["inline", "ray"] = "inline",
    sweep_options: Mapping[str, Any] | None = None,
    **contrast: Any,
) -> PatchingResult:
    """Patch one run's activations into the other, one place at a time.

    >>> clips = vd.data.make_clips("one_off", n=16)
    >>> vd.activation_patch(pipe, clips, clips.corrupt, 0.9, site="z", over=("layer", "head")).plot()

    Args:
        model, clean, corrupted, noise_levels: the two runs, and `contrast`: see `vdinterp.analysis.Contrast`.
        site: what is patched, a hook name or alias: `resid_pre resid_mid attn_out mlp_out z q k v pattern mod.shift
            mod.scale mod.gate cond`, or any other activation; `pattern` gives the other run's attention to the own
            values (no N x N matrix is made unless queries are chosen).
        over: the axes of the sweep, some of `layer head frame region token level step`. What is not named is patched
            as a whole: without "head" all heads together, without "layer" all layers.
        metric: "recovered" (0 the corrupted run, 1 the clean one), "error", "psnr", or `(x0, pair) -> [batch]`.
        direction: "denoising" puts clean activations into the corrupted run (what is enough to restore?), "noising"
            corrupted ones into the clean run (what is needed?). Heads with a backup show in the first, not the second.
        regions: for "region": tokens by name.
        at: for "step": patch at that step only, or from it on.
        subspace: patch only the components in these directions, `[k channels]`.
        engine, sweep_options: see `vdinterp.sweep.run` (`out`, `shard`, `trials_per_pass`, `workers`, ...).

    Values are means over clips. Misleads: a patched activation meets others of a run it is not from, which no input may
    ever cause; what one place carries, another may carry as well (Heimersheim & Nanda 2024, arXiv 2404.15255).
    Source: causal tracing (Meng et al. 2022, arXiv 2202.05262); TransformerLens's `patching`.

    Raises ValueError or KeyError before any compute for runs, sites, axes or metrics that do not fit.
    """
    pair = Contrast(model, clean, corrupted, noise_levels, **contrast)
    name, function = find_metric(metric, pair.pipe)
    cases = pair.cases(direction)
    axes = patch_axes(pair, site, over, regions)
    source = "clean" if direction == "denoising" else "corrupted"
    trials = patch_trials(pair, site, axes, source, at, subspace)
    found = sweep.run(pair.denoiser, cases, trials, {name: Judge(function)}, engine=engine, **dict(sweep_options or {}))
    how = "clean into corrupted" if direction == "denoising" else "corrupted into clean"
    since = ", from a step on" if "step" in over and at == "from" else ""
    title = f"{pair.model.cfg.model_name}: {site} patched{since}, {how}"
    meta = _meta(pair, site=site, metric=name, direction=direction, at=at)
    return collect(pair, found, tuple(over), axes, title, UNITS.get(name, name), meta)


def collect(
    pair: Contrast,
    found: sweep.SweepResult,
    over: tuple[str, ...],
    axes: Mapping[str, Mapping[Any, Any]],
    title: str,
    unit: str,
    meta: dict[str, Any],
) -> PatchingResult:
    """A sweep's outcomes as an array over its axes."""
    coordinates = {name: list(pair.levels if name == "level" else axes[name]) for name in over}
    per_clip = found.per_clip(coordinates)
    interval = bootstrap_mean(per_clip)
    rows = [
        {**dict(zip(over, combination, strict=True)), "value": value, "low": low, "high": high, "n_clips": int(n)}
        for combination, value, low, high, n in zip(
            product(*coordinates.values()),
            interval.value.ravel(),
            interval.low.ravel(),
            interval.high.ravel(),
            (~per_clip.isnan()).sum(0).flatten().tolist(),
            strict=True,
        )
    ]
    runs: Any = found.runs.groupby("run")["value"]
    untouched = {name: float(runs.mean().get(name, np.nan)) for name in ("clean", "corrupted")}
    return PatchingResult(
        title=title,
        over=over,
        values=torch.from_numpy(interval.value),
        per_clip=per_clip,
        coordinates=coordinates,
        table=pd.DataFrame(rows),
        untouched=untouched,
        unit=unit,
        failures=found.failures,
        missing=found.missing,
        meta=meta,
    )


def _meta(pair: Contrast, **more: Any) -> dict[str, Any]:
    return {
        "model": pair.model.cfg.model_name,
        **({} if pair.pipe is None else checkpoint(pair.pipe)),
        "weights": weights_id(pair.model),
        "clips": len(pair),
        "corrupted": pair.difference,
        "levels": [str(level) for level in pair.levels],
        "steps": pair.steps,
        "context frames": pair.n_context,
        "seed": pair.seed,
        **pair.reliability.meta(),
        **more,
    }


def patch_axes(
    pair: Contrast, site: str, over: Sequence[str], regions: Mapping[str, Sequence[int]] | None
) -> dict[str, dict[Any, Any]]:
    """For every axis of the sweep, what each of its entries means."""
    if (
        not isinstance(over, Sequence)
        or isinstance(over, str)
        or not over
        or len(set(over)) < len(over)
        or not set(over) <= set(AXES)
    ):
        raise ValueError(f"over={over!r}: some of {', '.join(AXES)} are needed, each once")
    model, grid = pair.model, pair.clean.grid
    if sum(name in over for name in ("frame", "region", "token")) > 1:
        raise ValueError(f"over={tuple(over)}: frame, region and token all say where; choose one of them")
    if ("region" in over) != (regions is not None):
        raise ValueError("over 'region' and regions={name: tokens} go together")
    if "level" in over and (pair.steps is not None or "given" in pair.levels):
        raise ValueError("over 'level' needs noise_levels that are shares, e.g. (0.3, 0.6, 0.9)")
    if "step" in over and pair.steps is None:
        raise ValueError("over 'step' needs trajectories: steps=... instead of noise_levels")
    sizes = {
        "head": range(model.cfg.n_heads),
        "frame": range(grid.n_frames),
        "token": range(grid.n_tokens),
        "step": range(pair.steps or 0),
        "layer": _layers(model, site) if "layer" in over else (),
        "region": regions or {},
        "level": pair.levels,
    }
    axes = {name: {entry: entry for entry in sizes[name]} for name in over}
    if regions is not None:
        for name, tokens in regions.items():
            check_indices(f"region {name!r}", tokens)
            if not len(tokens) or not all(0 <= int(token) < grid.n_tokens for token in tokens):
                raise ValueError(f"region {name!r}: tokens lie in 0..{grid.n_tokens - 1}, at least one")
        axes["region"] = {name: [int(token) for token in tokens] for name, tokens in regions.items()}
    n_trials = int(np.prod([len(entries) for name, entries in axes.items() if name != "level"]))
    if n_trials > MOST_TRIALS:
        raise ValueError(f"over={tuple(over)} makes {n_trials:,} trials; patch regions or frames instead of tokens")
    return axes


def _layers(model: HookedVideoDiT, site: str) -> list[int]:
    """Layers that have the site."""
    names = model.resolve_names("z" if site == "pattern" else site)
    layers = sorted({layer for name in names if (layer := Site.parse(name).layer) is not None})
    if not layers:
        raise ValueError(f"{site!r} is {names[0]}, the same for all layers: leave 'layer' out of over")
    return layers


def patch_trials(
    pair: Contrast,
    site: str,
    axes: Mapping[str, Mapping[Any, Any]],
    source: str,
    at: str = "step",
    subspace: Any = None,
) -> list[sweep.Trial]:
    if at not in ("step", "from"):
        raise ValueError(f"at={at!r}: patch at one 'step', or 'from' it on")
    own = {name: entries for name, entries in axes.items() if name != "level"}
    trials = []
    for combination in product(*own.values()):
        label = dict(zip(own, combination, strict=True))
        where: dict[str, Any] = {}
        if "head" in label:
            where["heads"] = [label["head"]]
        if "frame" in label:
            where["frames"] = [label["frame"]]
        if "token" in label:
            where["tokens"] = [label["token"]]
        if "region" in label:
            where["tokens"] = axes["region"][label["region"]]
        if "step" in label:
            where["steps"] = [label["step"]] if at == "step" else range(label["step"], pair.steps or 0)
        trials.append(
            sweep.Trial(interventions=(_patch(pair.model, site, label, source, where, subspace),), label=label)
        )
    return trials


def _patch(
    model: HookedVideoDiT, site: str, label: Mapping[str, Any], source: str, where: dict[str, Any], subspace: Any
) -> Intervention:
    layer = label.get("layer")
    if site == "pattern":
        if subspace is not None:
            raise ValueError("a pattern has no channels: subspace is for other sites")
        return TransferAttention(source, layers=None if layer is None else [layer], **where)
    names = model.resolve_names(site)
    if layer is not None:
        names = [name for name in names if Site.parse(name).layer == layer]
    return Patch(names, source, subspace=subspace, **where)
