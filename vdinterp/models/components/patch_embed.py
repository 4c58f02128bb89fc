"""Latents to tokens and back."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import nn

from vdinterp.models.config import VideoDiTConfig

# How each family lays out one output patch; p and q are the row and the column inside it.
UNPATCHIFY = {
    "pqc": "batch (frame row col) (p q channel) -> batch frame channel (row p) (col q)",
    "cpq": "batch (frame row col) (channel p q) -> batch frame channel (row p) (col q)",
}


class PatchEmbed(nn.Module):
    """One linear map per patch: a convolution whose stride is its kernel, written as a matrix product."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        _, self.patch_h, self.patch_w = cfg.patch_size
        self.proj = nn.Linear(cfg.in_channels * self.patch_h * self.patch_w, cfg.d_model)

    def forward(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch pos d_model"]:
        patches = rearrange(
            latents,
            "batch frame channel (row p) (col q) -> batch (frame row col) (channel p q)",
            p=self.patch_h,
            q=self.patch_w,
        )
        return self.proj(patches)


def unpatchify(
    patches: Float[torch.Tensor, "batch pos values"], cfg: VideoDiTConfig
) -> Float[torch.Tensor, "batch frame channel height width"]:
    """Tokens of pixel values back to latents, in the family's order."""
    _, patch_h, patch_w = cfg.patch_size
    return rearrange(patches, UNPATCHIFY[cfg.unpatch_order], row=cfg.n_rows, col=cfg.n_cols, p=patch_h, q=patch_w)
