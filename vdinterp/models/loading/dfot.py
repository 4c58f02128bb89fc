"""The Diffusion Forcing Transformer (Song et al. 2025, arXiv 2502.06764; `DiT3D`, MIT).

`config` holds the reference's `backbone` settings, `x_shape` [channel height width], `max_tokens` (frames),
`external_cond_dim` and, for latents, `data_mean` and `data_std`. Published ones: `K600` and `MCRAFT` below; their
checkpoints hold no statistics of the latents, so those of the reference's dataset configurations stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdinterp.checks.settings import pick
from vdinterp.models.config import Rope, VideoDiTConfig
from vdinterp.models.loading.keys import KeyTable, head_width, linear, mlp_width
from vdinterp.models.loading.read import Tensors


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split()]


_BACKBONE = {"name": "dit3d", "variant": "full", "pos_emb_type": "rope_3d", "mlp_ratio": 4.0}

K600 = {
    "backbone": {**_BACKBONE, "patch_size": 1, "hidden_size": 1152, "depth": 28, "num_heads": 16},
    "x_shape": [16, 16, 16],
    "max_tokens": 5,
    "external_cond_dim": 0,
    "data_mean": _numbers(
        "-0.284 0.016 -0.728 -0.138 0.941 -2.504 0.147 -0.062 0.833 0.151 -0.627 0.269 0.268 -0.732 -1.598 0.199"
    ),
    "data_std": _numbers("5.591 5.257 7.033 6.401 6.091 11.233 5.608 7.5 5.277 5.46 5.179 6.8 5.474 5.111 7.078 5.024"),
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
    "data_mean": [0.557, 0.222, 0.416, -0.847],
    "data_std": [4.268, 4.953, 5.722, 7.336],
}
PRESETS = {"K600": K600, "MCRAFT": MCRAFT}


def convert_config(config: Mapping[str, Any]) -> VideoDiTConfig:
    """Raises `ValueError` for backbones other than the full-attention `dit3d` with 3D rotary positions."""
    given = pick(
        config,
        "A dfot configuration",
        {"backbone": Mapping, "x_shape": tuple[int, int, int], "max_tokens": int},
        external_cond_dim=int,
        model_name=str,
    )
    sizes = dict.fromkeys(("hidden_size", "depth", "num_heads", "patch_size"), int)
    backbone = given["backbone"]
    for key, supported in (("name", "dit3d"), ("variant", "full"), ("pos_emb_type", "rope_3d")):
        if backbone.get(key, supported) != supported:
            raise ValueError(f"backbone.{key} is {backbone[key]!r}; this converter reads {supported!r}.")
    backbone = pick(backbone, "config['backbone']", {**sizes, "mlp_ratio": float}, use_fourier_noise_embedding=bool)
    channels, height, width = given["x_shape"]
    d_model, n_heads, patch = backbone["hidden_size"], backbone["num_heads"], backbone["patch_size"]
    d_head = head_width(d_model, n_heads)
    return VideoDiTConfig(
        model_name=given.get("model_name", "dfot"),
        d_model=d_model,
        n_layers=backbone["depth"],
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=mlp_width(d_model, backbone["mlp_ratio"]),
        in_channels=channels,
        out_channels=channels,
        patch_size=(1, patch, patch),
        n_frames=given["max_tokens"],
        height=height,
        width=width,
        residual="normed",
        rope={"3d": Rope(dims=rope_dims(d_head))},
        noise_embed="fourier" if backbone.get("use_fourier_noise_embedding") else "sinusoidal",
        d_action=given.get("external_cond_dim", 0),
    )


def rope_dims(d_head: int) -> tuple[int, int, int]:
    """Rotary channels of (frame, row, col): even thirds, with rows and columns always alike."""
    third, left = divmod(d_head // 2, 3)
    frame, space = third + (left == 1), third + (left == 2)
    return 2 * frame, 2 * space, 2 * space


def prepare(cfg: VideoDiTConfig, source: Tensors) -> Tensors:
    """Strip the prefixes of Lightning and `torch.compile`; set aside the latent statistics, which are no weights."""
    prefix = "diffusion_model.model."
    stripped = {key.replace("_orig_mod.", "").removeprefix(prefix): key for key in source}
    if len(stripped) < len(source):
        raise ValueError("The checkpoint holds the same weight under two names, with and without a prefix.")
    return source.renamed({new: old for new, old in stripped.items() if new not in ("data_mean", "data_std")})


def key_table(cfg: VideoDiTConfig, source: Tensors) -> KeyTable:
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
