"""Tracks: which token shows the same thing in another frame, where the clips' ground truth says so."""

from __future__ import annotations

import torch
from jaxtyping import Int

from vdinterp.checks.counts import check_count
from vdinterp.data.clips import Clips
from vdinterp.grid import TokenGrid

_PLAYER = 13  # in the semantic map of crafter clips; what moves on its own has a higher number


def cell_tracks(clips: Clips, grid: TokenGrid, frame: int = -1) -> Int[torch.Tensor, "clip point frame"]:
    """For every point: the cell (`row * n_cols + col`) that shows it in each frame, -1 where it is not seen.

    - crafter: the points are the cells of `frame` (in order), found again in the world. Cells that show a creature or
      the player, and frames in which something else stands there, are -1.
    - bounce, occlusion: a point is an object, where its centre is; -1 where less than half of it is visible.

    Raises ValueError for clips that do not say where things are.
    """
    known = set(clips.labels)
    if clips.kind == "crafter" and {"player_position", "semantic_map"} <= known:
        check_count("frame", frame, -grid.n_frames, grid.n_frames - 1, "the model's")
        return _of_cells(clips, grid, range(grid.n_frames)[frame])
    if {"position", "visible_fraction"} <= known:
        return _of_objects(clips, grid)
    raise ValueError(f"clips of kind {clips.kind!r} do not say where things are; crafter, bounce and occlusion do")


def _of_cells(clips: Clips, grid: TokenGrid, frame: int) -> torch.Tensor:
    semantic = clips.labels["semantic_map"][:, : grid.n_frames]
    if semantic.shape[2:] != (grid.n_rows, grid.n_cols):
        raise ValueError(
            f"crafter clips have {tuple(semantic.shape[2:])} cells a frame, the model's grid {grid.shape[1:]}"
        )
    row, col = torch.arange(grid.tokens_per_frame) // grid.n_cols, torch.arange(grid.tokens_per_frame) % grid.n_cols
    there = clips.labels["player_position"][:, : grid.n_frames]
    shift = there[:, frame, None] - there  # clip frame 2
    rows, cols = (place + shift[:, :, axis, None] for axis, place in enumerate((row, col)))  # clip frame point
    inside = (rows >= 0) & (rows < grid.n_rows) & (cols >= 0) & (cols < grid.n_cols)
    cell = torch.where(inside, rows * grid.n_cols + cols, 0)
    shown = semantic.flatten(2).gather(2, cell)
    same = (shown == shown[:, frame, None]) & (shown < _PLAYER)
    return torch.where(inside & same, cell, -1).transpose(1, 2)


def _of_objects(clips: Clips, grid: TokenGrid) -> torch.Tensor:
    height, width = clips.pixels.shape[-2:]
    at = clips.labels["position"][:, : grid.n_frames].transpose(1, 2)  # clip object frame 2
    row = ((at[..., 0] + 0.5) * grid.n_rows / height).long().clamp(0, grid.n_rows - 1)
    col = ((at[..., 1] + 0.5) * grid.n_cols / width).long().clamp(0, grid.n_cols - 1)
    seen = clips.labels["visible_fraction"][:, : grid.n_frames].transpose(1, 2) >= 0.5
    return torch.where(seen, row * grid.n_cols + col, -1)
