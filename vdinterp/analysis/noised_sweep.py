"""Noised clips as cases of a sweep, judged by the x0 error of their target frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from vdinterp.analysis.noised import NoisedClips
from vdinterp.sweep import Case, Inputs, Moment


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
