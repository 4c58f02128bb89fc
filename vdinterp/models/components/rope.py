"""Rotary position embedding over space and time (RoFormer, arXiv 2104.09864, one share of the channels per axis)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import nn

from vdinterp.grid import TokenGrid
from vdinterp.models.config import Rope

Table = tuple[torch.Tensor, torch.Tensor]


class RotaryEmbedding(nn.Module):
    """Cosines and sines for every token of a grid; the last grid's table is kept. Has no parameters."""

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.rope = rope
        self._kept: tuple[tuple, Table] | None = None

    def frequencies(self) -> list[Float[torch.Tensor, "pairs"]]:
        """Radians per unit of coordinate, one vector per axis (frame, row, col)."""
        rates = []
        for dim, theta, scale in zip(self.rope.dims, self.rope.theta, self.rope.scale, strict=True):
            if self.rope.freqs == "pixel":
                rate = torch.linspace(1.0, theta / 2, dim // 2) * math.pi
            else:
                rate = 1.0 / theta ** (torch.arange(0, dim, 2).float() / max(dim, 1))
            rates.append(rate * scale)
        return rates

    def coordinates(self, grid: TokenGrid) -> list[Float[torch.Tensor, "size"]]:
        """The coordinate of every index along each axis."""
        axes = []
        for axis, size in enumerate(grid.shape):
            index = torch.arange(size).float()
            if self.rope.coords == "linspace" and axis > 0:
                index = torch.linspace(-1, 1, size)
            elif self.rope.coords == "fraction":
                index = index / size
            axes.append(index)
        return axes

    def angles(self, grid: TokenGrid) -> Float[torch.Tensor, "pos pairs"]:
        """Rotation angle of every token and channel pair, axes (frame, row, col) side by side."""
        at = grid.all_coordinates()
        per_axis = [
            coords[at[:, axis], None] * rate
            for axis, (coords, rate) in enumerate(zip(self.coordinates(grid), self.frequencies(), strict=True))
        ]
        return torch.cat(per_axis, dim=-1)

    def forward(self, grid: TokenGrid, like: torch.Tensor) -> Table:
        """(cos, sin), each `[pos 1 pairs]`, on the device and in the dtype of `like`."""
        key = (grid.shape, like.device, like.dtype)
        kept = self._kept  # read once: another thread may put its own there
        if kept is not None and kept[0] == key:
            return kept[1]
        with torch.inference_mode(False):  # a table made in inference mode could not be used in training later
            angles = self.angles(grid).unsqueeze(1)
            table = angles.cos().to(like.device, like.dtype), angles.sin().to(like.device, like.dtype)
        self._kept = key, table
        return table

    def moved(
        self,
        x: Float[torch.Tensor, "batch pos head d_head"],
        grid: TokenGrid,
        axis: int,
        by: Float[torch.Tensor, " size"],
    ) -> Float[torch.Tensor, "batch pos head d_head"]:
        """Rotated queries or keys, as if each index along `axis` (0 frame, 1 row, 2 col) lay `by` further.

        Rotations add up, so this turns by the difference of the angles; by 0 it is the identity, bitwise.
        """
        at = grid.all_coordinates()[:, axis]
        angles = torch.cat(
            [
                (by[at] if place == axis else torch.zeros(len(at)))[:, None] * rates
                for place, rates in enumerate(self.frequencies())
            ],
            dim=-1,
        ).unsqueeze(1)
        return rotate(x, self.rope, (angles.cos().to(x), angles.sin().to(x)))


def rotate(
    x: Float[torch.Tensor, "batch pos head d_head"], rope: Rope, table: Table
) -> Float[torch.Tensor, "batch pos head d_head"]:
    """Rotate each pair of channels by its angle; channels beyond `sum(rope.dims)` pass through."""
    heads = x.shape[2:]
    if rope.over == "model":
        x = x.flatten(2).unsqueeze(2)
    cos, sin = table
    rotated, rest = x.split([sum(rope.dims), x.shape[-1] - sum(rope.dims)], dim=-1)
    first, second = _pairs(rotated, rope)
    turned = first * cos - second * sin, second * cos + first * sin
    x = _unpair(*turned, rope)
    if rest.shape[-1]:
        x = torch.cat([x, rest], dim=-1)
    return x.reshape(*x.shape[:2], *heads)


def _pairs(x: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
    """The two members of every channel pair, pairs ordered by axis."""
    if rope.style == "interleaved":
        return x.unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[return-value]
    if rope.style == "half":
        return x.chunk(2, dim=-1)  # type: ignore[return-value]
    halves = [axis.chunk(2, dim=-1) for axis in x.split(list(rope.dims), dim=-1) if axis.shape[-1]]
    return torch.cat([half[0] for half in halves], dim=-1), torch.cat([half[1] for half in halves], dim=-1)


def _unpair(first: torch.Tensor, second: torch.Tensor, rope: Rope) -> torch.Tensor:
    if rope.style == "interleaved":
        return torch.stack([first, second], dim=-1).flatten(-2)
    if rope.style == "half":
        return torch.cat([first, second], dim=-1)
    sizes = [dim // 2 for dim in rope.dims]
    parts = zip(first.split(sizes, dim=-1), second.split(sizes, dim=-1), strict=True)
    return torch.cat([half for pair in parts for half in pair], dim=-1)
