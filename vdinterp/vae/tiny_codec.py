"""A small convolutional autoencoder, trained in minutes on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from vdinterp.vae.frames import FrameMap
from vdinterp.vae.protocol import MOST, check_frames


class TinyConvCodec(nn.Module, FrameMap):
    """Convolutions only: `in_channels` x 8h x 8w pixels in [0, 1] <-> `latent_channels` x h x w latents.

    The latents are batch-normalised (no affine part): unit variance in every channel keeps all channels in use, and
    the Gaussian noise added to them in training spreads different contents apart. Both together take the place of a
    KL term, which at this size switches channels off. Every convolution that changes the resolution has its stride as
    its kernel, so a latent is a function of its own 8x8 pixels and of nothing else: where the content comes in 8x8
    cells, one latent token is one cell, and an intervention on a token cannot leak into its neighbours through the
    codec.

    `widths`: channels at 1/2, 1/4 and 1/8 of the resolution. `noise`: standard deviation of the noise added in
    training.
    """

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 8,
        widths: tuple[int, int, int] = (64, 128, 192),
        noise: float = 0.2,
    ) -> None:
        super().__init__()
        sizes = (in_channels, latent_channels, *widths)
        if not 1 <= min(sizes) <= max(sizes) <= MOST or len(widths) != 3:
            raise ValueError(
                f"need positive channels and three widths, at most {MOST}, got {in_channels=} {latent_channels=} "
                f"{widths=}"
            )
        if noise < 0:
            raise ValueError(f"noise is a standard deviation, got {noise}")
        self.in_channels, self.latent_channels, self.widths, self.noise = in_channels, latent_channels, widths, noise
        first, second, third = widths
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, first, 2, stride=2),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(first, second, 2, stride=2),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(second, third, 2, stride=2),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(third, latent_channels, 1),
        )
        self.norm = nn.BatchNorm2d(latent_channels, affine=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, third, 1),
            nn.GELU(approximate="tanh"),
            nn.ConvTranspose2d(third, second, 2, stride=2),
            nn.GELU(approximate="tanh"),
            nn.ConvTranspose2d(second, first, 2, stride=2),
            nn.GELU(approximate="tanh"),
            nn.ConvTranspose2d(first, in_channels, 2, stride=2),
        )

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": "tiny_conv",
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "widths": list(self.widths),
            "noise": self.noise,
        }

    def encode(
        self, video: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]:
        """Pixels in [0, 1] -> latents, 8 times smaller in height and width, by the running statistics: in training
        mode too, which only `reconstruct` goes by. ValueError for another shape."""
        check_frames("video", video, self.in_channels, multiple=8)
        norm = self.norm
        latents = F.batch_norm(self._features(video), norm.running_mean, norm.running_var, eps=norm.eps)
        return latents.unflatten(0, video.shape[:2])

    def decode(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]:
        """Latents -> pixels in [0, 1]. ValueError for another shape."""
        return self._pixels(latents).clamp(0, 1)

    def reconstruct(
        self, video: Float[torch.Tensor, "batch frame channel height width"], generator: torch.Generator | None = None
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Decoded encoding; while in training mode by the batch's own statistics, with the noise on the latents and
        without the clamp, which has no gradient outside the range."""
        if not self.training:
            return self.decode(self.encode(video))
        check_frames("video", video, self.in_channels, multiple=8)
        latents = self.norm(self._features(video)).unflatten(0, video.shape[:2])
        if self.noise:
            noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype).to(latents.device)
            latents = latents + self.noise * noise
        return self._pixels(latents)

    def forward(
        self, video: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """`reconstruct` with torch's own random numbers."""
        return self.reconstruct(video)

    def _features(self, video: torch.Tensor) -> torch.Tensor:
        """What is normalised to latents, frame by frame."""
        return self.encoder(video.flatten(0, 1) * 2 - 1)

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        check_frames("latents", latents, self.latent_channels)
        return ((self.decoder(latents.flatten(0, 1)) + 1) / 2).unflatten(0, latents.shape[:2])
