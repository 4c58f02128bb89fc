"""What activations are replaced with: nothing, a mean, another run's, a value, themselves and a direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import torch

from vdinterp.checks.signatures import check_signature
from vdinterp.interventions.base import Place, Run
from vdinterp.interventions.site import SAMPLE_AXES, SiteIntervention, channel_axis
from vdinterp.interventions.stored import (
    check_broadcasts,
    check_finite,
    check_holds,
    check_kind,
    expanded,
    fitted,
)

_REFERENCED = ("mean", "resample", "frozen")
_MODES = ("zero", *_REFERENCED, "scaled")


@dataclass(frozen=True)
class Ablate(SiteIntervention):
    """Take a component's information away.

    `mode`: "zero" (None is that); "mean" (over the reference's clips, frames and positions, so one constant vector per
    head); "resample" (another clip's activation: the reference's clips rolled by one); "frozen" (the reference's own);
    "scaled" (its own, times `factor`). Mean, resample and frozen need `reference`: an `ActivationCache` (or any mapping
    from hook name to tensor), or the name of a run of a sweep; a reference without one of these modes raises.
    Mean ablation keeps what is always there and removes what varies; zero ablation removes both, which can hurt for
    reasons that have nothing to do with the information (Li & Janson 2024, arXiv 2409.09951).
    """

    RUNS: ClassVar[tuple[str, ...]] = ("reference",)

    site: Place
    mode: Literal["zero", "mean", "resample", "frozen", "scaled"] | None = None
    reference: Run | None = None
    factor: float | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is None:
            if self.reference is not None:
                raise ValueError("Ablate: reference= without mode= could mean any of 'mean', 'resample' and 'frozen'")
            object.__setattr__(self, "mode", "zero")
        if self.mode not in _MODES:
            raise ValueError(f"Unknown ablation mode {self.mode!r:.80}; choose one of {', '.join(_MODES)}.")
        if self.mode in _REFERENCED and self.reference is None:
            raise ValueError(f"mode={self.mode!r} needs reference=, a cache of what to ablate with.")
        if self.mode not in _REFERENCED and self.reference is not None:
            raise ValueError(f"mode={self.mode!r} uses no other run; leave reference= out, or choose 'mean'")
        if (self.mode == "scaled") != (self.factor is not None):
            raise ValueError(f"mode={self.mode!r}, factor={self.factor!r}: factor= and mode='scaled' go together.")
        if self.factor is not None:
            check_number("factor", self.factor)

    def _check(self, model: Any, name: str) -> None:
        super()._check(model, name)
        if self.mode not in ("resample", "frozen"):
            check_no_mask(model, name, f"Ablate(mode={self.mode!r})")
        if self.mode not in _REFERENCED or isinstance(self.reference, str):
            return
        assert self.reference is not None
        check_holds(self.reference, model, name, "reference")
        if self.mode == "resample" and len(self.reference[name]) < 2:
            raise ValueError("mode='resample' needs at least two clips in the reference: one clip has no other.")

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        if self.mode == "zero":
            return torch.zeros_like(activation)
        if self.mode == "scaled":
            assert self.factor is not None
            return activation * self.factor
        assert self.reference is not None and not isinstance(self.reference, str)
        stored = self.reference[hook.name]
        if self.mode == "mean":
            axes = [axis for axis, dim in enumerate(hook.dims) if dim in SAMPLE_AXES]
            return stored.float().mean(axes, keepdim=True)
        if self.mode == "resample":
            stored = stored.roll(1, dims=0)
        return fitted(stored, activation, hook)


@dataclass(frozen=True)
class Patch(SiteIntervention):
    """Put another run's activation there: `source` is the cache of that run, or its name in a sweep.

    With `subspace` only its component there (as in distributed alignment search, Geiger et al., arXiv 2303.02536).
    """

    RUNS: ClassVar[tuple[str, ...]] = ("source",)

    site: Place
    source: Run

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None:
            raise ValueError("Patch needs source=, a cache or the name of a run of a sweep.")

    def _check(self, model: Any, name: str) -> None:
        super()._check(model, name)
        if not isinstance(self.source, str):
            check_holds(self.source, model, name)

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        assert not isinstance(self.source, str)
        return fitted(self.source[hook.name], activation, hook)


@dataclass(frozen=True)
class Freeze(SiteIntervention):
    """Hold an activation at one value: a number, or a tensor that broadcasts to it (for gates: `Freeze("gate", 1)`)."""

    site: Place
    value: float | int | torch.Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.value, (bool, torch.Tensor)):
            check_number("Freeze: value", self.value, "a number or a tensor, finite")

    def _check(self, model: Any, name: str) -> None:
        super()._check(model, name)
        value, is_mask = torch.as_tensor(self.value), model.hook_dict[name].broadcasts
        # whole numbers stand for what they are, other than in a mask
        check_kind(value.float() if _is_whole(value) and not is_mask else value, model, name, "Freeze: the value")
        check_broadcasts(value, model, name, "Freeze: a value")
        check_finite(value, name, "Freeze: the value")

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        value = torch.as_tensor(self.value, dtype=activation.dtype, device=activation.device)
        return expanded(value, activation, hook, "Freeze: a value")


@dataclass(frozen=True)
class Steer(SiteIntervention):
    """Add `strength * direction` to an activation.

    `direction`: `[channels]`, laid along the channel axis of the site, or any tensor that broadcasts to the activation.
    Activation steering, e.g. by a difference of means of two kinds of clips (Turner et al., arXiv 2308.10248). The
    strength is in units of the direction: compare `direction.norm()` with the norm of what is there.
    """

    site: Place
    direction: torch.Tensor
    strength: float | int = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strength", self.strength)
        direction = self.direction
        if not isinstance(direction, torch.Tensor) or not direction.is_floating_point() or not direction.numel():
            raise ValueError("Steer: direction is a floating point tensor, [channels] or broadcasting to the site.")
        if not direction.isfinite().all():
            raise ValueError("Steer: direction holds NaN or infinity.")

    def _check(self, model: Any, name: str) -> None:
        super()._check(model, name)
        check_no_mask(model, name, "Steer")
        check_broadcasts(self._laid(model.hook_dict[name].dims), model, name, "Steer: a direction")

    def _laid(self, dims: tuple[str, ...]) -> torch.Tensor:
        axis = channel_axis(dims)
        if self.direction.ndim != 1 or axis is None:
            return self.direction
        return self.direction.view(-1, *[1] * (len(dims) - 1 - axis))

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        step = self._laid(hook.dims).to(activation.device) * self.strength
        return activation + expanded(step.to(activation), activation, hook, "Steer: a direction")


@dataclass(frozen=True)
class Custom(SiteIntervention):
    """Your own function `(activation, hook) -> tensor`, or None after an edit in place.

    It gets and returns the whole activation; what it did outside the chosen part is dropped.
    """

    site: Place
    function: Callable[..., torch.Tensor | None]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_signature(self.function, "Custom calls function(activation, hook)", "activation", "hook")

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        given = activation.clone()
        returned = self.function(given, hook)
        if returned is None:
            return given
        if not isinstance(returned, torch.Tensor) or returned.shape != activation.shape:
            shown = list(returned.shape) if isinstance(returned, torch.Tensor) else type(returned).__name__
            raise ValueError(f"Custom: the function gave {shown} for {hook.name}, which is {list(activation.shape)}.")
        if returned.dtype != activation.dtype or returned.device != activation.device:
            raise ValueError(
                f"Custom: the function gave {returned.dtype} on {returned.device} for {hook.name}, which is "
                f"{activation.dtype} on {activation.device}; return result.to(activation)"
            )
        return returned


def check_no_mask(model: Any, name: str, what: str) -> None:
    """Raise `ValueError` for a mask, which has no numbers to average or to add to."""
    if model.hook_dict[name].broadcasts:
        raise ValueError(
            f"{what}: {name} is a boolean mask; MaskAttention forbids attention, Freeze sets True or False"
        )


def check_number(field: str, value: Any, wanted: str = "a finite number") -> None:
    """Raise `ValueError` unless `value` is a finite number."""
    try:
        finite = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        finite = False
    if not finite:
        raise ValueError(f"{field}={value!r:.80}: give {wanted}")


def _is_whole(value: torch.Tensor) -> bool:
    return value.dtype != torch.bool and not value.is_floating_point() and not value.is_complex()
