"""How far a patched run has come from the corrupted to the clean one. All in x0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from vdinterp.analysis.metrics import psnr as pixel_psnr
from vdinterp.checks.signatures import check_signature
from vdinterp.pipeline import VideoDiffusion
from vdinterp.sweep import Moment


@dataclass(frozen=True, eq=False)
class Pair:
    """What a metric compares with: x0 of the two untouched runs, the true latents, and where to look (all
    `[batch frame channel height width]`, `region` boolean and broadcastable)."""

    clean: torch.Tensor
    corrupted: torch.Tensor
    truth: torch.Tensor
    region: torch.Tensor
    variance: float


PatchMetric = Callable[[torch.Tensor, Pair], torch.Tensor]


@dataclass(frozen=True)
class Judge:
    """A patch metric as a sweep calls it."""

    metric: Any

    def __call__(self, x0: torch.Tensor, moment: Moment) -> Any:
        return self.metric(x0, pair_of(x0, moment))


def pair_of(x0: torch.Tensor, moment: Moment) -> Pair:
    """The pair behind a moment of a sweep, where `x0` is."""
    about = moment.case.about
    return Pair(
        clean=moment.x0["clean"].to(x0),
        corrupted=moment.x0["corrupted"].to(x0),
        truth=about["truth"].to(x0),
        region=about["region"].to(x0.device),
        variance=about["variance"],
    )


def recovered(x0: torch.Tensor, pair: Pair) -> Float[torch.Tensor, " batch"]:
    """How much of the way from the corrupted to the clean run: `<x0 - corrupted, clean - corrupted> / |clean -
    corrupted|^2` within the region, a projection.

    0 the corrupted run, 1 the clean one; may lie outside. Chance: 0, a change in an unrelated direction of many
    dimensions. Misleads: it sees only the one direction, so a run can be at 1 and wrong elsewhere; where clean and
    corrupted hardly differ it is all noise. Linear in x0, so effects of parts can add up.
    Raises ValueError where clean and corrupted give the same x0.
    """
    way = (pair.clean - pair.corrupted) * pair.region
    length = way.square().sum((1, 2, 3, 4))
    if bool((length == 0).any()):
        same = (length == 0).nonzero()[:, 0].tolist()
        raise ValueError(f"clean and corrupted give the same x0 in the region for clips {same}: nothing to recover")
    return ((x0 - pair.corrupted) * way).sum((1, 2, 3, 4)) / length


def error(x0: torch.Tensor, pair: Pair) -> Float[torch.Tensor, " batch"]:
    """Squared error within the region against the true clean latents, over their variance.

    0 perfect, about 1 what the mean frame scores. Misleads: see `vdinterp.analysis.metrics.x0_error`.
    """
    region = pair.region.expand_as(x0)
    return ((x0 - pair.truth).square() * region).sum((1, 2, 3, 4)) / region.sum((1, 2, 3, 4)) / pair.variance


@dataclass(frozen=True, eq=False)
class PixelPSNR:
    """PSNR (dB) of the decoded x0 against the decoded truth, mean over the frames that the region touches."""

    pipe: VideoDiffusion

    def __call__(self, x0: torch.Tensor, pair: Pair) -> Float[torch.Tensor, " batch"]:
        scores = pixel_psnr(self.pipe.decode(x0).float(), self.pipe.decode(pair.truth).float())
        scores = self.pipe.frame_map.by_frame(scores, "mean")
        frames = pair.region.flatten(2).any(-1).float()
        return (scores * frames).sum(1) / frames.sum(1)


METRICS = {"recovered": recovered, "error": error}
UNITS = {
    "recovered": "recovered (0 corrupted, 1 clean)",
    "error": "x0 error (squared error over variance)",
    "psnr": "PSNR (dB)",
}


def find_metric(metric: Any, pipe: VideoDiffusion | None) -> tuple[str, Any]:
    """A metric by name, or a function of the user's `(x0, pair) -> [batch]`, with what it is called.

    Raises `ValueError` for an unknown name, or a function that takes other arguments.
    """
    if callable(metric):
        check_signature(metric, "a metric is a function (x0, pair) -> one number a clip, [batch]", "x0", "pair")
        return getattr(metric, "__name__", type(metric).__name__).strip("<>"), metric
    if metric == "psnr":
        if pipe is None or pipe.vae is None:
            raise ValueError("metric 'psnr' is of pixels: it needs a pipeline with a VAE; 'error' works without")
        return metric, PixelPSNR(pipe)
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose 'recovered', 'error', 'psnr', or give a function")
    return metric, METRICS[metric]
