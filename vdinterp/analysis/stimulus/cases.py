"""Noised clips as cases of a sweep, judged by the x0 error of their target frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vdinterp.analysis.stimulus.noised_clips import NoisedClips
from vdinterp.interventions import Ablate
from vdinterp.site import Site
from vdinterp.sweep import Case, Inputs, Moment, Trial, run


@dataclass(frozen=True)
class TargetError:
    """Squared error of x0 over the noised frames, over the variance: 0 perfect, about 1 what the mean frame gets."""

    def __call__(self, x0: torch.Tensor, moment: Moment) -> Float[torch.Tensor, " clip"]:
        about = moment.case.about
        truth = about["truth"].to(x0)
        return (x0[:, -truth.shape[1] :] - truth).square().mean((1, 2, 3, 4)) / about["variance"]


def cases_of(
    noised: NoisedClips, level: float, label: Mapping[str, Any] | None = None, variance: float | None = None
) -> list[Case]:
    """One case a batch of clips, its run called "base", labelled with its `first_clip`. `variance`: the unit of errors
    (default: the clips' own)."""
    return [
        Case(
            runs={"base": Inputs(**noised.inputs(level, clips))},
            base="base",
            label={**(label or {}), "first_clip": clips.start},
            about={
                "truth": noised.latents[clips, noised.n_context :],
                "variance": noised.variance if variance is None else variance,
            },
        )
        for clips in noised.batches
    ]


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
    table: Any = found.table.assign(at=found.table["first_clip"] + found.table["clip"])
    base: Any = found.runs.assign(at=found.runs["first_clip"] + found.runs["clip"]).set_index("at")["value"]
    rise = torch.zeros(len(noised.clips), cfg.n_layers, cfg.n_heads)
    places = tuple(torch.tensor(table[name].to_numpy()) for name in ("at", "layer", "head"))
    rise[places] = torch.tensor((table["value"] - table["at"].map(base)).to_numpy(), dtype=torch.float32)
    return rise
