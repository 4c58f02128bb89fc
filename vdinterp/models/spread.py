"""Models whose weights lie in several places: on several devices, or offloaded to memory or disk by accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def offloaded(model: nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """How to read each tensor that is offloaded now, by its name in the model. One read from disk is read anew."""
    found = {}
    for path, module in model.named_modules():
        for hook in hooks_of(module):
            stored: Mapping[str, torch.Tensor] | None = getattr(hook, "weights_map", None)
            if stored is None:
                continue
            for name, value in (*module.named_parameters(), *module.named_buffers()):
                if value.is_meta and name in stored:
                    found[f"{path}.{name}" if path else name] = partial(getitem, stored, name)
    return found
