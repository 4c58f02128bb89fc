"""Random textures: frames without any structure, all unlike each other. What model organisms see."""

from __future__ import annotations

import torch
from jaxtyping import Float

MEAN, STD = 0.5, 0.15  # of the pixels


def make_textures(n: int, size: int = 8, seed: int = 0) -> Float[torch.Tensor, "image channel height width"]:
    """`n` grey frames of `size` x `size` independent normal pixels, in [0, 1]."""
    if n < 1 or size < 1 or seed < 0:
        raise ValueError(f"need n >= 1, size >= 1 and seed >= 0, got {n=}, {size=}, {seed=}")
    noise = torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return (MEAN + STD * noise).clamp(0, 1)
