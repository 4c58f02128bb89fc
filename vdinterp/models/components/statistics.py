"""Attention statistics that a forward pass hands out on demand, as hook points that can be read but not changed.

The mass on parts of the keys rides along with the ordinary attention: `softmax(q k) @ onehot` is it, so one-hot columns
are appended to the values and the fused kernel does the rest. The other statistics are computed from queries and keys
in chunks. Nothing N x N is made, and no activation is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vdinterp.models.hooks import HookPoint
from vdinterp.models.pattern import AttentionPattern, Partition

if TYPE_CHECKING:
    from vdinterp.models.components.attention import Attention


@dataclass(frozen=True)
class Statistic:
    """`compute` turns a pattern (and the partition of its keys that is set) into the tensor that `hook_NAME` shows, of
    axes `dims`. What `rides` is a sum of probabilities that columns appended to the values give."""

    dims: str
    meaning: str
    compute: Callable[[AttentionPattern, Partition], torch.Tensor]
    rides: bool = False


STATISTICS = {
    "frame_mass": Statistic(
        "batch head frame frame",
        "mean attention mass from frame (row) to frame",
        lambda pattern, partition: pattern.frame_mass(),
        rides=True,
    ),
    "mass": Statistic(
        "batch head pos part",
        "attention mass on each part of the keys: frames, or the partition given",
        AttentionPattern.mass,
        rides=True,
    ),
    "sinks": Statistic(
        "batch head pos",
        "attention that a token receives, 1 if all were uniform",
        lambda pattern, partition: pattern.received(),
    ),
    "entropy": Statistic(
        "batch head pos", "entropy of each attention row, nats", lambda pattern, partition: pattern.entropy()
    ),
    "displacement_kernel": Statistic(
        "batch head 2T-1 2H-1 2W-1",
        "mean attention by (frame, row, col) displacement",
        lambda pattern, partition: pattern.displacement_kernel(),
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


def riding_columns(
    wanted: Collection[str], pattern: AttentionPattern, partition: Partition, like: torch.Tensor
) -> dict[str, torch.Tensor]:
    """For every wanted statistic that rides along, the columns to append to the values: one-hot over parts of the keys,
    `[batch*group head key part]`."""
    parts = {"frame_mass": "frame", "mass": partition}
    found = {}
    for name in wanted:
        if STATISTICS[name].rides:
            columns = pattern.one_hot(parts[name]).to(like.dtype)  # [group key part]
            found[name] = columns.repeat(len(pattern.q), 1, 1).unsqueeze(1).expand(-1, like.shape[1], -1, -1)
    return found


def ridden(name: str, mass: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """The statistic behind what came back for its columns, `[batch group head query part]`."""
    return pattern.frame_mass(mass) if name == "frame_mass" else pattern.by_query(mass)
