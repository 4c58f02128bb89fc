"""Activations of another run: whether they fit a model's hook, and this run's clips."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vdinterp.interventions.site import SAMPLE_AXES
from vdinterp.site import Site


def check_holds(run: Mapping[str, torch.Tensor], model: Any, name: str, what: str = "source") -> None:
    """Raise `KeyError` if a run's activations lack this hook's, `ValueError` if they cannot be this model's."""
    if name not in run:
        raise KeyError(f"The {what} has no {name!r}; record it with run_with_cache(..., names=[{name!r}]).")
    check_stored(run[name], model, name)


def check_stored(stored: torch.Tensor, model: Any, name: str) -> None:
    """Raise `ValueError` if a stored activation cannot be this hook's: other axes, heads, widths or values."""
    dims, shape = model.hook_axes(name)
    if not isinstance(stored, torch.Tensor):
        raise ValueError(f"The stored {name} is {type(stored).__name__}; a tensor {list(shape)} is needed")
    check_kind(stored, model, name, f"The stored {name}")
    free = (*SAMPLE_AXES, "1") if model.hook_dict[name].broadcasts else SAMPLE_AXES
    fixed = {axis: size for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)) if dim not in free}
    if stored.ndim != len(dims) or any(stored.shape[axis] != size for axis, size in fixed.items()):
        raise ValueError(
            f"The stored {name} is {list(stored.shape)}; {model.cfg.model_name} has {list(shape)} ({' '.join(dims)}). "
            "Is it of another model?"
        )
    if 0 in stored.shape and not stored.is_meta:
        raise ValueError(f"The stored {name} is {list(stored.shape)}: it holds nothing, so give some clips")
    check_finite(stored, name, f"The stored {name}")


def check_kind(value: torch.Tensor, model: Any, name: str, what: str) -> None:
    """Raise `ValueError` unless a value is boolean for a mask, and floating point for other activations."""
    if model.hook_dict[name].broadcasts and value.dtype != torch.bool:
        raise ValueError(f"{what} is {value.dtype}: {name} is a boolean mask, True lets a query see a key")
    if not model.hook_dict[name].broadcasts and not value.is_floating_point():
        raise ValueError(f"{what} is {value.dtype}: activations of {name} are floating point, so use value.float()")


def check_finite(value: torch.Tensor, name: str, what: str) -> None:
    """Raise `ValueError` for NaN, and for infinity but in scores (-inf where attention is masked)."""
    if value.is_meta or not value.is_floating_point():
        return
    ends = torch.stack(value.detach().aminmax())  # one pass and no copy; NaN comes through
    if bool(ends.isnan().any()) or not (Site.parse(name).what == "attn_scores" or bool(ends.isfinite().all())):
        raise ValueError(f"{what} holds NaN or infinity: whatever it is put into would be NaN as well")


def fitted(stored: torch.Tensor, activation: torch.Tensor, hook: Any) -> torch.Tensor:
    """A stored activation for as many clips as there are now: one for all, or repeated whole (guidance branches)."""
    if hook.broadcasts:  # a mask, which may be the same for all clips and heads now and was not then
        if stored.shape[-2:] != activation.shape[-2:]:
            raise _misfit(stored, activation, hook)
        return stored
    n_stored, n_wanted = len(stored), len(activation)
    if stored.shape[1:] != activation.shape[1:] or (n_wanted % n_stored and n_stored != 1):
        raise _misfit(stored, activation, hook)
    return repeated(stored, n_wanted)


def repeated(stored: torch.Tensor, n_clips: int) -> torch.Tensor:
    """What is stored of some clips, whole, over and over, up to `n_clips`."""
    return stored.repeat(math.ceil(n_clips / len(stored)), *[1] * (stored.ndim - 1))[:n_clips]


def check_broadcasts(value: torch.Tensor, model: Any, name: str, what: str) -> None:
    """Raise `ValueError` if a value cannot broadcast to an activation, however many clips and frames there are."""
    dims, shape = model.hook_axes(name)
    pairs = zip(reversed(value.shape), reversed(dims), reversed(shape), strict=False)
    misfits = [dim for given, dim, size in pairs if given not in (1, size) and dim not in SAMPLE_AXES]
    if value.ndim > len(dims) or misfits:
        raise ValueError(
            f"{what} of shape {list(value.shape)} does not broadcast to {name} {list(shape)} ({' '.join(dims)})."
        )


def expanded(value: torch.Tensor, activation: torch.Tensor, hook: Any, what: str) -> torch.Tensor:
    """`value` in the shape of the activation. Raises `ValueError` if it does not broadcast to it."""
    try:
        return value.expand_as(activation)
    except RuntimeError:
        raise ValueError(
            f"{what} of shape {list(value.shape)} does not broadcast to {hook.name} {list(activation.shape)} "
            f"({' '.join(hook.dims)})."
        ) from None


def _misfit(stored: torch.Tensor, activation: torch.Tensor, hook: Any) -> ValueError:
    return ValueError(
        f"{hook.name}: the stored activation is {list(stored.shape)}, this run's is {list(activation.shape)}. "
        "Both runs need clips of the same size, and one or equally many of them. A sampler pads clips that are "
        "shorter than those of training to that length unless pad=False."
    )
