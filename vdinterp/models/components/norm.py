"""LayerNorm and RMSNorm with TransformerLens's two hooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from vdinterp.models.hooks import HookPoint


class Norm(nn.Module):
    """`normalized = (x - mean) / scale` (LayerNorm) or `x / scale` (RMSNorm); affine on top when `affine`."""

    def __init__(self, width: int, kind: str, eps: float, affine: bool) -> None:
        super().__init__()
        self.width, self.kind, self.eps = width, kind, eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and kind == "layer" else None
        self.hook_scale = HookPoint("batch pos 1", "standard deviation (LayerNorm) or root mean square (RMSNorm)")
        self.hook_normalized = HookPoint("batch pos d_model", "normalised stream, before shift and scale")

    def forward(self, x: Float[torch.Tensor, "batch pos d_model"]) -> Float[torch.Tensor, "batch pos d_model"]:
        normalized = self._normalize(x)
        if self.hook_scale.is_hooked:
            # The fused kernel above gives no scale. An unchanged one makes this ratio exactly 1, so looking is free.
            scale = self._scale(x)
            normalized = normalized * (scale / self.hook_scale(scale))
        return self._affine(self.hook_normalized(normalized))

    def unhooked(self, x: Float[torch.Tensor, "... d_model"]) -> Float[torch.Tensor, "... d_model"]:
        """The same of another stream, without any hook."""
        return self._affine(self._normalize(x))

    def _affine(self, normalized: torch.Tensor) -> torch.Tensor:
        if self.weight is not None:
            normalized = normalized * self.weight
        return normalized if self.bias is None else normalized + self.bias

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, (self.width,), eps=self.eps)
        return F.rms_norm(x, (self.width,), eps=self.eps)

    def _scale(self, x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(-1, keepdim=True) if self.kind == "layer" else x
        return (centered.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
