"""Noised clips as cases of a sweep, judged by the x0 error of their target frames."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from vdinterp.analysis.stimulus.noised_clips import NoisedClips
from vdinterp.interventions import Ablate, Intervention
from vdinterp.site import Site
from vdinterp.sweep import Case, Moment, Trial, run

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class TargetError:
    """Squared error of x0 over the noised frames, over the variance: 0 perfect, about 1 what the mean frame gets."""

    def __call__(self, x0: torch.Tensor, moment: Moment) -> Float[torch.Tensor, " clip"]:
        about = moment.case.about
        truth = about["truth"].to(x0)
        return (x0[:, about["target"]] - truth).square().mean((1, 2, 3, 4)) / about["variance"]


@dataclass(frozen=True)
class TargetChange:
    """How far x0 of the noised frames moves: squared distance to that of the run called "base", over the variance."""

    def __call__(self, x0: torch.Tensor, moment: Moment) -> Float[torch.Tensor, " clip"]:
        target = moment.case.about["target"]
        moved = x0[:, target].float() - moment.x0["base"][:, target].to(x0).float()
        return moved.square().mean((1, 2, 3, 4)) / moment.case.about["variance"]


def cases_of(
    noised: NoisedClips, level: float, label: Mapping[str, Any] | None = None, variance: float | None = None
) -> list[Case]:
    """One case a batch of clips, its run called "base". `variance`: the unit of errors (default: the clips' own)."""
    return [
        Case(
            runs={"base": noised.inputs(level, clips)},
            base="base",
            first_clip=clips.start,
            label=label or {},
            about={
                "truth": noised.latents[clips][:, noised.target],
                "target": noised.target,
                "variance": noised.variance if variance is None else variance,
            },
        )
        for clips in noised.batches
    ]


def changes(noised: NoisedClips, level: float, tried: Mapping[Key, Intervention]) -> dict[Key, torch.Tensor]:
    """How far each intervention by itself moves x0 of the noised frames (`TargetChange`), `[clip]`."""
    trials = [Trial(interventions=(one,), label={"which": index}) for index, one in enumerate(tried.values())]
    found = run(noised.pipe, cases_of(noised, level), trials, {"change": TargetChange()})
    found.check_whole()
    return dict(zip(tried, found.per_clip({"which": range(len(tried))}).unbind(1), strict=True))


def head_effects(
    noised: NoisedClips, level: float, means: Mapping[str, torch.Tensor]
) -> Float[torch.Tensor, "clip layer head"]:
    """Rise of the x0 error when a head's output is replaced by its mean, each head by itself. `means` by hook name."""
    cfg = noised.model.cfg
    trials = [
        Trial(
            interventions=(Ablate(Site(layer, "attn", "z"), heads=[head], mode="mean", reference=means),),
            label={"layer": layer, "head": head},
        )
        for layer, head in np.ndindex(cfg.n_layers, cfg.n_heads)
    ]
    found = run(noised.pipe, cases_of(noised, level), trials, {"error": TargetError()})
    found.check_whole()
    return found.per_clip(("layer", "head"), base="base").float()
