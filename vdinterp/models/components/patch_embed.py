"""Latents to tokens and back."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import nn

from vdinterp.grid import TokenGrid
from vdinterp.models.components.linear import applied
from vdinterp.models.config import VideoDiTConfig

# How each family lays out one output patch; p and q are the row and the column inside it.
UNPATCHIFY = {
    "pqc": "batch (frame row col) (p q channel) -> batch frame channel (row p) (col q)",
    "cpq": "batch (frame row col) (channel p q) -> batch frame channel (row p) (col q)",
}


class PatchEmbed(nn.Module):
    """One linear map per patch: a convolution whose stride is its kernel."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        patch = cfg.patch_size[1:]
        self.proj = nn.Conv2d(cfg.in_channels, cfg.d_model, kernel_size=patch, stride=patch)

    def forward(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch pos d_model"]:
        patches = self.proj(latents.flatten(0, 1))
        return rearrange(patches, "(batch frame) d_model row col -> batch (frame row col) d_model", batch=len(latents))

    @property
    def weight(self) -> Float[torch.Tensor, "d_model channel row col"]:
        """What every value of a patch adds to the stream."""
        return applied(self.proj, "patch_embed.proj")[0]


def unpatchify(
    patches: Float[torch.Tensor, "batch pos values"], cfg: VideoDiTConfig, grid: TokenGrid
) -> Float[torch.Tensor, "batch frame channel height width"]:
    """Tokens of pixel values back to latents, in the family's order."""
    _, patch_h, patch_w = cfg.patch_size
    return rearrange(patches, UNPATCHIFY[cfg.unpatch_order], row=grid.n_rows, col=grid.n_cols, p=patch_h, q=patch_w)
