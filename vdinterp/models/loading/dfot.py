"""The Diffusion Forcing Transformer (Song et al. 2025, arXiv 2502.06764; `DiT3D`, MIT).

`config` holds the reference's `backbone` settings, `x_shape` [channel height width], `max_tokens` (frames) and
`external_cond_dim`. Published sizes: `K600` and `MCRAFT` below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vdinterp.models.config import Rope, VideoDiTConfig
from vdinterp.models.loading.keys import KeyTable, linear

_BACKBONE = {"name": "dit3d", "variant": "full", "pos_emb_type": "rope_3d", "mlp_ratio": 4.0}

K600 = {
    "backbone": {**_BACKBONE, "patch_size": 1, "hidden_size": 1152, "depth": 28, "num_heads": 16},
    "x_shape": [16, 16, 16],
    "max_tokens": 5,
    "external_cond_dim": 0,
}
MCRAFT = {
    "backbone": {
        **_BACKBONE,
        "patch_size": 2,
        "hidden_size": 768,
        "depth": 12,
        "num_heads": 12,
        "external_cond_dropout": 0.1,
        "use_fourier_noise_embedding": True,
    },
    "x_shape": [4, 32, 32],
    "max_tokens": 50,
    "external_cond_dim": 8,
}


def convert_config(config: Mapping[str, Any]) -> VideoDiTConfig:
    """Raises `ValueError` for backbones other than the full-attention `dit3d` with 3D rotary positions."""
    for key in ("backbone", "x_shape", "max_tokens"):
        if key not in config:
            raise ValueError(f"A dfot configuration needs backbone, x_shape and max_tokens; {key!r} is missing.")
    backbone = config["backbone"]
    missing = {"hidden_size", "depth", "num_heads", "patch_size", "mlp_ratio"} - backbone.keys()
    if missing:
        raise ValueError(f"config['backbone'] lacks {', '.join(sorted(missing))}.")
    if len(config["x_shape"]) != 3:
        raise ValueError(f"x_shape is [channel, height, width]; got {list(config['x_shape'])}.")
    for key, supported in (("name", "dit3d"), ("variant", "full"), ("pos_emb_type", "rope_3d")):
        if backbone.get(key, supported) != supported:
            raise ValueError(f"backbone.{key} is {backbone[key]!r}; this converter reads {supported!r}.")
    channels, height, width = config["x_shape"]
    d_model, n_heads, patch = backbone["hidden_size"], backbone["num_heads"], backbone["patch_size"]
    d_head = d_model // n_heads
    return VideoDiTConfig(
        model_name=config.get("model_name", "dfot"),
        d_model=d_model,
        n_layers=backbone["depth"],
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=int(d_model * backbone["mlp_ratio"]),
        in_channels=channels,
        out_channels=channels,
        patch_size=(1, patch, patch),
        n_frames=config["max_tokens"],
        height=height,
        width=width,
        residual="normed",
        rope={"3d": Rope(dims=rope_dims(d_head))},
        noise_embed="fourier" if backbone.get("use_fourier_noise_embedding") else "sinusoidal",
        d_action=config.get("external_cond_dim", 0),
    )


def rope_dims(d_head: int) -> tuple[int, int, int]:
    """Rotary channels of (frame, row, col): even thirds, with rows and columns always alike."""
    third, left = divmod(d_head // 2, 3)
    frame, space = third + (left == 1), third + (left == 2)
    return 2 * frame, 2 * space, 2 * space


def prepare(cfg: VideoDiTConfig, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Strip the prefixes of Lightning and `torch.compile`; set aside the latent statistics, which are no weights."""
    prefix = "diffusion_model.model."
    stripped = {key.replace("_orig_mod.", "").removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    if len(stripped) < len(state_dict):
        raise ValueError("The checkpoint holds the same weight under two names, with and without a prefix.")
    return {key: tensor for key, tensor in stripped.items() if key not in ("data_mean", "data_std")}


def key_table(cfg: VideoDiTConfig, source: Mapping[str, torch.Tensor]) -> KeyTable:
    embedding = "noise_level_pos_embedding"
    table = {
        **linear("patch_embed.proj", "patch_embedder.proj"),
        **linear("noise_embed.linear_1", f"{embedding}.embedding.linear_1"),
        **linear("noise_embed.linear_2", f"{embedding}.embedding.linear_2"),
        **linear("final.modulation.linear", "dit_base.final_layer.norm_final.modulation.1"),
        **linear("final.linear", "dit_base.final_layer.linear"),
    }
    if cfg.noise_embed == "fourier":
        table |= {f"noise_embed.{part}": (f"{embedding}.timesteps.{part}",) for part in ("freqs", "phases")}
    if cfg.d_action:
        # With condition dropout the reference wraps the embedding in one more module.
        wrapped = "external_cond_embedding.embedding.linear_1.weight" in source
        action = "external_cond_embedding" + (".embedding" if wrapped else "")
        table |= linear("action_embed.linear_1", f"{action}.linear_1")
        table |= linear("action_embed.linear_2", f"{action}.linear_2")
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"dit_base.blocks.{layer}"
        table |= linear(f"{ours}.modulation.linear", f"{theirs}.norm1.modulation.1", f"{theirs}.norm2.modulation.1")
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            table |= linear(f"{ours}.{part}", f"{theirs}.{part}")
    return table
