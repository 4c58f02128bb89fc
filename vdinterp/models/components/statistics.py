"""Attention statistics that a forward pass hands out on demand, as hook points that can be read but not changed.

The mass on frames rides along with the ordinary attention: `softmax(q k) @ onehot` is the mass, so one-hot columns are
appended to the values and the fused kernel does the rest. The other statistics are computed from queries and keys in
chunks. Nothing N x N is made, and no activation is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vdinterp.models.hooks import HookPoint
from vdinterp.models.pattern import AttentionPattern

if TYPE_CHECKING:
    from vdinterp.models.components.attention import Attention


@dataclass(frozen=True)
class Statistic:
    """`compute` turns a pattern into the tensor that `hook_NAME` shows, of axes `dims`."""

    dims: str
    meaning: str
    compute: Callable[[AttentionPattern], torch.Tensor]


STATISTICS = {
    "frame_mass": Statistic(
        "batch head frame frame", "mean attention mass from frame (row) to frame", AttentionPattern.frame_mass
    ),
    "sinks": Statistic(
        "batch head pos", "attention that a token receives, 1 if all were uniform", AttentionPattern.received
    ),
    "entropy": Statistic("batch head pos", "entropy of each attention row, nats", AttentionPattern.entropy),
    "displacement_kernel": Statistic(
        "batch head 2T-1 2H-1 2W-1",
        "mean attention by (frame, row, col) displacement",
        AttentionPattern.displacement_kernel,
    ),
}


def add_statistics(attention: Attention) -> None:
    """Give a self-attention its statistics' hook points."""
    for name, statistic in STATISTICS.items():
        point = HookPoint(statistic.dims, statistic.meaning, lazy=True, read_only=True)
        setattr(attention, f"hook_{name}", point)


def wanted_statistics(attention: Attention) -> dict[str, HookPoint]:
    """The statistics that somebody hooks now."""
    points = {name: getattr(attention, f"hook_{name}", None) for name in STATISTICS}
    return {name: point for name, point in points.items() if point is not None and point.is_hooked}


def with_frame_columns(v: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Values with one-hot columns of the keys' frames appended, `[batch*group head key d_head+frame]`."""
    columns = pattern.one_hot("frame").to(v.dtype)  # [group key frame]
    columns = columns.repeat(len(pattern.q), 1, 1).unsqueeze(1).expand(-1, v.shape[1], -1, -1)
    return torch.cat([v, columns], dim=-1)
