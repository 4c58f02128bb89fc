"""Condition: one way to run the model, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vdinterp.interventions import Intervention

if TYPE_CHECKING:
    from vdinterp.studies.trials import Moment

Interventions = Sequence[Intervention] | Callable[["Moment"], Sequence[Intervention]]
PROTOCOLS = ("sample", "denoise", "given")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One variant of one ablation.

    `ablation`, `variant`: the names it goes by in tables and figures. `mode`, `site`, `layer`, `head`: what is taken
    away and where, for tables.

    `interventions`: what is done to the model: a list, or a function `(moment) -> list` where they depend on the clips
    at hand or on the noise level (`moment.bench`, `moment.clips`, `moment.level`).

    `protocol`: "sample", the target frames are generated from the context in `steps` steps (None: the bench's);
    "denoise", one forward pass at each of the bench's noise levels, all target frames noised alike, x0 estimates judged
    (cheap, and nothing accumulates over steps); "given", no model at all but `latents(bench, clips)`.
    """

    ablation: str
    variant: str
    mode: str = "-"
    site: str = "-"
    layer: int | None = None
    head: int | None = None
    interventions: Interventions = ()
    protocol: Literal["sample", "denoise", "given"] = "sample"
    steps: int | None = None
    latents: Callable | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"{self.label}: unknown protocol {self.protocol!r}; choose one of {', '.join(PROTOCOLS)}")
        if (self.protocol == "given") != (self.latents is not None):
            raise ValueError(f"{self.label}: protocol 'given' and latents=... go together")
        if self.steps is not None and (self.protocol != "sample" or self.steps < 1):
            raise ValueError(f"{self.label}: steps={self.steps} needs protocol 'sample' and is at least 1")

    @property
    def label(self) -> str:
        return self.variant if self.ablation == self.variant else f"{self.ablation}: {self.variant}"


INTACT = Condition(ablation="intact", variant="intact")
INTACT_DENOISE = Condition(ablation="intact", variant="intact", protocol="denoise")
