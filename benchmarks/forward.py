"""What hooks cost: our forward pass against the same network in plain torch, and against nnsight over that.

python benchmarks/forward.py                         # d384, 12 layers, 1,280 tokens
python benchmarks/forward.py --rounds 5 --layers 4   # a quick look
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import interleaved, report, write
from torch import nn

from vdinterp.models import HookedVideoDiT, Rope, VideoDiTConfig

RESIDUALS = ["resid_pre", "resid_mid", "resid_post"]


class PlainBlock(nn.Module):
    """AdaLN-Zero block with fused attention, written without hook points."""

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
        # identities, so that nnsight can name the stream at the places where ours has a hook
        self.at_start, self.at_middle, self.at_end = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor, cond: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = self.at_start(x)
        parts = self.modulation(F.silu(cond)).unsqueeze(2).chunk(6, dim=-1)  # [batch frame 1 width] each
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + self._framed(gate1, self._attend(self._modulated(self.norm1(x), shift1, scale1), cos, sin))
        x = self.at_middle(x)
        hidden = F.gelu(self.fc1(self._modulated(self.norm2(x), shift2, scale2)), approximate="tanh")
        return self.at_end(x + self._framed(gate2, self.fc2(hidden)))

    def _modulated(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x.unflatten(1, (shift.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)

    def _framed(self, gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (gate * x.unflatten(1, (gate.shape[1], -1))).flatten(1, 2)

    def _attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        q, k = self._rotated(q, cos, sin), self._rotated(k, cos, sin)
        z = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(z.transpose(1, 2).flatten(2))

    def _rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)


class PlainDiT(nn.Module):
    """The whole network in plain torch; `copy_from` gives it our weights."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        patch = cfg.patch_size[1:]
        self.patch_embed = nn.Conv2d(cfg.in_channels, cfg.d_model, patch, stride=patch)
        self.noise_1 = nn.Linear(cfg.noise_embed_dim, cfg.d_model)
        self.noise_2 = nn.Linear(cfg.d_model, cfg.d_model)
        self.blocks = nn.ModuleList([PlainBlock(cfg.d_model, cfg.n_heads) for _ in range(cfg.n_layers)])
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
            "noise_1": "noise_embed.linear_1", "noise_2": "noise_embed.linear_2", "patch_embed": "patch_embed.proj",
            "final_modulation": "final.modulation.linear", "final": "final.linear",
        }  # fmt: skip
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


def with_nnsight(plain: PlainDiT, latents: torch.Tensor, levels: torch.Tensor) -> Callable[[], int] | None:
    """The same residuals saved by nnsight over the plain network, or None where it is not installed."""
    try:
        from nnsight import NNsight
    except ImportError:
        return None
    traced = NNsight(plain)

    def run() -> int:
        saved = []
        with traced.trace(latents, levels):
            for block in traced.blocks:
                saved.append(block.at_start.output.save())
                saved.append(block.at_middle.output.save())
                saved.append(block.at_end.output.save())
        return len(saved)

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/forward.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    cfg = VideoDiTConfig(
        model_name="benchmark", d_model=args.width, n_layers=args.layers, n_heads=args.width // 64, d_head=64,
        d_mlp=4 * args.width, in_channels=4, out_channels=4, patch_size=(1, 2, 2), n_frames=5, height=32, width=32,
        rope={"3d": Rope(dims=(20, 22, 22))},
    )  # fmt: skip
    ours = HookedVideoDiT(cfg).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.05)
    plain = PlainDiT(cfg).eval()
    plain.copy_from(ours)
    latents, levels = torch.randn(1, 5, 4, 32, 32), torch.randint(0, 1000, (1, 5))

    with torch.inference_mode():
        difference = (ours(latents, levels) - plain(latents, levels)).abs().max().item()
        if difference > 1e-4:
            raise SystemExit(f"The two networks differ by {difference:.1e}; there is nothing to compare.")
        rows: dict[str, Callable[[], object]] = {
            "a  ours, no hooks": lambda: ours(latents, levels),
            "b  plain torch": lambda: plain(latents, levels),
            "c  ours, residuals cached": lambda: ours.run_with_cache(latents, levels, names=RESIDUALS),
            "d  ours, everything cached": lambda: ours.run_with_cache(latents, levels),
        }
        nnsight = with_nnsight(plain, latents, levels)
        if nnsight is None:
            print('nnsight is not installed, so its row is left out: pip install "vdinterp[bench]"', file=sys.stderr)
        else:
            saved = nnsight()
            assert saved == 3 * args.layers, saved
            rows["e  nnsight over b, residuals saved"] = nnsight
        times = interleaved(rows, args.rounds, args.warmup)

    tokens = ours.grid().n_tokens
    print(f"d{args.width}, {args.layers} layers, {tokens:,} tokens, {args.threads} thread(s), {args.rounds} rounds;")
    print(f"same weights, largest difference of the outputs {difference:.1e}\n")
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    about = {"settings": {**settings, "tokens": tokens}, "torch": torch.__version__, "difference": difference}
    write(args.out, about, report(times, "b  plain torch", "over b"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
