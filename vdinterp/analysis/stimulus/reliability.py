"""Reliability: does the model work on these clips at all? Asked before anything is concluded from it.

What a part of a model does cannot be seen on clips on which the whole fails: every ablation is then a change from one
wrong picture to another. A model fails here if its error is above that of a guess that needs no model: the mean frame,
or a still picture (the last frame that it was given, copied).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vdinterp.analysis.metrics import psnr
from vdinterp.vae import IdentityVAE
from vdinterp.words.wording import FAILS, listing, number

if TYPE_CHECKING:
    from vdinterp.pipeline import VideoDiffusion

LEAST_PSNR = 20.0  # dB of the codec's round trip: below, it is not these pictures that the model sees


@dataclass(frozen=True)
class Reliability:
    """What the untouched model and guesses without a model score, in x0 errors (squared error over variance; the mean
    frame scores 1).

    `errors`: of the model, by what it was asked ("noise level 0.9", "8 steps"). `still`: of a still picture, None
    without a frame to copy. `round_trip`: PSNR (dB) of encoding and decoding, None for a model of pixels.
    `without`: what the model takes and got none of ("actions", "text").
    """

    model: str
    errors: Mapping[str, float] = field(default_factory=dict)
    still: float | None = None
    round_trip: float | None = None
    without: str = ""

    @property
    def failures(self) -> list[str]:
        """Why nothing can be concluded, one phrase each."""
        found = []
        for asked, error in self.errors.items():
            worse = ["than the mean frame (1)"] if not error <= 1 else []
            if self.still is not None and not error <= self.still:
                worse.append(f"than a still picture ({number(self.still)})")
            if math.isnan(error):
                found.append(f"its prediction at {asked} is not a number")
            elif worse:
                found.append(f"its x0 error at {asked} is {number(error)}, worse {listing(worse)}")
        if self.round_trip is not None and self.round_trip < LEAST_PSNR:
            found.append(
                f"its codec alone turns them into other pictures (encoded and decoded, {number(self.round_trip)} dB)"
            )
        return found

    @property
    def caution(self) -> str:
        """What a summary has to begin with; empty for a model that works on these clips."""
        parts = []
        if self.failures:
            parts.append(
                f"**`{self.model}` fails on these clips, so what follows means nothing**: {'; '.join(self.failures)}. "
                "Give clips of the kind that it was trained on."
            )
        if self.without:
            parts.append(
                f"`{self.model}` takes {self.without} and ran without any: this is not how it was trained to work."
            )
        return " ".join(parts)

    def meta(self) -> dict[str, Any]:
        """For the `meta` of a result: what was found, and the caution where there is one."""
        found: dict[str, Any] = {"x0 error of the untouched model": dict(self.errors)} if self.errors else {}
        if self.still is not None:
            found["x0 error of a still picture"] = self.still
        if self.round_trip is not None:
            found["round trip of the codec (dB)"] = self.round_trip
        if self.without:
            found[self.without] = "none: the model ran without"
        if self.failures:
            found[FAILS] = True
        return {**found, **({"caution": self.caution} if self.caution else {})}


def round_trip(pipe: VideoDiffusion, video: torch.Tensor | None, latents: torch.Tensor) -> float | None:
    """Mean PSNR (dB) of `video` `[clip frame channel height width]` against its decoded `latents`; None for a model of
    pixels, and for clips that are latents alone."""
    if video is None or pipe.vae is None or isinstance(pipe.vae, IdentityVAE):
        return None
    with torch.no_grad():
        return float(psnr(pipe.decode(latents).float().cpu(), video.float()).mean())
