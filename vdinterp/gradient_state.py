"""Gradients where they are needed, whatever the caller has switched off; and the caller's state afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

T = TypeVar("T")


def check_gradients(purpose: str) -> None:
    """Raise `ValueError` in inference mode, whose tensors can never have a gradient."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"{purpose} needs gradients, which torch.inference_mode() rules out: leave it, or use torch.no_grad(), "
            "under which this works"
        )


def keep_grad_mode() -> torch.set_grad_enabled:
    """The caller's grad mode, to be entered outside of another one.

    Ctrl-C may strike just as `torch.no_grad()` is to restore it; of two that restore the same, one remains.
    """
    return torch.set_grad_enabled(torch.is_grad_enabled())


def of_activations_only(parameters: Iterable[torch.Tensor], compute: Callable[[], T]) -> T:
    """`compute()` with gradients on, but of no parameter: activations' graphs are half as large then."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            with keep_grad_mode(), torch.enable_grad():
                return compute()
        finally:
            _train(trainable)
    finally:  # again: an interrupt may have cut the first short
        _train(trainable)


def _train(parameters: Iterable[torch.Tensor]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)
