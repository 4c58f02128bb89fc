"""The last layer: AdaLN, then one linear map from each token to its patch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn

from vdinterp.models.components.linear import applied
from vdinterp.models.components.modulation import AdaLN, BlockModulation
from vdinterp.models.config import Sublayer, VideoDiTConfig


class FinalLayer(AdaLN):
    """`linear(AdaLN(x))`. In the `table` kind its table is added to the condition itself (PixArt-alpha, Wan)."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__(cfg, Sublayer(mod=(0, 1, -1)))
        self.modulation = BlockModulation(cfg, n_slots=2)
        _, patch_h, patch_w = cfg.patch_size
        self.linear = nn.Linear(cfg.d_model, cfg.out_channels * patch_h * patch_w)

    def forward(
        self, x: Float[torch.Tensor, "batch pos d_model"], cond: Float[torch.Tensor, "batch frame d_model"]
    ) -> Float[torch.Tensor, "batch pos values"]:
        entered, _ = self.enter(x, self.slots(cond))
        return self.linear(entered)

    def slots(self, cond: Float[torch.Tensor, "batch frame d_model"]) -> tuple[torch.Tensor, ...]:
        """Shift and scale under a condition, each `[batch frame d_model]`."""
        shared = cond.unsqueeze(2).expand(-1, -1, 2, -1) if self.modulation.table is not None else None
        return self.modulation(cond, shared)

    @property
    def weights(self) -> tuple[Float[torch.Tensor, "values d_model"], Float[torch.Tensor, "values"]]:
        """Weight and bias of the linear map."""
        weight, bias = applied(self.linear, f"{self.path}.linear")
        assert bias is not None
        return weight, bias
