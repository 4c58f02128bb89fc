"""Small models with random weights everywhere, so that nothing is hidden behind a zero gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vdinterp.diffusion import DiffusionConfig, make_schedule
from vdinterp.models import BlockSpec, HookedVideoDiT, Rope, Sublayer, VideoDiTConfig

GOLDENS = Path(__file__).parent / "goldens"

KINDS: dict[str, dict[str, Any]] = {
    "3d": {"rope": {"3d": Rope(dims=(4, 4, 4))}},
    "normed": {"residual": "normed", "rope": {"3d": Rope(dims=(4, 4, 4))}},
    "space_time": {
        "period": (BlockSpec(axis="space"), BlockSpec(axis="time", causal_block=1)),
        "rope": {"space": Rope(dims=(0, 6, 6), coords="linspace"), "time": Rope(dims=(12, 0, 0))},
        "qkv_bias": False,
        "d_action": 3,
        "action_embed": "linear",
    },
    "table": {"modulation": "table", "qk_norm": "head_rms", "abs_pos": "learned_spatial", "d_action": 3},
    "cross": {
        "period": (BlockSpec(cross_attn=Sublayer("plain", None)),),
        "d_text": 5,
        "qk_norm": "full_rms",
        "norm": "rms",
        "rope": {"3d": Rope(dims=(4, 4, 4), over="model")},
    },
    "causal": {"period": (BlockSpec(causal_block=1),), "noise_embed": "fourier", "qk_norm": "head_layer"},
}


def tiny_model(kind: str = "3d", seed: int = 0, **settings: Any) -> HookedVideoDiT:
    """Two layers, two heads, 3 frames of 2 x 3 tokens; `kind` picks one of `KINDS`, `settings` override it."""
    sizes: dict[str, Any] = {
        "model_name": f"tiny-{kind}", "d_model": 20, "n_layers": 2, "n_heads": 2, "d_head": 12, "d_mlp": 28,
        "in_channels": 2, "out_channels": 2, "patch_size": (1, 2, 2), "n_frames": 3, "height": 4, "width": 6,
        "noise_embed_dim": 16,
    }  # fmt: skip
    model = HookedVideoDiT(VideoDiTConfig(**{**sizes, **KINDS[kind], **settings}))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=generator) * (1 if "freqs" in name else 6))
    fourier = {"schedule": "cosine_simple_diffusion", "shift": 0.125, "precond_scale": 0.125}
    model.schedule = make_schedule(DiffusionConfig(**(fourier if model.cfg.noise_embed == "fourier" else {})))
    return model.eval()


def inputs(
    model: HookedVideoDiT, batch: int = 2, seed: int = 1, n_frames: int | None = None
) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward pass that uses everything the model takes."""
    cfg, generator = model.cfg, torch.Generator().manual_seed(seed)
    frames = cfg.n_frames if n_frames is None else n_frames
    given = {
        "latents": torch.randn(batch, frames, cfg.in_channels, cfg.height, cfg.width, generator=generator),
        "timestep": torch.randint(0, 1000, (batch, frames), generator=generator),
    }
    if cfg.d_action:
        given["cond"] = torch.randn(batch, frames, cfg.d_action, generator=generator)
    if cfg.d_text:
        given["cond"] = torch.randn(batch, 4, cfg.d_text, generator=generator)
    return given


def golden(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Settings, reference weights, and everything else that was recorded."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith("sd.")}
    return json.loads((GOLDENS / f"{name}.json").read_text()), weights, rest
