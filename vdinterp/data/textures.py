"""Random textures: frames without any structure, all unlike each other. What model organisms see."""

from __future__ import annotations

import torch
from jaxtyping import Float

from vdinterp.checks.counts import check_count, check_seed

MEAN, STD = 0.5, 0.15  # of the pixels


def make_textures(n: int, size: int = 8, seed: int = 0) -> Float[torch.Tensor, "image channel height width"]:
    """`n` grey frames of `size` x `size` independent normal pixels, in [0, 1]."""
    n, size, seed = check_count("n", n), check_count("size", size, high=4096), check_seed(seed)
    noise = torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return (MEAN + STD * noise).clamp(0, 1)
