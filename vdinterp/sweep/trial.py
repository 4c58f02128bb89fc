"""What a sweep consists of, as data: cases (what the model is given) and trials (what is changed)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from vdinterp.conditions import Cond, Conditions
from vdinterp.interventions import Intervention
from vdinterp.models import HookedVideoDiT
from vdinterp.store import fingerprint
from vdinterp.vae import FrameMap

Label = Mapping[str, Any]  # columns of the table: names and plain values


@runtime_checkable
class Denoiser(Protocol):
    """What a sweep runs: a `VideoDiffusion`, or a bare model as `ModelOnly`."""

    @property
    def model(self) -> Any: ...

    @property
    def identity(self) -> str: ...

    def denoise(
        self,
        noisy: torch.Tensor,
        noise_levels: torch.Tensor,
        cond: Cond = None,
        **resume: Any,
    ) -> torch.Tensor: ...


class ModelOnly:
    """A model without its diffusion process: what it predicts is compared as it is, in place of x0."""

    frame_map = FrameMap()

    def __init__(self, model: HookedVideoDiT) -> None:
        self.model = model

    @property
    def identity(self) -> str:
        """A hash of architecture and weights."""
        return fingerprint([self.model.cfg.to_dict(), self.model.identity])

    def denoise(
        self,
        noisy: torch.Tensor,
        noise_levels: torch.Tensor,
        cond: Cond = None,
        **resume: Any,
    ) -> torch.Tensor:
        """The prediction of a model that knows its noise levels (`model.schedule`)."""
        timestep = self.model.timestep(noise_levels.to(self.model.device))
        return self.model(noisy.to(self.model.device, self.model.dtype), timestep, cond=cond, **resume)


class Inputs(NamedTuple):
    """What one forward pass is given: `pipe.denoise(*inputs)`.

    `noisy` `[batch frame channel height width]`, `noise_levels` `[batch frame]` (shares, 0 clean), `cond` as the
    denoiser takes it.
    """

    noisy: torch.Tensor
    noise_levels: torch.Tensor
    cond: Cond = None

    @property
    def n_clips(self) -> int:
        return len(self.noisy)

    def repeated(self, n: int) -> Inputs:
        """`n` times these clips, one set after the other."""
        cond = self.cond.repeat(n, 1, 1) if isinstance(self.cond, torch.Tensor) else self.cond
        return Inputs(
            self.noisy.repeat(n, 1, 1, 1, 1),
            self.noise_levels.repeat(n, 1),
            cond.repeat(n) if isinstance(cond, Conditions) else cond,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """A whole run of the sampler: the arguments of `VideoDiffusion.sample`, `context` among them."""

    options: Mapping[str, Any]

    @property
    def n_clips(self) -> int:
        context = self.options.get("context")
        return self.options.get("batch") or 1 if context is None else len(context)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One batch of clips. `runs` by name, of the same clips and noise; trials change the one called `base`, and take
    activations from any of them by name (`Patch("z", source="clean")`). `first_clip`: which of the whole stimulus its
    first is. `label`: columns of the table. `about`: what metrics may need besides the runs' x0."""

    runs: Mapping[str, Inputs | Trajectory]
    base: str
    first_clip: int = 0
    label: Label = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base not in self.runs:
            raise ValueError(f"base={self.base!r} is none of the runs {', '.join(self.runs)}")
        if len({type(run) for run in self.runs.values()}) > 1 or len({run.n_clips for run in self.runs.values()}) > 1:
            raise ValueError("the runs of a case are all single passes or all trajectories, of equally many clips")

    @property
    def n_clips(self) -> int:
        return self.runs[self.base].n_clips


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One thing to try: interventions applied together. `label`: columns of the table, such as layer and head.

    `interventions`: a tuple, or a function of the case that makes them where they depend on its clips; they then set
    the same hooks, at the same steps, in every case.
    """

    interventions: tuple[Intervention, ...] | Callable[[Case], Sequence[Intervention]]
    label: Label = field(default_factory=dict)

    def of(self, case: Case) -> tuple[Intervention, ...]:
        """What is done to the clips of a case."""
        return tuple(self.interventions(case)) if callable(self.interventions) else self.interventions

    @property
    def name(self) -> str:
        """For messages: the label, or the interventions themselves."""
        return ", ".join(f"{key} {value}" for key, value in self.label.items()) or repr(self.interventions)


@dataclass(frozen=True, eq=False)
class Moment:
    """What a metric may look at beside the x0 it judges: the case, the untouched runs' `x0` by name, and `cache`, the
    activations behind the x0 that any metric of the sweep asks for (None where none does, and of trajectories)."""

    case: Case
    x0: Mapping[str, torch.Tensor]
    cache: Mapping[str, torch.Tensor] | None = None


Metric = Callable[[torch.Tensor, Moment], torch.Tensor]
"""`(x0, moment) -> [clip]`, one number a clip. One that has `names` (hook names or aliases) finds these activations in
`moment.cache`."""
Values = Mapping[str, Any]  # what is kept of one x0: lists of numbers, or tensors, by name
