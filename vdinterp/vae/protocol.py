"""What the pipeline asks of a VAE, and the shape checks its implementations share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import nn

MOST = 65_536  # of anything that an autoencoder's configuration counts


@runtime_checkable
class VAE(Protocol):
    """Turns videos into latents and back. Latents are not normalised here; `LatentStats` does that.

    `config` is JSON-able and rebuilds the VAE through `vdinterp.vae.build` (weights apart). One that makes a latent
    frame of several video frames inherits `vdinterp.vae.FrameMap` too, and says of which.
    """

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def latent_channels(self) -> int: ...

    def encode(
        self, video: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]: ...

    def decode(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]: ...


def vae_module(vae: Any) -> nn.Module | None:
    """The module that holds a VAE's weights: itself, the one it wraps, or none."""
    if isinstance(vae, nn.Module):
        return vae
    inner = getattr(vae, "vae", None)
    return inner if isinstance(inner, nn.Module) else None


@contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """A module in evaluation mode inside the block, every part as it was afterwards: what a video encodes to depends
    neither on the mode a VAE was left in nor on the clips beside it."""
    parts = [part for part in module.modules() if part.training] if module is not None else []
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


def check_frames(what: str, tensor: torch.Tensor, channels: int, multiple: int = 1) -> None:
    """Raises `ValueError` unless `tensor` is `[batch frame channel height width]` with `channels` channels and
    height and width that are multiples of `multiple`."""
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 5:
        given = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"{what}: expected a tensor [batch frame channel height width], got {given}")
    if not tensor.is_floating_point():
        raise ValueError(f"{what}: expected floating point values, got {tensor.dtype}; divide uint8 video by 255")
    if min(tensor.shape) == 0:
        raise ValueError(f"{what}: an axis of {tuple(tensor.shape)} is empty")
    if tensor.shape[2] != channels:
        hint = "; is the channel axis in the right place?" if channels in tensor.shape else ""
        raise ValueError(f"{what}: expected {channels} channels at axis 2, got shape {tuple(tensor.shape)}{hint}")
    height, width = tensor.shape[-2:]
    if height % multiple or width % multiple:
        raise ValueError(f"{what}: height and width must be multiples of {multiple}, got {height}x{width}")
