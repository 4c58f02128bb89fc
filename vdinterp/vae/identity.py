"""No VAE: models that work on pixels."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float

from vdinterp.vae.frames import FrameMap
from vdinterp.vae.protocol import check_frames


class IdentityVAE(FrameMap):
    """Latents are the pixels. With `LatentStats(mean=(.5,), std=(.5,))` a pixel model sees values in [-1, 1]."""

    def __init__(self, channels: int = 1) -> None:
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.channels = channels

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": "identity", "channels": self.channels}

    @property
    def latent_channels(self) -> int:
        return self.channels

    def encode(
        self, video: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """The video itself. ValueError for another number of axes or channels."""
        check_frames("video", video, self.channels)
        return video

    def decode(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """The latents themselves. ValueError for another number of axes or channels."""
        check_frames("latents", latents, self.channels)
        return latents
