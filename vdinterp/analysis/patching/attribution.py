"""Attribution patching: an estimate of every activation's patching effect from one backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from vdinterp import plotting, sweep
from vdinterp.analysis.agreement import Agreement, agreement
from vdinterp.analysis.patching.activation import PatchingResult, collect, patch_axes, patch_trials
from vdinterp.analysis.patching.gradients import GradientPass, batches, between, untouched
from vdinterp.analysis.patching.judging import UNITS, Judge, Pair, PatchMetric, find_metric
from vdinterp.analysis.patching.qk_fix import qk_effect
from vdinterp.analysis.stimulus.contrast import Contrast, Direction, check_direction
from vdinterp.checks.counts import check_count
from vdinterp.gradient_state import check_gradients
from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.site import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go

METHODS = ("atp", "atp*", "integrated_gradients")
Method = Literal["atp", "atp*", "integrated_gradients"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionResult(PatchingResult):
    """Estimated effects of patching: as `PatchingResult`, but `values` are changes of the metric from the base run.

    `exact`: the sampled entries patched exactly, `estimate` and `exact` change beside each other. `agreement`: Spearman
    correlation and overlap of the top entries between the two.
    """

    exact: pd.DataFrame
    agreement: Agreement

    def _clean_line(self) -> dict[str, float]:
        return {}

    def plot(self) -> dict[str, go.Figure]:
        """The estimates, and beside them what exact patching gives."""
        figures = super().plot()
        title = f"{self.title}: estimate against exact patching ({self.agreement.sentence()})"
        entry = [", ".join(f"{name} {row[name]}" for name in self.over) for row in self.exact.to_dict("records")]
        figures[title] = plotting.scatter(
            self.exact.assign(entry=entry),
            x="exact",
            y="estimate",
            label="entry",
            title=title,
            x_title=f"exact change of {self.unit}",
            y_title="estimated change",
            diagonal=True,
        )
        return figures

    def summary(self) -> str:
        return f"{super().summary()}\n\nAgainst exact patching: {self.agreement.sentence()}."


def attribution_patch(
    model: VideoDiffusion | HookedVideoDiT,
    clean: Any,
    corrupted: Any,
    noise_levels: Any = None,
    *,
    site: str = "z",
    over: Sequence[str] = ("layer", "head"),
    metric: Any = "recovered",
    direction: Direction = "denoising",
    method: Method = "atp",
    n_steps: int = 8,
    regions: Mapping[str, Sequence[int]] | None = None,
    sample: int = 32,
    top_k: int = 5,
    engine: Literal["inline", "ray"] = "inline",
    sweep_options: Mapping[str, Any] | None = None,
    **contrast: Any,
) -> AttributionResult:
    """Estimate what `activation_patch` would give for every place at once, from gradients; and check it on a sample.

    The estimate is first order: `sum (other run's activation - base's) * d metric / d activation`, at the base run
    (Nanda 2023; Syed et al. 2023, arXiv 2310.10348). Range: any; chance: 0; exact if the metric is linear in the
    activation. `method`:

    - "atp": one backward pass.
    - "atp*": Kramár et al. 2024 (arXiv 2403.00745). For sites `q` and `k` the attention is recomputed with the other
      run's queries or keys and only what follows is linearised, which a saturated softmax needs. For all sites
      GradDrop: one backward pass for every layer with that layer's outputs held out, and the mean of the estimates'
      sizes, `sum |estimate without layer| / (n_layers - 1)`, so that direct and indirect effects cannot cancel.
      Estimates have no sign then.
    - "integrated_gradients": the gradient averaged over `n_steps` points between the inputs of both runs (Hanna et al.
      2024, arXiv 2403.17806).

    Misleads where the metric is far from linear: saturated attention, cancelling paths, large differences between runs.
    So it is always reported with its agreement: `sample` entries (all, if there are no more) are patched exactly.

    Args:
        site, over, metric, direction, regions, engine, sweep_options: as in `activation_patch`; `over` without "step".
        top_k: how many entries "top" means in the overlap.

    Raises ValueError before any compute for what does not fit; a metric that has no gradient.
    """
    check_gradients("attribution_patch")
    check_direction(direction)
    n_steps, sample = check_count("n_steps", n_steps), check_count("sample", sample, 0)
    pair = Contrast(model, clean, corrupted, noise_levels, **contrast)
    if pair.steps is not None:
        raise ValueError("attribution patching is of single passes: give noise_levels, not steps")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if site == "pattern":
        raise ValueError(
            "site 'pattern': attribute 'q' and 'k' (method 'atp*' recomputes the pattern), or patch exactly"
        )
    if n_steps < 1 or sample < 1 or top_k < 1:
        raise ValueError(f"need n_steps, sample and top_k of at least 1, got {n_steps=}, {sample=}, {top_k=}")
    name, function = find_metric(metric, pair.pipe)
    axes = patch_axes(pair, site, over, regions)
    source = "clean" if direction == "denoising" else "corrupted"
    trials = patch_trials(pair, site, axes, source)
    estimate = _Estimate(pair, site, axes, function, direction, method, n_steps)
    found = estimate.as_sweep(name, trials)
    how = "clean into corrupted" if direction == "denoising" else "corrupted into clean"
    title = f"{pair.model.cfg.model_name}: {site} attributed ({method}), {how}"
    meta = {
        "model": pair.model.cfg.model_name,
        "clips": len(pair),
        "site": site,
        "metric": name,
        "method": method,
        "direction": direction,
        "levels": [str(level) for level in pair.levels],
        "seed": pair.seed,
    }
    result = collect(pair, found, tuple(over), axes, title, UNITS.get(name, name), meta)

    drawn = np.random.default_rng(pair.seed).permutation(len(trials))[:sample]
    exact = sweep.run(
        pair.denoiser,
        pair.cases(direction),
        [trials[i] for i in sorted(drawn)],
        {name: Judge(function)},
        engine=engine,
        **dict(sweep_options or {}),
    )
    run = "corrupted" if direction == "denoising" else "clean"
    compared, by_clip = _compare(found, exact, tuple(over), run)
    fields = {field: getattr(result, field) for field in PatchingResult.__dataclass_fields__}
    agree = agreement(by_clip[0], by_clip[1], top_k, signed=method != "atp*", seed=pair.seed)
    return AttributionResult(**fields, exact=compared, agreement=agree)


def _compare(
    estimates: sweep.SweepResult, exact: sweep.SweepResult, over: tuple[str, ...], base: str
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Estimates beside exact changes, for the sampled entries: means, and `[clip entry]` of either."""
    table: Any = exact.table
    entries = table[list(over)].drop_duplicates().sort_values(list(over), ignore_index=True)
    axes = {name: list(dict.fromkeys(entries[name])) for name in over}
    at = tuple(entries[name].map(axes[name].index).to_numpy() for name in over)
    by_clip = [
        one.per_clip(axes, base=run).numpy()[(slice(None), *at)] for one, run in ((exact, base), (estimates, None))
    ]
    return entries.assign(exact=by_clip[0].mean(0), estimate=by_clip[1].mean(0)), by_clip


class _Estimate:
    """Estimates of all trials' effects, clip by clip."""

    def __init__(
        self,
        pair: Contrast,
        site: str,
        axes: Mapping[str, Mapping[Any, Any]],
        metric: PatchMetric,
        direction: str,
        method: str,
        n_steps: int,
    ) -> None:
        self.pair, self.site, self.axes, self.metric, self.method = pair, site, axes, metric, method
        self.n_steps = n_steps
        self.base, self.source = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
        self.names = pair.model.resolve_names(site)
        if "layer" in axes:
            self.names = [name for name in self.names if Site.parse(name).layer is not None]

    def as_sweep(self, metric: str, trials: Sequence[sweep.Trial]) -> sweep.SweepResult:
        """Estimates in the form of a sweep's outcomes."""
        rows, runs = [], []
        for level in self.pair.levels:
            for clips in batches(self.pair):
                case = {"level": level, "metric": metric}
                effects, values = self._clips(clips, level, trials)
                for run, value in values.items():
                    runs += [
                        {**case, "run": run, "clip": clips.start + i, "value": x} for i, x in enumerate(value.tolist())
                    ]
                for trial, effect in zip(trials, effects, strict=True):
                    rows += [
                        {**case, **trial.label, "clip": clips.start + i, "value": x}
                        for i, x in enumerate(effect.tolist())
                    ]
        empty = pd.DataFrame(columns=["trial", "error"])
        return sweep.SweepResult(table=pd.DataFrame(rows), runs=pd.DataFrame(runs), failures=empty)

    def _clips(
        self, clips: slice, level: Any, trials: Sequence[sweep.Trial]
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        fix = self.method == "atp*" and self.site in ("q", "k")
        extra = ["rot_q", "rot_k", "v"] if fix else []
        wanted = [*self.names, *(name for alias in extra for name in self.pair.model.resolve_names(alias))]
        runs, compare, caches = untouched(self.pair, clips, level, {self.source: wanted, self.base: wanted})
        parts = [self._of_pass(one, compare, caches, trials, fix) for one in self._points(runs)]
        effects = [torch.stack(each).mean(0) for each in zip(*parts, strict=True)]
        values = {"clean": self.metric(compare.clean, compare), "corrupted": self.metric(compare.corrupted, compare)}
        return effects, values

    def _points(self, runs: Mapping[str, sweep.Inputs]) -> list[sweep.Inputs]:
        """Where the gradient is taken."""
        base, source = runs[self.base], runs[self.source]
        if self.method != "integrated_gradients":
            return [base]
        return [between(base, source, (step + 0.5) / self.n_steps) for step in range(self.n_steps)]

    def _of_pass(
        self,
        inputs: sweep.Inputs,
        compare: Pair,
        caches: Mapping[str, ActivationCache],
        trials: Sequence[sweep.Trial],
        fix: bool,
    ) -> list[torch.Tensor]:
        model = self.pair.model
        at = [Site.parse(name).at("z") for name in self.names] if fix else self.names
        dropped: list[int] = []
        hooks = []
        if self.method == "atp*":
            outs = [site for site in map(Site.parse, model.hook_names) if site.adds_of is not None]
            hooks = [(site, _droppable(site.layer, dropped)) for site in outs]
        run = GradientPass(self.pair, inputs, compare, self.metric, at, hooks)
        totals = None
        layers: list[int | None] = list(range(model.cfg.n_layers)) if self.method == "atp*" else [None]
        for layer in layers:
            dropped[:] = [] if layer is None else [layer]
            grads = dict(zip(self.names, run.gradients([run.kept[name] for name in at]), strict=True))
            found = [self._effect(trial, grads, caches, fix) for trial in trials]
            if self.method == "atp*":
                found = [effect.abs() / max(1, model.cfg.n_layers - 1) for effect in found]
            totals = found if totals is None else [a + b for a, b in zip(totals, found, strict=True)]
        assert totals is not None
        return totals

    def _effect(
        self, trial: sweep.Trial, grads: Mapping[str, torch.Tensor], caches: Mapping[str, ActivationCache], fix: bool
    ) -> torch.Tensor:
        """`[batch]`: the change that a trial would make, to first order."""
        model, total = self.pair.model, None
        (patch,) = trial.interventions  # type: ignore[misc]
        for name in model.resolve_names(patch.site):  # type: ignore[attr-defined]
            base, source, grad = caches[self.base][name], caches[self.source][name], grads[name]
            chosen = patch.selection(base, model.hook_dict[name], model)  # type: ignore[attr-defined]
            if fix:
                effect = qk_effect(model, name, self.site, caches[self.base], caches[self.source], grad, chosen)
            else:
                effect = ((source - base) * grad * chosen).flatten(1).sum(1)
            total = effect if total is None else total + effect
        assert total is not None
        return total


def _droppable(layer: int | None, dropped: list[int]) -> Any:
    """A hook under which gradients do not flow through a layer's output while `dropped` holds it."""

    def hook_function(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        if activation.requires_grad:
            activation.register_hook(lambda grad: torch.zeros_like(grad) if layer in dropped else grad)
        return activation

    return hook_function
