"""Models whose heads look where a test says: queries and keys are overwritten, everything else is the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from factories import tiny_model

import vdinterp as vd
from vdinterp.data import Clips
from vdinterp.vae import IdentityVAE, LatentStats

N_FRAMES, N_ROWS, N_COLS = 4, 3, 4


def pipe(kind: str = "3d", **settings: Any) -> vd.VideoDiffusion:
    """Two layers, two heads, 4 frames of 3 x 4 tokens of one pixel; a head has a channel for every token."""
    sizes = {"in_channels": 1, "out_channels": 1, "patch_size": (1, 1, 1), "n_frames": N_FRAMES}
    sizes |= {"height": N_ROWS, "width": N_COLS, "d_head": N_FRAMES * N_ROWS * N_COLS}
    model = tiny_model(kind, **{**sizes, **settings})
    for parameter in model.parameters():
        parameter.data *= 0.5
    return vd.VideoDiffusion(model, IdentityVAE(1), vd.DiffusionConfig(), LatentStats((0.5,), (0.5,)))


def clips(n: int = 5, seed: int = 0, **truth: Any) -> Clips:
    """Random pixels, with whatever ground truth a test gives."""
    video = torch.rand(n, N_FRAMES, 1, N_ROWS, N_COLS, generator=torch.Generator().manual_seed(seed))
    return Clips(kind="file", video=video, **truth)


def looking(model: vd.HookedVideoDiT, targets: Mapping[tuple[int, int], torch.Tensor]) -> list[tuple[str, Any]]:
    """Hooks under which every query of head (layer, head) gives all its attention to `targets[..]` `[clip pos]`."""
    hooks: list[tuple[str, Any]] = []
    for (layer, head), target in targets.items():

        def queries(q: torch.Tensor, hook: Any, head: int = head, target: torch.Tensor = target) -> torch.Tensor:
            q[:, :, head] = torch.eye(q.shape[-1])[target] * 500
            return q

        def keys(k: torch.Tensor, hook: Any, head: int = head) -> torch.Tensor:
            k[:, :, head] = torch.eye(k.shape[-1])[: k.shape[1]]
            return k

        hooks += [(f"blocks.{layer}.attn.hook_rot_q", queries), (f"blocks.{layer}.attn.hook_rot_k", keys)]
    return hooks


def displaced(shift: torch.Tensor, frames: int = -1) -> torch.Tensor:
    """`[clip pos]`: the token `frames` and `shift` `[clip 2]` (rows, cols) away; the own one where there is none."""
    at = vd.TokenGrid(N_FRAMES, N_ROWS, N_COLS).all_coordinates()
    t, row, col = at[:, 0] + frames, at[:, 1] + shift[:, :1], at[:, 2] + shift[:, 1:]
    inside = (t >= 0) & (row >= 0) & (row < N_ROWS) & (col >= 0) & (col < N_COLS)
    return torch.where(inside, (t * N_ROWS + row) * N_COLS + col, torch.arange(len(at)))
