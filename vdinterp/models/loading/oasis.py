"""Oasis 500M (Decart and Etched 2024; open-oasis `DiT`, MIT): spatial blocks alternating with causal temporal ones.

`config` holds the reference's constructor arguments: `input_h input_w patch_size in_channels hidden_size depth
num_heads mlp_ratio external_cond_dim max_frames`, or a mapping with those under "config".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vdinterp.checks.settings import pick
from vdinterp.models.components.rope import RotaryEmbedding
from vdinterp.models.config import BlockSpec, Rope, VideoDiTConfig
from vdinterp.models.loading.keys import KeyTable, head_width, linear, mlp_width
from vdinterp.models.loading.read import Tensors
from vdinterp.models.loading.values import check_dtypes, check_values

OASIS_500M = {
    "input_h": 18,
    "input_w": 32,
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 1024,
    "depth": 16,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "external_cond_dim": 25,
    "max_frames": 32,
}
PRESETS = {"OASIS_500M": OASIS_500M}


def convert_config(config: Mapping[str, Any]) -> VideoDiTConfig:
    """One reference block is two of ours, so `n_layers` is twice its depth."""
    inner = config.get("config", config) if isinstance(config, Mapping) else config
    hints: dict[str, Any] = {name: float if name == "mlp_ratio" else int for name in OASIS_500M}
    config = pick(inner, "An oasis configuration", hints)
    d_model, n_heads, patch = config["hidden_size"], config["num_heads"], config["patch_size"]
    d_head = head_width(d_model, n_heads)
    return VideoDiTConfig(
        model_name="oasis",
        d_model=d_model,
        n_layers=2 * config["depth"],
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=mlp_width(d_model, config["mlp_ratio"]),
        in_channels=config["in_channels"],
        out_channels=config["in_channels"],
        patch_size=(1, patch, patch),
        n_frames=config["max_frames"],
        height=config["input_h"],
        width=config["input_w"],
        period=(BlockSpec(axis="space"), BlockSpec(axis="time", causal_block=1)),
        qkv_bias=False,
        rope={
            "space": Rope(
                dims=(0, d_head // 2, d_head // 2), theta=(1.0, 256.0, 256.0), freqs="pixel", coords="linspace"
            ),
            "time": Rope(dims=(d_head, 0, 0)),
        },
        d_action=config["external_cond_dim"],
        action_embed="linear",
    )


def prepare(cfg: VideoDiTConfig, source: Tensors) -> Tensors:
    """The rotary frequencies are stored with the weights; they must be those that `Rope` computes."""
    computed = {axis: RotaryEmbedding(rope).frequencies() for axis, rope in cfg.rope.items()}
    expected = {"s": computed["space"][1], "t": computed["time"][0]}
    stored = [key for key in source if key.endswith("rotary_emb.freqs")]
    what = "the checkpoint for oasis"
    check_dtypes({key: source.outline[key] for key in stored}, what)
    for key in stored:
        tensor, rates = source[key], expected["s" if "spatial" in key or ".s_attn." in key else "t"]
        check_values(key, tensor, what)
        # A checkpoint cast to half precision holds them rounded.
        rtol = max(1e-5, torch.finfo(tensor.dtype).eps)
        if tensor.shape != rates.shape or not torch.allclose(tensor.float(), rates, rtol=rtol):
            raise ValueError(f"{key} holds other rotary frequencies than Oasis's: {tensor.flatten()[:4].tolist()} ...")
    return source.renamed({key: key for key in source if key not in stored})


def key_table(cfg: VideoDiTConfig, source: Tensors) -> KeyTable:
    table = {
        **linear("patch_embed.proj", "x_embedder.proj"),
        **linear("noise_embed.linear_1", "t_embedder.mlp.0"),
        **linear("noise_embed.linear_2", "t_embedder.mlp.2"),
        **(linear("action_embed.linear_1", "external_cond") if cfg.d_action else {}),
        **linear("final.modulation.linear", "final_layer.adaLN_modulation.1"),
        **linear("final.linear", "final_layer.linear"),
    }
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"blocks.{layer // 2}.{'st'[layer % 2]}"
        table |= linear(f"{ours}.modulation.linear", f"{theirs}_adaLN_modulation.1")
        table |= linear(f"{ours}.attn.qkv", f"{theirs}_attn.to_qkv", bias=False)
        table |= linear(f"{ours}.attn.proj", f"{theirs}_attn.to_out")
        table |= linear(f"{ours}.mlp.fc1", f"{theirs}_mlp.fc1")
        table |= linear(f"{ours}.mlp.fc2", f"{theirs}_mlp.fc2")
    return table
