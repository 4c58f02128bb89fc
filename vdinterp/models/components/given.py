"""What travels beside the stream from block to block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch.utils._pytree import tree_map_only

from vdinterp.grid import TokenGrid
from vdinterp.models.components.rope import Table


@dataclass(frozen=True, eq=False)
class Given:
    """Everything that a sublayer may ask for besides the stream itself."""

    cond: Float[torch.Tensor, "batch frame d_model"]
    """What drives every modulation."""
    grid: TokenGrid
    """How the tokens lie in the clip."""
    shared: torch.Tensor | None
    """The modulation that all blocks share, where they do."""
    rope: Mapping[str, Table]
    """Rotation by axis."""
    text: Float[torch.Tensor, "batch key d_text"] | None
    text_mask: Bool[torch.Tensor, "batch key"] | None
    """Which text tokens may be looked at; None: all."""

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Given:
        """On another device: accelerate's hooks ask for it, where blocks lie on several."""
        moved = tree_map_only(torch.Tensor, lambda part: part.to(device, non_blocking=non_blocking), vars(self))
        return replace(self, **moved)
