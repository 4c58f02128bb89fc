"""What a checkpoint's tensors hold: a file of the right names and shapes can still be no model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

logger = logging.getLogger(__name__)


def check_values(key: str, tensor: torch.Tensor, what: str, dtype: torch.dtype = torch.float32) -> bool:
    """Raise `ValueError` for one that holds NaN, or more than `dtype` does; otherwise, whether it is all zeros."""
    if not tensor.numel():
        return True
    low, high = (float(end) for end in torch.aminmax(tensor.detach()))
    if not max(-low, high) <= torch.finfo(dtype).max:
        kind = "NaN" if low != low else f"infinity, or more than {str(dtype).removeprefix('torch.')} holds"
        raise ValueError(f"{key} of {what} holds {kind}: a diverged or damaged checkpoint; take another one")
    return not low and not high


def check_filled(zero: Mapping[str, bool], what: str) -> None:
    """Raise `ValueError` where a model's weight matrices, under our names, were never written: `zero` says which are.

    Modulations and the last layer begin as zeros (AdaLN-zero), so those may be; without a patch embedding nothing is
    seen. Any other is logged: a wired or pruned model may mean it, a damaged file does not.
    """
    found = [key for key, is_zero in zero.items() if is_zero]
    if found and (len(found) == len(zero) or "patch_embed.proj.weight" in found):
        which = "every weight matrix" if len(found) == len(zero) else "patch_embed.proj.weight"
        raise ValueError(f"{which} of {what} is zero: the file was never filled; copy or save it again")
    odd = [key for key in found if not any(part in key for part in ("modulation", "final.", "pos_embed"))]
    if odd:
        more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
        logger.warning("%s holds nothing but zeros in %s%s", what, ", ".join(odd[:4]), more)


def check_dtypes(outline: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` naming tensors that are no weights in float32, float16, bfloat16 or float64."""
    dtypes = {key: getattr(tensor, "dtype", type(tensor)) for key, tensor in outline.items()}
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


def check_dtype(dtype: Any) -> None:
    """Raise `ValueError` for what no model can be loaded in."""
    if dtype is not None and dtype not in FLOATS:
        given = str(dtype) if isinstance(dtype, torch.dtype) else f"{dtype!r:.80}"
        raise ValueError(f"dtype is {given}; choose {', '.join(map(str, FLOATS))}, or None for the stored one")
