"""Composition from weights: how much of what one head writes another one reads, at a noise level and a displacement."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float

from vdinterp.models import HookedVideoDiT
from vdinterp.models.components.rope import rotate

Part = Literal["q", "k", "v"]
RANDOM = 20  # rotations of the stream that chance is measured with


@torch.no_grad()
def composition(
    model: HookedVideoDiT,
    sender: tuple[int, int],
    receiver: tuple[int, int],
    part: Part,
    *,
    noise_level: Any = 0,
    query_level: Any | None = None,
    displacement: tuple[int, int, int] = (0, 0, 0),
    seed: int = 0,
) -> dict[str, float]:
    """Q-, K- or V-composition of two heads (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

    `score = |W_OV M W| / (|W_OV| |M W|)` in Frobenius norms, with `W_OV` the sender's with its gate, `M` what the
    stream goes through up to the receiver's entrance (centring, the modulation's `1 + scale`, in the `normed` kind that
    of every sublayer between), and `W` what the receiver reads: `W_K R W_Q^T`, `W_Q R W_K^T` or its `W_OV`, with the
    rotation R of a displacement (key minus query, in frames, rows and columns). LayerNorm's own scale cancels.

    Returns `score`, `baseline` (mean over random rotations of the stream between the two) and `beyond` (the
    difference). 0 to 1; chance is the baseline, about `1 / sqrt(d_model)` for matrices of full rank, more for low rank.
    Misleads: it says what could be read, not what is; a large common direction makes everything compose.

    `noise_level`: of the frame whose stream is read, as the network receives it (for "q" that of the query, with
    `query_level` for the other side of "k").

    Raises ValueError where weights do not determine it: qk-norm, rotation over all heads at once, heads out of order.
    """
    if reason := undetermined(model):
        raise ValueError(f"{model.cfg.model_name}: {reason}")
    if sender[0] >= receiver[0]:
        raise ValueError(f"head {sender} does not write before {receiver} reads")
    if part not in ("q", "k", "v"):
        raise ValueError(f"part {part!r}; choose 'q', 'k' or 'v'")
    attn: Any = model.sublayer(sender[0])
    reader: Any = model.sublayer(receiver[0])
    slots = _modulations(model, noise_level)
    gate = slots.get(f"blocks.{sender[0]}.attn.mod.hook_gate")
    ov = attn.W_V[sender[1]].double() @ attn.W_O[sender[1]].double()
    if gate is not None:
        ov = ov * gate
    through = _through(model, sender[0], receiver[0], slots)
    other = slots if query_level is None else _modulations(model, query_level)
    read = through[:, None] * _read(model, reader, receiver, part, displacement, other)
    centred = read - read.mean(0, keepdim=True) if model.cfg.norm == "layer" else read
    norms = float(ov.norm() * centred.norm())
    score = float((ov @ centred).norm()) / norms
    generator = torch.Generator().manual_seed(seed)
    chance = []
    for _ in range(RANDOM):
        turn = torch.linalg.qr(torch.randn(len(centred), len(centred), generator=generator, dtype=torch.double)).Q
        chance.append(float((ov @ turn @ centred).norm()) / norms)
    baseline = sum(chance) / RANDOM
    return {"score": score, "baseline": baseline, "beyond": score - baseline}


def undetermined(model: HookedVideoDiT) -> str:
    """Why weights alone do not say what its heads read; empty where they do."""
    cfg = model.cfg
    if cfg.qk_norm is not None:
        return f"queries and keys are normalised ({cfg.qk_norm}), so products of weights do not say what attention does"
    if any(rope.over == "model" for rope in cfg.rope.values()):
        return "rotation runs over all heads together, so one head's weights do not say what it matches"
    return ""


def _read(
    model: HookedVideoDiT, reader: Any, receiver: tuple[int, int], part: Part, displacement: Any, other: Any
) -> Float[torch.Tensor, "d_model d_model"]:
    """What the receiver multiplies its input by, up to the input on the other side."""
    layer, head = receiver
    if part == "v":
        return reader.W_V[head].double() @ reader.W_O[head].double()
    turned = _rotated(model, layer, displacement)
    w_q, w_k = reader.W_Q[head].double(), reader.W_K[head].double()
    scale = 1 + other.get(f"blocks.{layer}.attn.mod.hook_scale", torch.zeros(len(w_q), dtype=torch.double))
    # scores = (x_q W_Q) . R(d) (x_k W_K)
    if part == "k":
        return w_k @ turned.T @ (w_q.T * scale)
    return w_q @ turned @ (w_k.T * scale)


def _rotated(model: HookedVideoDiT, layer: int, displacement: Any) -> Float[torch.Tensor, "d_head d_head"]:
    """`R` with `rotated q . rotated k = q R k` for a key that far from its query."""
    rope = model.cfg.rope.get(model.cfg.blocks[layer].axis)
    eye = torch.eye(model.cfg.d_head, dtype=torch.double)
    if rope is None:
        return eye
    rates: Any = model.rope[model.cfg.blocks[layer].axis].frequencies()  # type: ignore[operator,union-attr]
    angles = torch.cat([rate.double() * step for rate, step in zip(rates, displacement, strict=True)]).view(1, 1, 1, -1)
    turned = rotate(eye[None, :, None], rope, (angles.cos(), angles.sin()))  # every key channel, moved
    return turned[0, :, 0].T


def _modulations(model: HookedVideoDiT, level: Any) -> dict[str, torch.Tensor]:
    """Scale and gate of every sublayer for a frame at one noise level, float64."""
    cfg = model.cfg
    names = [name for name in model.hook_dict if name.endswith((".mod.hook_scale", ".mod.hook_gate"))]
    if not names:
        return {}
    blank = torch.zeros(1, 1, cfg.in_channels, cfg.height, cfg.width, device=model.device, dtype=model.dtype)
    k = torch.as_tensor(level, device=model.device).reshape(1, 1)
    text = torch.zeros(1, 1, cfg.d_text, device=model.device, dtype=model.dtype) if cfg.d_text else None
    with torch.no_grad():
        _, cache = model.run_with_cache(blank, k, text=text, names=names)
    return {name: cache[name][0, 0].double().cpu() for name in names}


def _through(
    model: HookedVideoDiT, start: int, stop: int, slots: dict[str, torch.Tensor]
) -> Float[torch.Tensor, " d_model"]:
    """What multiplies the stream between a layer's attention and the entrance of a later one."""
    factor = torch.ones(model.cfg.d_model, dtype=torch.double)
    between = []
    if model.cfg.residual == "normed":
        for layer in range(start, stop):
            between += [f"blocks.{layer}.{name}" for name in model.cfg.blocks[layer].sublayers]
        between = between[1:]
    for site in [*between, f"blocks.{stop}.attn"]:
        if (scale := slots.get(f"{site}.mod.hook_scale")) is not None:
            factor = factor * (1 + scale)
    return factor
