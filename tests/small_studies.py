"""A small pipeline, clips and a bench for tests of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from factories import tiny_model

import vdinterp as vd
from vdinterp.data import Clips
from vdinterp.studies import (
    Bench,
)
from vdinterp.vae import IdentityVAE, LatentStats

ROOT = Path(__file__).parent.parent


SIZE = {"in_channels": 1, "out_channels": 1, "n_frames": 5, "d_action": 3}


FAST = {"n_clips": 3, "steps": 2, "n_context": 2, "batch": 2}


def small_pipe(kind: str = "3d", **settings: Any) -> vd.VideoDiffusion:
    model = tiny_model(kind, **{**SIZE, **settings})
    for parameter in model.parameters():
        parameter.data *= 0.5
    return vd.VideoDiffusion(model, IdentityVAE(1), vd.DiffusionConfig(), LatentStats((0.5,), (0.5,)))


def small_clips(n: int = 3, seed: int = 0, n_frames: int = 5, actions: bool = True) -> Clips:
    generator = torch.Generator().manual_seed(seed)
    video = torch.rand(n, n_frames, 1, 4, 6, generator=generator)
    action = torch.eye(3)[torch.randint(3, (n, n_frames), generator=generator)] if actions else None
    return Clips(kind="file", video=video, action=action)


def small_bench(pipe: vd.VideoDiffusion | None = None, *, clips_without_actions: bool = False, **options: Any) -> Bench:
    options = {"n_context": 2, "steps": 3, "batch": 2, **options}
    clips = small_clips(actions=not clips_without_actions)
    return Bench(pipe or small_pipe(), clips, small_clips(4, seed=1), **options)


def keep(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation
