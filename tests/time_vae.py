"""A VAE that compresses time and loses nothing: the video frames of a latent frame lie in its channels."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange

from vdinterp.vae import FrameMap
from vdinterp.vae.protocol import check_frames


class StackingVAE(FrameMap):
    """Latent frames of `time_compression` grey frames each, one a channel. Causal: the first latent frame is the first
    video frame, as often as there are channels."""

    def __init__(self, time_compression: int = 2, causal: bool = True) -> None:
        super().__init__(time_compression, causal)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": "stacking", "time_compression": self.time_compression, "causal": self.causal}

    @property
    def latent_channels(self) -> int:
        return self.time_compression

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        check_frames("video", video, 1)
        self.latent_frames(video.shape[1])
        if self.causal:
            video = torch.cat([video[:, :1].expand(-1, self.time_compression - 1, -1, -1, -1), video], 1)
        return rearrange(video, "batch (frame c) 1 row col -> batch frame c row col", c=self.time_compression)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        check_frames("latents", latents, self.time_compression)
        video = rearrange(latents, "batch frame c row col -> batch (frame c) 1 row col")
        return video[:, self.time_compression - 1 :] if self.causal else video
