"""A module that was made on the meta device gets its tensors: read, checked and converted one at a time.

So a model takes the memory of its weights and of the largest tensor, and nothing is initialised first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.loading.keys import KeyTable, check_fit
from vdinterp.models.loading.read import Tensors
from vdinterp.models.loading.values import check_dtypes, check_filled, check_values

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

Dtypes = Mapping[str, torch.dtype]  # of every floating tensor of a module


def outlined(cfg: VideoDiTConfig) -> HookedVideoDiT:
    """The model of a configuration, without any weights: this takes no memory, however large they would be."""
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

    with torch.device("meta"):
        return HookedVideoDiT(cfg)


def all_in(module: nn.Module, dtype: torch.dtype) -> Dtypes:
    """Every parameter in `dtype`; buffers (frequencies of an embedding) are computed with in float32."""
    parameters = dict(module.named_parameters())
    return {name: dtype if name in parameters else torch.float32 for name in module.state_dict()}


def fill(
    module: nn.Module,
    source: Tensors,
    table: KeyTable,
    what: str,
    dtypes: Dtypes,
    device: torch.device | str | None = None,
) -> None:
    """Put the tensors of `source` that the `table` names into a module, in place.

    Raises `ValueError`, before anything is read, for keys that are missing, left over, of another shape or no weights;
    then for the first tensor that holds NaN or more than its dtype does, and for weights that were never written.
    """
    wanted = module.state_dict()
    check_fit({key: like.shape for key, like in wanted.items()}, table, source.outline, what)
    floating = {key for target, keys in table.items() if wanted[target].is_floating_point() for key in keys}
    check_dtypes({key: part for key, part in source.outline.items() if key in floating}, what)
    filled, zero = {}, {}
    for target, keys in table.items():
        like = wanted[target]
        dtype = dtypes[target] if like.is_floating_point() else like.dtype
        value = torch.empty(like.shape, dtype=dtype, device="cpu" if device is None else device)
        sizes = [max(1, source.outline[key].shape[:1].numel()) for key in keys]
        for key, part in zip(keys, value.split(sizes) if len(keys) > 1 else [value], strict=True):
            read = source[key].detach()
            is_zero = like.is_floating_point() and check_values(key, read, what, dtype)
            if like.is_floating_point() and like.ndim > 1:
                zero[target] = zero.get(target, True) and is_zero
            part.copy_(read)
        filled[target] = value
    check_filled(zero, what)
    module.load_state_dict(filled, assign=True)
    module.eval()
