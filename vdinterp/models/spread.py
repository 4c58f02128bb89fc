"""Models whose weights lie in several places: on several devices, or offloaded to memory or disk by accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import nn


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """What accelerate put around a module's forward pass: it moves inputs, and offloaded weights, to their device."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def is_spread(parts: Iterable[nn.Module]) -> bool:
    """Whether accelerate's hooks are around any of these."""
    return any("_hf_hook" in vars(part) for part in parts)


def check_together(model: nn.Module, what: str) -> None:
    """Raise `ValueError` for a model that accelerate spread, where `what` would need it in one place."""
    if is_spread(model.modules()):
        raise ValueError(
            f"accelerate's hooks hold this model's weights in several places, so {what}; take them off first: "
            "accelerate.hooks.remove_hook_from_submodules(model)"
        )


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs, and gives its prediction: as accelerate's hook around it says, or its weights."""
    name, first = next(model.named_parameters())
    owner = model.get_submodule(name.rpartition(".")[0])
    hooks = [*hooks_of(model), *(hooks_of(owner) if first.is_meta else ())]
    places = [hook.execution_device for hook in hooks if hook.execution_device is not None]
    return torch.device(places[0]) if places else first.device


def offloaded(model: nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """How to read each tensor that is offloaded, by its name in the model. One on disk is read anew each time."""
    found = {}
    for path, module in model.named_modules():
        for hook in hooks_of(module):
            stored: Mapping[str, torch.Tensor] | None = getattr(hook, "weights_map", None)
            if stored is None:
                continue
            for name, _ in (*module.named_parameters(), *module.named_buffers()):
                if name in stored:
                    found[f"{path}.{name}" if path else name] = partial(getitem, stored, name)
    return found
