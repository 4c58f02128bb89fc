"""One block: self-attention, at most one cross-attention, at most one MLP. The same for every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import nn

from vdinterp.grid import TokenGrid
from vdinterp.models.components.attention import Attention
from vdinterp.models.components.mlp import MLP
from vdinterp.models.components.modulation import BlockModulation, per_frame
from vdinterp.models.components.rope import Table
from vdinterp.models.config import BlockSpec, VideoDiTConfig
from vdinterp.models.hooks import HookPoint

NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})


class Block(nn.Module):
    """Each sublayer reads the stream through its AdaLN and adds its gated output.

    `residual="pre"`:    `x = x + gate * f(AdaLN(x))`
    `residual="normed"`: `x = AdaLN(x); x = x + gate * f(x)`, the Diffusion Forcing Transformer's: what is carried on
    is the normalised, modulated stream itself.
    """

    def __init__(self, cfg: VideoDiTConfig, spec: BlockSpec) -> None:
        super().__init__()
        self.residual = cfg.residual
        self.axis = spec.axis
        stream = "batch pos d_model"
        self.hook_resid_pre = HookPoint(stream, "the carried stream before the block")
        self.modulation = BlockModulation(cfg, spec.n_slots)
        self.attn = Attention(cfg, spec.attn, axis=spec.axis, causal_block=spec.causal_block)
        self.hook_attn_out = HookPoint(stream, "what attention adds to the stream, after the gate")
        self.cross_attn = self.mlp = None
        if spec.cross_attn is not None:
            self.cross_attn = Attention(cfg, spec.cross_attn, cross=True)
            self.hook_cross_attn_out = HookPoint(stream, "what cross-attention adds to the stream, after the gate")
        if spec.mlp is not None:
            self.hook_resid_mid = HookPoint(stream, "the carried stream between attention and MLP")
            self.mlp = MLP(cfg, spec.mlp)
            self.hook_mlp_out = HookPoint(stream, "what the MLP adds to the stream, after the gate")
        self.hook_resid_post = HookPoint(stream, "the carried stream after the block")

    def forward(
        self,
        x: Float[torch.Tensor, "batch pos d_model"],
        cond: Float[torch.Tensor, "batch frame d_model"],
        grid: TokenGrid,
        shared: torch.Tensor | None = None,
        rope_table: Table | None = None,
        text: torch.Tensor | None = None,
        known: Mapping[str, Float[torch.Tensor, "batch pos d_model"]] = NOTHING,
    ) -> Float[torch.Tensor, "batch pos d_model"]:
        """The stream after the block. `known`: what some sublayers add to it, by name, where they need not be run."""
        slots = self.modulation(cond, shared)
        x = self.hook_resid_pre(x)
        x = self._add(x, slots, "attn", lambda entered: self.attn(entered, grid, rope_table), known)
        if self.cross_attn is not None:
            cross = self.cross_attn
            x = self._add(x, slots, "cross_attn", lambda entered: cross(entered, grid, text=text), known)
        if self.mlp is not None:
            x = self._add(self.hook_resid_mid(x), slots, "mlp", self.mlp, known)
        return self.hook_resid_post(x)

    def _add(
        self,
        x: torch.Tensor,
        slots: Sequence[torch.Tensor],
        name: str,
        run: Callable[[torch.Tensor], torch.Tensor],
        known: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The stream after one sublayer."""
        entered, gate = getattr(self, name).enter(x, slots)
        carried = x if self.residual == "pre" else entered
        added = known.get(name)
        if added is None:
            added = run(entered)
            if gate is not None:
                added = (gate.unsqueeze(2) * per_frame(added, gate)).flatten(1, 2)
        return carried + getattr(self, f"hook_{name}_out")(added)
