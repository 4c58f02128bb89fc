"""Trains a TinyConvCodec on frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float

from vdinterp.training.loop import fit, step_generator
from vdinterp.vae import TinyConvCodec


def train_codec(
    codec: TinyConvCodec,
    frames_at: Callable[[torch.Generator], Float[torch.Tensor, "batch frame channel height width"]],
    *,
    steps: int,
    out_dir: str | Path,
    lr: float = 2e-3,
    seed: int = 0,
    resume: bool = True,
) -> TinyConvCodec:
    """Minimises the squared error of the frames decoded from noisy latents; no KL term.

    `frames_at(generator)` draws a batch of pixels in [0, 1]. Resumable through `out_dir`, as `fit` is. Returns the
    codec in eval mode, with averaged weights and batch statistics that belong to them.
    """

    def loss_at(step: int) -> torch.Tensor:
        generator = step_generator(seed, step, "codec")
        video = frames_at(generator)
        return 4 * (codec.reconstruct(video, generator) - video).square().mean()

    fit(
        codec,
        loss_at,
        steps=steps,
        lr=lr,
        warmup=min(100, steps),
        out_dir=out_dir,
        seed=seed,
        desc="codec",
        resume=resume,
    )
    settle_statistics(codec, [frames_at(step_generator(seed, i, "codec statistics")) for i in range(32)])
    return codec.eval()


@torch.no_grad()
def settle_statistics(codec: TinyConvCodec, batches: list[torch.Tensor]) -> None:
    """Sets the batch-norm statistics to those of the present weights: during training they follow the un-averaged
    ones."""
    raw = torch.cat([codec.encoder(video.flatten(0, 1) * 2 - 1) for video in batches])
    variance, mean = torch.var_mean(raw.double(), dim=(0, 2, 3))
    codec.norm.running_mean.copy_(mean)  # pyright: ignore[reportOptionalMemberAccess]
    codec.norm.running_var.copy_(variance)  # pyright: ignore[reportOptionalMemberAccess]
