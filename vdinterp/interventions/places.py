"""Where in a clip: frames, rows, columns and tokens of clips of any size, whole, padded or seen through a window.

`frames=` counts the frames of the user's clip. A sampler may show the network a window of it, and fill a short one with
padding: `hook.ctx["frames"]` `[batch frame]` names the clip's frame that each of the network's frames is, -1 for
padding. Without it the network's frames are the clip's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int

from vdinterp.checks.counts import check_indices
from vdinterp.grid import TokenGrid

PADDING = "padding"
FIELDS = ("frames", "rows", "cols", "tokens")

Frames = Sequence[int] | Literal["padding"]


class Pass(NamedTuple):
    """A forward pass that an intervention may act in."""

    step: int | None
    """Of the sampler; None outside one."""
    noise_levels: torch.Tensor | None
    """`[batch frame]`; None: unknown."""
    grid: TokenGrid | None = None
    """How the tokens lie; None: unknown."""
    frames: torch.Tensor | None = None
    """`[batch frame]`, as `hook.ctx` has them; None: the clip's."""


def check_places(field: str, chosen: Any) -> None:
    """Raise `ValueError` unless `chosen` is None, a list of whole numbers from 0, or of frames "padding"."""
    if field != "frames" or not isinstance(chosen, str):
        check_indices(field, chosen, low=0)
    elif chosen != PADDING:
        raise ValueError(f"frames={chosen!r}: give the numbers of frames of the clip, or {PADDING!r}")


def grid_of(hook: Any, model: Any) -> TokenGrid:
    """How the tokens lie in the clips of this call."""
    return hook.ctx.get("grid") or model.latest_grid


def frames_of(hook: Any, n_frames: int) -> Int[torch.Tensor, "_ frame"]:
    """The clip's frame that each of the network's frames is, -1 for padding; one row where all clips are alike."""
    return alike(hook.ctx.get("frames"), n_frames)


def alike(frames: torch.Tensor | None, n_frames: int) -> Int[torch.Tensor, "_ frame"]:
    """Frames as `hook.ctx` has them, None for the clip's own; one row where all clips are alike."""
    if frames is None:
        return torch.arange(n_frames)[None]
    frames = frames.cpu()
    return frames[:1] if bool((frames == frames[:1]).all()) else frames


def among(values: torch.Tensor, chosen: Collection[int] | str) -> Bool[torch.Tensor, "..."]:
    """Which values, frames of a clip among others, are chosen."""
    if chosen == PADDING:
        return values < 0
    return torch.isin(values, torch.tensor([int(value) for value in chosen], device=values.device))


def chosen_of(owner: Any) -> dict[str, Any]:
    """The `FIELDS` of an intervention that are given."""
    return {field: chosen for field in FIELDS if (chosen := getattr(owner, field, None)) is not None}


def tokens_in(
    frames: Int[torch.Tensor, "batch frame"], grid: TokenGrid, places: Mapping[str, Any]
) -> Bool[torch.Tensor, "batch frame _"]:
    """Which cells of which frames are chosen, by `FIELDS`; what is not among them is all."""
    cell = torch.arange(grid.tokens_per_frame)
    at = {
        "frames": frames.unsqueeze(-1),
        "rows": cell // grid.n_cols,
        "cols": cell % grid.n_cols,
        "tokens": torch.where(frames < 0, -grid.n_tokens, frames * len(cell)).unsqueeze(-1) + cell,
    }
    wanted = torch.ones(*frames.shape, len(cell), dtype=torch.bool)
    for field, chosen in places.items():
        wanted &= among(at[field], chosen)
    return wanted


def check_within(owner: str, places: Mapping[str, Any], passes: Iterable[Pass]) -> None:
    """Raise `ValueError` for places that clips have in none of these passes, of those whose grids are known."""
    views = {(one.grid, id(one.frames)): one for one in passes if one.grid is not None}
    shown = [(one.grid, alike(one.frames, one.grid.n_frames)) for one in views.values() if one.grid is not None]
    if not shown or not places:
        return
    seen = {int(frame) for _, frames in shown for frame in frames.unique()}
    if places.get("frames") == PADDING and -1 not in seen:
        raise ValueError(f"{owner}: frames={PADDING!r}, and no clip here is padded")
    largest = max((grid for grid, _ in shown), key=lambda grid: grid.tokens_per_frame)
    frames, cells = sorted(seen - {-1}), largest.tokens_per_frame
    tokens = [token for frame in frames for token in range(frame * cells, (frame + 1) * cells)]
    known = {"rows": range(largest.n_rows), "cols": range(largest.n_cols), "frames": frames, "tokens": tokens}
    for field, chosen in places.items():
        if chosen != PADDING and (outside := sorted({int(one) for one in chosen} - set(known[field]))):
            here = f"{known[field][0]}..{known[field][-1]}" if len(known[field]) else "none"
            raise ValueError(f"{owner}: {field} {outside[:12]} are outside these clips, whose {field} are {here}")
    if not any(bool(tokens_in(frames, grid, places).any()) for grid, frames in shown):
        listed = ", ".join(f"{field} {chosen}" for field, chosen in places.items())
        raise ValueError(f"{owner}: no token lies in all of {listed}, so nothing would be changed")
