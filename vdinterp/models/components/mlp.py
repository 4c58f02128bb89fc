"""The MLP sublayer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from vdinterp.models.components.given import Given
from vdinterp.models.components.linear import applied
from vdinterp.models.components.modulation import AdaLN
from vdinterp.models.config import Sublayer, VideoDiTConfig
from vdinterp.models.hooks import HookPoint


class MLP(AdaLN):
    """`fc2(gelu(fc1(x)))`."""

    def __init__(self, cfg: VideoDiTConfig, spec: Sublayer) -> None:
        super().__init__(cfg, spec)
        self.approximate = "tanh" if cfg.act_fn == "gelu_tanh" else "none"
        self.fc1 = nn.Linear(cfg.d_model, cfg.d_mlp, bias=cfg.mlp_bias)
        self.hook_pre = HookPoint("batch pos d_mlp", "before the nonlinearity")
        self.hook_post = HookPoint("batch pos d_mlp", "after the nonlinearity")
        self.fc2 = nn.Linear(cfg.d_mlp, cfg.d_model, bias=cfg.mlp_bias)
        self.hook_out = HookPoint("batch pos d_model", "sublayer output, before the gate")

    def forward(
        self, x: Float[torch.Tensor, "batch pos d_model"], given: Given | None = None
    ) -> Float[torch.Tensor, "batch pos d_model"]:
        pre = self.hook_pre(self.fc1(x))
        return self.hook_out(self.fc2(self.hook_post(F.gelu(pre, approximate=self.approximate))))

    @property
    def W_in(self) -> Float[torch.Tensor, "d_model d_mlp"]:
        return applied(self.fc1, f"{self.path}.fc1")[0].t()

    @property
    def W_out(self) -> Float[torch.Tensor, "d_mlp d_model"]:
        return applied(self.fc2, f"{self.path}.fc2")[0].t()

    @property
    def b_in(self) -> Float[torch.Tensor, "d_mlp"] | None:
        return applied(self.fc1, f"{self.path}.fc1")[1]

    @property
    def b_out(self) -> Float[torch.Tensor, "d_model"] | None:
        return applied(self.fc2, f"{self.path}.fc2")[1]
