"""Embeddings of what conditions the network: the noise level of each frame, and its action."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import nn

from vdinterp.models.config import VideoDiTConfig


class NoiseEmbed(nn.Module):
    """Noise level of each frame to `[batch frame d_model]`.

    "sinusoidal": `[cos(k w), sin(k w)]` with `w = 10000^(-i / half)` (Vaswani et al. 2017, cosine first as in DiT);
    a negative level (a clean frame) counts as 0. "fourier": `sqrt(2) cos(k f + p)` with fixed random `f`, `p`
    (Karras et al. 2023, arXiv 2312.02696); levels are log-SNRs there and keep their sign.
    """

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.kind, self.width = cfg.noise_embed, cfg.noise_embed_dim
        self.freqs: torch.Tensor
        self.phases: torch.Tensor
        if self.kind == "fourier":
            self.register_buffer("freqs", 2 * math.pi * torch.randn(self.width))
            self.register_buffer("phases", 2 * math.pi * torch.rand(self.width))
        self.linear_1 = nn.Linear(self.width, cfg.d_model)
        self.linear_2 = nn.Linear(cfg.d_model, cfg.d_model)

    def features(self, levels: Shaped[torch.Tensor, "batch frame"]) -> Float[torch.Tensor, "batch frame features"]:
        """The fixed features, before the learned layers. Computed in float32."""
        levels = levels.float().unsqueeze(-1)
        if self.kind == "fourier":
            return (levels * self.freqs.float() + self.phases.float()).cos() * math.sqrt(2)
        half = self.width // 2
        freqs = torch.exp(-math.log(10_000) * torch.arange(half, device=levels.device) / half)
        angles = levels.clamp(min=0) * freqs
        return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, self.width % 2))

    def forward(self, levels: Shaped[torch.Tensor, "batch frame"]) -> Float[torch.Tensor, "batch frame d_model"]:
        features = self.features(levels).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(features)))


class ActionEmbed(nn.Module):
    """Action of each frame to `[batch frame d_model]`, zero for the clips that `mask` names."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(cfg.d_action, cfg.d_model)
        self.linear_2 = nn.Linear(cfg.d_model, cfg.d_model) if cfg.action_embed == "mlp" else None

    def forward(
        self, action: Float[torch.Tensor, "batch frame d_action"], mask: Bool[torch.Tensor, "batch"] | None
    ) -> Float[torch.Tensor, "batch frame d_model"]:
        embedded = self.linear_1(action)
        if self.linear_2 is not None:
            embedded = self.linear_2(F.silu(embedded))
        return embedded if mask is None else embedded.masked_fill(mask[:, None, None], 0)
