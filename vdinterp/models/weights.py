"""The model's weights stacked over layers, in TransformerLens's shapes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float

Stacked = Float[torch.Tensor, "layer ..."]


class WeightViews:
    """`model.W_Q[layer, head]` and so on, of self-attentions and MLPs, one entry per layer.

    Stacked copies: to edit weights, edit `model.blocks[layer].attn.W_Q`, which is a view of what is stored.
    Nothing is folded or centred: gates and modulations make TransformerLens's weight processing invalid here.
    A model some of whose blocks have no MLP raises `ValueError` for `W_in` and its kin.
    """

    blocks: Any

    def _stacked(self, sublayer: str, name: str) -> Stacked:
        parts = [getattr(block, sublayer) for block in self.blocks]
        if any(part is None for part in parts):
            raise ValueError(f"Not every block has an {sublayer!r}; use model.blocks[layer].{sublayer}.{name}.")
        if any(getattr(part, name) is None for part in parts):
            raise ValueError(f"This model has no {name}: that projection carries no bias.")
        return torch.stack([getattr(part, name) for part in parts])

    @property
    def W_Q(self) -> Float[torch.Tensor, "layer head d_model d_head"]:
        return self._stacked("attn", "W_Q")

    @property
    def W_K(self) -> Float[torch.Tensor, "layer head d_model d_head"]:
        return self._stacked("attn", "W_K")

    @property
    def W_V(self) -> Float[torch.Tensor, "layer head d_model d_head"]:
        return self._stacked("attn", "W_V")

    @property
    def W_O(self) -> Float[torch.Tensor, "layer head d_head d_model"]:
        return self._stacked("attn", "W_O")

    @property
    def W_in(self) -> Float[torch.Tensor, "layer d_model d_mlp"]:
        return self._stacked("mlp", "W_in")

    @property
    def W_out(self) -> Float[torch.Tensor, "layer d_mlp d_model"]:
        return self._stacked("mlp", "W_out")

    @property
    def b_Q(self) -> Float[torch.Tensor, "layer head d_head"]:
        return self._stacked("attn", "b_Q")

    @property
    def b_K(self) -> Float[torch.Tensor, "layer head d_head"]:
        return self._stacked("attn", "b_K")

    @property
    def b_V(self) -> Float[torch.Tensor, "layer head d_head"]:
        return self._stacked("attn", "b_V")

    @property
    def b_O(self) -> Float[torch.Tensor, "layer d_model"]:
        return self._stacked("attn", "b_O")

    @property
    def b_in(self) -> Float[torch.Tensor, "layer d_mlp"]:
        return self._stacked("mlp", "b_in")

    @property
    def b_out(self) -> Float[torch.Tensor, "layer d_model"]:
        return self._stacked("mlp", "b_out")
