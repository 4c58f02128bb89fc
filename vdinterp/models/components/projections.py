"""Query, key, value and output projections, stored as linear layers and shown as TransformerLens's per-head weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn

from vdinterp.models.components.linear import applied
from vdinterp.models.components.modulation import AdaLN
from vdinterp.models.config import Sublayer, VideoDiTConfig

PerHead = Float[torch.Tensor, "head d_model d_head"]
HeadBias = Float[torch.Tensor, "head d_head"]


class HeadProjections(AdaLN):
    """Fused `qkv` (self-attention) or `q` and fused `kv` (cross-attention), and `proj`, with per-head views.

    The views share storage with the stored weights: an in-place edit of `attn.W_Q` edits the model. Reading one raises
    `ValueError` where something else than the stored weight is applied (an adapter, quantisation, a hook).
    """

    def __init__(self, cfg: VideoDiTConfig, spec: Sublayer, cross: bool) -> None:
        super().__init__(cfg, spec)
        self.n_heads, self.d_head, self.cross = cfg.n_heads, cfg.d_head, cross
        inner = cfg.n_heads * cfg.d_head
        if cross:
            self.q = nn.Linear(cfg.d_model, inner, bias=cfg.qkv_bias)
            self.kv = nn.Linear(cfg.d_text, 2 * inner, bias=cfg.qkv_bias)
        else:
            self.qkv = nn.Linear(cfg.d_model, 3 * inner, bias=cfg.qkv_bias)
        self.proj = nn.Linear(inner, cfg.d_model, bias=cfg.out_bias)

    def project(self, x: torch.Tensor, text: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, each `[batch pos head d_head]` (keys of cross-attention: text tokens)."""
        if self.cross:
            assert text is not None
            parts = self.q(x), *self.kv(text).chunk(2, dim=-1)
        else:
            parts = self.qkv(x).chunk(3, dim=-1)
        return tuple(part.unflatten(-1, (self.n_heads, self.d_head)) for part in parts)

    def head_results(
        self, z: Float[torch.Tensor, "batch pos head d_head"]
    ) -> Float[torch.Tensor, "batch pos head d_model"]:
        """What each head adds to the output, before gate and bias."""
        return torch.einsum("b p h e, h e d -> b p h d", z, self.W_O.to(z.device))

    def _part(self, which: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight `[inner, d_in]` and bias of q (0), k (1) or v (2)."""
        if not self.cross:
            name, n_parts, index = "qkv", 3, which
        else:
            name, n_parts, index = ("q", 1, 0) if which == 0 else ("kv", 2, which - 1)
        weight, bias = applied(getattr(self, name), f"{self.path}.{name}")
        return weight.chunk(n_parts)[index], None if bias is None else bias.chunk(n_parts)[index]

    def _per_head(self, which: int) -> PerHead:
        return self._part(which)[0].unflatten(0, (self.n_heads, self.d_head)).transpose(1, 2)

    def _head_bias(self, which: int) -> HeadBias | None:
        bias = self._part(which)[1]
        return None if bias is None else bias.unflatten(0, (self.n_heads, self.d_head))

    @property
    def W_Q(self) -> PerHead:
        return self._per_head(0)

    @property
    def W_K(self) -> PerHead:
        return self._per_head(1)

    @property
    def W_V(self) -> PerHead:
        return self._per_head(2)

    @property
    def W_O(self) -> Float[torch.Tensor, "head d_head d_model"]:
        return applied(self.proj, f"{self.path}.proj")[0].t().unflatten(0, (self.n_heads, self.d_head))

    @property
    def b_Q(self) -> HeadBias | None:
        return self._head_bias(0)

    @property
    def b_K(self) -> HeadBias | None:
        return self._head_bias(1)

    @property
    def b_V(self) -> HeadBias | None:
        return self._head_bias(2)

    @property
    def b_O(self) -> Float[torch.Tensor, "d_model"] | None:
        return applied(self.proj, f"{self.path}.proj")[1]
