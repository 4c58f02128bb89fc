"""Other rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int

from vdinterp.checks.counts import check_indices, check_seed
from vdinterp.interventions.base import HookPair, Intervention, chosen_layers
from vdinterp.interventions.places import Frames, check_places, grid_of
from vdinterp.interventions.replace import check_number
from vdinterp.interventions.site import Computed

RopeAxis = Literal["frame", "row", "col"]
Way = Literal["shifted", "frozen", "permuted"]
AXES: tuple[RopeAxis, ...] = get_args(RopeAxis)
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class RotateRope(Intervention):
    """Give tokens other rotary positions along one axis of the grid; content and the other axes stay.

    `way`: "shifted" rotates queries, not keys, `shift` steps further along the axis, so everything seems so much nearer
    or further; "frozen" gives all tokens the coordinate of index 0, so position along the axis is gone; "permuted"
    permutes the coordinates (by `seed`, every index to another place), so position is there and wrong.
    `layers` (None: all that rotate along the axis), `heads`, `frames`: whose tokens are moved.
    After FreeFlux (arXiv 2503.16153), which alters the rotation of one layer at a time in image models.
    """

    axis: RopeAxis
    way: Way = "shifted"
    shift: float | int = 1
    seed: int = 0
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    frames: Frames | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("layers", "heads"):
            check_indices(field, getattr(self, field))
        check_places("frames", self.frames)
        for field, given, known in (("axis", self.axis, AXES), ("way", self.way, WAYS)):
            if given not in known:
                raise ValueError(f"Unknown {field}={given!r}; choose one of {', '.join(known)}.")
        check_number("shift", self.shift)
        if self.way != "shifted" and self.shift != 1:
            raise ValueError(f"way={self.way!r} shifts nothing; leave shift={self.shift!r} out.")
        if check_seed(self.seed) and self.way != "permuted":
            raise ValueError(f"way={self.way!r} draws nothing; leave seed={self.seed!r} out")

    def hooks(self, model: Any) -> list[HookPair]:
        place = AXES.index(self.axis)
        ropes = {layer: model.cfg.rope.get(model.cfg.blocks[layer].axis) for layer in chosen_layers(self.layers, model)}
        turning = [layer for layer, rope in ropes.items() if rope is not None and rope.dims[place]]
        idle = [layer for layer in ropes if layer not in turning]
        if not turning or (idle and self.layers is not None):
            known = ", ".join(f"{name} attention {rope.dims}" for name, rope in model.cfg.rope.items()) or "none"
            raise ValueError(
                f"RotateRope: layers {idle} rotate nothing along {self.axis!r}. Rotated channels (frame, row, col) of "
                f"{model.cfg.model_name}: {known}."
            )
        sides = ("rot_q",) if self.way == "shifted" else ("rot_q", "rot_k")
        parts = [
            Computed(
                [(side, layer) for side in sides],
                partial(self._turned, model=model, layer=layer),
                heads=self.heads,
                frames=self.frames,
                **self.when,
            )
            for layer in turning
        ]
        return [pair for part in parts for pair in part.hooks(model)]

    def _turned(self, x: torch.Tensor, hook: Any, model: Any, layer: int) -> torch.Tensor:
        grid, rotary = grid_of(hook, model), model.rope[model.cfg.blocks[layer].axis]
        place = AXES.index(self.axis)
        return rotary.moved(x, grid, place, self.displacement(rotary.coordinates(grid)[place]))

    def displacement(self, coordinates: Float[torch.Tensor, " size"]) -> Float[torch.Tensor, " size"]:
        """By how much the coordinate of every index along the axis changes."""
        if len(coordinates) < 2:
            raise ValueError(f"RotateRope: this clip has one {self.axis}; to move along it takes two.")
        if self.way == "shifted":
            return ((coordinates[1] - coordinates[0]) * self.shift).expand(len(coordinates))
        if self.way == "frozen":
            return coordinates[0] - coordinates
        return coordinates[no_fixed_point(len(coordinates), self.seed)] - coordinates


def no_fixed_point(size: int, seed: int) -> Int[torch.Tensor, " size"]:
    """A random permutation that leaves no index in its place (a single cycle); any `size` above 1 has one."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    permutation = torch.empty_like(order)
    permutation[order] = order.roll(1)
    return permutation
