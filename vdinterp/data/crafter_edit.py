"""Crafter clips with one cell changed: what stands in the player's way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int

from vdinterp.data.clips import Clips
from vdinterp.data.crafter import CELL, COLS, ROWS, SEMANTIC, cut, implied


def facing(clips: Clips) -> Int[torch.Tensor, " batch"]:
    """Semantic id (see `SEMANTIC`) of the cell that the last action leads to, in the frame before: what decides whether
    the step succeeds. That of the player's own cell where the last action is no move."""
    step = implied(clips)[:, -1]
    index = torch.arange(len(clips))
    return clips.labels["semantic_map"][index, -2, ROWS // 2 + step[:, 0], COLS // 2 + step[:, 1]]


def with_facing(clips: Clips, material: str) -> Clips:
    """The same clips as if the cell that the last action leads to were of another material, in all frames but the last.

    The cell is painted wherever it is in view, with the patch of that material that is most frequent in these clips (or
    in the sample clips). The last frame, and the rest of the ground truth, stay as they were played.

    Raises ValueError for a material that is no entry of `SEMANTIC` or occurs nowhere, and for clips whose last action
    is no move.
    """
    from vdinterp.data.samples import sample_clips

    if material not in SEMANTIC:
        raise ValueError(f"unknown material {material!r}; there are {', '.join(SEMANTIC)}")
    step = implied(clips)[:, -1]
    if not bool(step.any(-1).all()):
        raise ValueError("the last action of every clip has to be a move: other actions lead to no cell")
    patch = _patch_of(clips, material)
    if patch is None and (patch := _patch_of(sample_clips("crafter"), material)) is None:
        raise ValueError(f"no cell shows {material!r}, in these clips or in the sample clips")
    video, semantic = clips.pixels.clone(), clips.labels["semantic_map"].clone()
    position = clips.labels["player_position"]
    there = position[:, -2, None] - position + step[:, None] + torch.tensor([ROWS // 2, COLS // 2])
    for clip, frame in np.ndindex(len(clips), clips.n_frames - 1):
        row, col = there[clip, frame].tolist()
        if 0 <= row < ROWS and 0 <= col < COLS:
            video[clip, frame, :, CELL * row : CELL * (row + 1), CELL * col : CELL * (col + 1)] = patch
            semantic[clip, frame, row, col] = SEMANTIC.index(material)
    return replace(clips, video=video, labels={**clips.labels, "semantic_map": semantic})


def _patch_of(clips: Clips, material: str) -> torch.Tensor | None:
    """The pixels that cells of a material most often show."""
    cells = cut(clips.pixels)[clips.labels["semantic_map"] == SEMANTIC.index(material)]
    if not len(cells):
        return None
    shown, counts = cells.unique(dim=0, return_counts=True)
    return shown[counts.argmax()].view(-1, CELL, CELL)
