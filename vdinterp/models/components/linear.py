"""The weight that a linear layer really applies, or an error that names the layer.

Layers get replaced and wrapped: adapters, quantisation, pruning, hooks. The forward pass goes through whatever stands
there; whoever reads `.weight` may see something else. So nobody reads it but here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

PLAIN = (nn.Linear, nn.Conv2d)
EXACT = 1e-5  # of the output's size; coarser dtypes round more
HOW = "merge or remove what was put there first (peft: merge_and_unload(); pruning: prune.remove(layer, 'weight'))"


def applied(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a linear layer (or of a convolution) called `name`, as its forward pass uses them.

    A layer that is not plain (of another class, with hooks, with a `forward` of its own) is run on two inputs to see.
    Raises `ValueError` where it computes something else, is quantised, or holds no weights now (offloaded).
    """
    plain = any(getattr(type(layer), "forward", None) is kind.forward for kind in PLAIN)
    wrapped = has_own_forward(layer) or layer._forward_hooks or layer._forward_pre_hooks
    if not plain or wrapped:
        _check_runs(layer, name)
    weight, bias = layer.weight, layer.bias  # after the run: old-style weight norm and pruning set them there
    if weight.is_meta:
        raise ValueError(
            f"the weights of {name} are offloaded by accelerate's hooks: read them from a model that is in memory "
            "(accelerate.hooks.remove_hook_from_submodules(model))"
        )
    return weight, bias


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module's `forward` was replaced by another one than its class has."""
    found = vars(module).get("forward")
    return found is not None and getattr(found, "__func__", None) is not type(module).forward


def _check_runs(layer: Any, name: str) -> None:
    """Raise `ValueError` unless what a layer computes is its weight times the input plus its bias."""
    weight, kind = getattr(layer, "weight", None), type(layer).__name__
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise ValueError(f"{name} is a {kind}, whose weights are not those of a linear layer: {HOW}")
    if weight.is_meta:
        return
    size = weight[0].numel()
    given = torch.stack([torch.arange(size).cos(), torch.arange(size).sin()]).to(weight).unflatten(1, weight.shape[1:])
    with torch.no_grad():
        found, bias = layer(given), layer.bias
        if weight.ndim == 2:
            wanted = F.linear(given, layer.weight, bias)
        else:
            wanted = F.conv2d(given, layer.weight, bias, stride=layer.stride)
    close = max(EXACT, 2 * torch.finfo(weight.dtype).eps)
    if found.shape != wanted.shape or not float((found - wanted).abs().max()) <= close * float(wanted.abs().max()):
        raise ValueError(f"{name} is a {kind} that computes something else than its .weight says: {HOW}")
