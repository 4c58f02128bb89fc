"""Several trials in one forward pass: each sees, and changes, only its own clips of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from vdinterp.interventions import HookPair

# The batch axis is (branch trial clip): guidance branches follow one another, each holding every trial's clips.


def split(activation: torch.Tensor, n_trials: int, n_clips: int) -> list[torch.Tensor]:
    """The clips of every trial."""
    apart = activation.unflatten(0, (-1, n_trials, n_clips))
    return [apart[:, trial].flatten(0, 1) for trial in range(n_trials)]


def join(parts: Sequence[torch.Tensor], n_clips: int) -> torch.Tensor:
    """What `split` took apart."""
    return torch.stack([part.unflatten(0, (-1, n_clips)) for part in parts], dim=1).flatten(0, 2)


def merged(trials: Sequence[Sequence[HookPair]], n_clips: int) -> list[HookPair]:
    """Hooks that apply every trial's own to its own clips, in their order."""
    if len(trials) == 1:
        return list(trials[0])
    by_name: dict[str, list[tuple[int, Callable[..., Any]]]] = {}
    for slot, pairs in enumerate(trials):
        for name, function in pairs:
            by_name.setdefault(name, []).append((slot, function))
    return [(name, _apply(functions, len(trials), n_clips)) for name, functions in by_name.items()]


def _apply(
    functions: Sequence[tuple[int, Callable[..., Any]]], n_trials: int, n_clips: int
) -> Callable[..., torch.Tensor]:
    def replace(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        parts = split(activation, n_trials, n_clips)
        told = {name: hook.ctx[name] for name in ("noise_levels", "frames") if hook.ctx.get(name) is not None}
        own = {name: split(values, n_trials, n_clips) for name, values in told.items()}
        for slot, function in functions:
            with hook.telling(**{name: values[slot] for name, values in own.items()}) if own else nullcontext():
                changed = function(parts[slot], hook=hook)
            parts[slot] = parts[slot] if changed is None else changed
        return join(parts, n_clips)

    return replace
