"""Parts of a model that were compiled by themselves: compiled code skips the hooks inside it, without a word."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from vdinterp.models.hooks import HookedModule


def compiled_parts(model: nn.Module) -> list[str]:
    """Names of the modules below `model` that were compiled: by `compile()`, by `torch.compile`, or their `forward`."""
    below = list(model.children())
    for module in below:  # which grows; names, which cost more to ask for, are seldom needed
        below += [child for child in module._modules.values() if child is not None]
    if not any(map(_is_compiled, below)):
        return []
    return [name for name, module in model.named_modules() if name and _is_compiled(module)]


def _is_compiled(module: nn.Module) -> bool:
    own = module.__dict__
    return (
        own.get("_compiled_call_impl") is not None
        or "_orig_mod" in module._modules
        or "_orig_mod" in own
        or ("forward" in own and hasattr(own["forward"], "_torchdynamo_orig_callable"))
    )


def run_uncompiled(model: HookedModule, run: Callable[..., Any], *args: Any) -> Any:
    """`run(*args)`; where hooks are live and parts of the model are compiled, uncompiled and with a warning.

    Raises `RuntimeError` where this PyTorch cannot do so.
    """
    if "torch._dynamo" not in sys.modules or not model.may_have_hooks or not model.has_live_hooks:
        return run(*args)
    parts = compiled_parts(model)
    if not parts:
        return run(*args)
    named = ", ".join(parts[:3]) + (f" and {len(parts) - 3} others" if len(parts) > 3 else "")
    if not hasattr(torch.compiler, "set_stance"):
        raise RuntimeError(
            f"{named} are compiled by themselves, so that hooks inside would not fire: compile the whole model instead"
        )
    warnings.warn(f"Hooks are set: {named}, compiled by themselves, run uncompiled, so that they fire.", stacklevel=4)
    with torch.compiler.set_stance("force_eager"):
        return run(*args)
