"""What a checkpoint's tensors hold: a file of the right names and shapes can still be no model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

logger = logging.getLogger(__name__)


def check_weights(state: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` naming what is no tensor of weights, or holds NaN or more than float32 does."""
    check_dtypes({key: getattr(tensor, "dtype", type(tensor)) for key, tensor in state.items()}, what)
    for key, tensor in state.items():
        if not tensor.numel():
            continue
        low, high = torch.aminmax(tensor.detach().float())
        if not (low.isfinite() and high.isfinite()):
            kind = "NaN" if low.isnan() else "infinity, or more than float32 holds"
            raise ValueError(f"{key} of {what} holds {kind}: a diverged or damaged checkpoint; take another one")


def check_filled(state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise `ValueError` where a model's weights, under our names, were never written: matrices of zeros.

    Modulations and the last layer begin as zeros (AdaLN-zero), so those may be; without a patch embedding nothing is
    seen. Any other is logged: a wired or pruned model may mean it, a damaged file does not.
    """
    matrices = {key: tensor for key, tensor in state.items() if tensor.ndim > 1 and tensor.is_floating_point()}
    zero = [key for key, tensor in matrices.items() if not tensor.any()]
    if zero and (len(zero) == len(matrices) or "patch_embed.proj.weight" in zero):
        which = "every weight matrix" if len(zero) == len(matrices) else "patch_embed.proj.weight"
        raise ValueError(f"{which} of {what} is zero: the file was never filled; copy or save it again")
    odd = [key for key in zero if not any(part in key for part in ("modulation", "final.", "pos_embed"))]
    if odd:
        more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
        logger.warning("%s holds nothing but zeros in %s%s", what, ", ".join(odd[:4]), more)


def check_dtypes(dtypes: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` naming tensors that are no weights in float32, float16, bfloat16 or float64."""
    other = {key: dtype for key, dtype in dtypes.items() if dtype not in FLOATS}
    if not other:
        return
    key, dtype = next(iter(other.items()))
    shown = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else f"a {dtype.__name__}"
    more = f" (and {len(other) - 1} more such)" if len(other) > 1 else ""
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{key} of {what} is {shown}{more}; a dictionary of tensors by name is wanted, a state dict")
    raise ValueError(
        f"{key} of {what} is {shown}{more}; weights are read in float32, float16, bfloat16 or float64. Quantised ones "
        "mean nothing without their scales: take the checkpoint that they were made from"
    )
