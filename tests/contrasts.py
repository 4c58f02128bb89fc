"""Small pipelines and pairs of runs for tests of patching."""

from __future__ import annotations

from typing import Any

import torch
from factories import tiny_model

import vdinterp as vd
from vdinterp.vae import IdentityVAE, LatentStats

KINDS = ("3d", "normed", "space_time", "table", "causal")  # those that need no text
SIZE = {"in_channels": 1, "out_channels": 1, "n_frames": 4, "d_action": 3}
QUIET = {"progress": False, "trials_per_pass": 1}


def small_pipe(kind: str = "3d", **settings: Any) -> vd.VideoDiffusion:
    """Two layers, two heads, 4 frames of 2 x 3 tokens, three actions; random weights."""
    model = tiny_model(kind, **{**SIZE, **settings})
    for parameter in model.parameters():
        parameter.data *= 0.7
    return vd.VideoDiffusion(model, IdentityVAE(1), vd.DiffusionConfig(), LatentStats((0.5,), (0.5,)))


def latents(n: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean clips, and the same with another frame 1."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, 4, 1, 4, 6, generator=generator)
    corrupted = clean.clone()
    corrupted[:, 1] = torch.randn(n, 1, 4, 6, generator=generator)
    return clean, corrupted


def actions(n: int = 5, seed: int = 3) -> torch.Tensor:
    return torch.eye(3)[torch.randint(3, (n, 4), generator=torch.Generator().manual_seed(seed))]


def given(kind: str = "3d", n: int = 5, same_action: bool = False, **settings: Any) -> dict[str, Any]:
    """Arguments of any kind of patching: pipeline, both runs, noise level, actions, two clips a pass."""
    clean, corrupted = latents(n)
    action = actions(n)
    return {
        "model": small_pipe(kind, **settings), "clean": clean, "corrupted": corrupted, "noise_levels": 0.6,
        "cond": action, "corrupted_cond": action if same_action else action.roll(1, 0), "batch": 2,
    }  # fmt: skip
