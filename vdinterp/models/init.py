"""Initial weights, as in DiT (arXiv 2212.09748): every sublayer starts as the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT


def initialize(model: HookedVideoDiT) -> None:
    """Xavier for linear maps, normal(0.02) for embeddings, zero for modulations and the last layer, in place.

    On the meta device, where a model waits for weights, there is nothing to fill.
    """
    if model.final.linear.weight.is_meta:
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embeddings = [model.noise_embed] + ([model.action_embed] if model.action_embed is not None else [])
    for embedding in embeddings:
        for module in embedding.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
    if model.cfg.abs_pos == "learned_spatial":
        nn.init.normal_(model.pos_embed, std=0.02)
    modulations = [block.modulation for block in model.blocks] + [model.final.modulation, model.shared_modulation]
    zeroed = [modulation.linear for modulation in modulations if modulation is not None] + [model.final.linear]
    for linear in zeroed:
        if linear is not None:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
