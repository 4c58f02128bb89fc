"""One block: self-attention, at most one cross-attention, at most one MLP. The same for every family."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import nn

from vdinterp.models.components.attention import Attention
from vdinterp.models.components.given import Given
from vdinterp.models.components.mlp import MLP
from vdinterp.models.components.modulation import BlockModulation, by_frame
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
        self.sublayers = spec.sublayers
        self.axis = spec.axis
        stream = "batch pos d_model"
        self.hook_resid_pre = HookPoint(stream, "the carried stream before the block")
        self.modulation = BlockModulation(cfg, spec.n_slots)
        self.attn = Attention(cfg, spec.attn, axis=spec.axis, causal_block=spec.causal_block)
        self.hook_attn_out = HookPoint(stream, "what attention adds to the stream, after the gate")
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
        given: Given,
        known: Mapping[str, Float[torch.Tensor, "batch pos d_model"]] = NOTHING,
    ) -> Float[torch.Tensor, "batch pos d_model"]:
        """The stream after the block. `known`: what some sublayers add to it, by name, where they need not be run."""
        slots = self.modulation(given.cond, given.shared)
        x = self.hook_resid_pre(x)
        for name in self.sublayers:
            if name == "mlp":
                x = self.hook_resid_mid(x)
            sublayer, hook_out = getattr(self, name), getattr(self, f"hook_{name}_out")
            entered, gate = sublayer.enter(x, slots)
            carried = x if self.residual == "pre" else entered
            x = carried + hook_out(known[name] if name in known else gated(sublayer(entered, given), gate))
        return self.hook_resid_post(x)


def gated(
    added: Float[torch.Tensor, "batch pos d_model"], gate: Float[torch.Tensor, "batch frame d_model"] | None
) -> Float[torch.Tensor, "batch pos d_model"]:
    """A sublayer's output times the gate of its frame."""
    return added if gate is None else by_frame(torch.mul, added, gate)
