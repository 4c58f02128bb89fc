"""Where a trial first differs from its base, and what it takes from other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vdinterp.grid import TokenGrid
from vdinterp.interventions import Intervention
from vdinterp.models import HookedVideoDiT
from vdinterp.site import Site
from vdinterp.sweep.trial import Case, Trajectory, Trial


@dataclass(frozen=True, order=True)
class Start:
    """Where a trial begins to differ from its base: denoising step (0 in a single pass), block (`n_layers` is the final
    layer), and how many of the block's sublayers add what they add in the base."""

    step: int
    layer: int
    n_known: int = 0


def acts(interventions: Sequence[Intervention], step: int) -> bool:
    """Whether any of a trial's interventions is active at a denoising step."""
    return any(one.steps is None or step in one.steps for one in interventions)


def needed_names(model: HookedVideoDiT, case: Case, trials: Sequence[Trial]) -> dict[str, set[str]]:
    """Activations that trials take from each named run. Raises `KeyError` for a run that the case does not have."""
    needed: dict[str, set[str]] = {}
    for trial in trials:
        if callable(trial.interventions):  # they hold what they need
            continue
        for one in trial.interventions:
            for run, names in one.sites_of_run(model).items():
                if run not in case.runs:
                    raise KeyError(f"{trial.name}: there is no run {run!r}; this sweep has {', '.join(case.runs)}")
                needed.setdefault(run, set()).update(names)
    return needed


def touched(model: HookedVideoDiT, interventions: Sequence[Intervention]) -> list[str]:
    """The hooks that interventions set, before any activation is there: this also checks them."""
    stand_ins = _StandIns(model)
    names = []
    for one in interventions:
        runs = dict.fromkeys(one.sites_of_run(model), stand_ins)
        names += [name for name, _ in one.bind(runs).hooks(model)]
    return names


def start_of(model: HookedVideoDiT, interventions: Sequence[Intervention], hooks: Sequence[str], case: Case) -> Start:
    """The first step and block that interventions, which set these hooks, change."""
    n_layers = model.cfg.n_layers
    sites = [Site.parse(name) for name in hooks]
    layer = min((site.block(n_layers) for site in sites), default=n_layers)
    n_known = min((n_known_of(site, model) for site in sites if site.block(n_layers) == layer), default=0)
    step = 0
    if isinstance(case.runs[case.base], Trajectory):
        step = min((0 if one.steps is None else min(one.steps) for one in interventions), default=0)
    return Start(step, layer, n_known)


def n_known_of(site: Site, model: HookedVideoDiT) -> int:
    """How many sublayers of its block a hook leaves as they are, up to what they add to the stream."""
    if site.layer is None:
        return 0
    sublayers = list(model.cfg.blocks[site.layer].sublayers)
    if site.sublayer is not None:
        return sublayers.index(site.sublayer)
    if site.adds_of is not None:
        return sublayers.index(site.adds_of) + 1
    return {"resid_mid": len(sublayers) - 1, "resid_post": len(sublayers)}.get(site.what or "", 0)


def base_names(start: Start, model: HookedVideoDiT) -> dict[str, Site]:
    """The base's activations that a resumed pass needs, by what they are: `resid_pre`, or a known sublayer."""
    n_layers = model.cfg.n_layers
    if start.layer == n_layers:
        return {"resid_pre": Site(n_layers - 1, what="resid_post")}
    if not start.layer and not start.n_known:
        return {}
    known = list(model.cfg.blocks[start.layer].sublayers)[: start.n_known]
    resid_pre = Site(start.layer, what="resid_pre")
    return {"resid_pre": resid_pre} | {name: Site(start.layer, name).added for name in known}


def kept_starts(
    starts: Sequence[Start], model: HookedVideoDiT, n_clips: int, n_bytes: int, grid: TokenGrid | None = None
) -> list[Start]:
    """Of places in their order, those whose activations of the base are kept: all, or evenly as many as fit."""
    for n in range(len(starts), 0, -1):
        chosen = [starts[(index * len(starts)) // n] for index in range(n)]
        names = sorted({name for start in chosen for name in base_names(start, model).values()})
        if model.estimate_cache(names, n_clips, grid=grid) <= n_bytes:
            return chosen
    return []


def nearest(start: Start, kept: Sequence[Start]) -> Start:
    """The last kept place that is not after `start`; the beginning of its step if there is none."""
    return max((one for one in kept if one <= start), default=Start(start.step, 0))


def is_computed(hook: str, start: Start, model: HookedVideoDiT) -> bool:
    """Whether a pass that is resumed at `start` computes an activation."""
    site = Site.parse(hook)
    return (site.block(model.cfg.n_layers), n_known_of(site, model)) >= (start.layer, start.n_known)


def resume(start: Start, model: HookedVideoDiT, base: Mapping[str, torch.Tensor], n_trials: int, n_clips: int) -> dict:
    """Arguments of the model that resume a pass of `n_trials` sets of clips from the base's activations."""
    given = {}
    for what, name in base_names(start, model).items():
        per_branch = base[name].unflatten(0, (-1, n_clips))
        given[what] = per_branch.repeat(1, n_trials, 1, 1).flatten(0, 1)
    if not given:
        return {}
    return {"start_at_layer": start.layer, "resid_pre": given.pop("resid_pre"), "known": given}


class _StandIns(Mapping[str, torch.Tensor]):
    """Activations of the right shape that hold no memory, to check interventions by."""

    def __init__(self, model: HookedVideoDiT) -> None:
        self.model = model

    def __getitem__(self, name: str) -> torch.Tensor:
        if not isinstance(name, str) or name not in self.model.hook_dict:
            raise KeyError(name)
        dtype = torch.bool if self.model.hook_dict[name].broadcasts else torch.float32
        return torch.empty(self.model.hook_shape(name, batch=2), dtype=dtype, device="meta")

    def __iter__(self):
        return iter(self.model.hook_dict)

    def __len__(self) -> int:
        return len(self.model.hook_dict)
