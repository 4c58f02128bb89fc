"""What travels beside the stream from block to block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float

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
