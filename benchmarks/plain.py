"""The network that ours is compared with, in plain torch, and models of random weights to compare."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from vdinterp.models import HookedVideoDiT, Rope, VideoDiTConfig


def random_model(width: int, layers: int, side: int = 32) -> HookedVideoDiT:
    """Ours for 5 frames of `side` x `side` latents in patches of 2 x 2, with heads of 64 channels."""
    cfg = VideoDiTConfig(
        model_name="benchmark",
        d_model=width,
        n_layers=layers,
        n_heads=width // 64,
        d_head=64,
        d_mlp=4 * width,
        in_channels=4,
        out_channels=4,
        patch_size=(1, 2, 2),
        n_frames=5,
        height=side,
        width=side,
        rope={"3d": Rope(dims=(20, 22, 22))},
    )
    model = HookedVideoDiT(cfg).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


class PlainBlock(nn.Module):
    """AdaLN-Zero block with fused attention, written without hook points."""

    # what stands where ours has a hook of that name: here an identity, so that nnsight can name the stream
    point: type[nn.Module] = nn.Identity

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = self.point(), self.point(), self.point()
        self.hook_attn_out, self.hook_mlp_out = self.point(), self.point()

    def forward(self, x: torch.Tensor, cond: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = self.hook_resid_pre(x)
        parts = self.modulation(F.silu(cond)).unsqueeze(2).chunk(6, dim=-1)  # [batch frame 1 width] each
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        attended = self._attend(self._modulated(self.norm1(x), shift1, scale1), cos, sin)
        x = self.hook_resid_mid(x + self.hook_attn_out(self._framed(gate1, attended)))
        hidden = F.gelu(self.fc1(self._modulated(self.norm2(x), shift2, scale2)), approximate="tanh")
        return self.hook_resid_post(x + self.hook_mlp_out(self._framed(gate2, self.fc2(hidden))))

    def _modulated(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x.unflatten(1, (shift.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)

    def _framed(self, gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (gate * x.unflatten(1, (gate.shape[1], -1))).flatten(1, 2)

    def _attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        q, k = self._rotated(q, cos, sin), self._rotated(k, cos, sin)
        z = self._weighted(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(z.transpose(1, 2).flatten(2))

    def _weighted(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Values averaged by attention, `[batch head pos d_head]` each."""
        return F.scaled_dot_product_attention(q, k, v)

    def _rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)


class PlainDiT(nn.Module):
    """The whole network in plain torch; `copy_from` gives it our weights."""

    def __init__(self, cfg: VideoDiTConfig, block: Callable[[int, int], PlainBlock] = PlainBlock) -> None:
        super().__init__()
        self.cfg = cfg
        patch = cfg.patch_size[1:]
        self.patch_embed = nn.Conv2d(cfg.in_channels, cfg.d_model, patch, stride=patch)
        self.noise_1 = nn.Linear(cfg.noise_embed_dim, cfg.d_model)
        self.noise_2 = nn.Linear(cfg.d_model, cfg.d_model)
        self.blocks = nn.ModuleList([block(cfg.d_model, cfg.n_heads) for _ in range(cfg.n_layers)])
        self.final_modulation = nn.Linear(cfg.d_model, 2 * cfg.d_model)
        self.final_norm = nn.LayerNorm(cfg.d_model, elementwise_affine=False, eps=1e-6)
        self.final = nn.Linear(cfg.d_model, cfg.out_channels * patch[0] * patch[1])
        self.freqs: torch.Tensor
        half = cfg.noise_embed_dim // 2
        self.register_buffer("freqs", torch.exp(-torch.arange(half) / half * 9.210340371976184))
        self.register_buffer("cos", torch.empty(0))
        self.register_buffer("sin", torch.empty(0))

    def copy_from(self, ours: HookedVideoDiT) -> None:
        state = ours.state_dict()
        renamed = {
            "noise_1": "noise_embed.linear_1",
            "noise_2": "noise_embed.linear_2",
            "patch_embed": "patch_embed.proj",
            "final_modulation": "final.modulation.linear",
            "final": "final.linear",
        }
        inner = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
        inner["modulation"] = "modulation.linear"
        for layer in range(self.cfg.n_layers):
            renamed |= {f"blocks.{layer}.{mine}": f"blocks.{layer}.{theirs}" for mine, theirs in inner.items()}
        for mine, theirs in renamed.items():
            for kind in ("weight", "bias"):
                self.get_submodule(mine).get_parameter(kind).data.copy_(state[f"{theirs}.{kind}"])
        angles = ours.rope["3d"].angles(ours.grid()).unsqueeze(1)  # type: ignore[operator]
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, latents: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        batch, frames = latents.shape[:2]
        x = self.patch_embed(latents.flatten(0, 1))
        n_rows, n_cols = x.shape[-2:]
        x = x.unflatten(0, (batch, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        angles = levels.float().unsqueeze(-1) * self.freqs
        cond = self.noise_2(F.silu(self.noise_1(torch.cat([angles.cos(), angles.sin()], dim=-1))))
        for block in self.blocks:
            x = block(x, cond, self.cos, self.sin)
        shift, scale = self.final_modulation(F.silu(cond)).unsqueeze(2).chunk(2, dim=-1)
        x = self.final((self.final_norm(x).unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2))
        patch_h, patch_w = self.cfg.patch_size[1:]
        x = x.view(batch, frames, n_rows, n_cols, patch_h, patch_w, -1)
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, -1, n_rows * patch_h, n_cols * patch_w)
