"""Region: where errors of a stimulus are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool

from vdinterp.checks.counts import check_indices
from vdinterp.grid import TokenGrid

Region = Sequence[int] | Mapping[str, Sequence[int]] | torch.Tensor


def mask_of(
    region: Region | None,
    shape: Sequence[int],
    grid: TokenGrid,
    patch: tuple[int, int],
    noised: Bool[torch.Tensor, "batch frame"],
) -> Bool[torch.Tensor, "batch frame 1 height width"]:
    """A region as a mask of latents `shape` `(batch, frame, channel, height, width)`.

    `region`: frames; `{"frames": [..], "rows": [..], "cols": [..]}` of tokens; a boolean mask; or None, the `noised`
    frames. `patch`: rows and columns of latents that a token covers. Raises ValueError for others, and where it is
    empty for some clip.
    """
    batch, frames, _, height, width = shape
    if isinstance(region, torch.Tensor):
        if tuple(region.shape) not in ((frames, height, width), (batch, frames, height, width)):
            raise ValueError(f"region {list(region.shape)}: a mask is [frame height width], {[frames, height, width]}")
        if region.dtype != torch.bool:
            raise ValueError(f"region is {region.dtype}: a mask is boolean, True where metrics look")
        mask = region.expand(batch, frames, height, width)
    elif region is None:
        mask = noised[:, :, None, None].expand(batch, frames, height, width)
    else:
        where = dict(region) if isinstance(region, Mapping) else {"frames": region}
        mask = _box(where, grid, patch).expand(batch, frames, height, width)
    if not mask.flatten(1).any(1).all():
        raise ValueError("region is empty for some clip: metrics would have nothing to look at")
    return mask.unsqueeze(2)


def _box(
    where: Mapping[str, Sequence[int]], grid: TokenGrid, patch: tuple[int, int]
) -> Bool[torch.Tensor, "frame height width"]:
    if unknown := set(where) - {"frames", "rows", "cols"}:
        raise ValueError(f"region has {', '.join(sorted(unknown))}; its parts are frames, rows and cols")
    for name, chosen in where.items():
        check_indices(f"region {name}", chosen)
    chosen = torch.zeros(grid.n_tokens, dtype=torch.bool)
    picked = (None if where.get(name) is None else list(where[name]) for name in ("frames", "rows", "cols"))
    chosen[grid.tokens(*picked)] = True
    return chosen.view(grid.shape).repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
