"""Configurations and the parts of the model, each against a naive formula or an exact property."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from factories import KINDS, inputs, tiny_model

from vdinterp.conditions import Conditions
from vdinterp.grid import TokenGrid
from vdinterp.models import BlockSpec, HookedVideoDiT, Rope, Sublayer, VideoDiTConfig
from vdinterp.models.components import RotaryEmbedding, rotate


def close(ours: torch.Tensor, naive: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, naive, atol=atol, rtol=1e-5)


# Configurations


@pytest.mark.parametrize("kind", KINDS)
def test_config_round_trip(kind: str) -> None:
    cfg = tiny_model(kind).cfg
    assert VideoDiTConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert len(cfg.blocks) == cfg.n_layers and (cfg.n_rows, cfg.n_cols) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual": "post"}, "'pre', 'normed'"),
        ({"residual": 1}, "'pre', 'normed'"),
        ({"norm": None}, "norm is None"),
        ({"d_model": 0}, "d_model"),
        ({"n_layers": 3, "period": (BlockSpec(), BlockSpec())}, "multiple"),
        ({"period": ()}, "multiple"),
        ({"patch_size": (2, 2, 2)}, "one frame"),
        ({"patch_size": (1, 3, 2)}, "do not divide"),
        ({"patch_size": (1, 0, 2)}, "at least 1"),
        ({"d_action": -1}, "d_action"),
        ({"rope": {"time": Rope(dims=(4, 4, 4))}}, "no attention to rotate"),
        ({"rope": {"3d": Rope(dims=(8, 4, 4))}}, "16 channels; there are 12"),
        ({"period": (BlockSpec(cross_attn=Sublayer()),)}, "d_text"),
    ],
)
def test_invalid_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sublayer(mod=None), "slots"),
        (lambda: Sublayer(mod=(0, 1, -2)), "three slots"),
        (lambda: BlockSpec(causal_block=-1), "frames"),
        (lambda: BlockSpec(axis="space", causal_block=1), "masks time"),
        (lambda: BlockSpec(axis="both"), "choose one"),  # type: ignore[arg-type]
        (lambda: Rope(dims=(3, 4, 4)), "even"),
        (lambda: Rope(dims=(0, 0, 0)), "rotate nothing"),
        (lambda: Rope(dims=(4, 4, 4), scale=(1.0, 2.0)), "3 finite numbers are wanted"),  # type: ignore[arg-type]
        (lambda: VideoDiTConfig.from_dict({**tiny_model().cfg.to_dict(), "d_modell": 3}), "unknown d_modell"),
        (lambda: VideoDiTConfig.from_dict({"d_model": 3}), "missing d_head"),
        (lambda: VideoDiTConfig.from_dict({**tiny_model().cfg.to_dict(), "rope": {"3d": {"dim": 3}}}), "Rope: unknown"),
    ],
)
def test_invalid_parts(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("3d", {"latents": torch.zeros(2, 3, 3, 4, 6)}, "do not fit"),
        ("3d", {"latents": torch.zeros(2, 3, 2, 4, 5)}, "do not divide"),
        ("3d", {"latents": torch.zeros(3, 2, 4, 6)}, "do not fit"),
        ("3d", {"latents": torch.zeros(2, 4, 2, 4, 6)}, r"one per frame is needed, \[2, 4\]"),
        ("3d", {"latents": torch.zeros(2, 3, 2, 4, 6).double()}, "float64"),
        ("3d", {"timestep": torch.zeros(2)}, "one per frame"),
        ("3d", {"timestep": torch.zeros(2, 2)}, "one per frame"),
        ("3d", {"cond": torch.zeros(2, 3, 3)}, "takes no actions"),
        ("3d", {"cond": Conditions(text=torch.zeros(2, 4, 5))}, "takes no text"),
        ("table", {"cond": torch.zeros(2, 3, 4)}, "one action a frame"),
        ("table", {"cond": Conditions(dropped=torch.zeros(3).bool())}, "one boolean a clip"),
        ("cross", {"cond": torch.zeros(2, 4, 6)}, "takes embeddings"),
        ("cross", {"cond": torch.zeros(1, 4, 5)}, "takes embeddings"),
        ("cross", {"cond": Conditions(text=torch.zeros(2, 4, 5), text_mask=torch.zeros(2, 4).bool())}, "any token"),
    ],
)
def test_bad_inputs(kind: str, change: dict[str, Any], message: str) -> None:
    model = tiny_model(kind)
    with pytest.raises(ValueError, match=message):
        model(**{**inputs(model), **change})


# Rotary positions

ROPES = [
    Rope(dims=(4, 4, 4), style="interleaved"),
    Rope(dims=(4, 4, 4), style="half"),
    Rope(dims=(4, 4, 4), style="half_axis"),
    Rope(dims=(4, 2, 4), style="interleaved", scale=(1.0, 2.0, 2.0), theta=(100.0, 50.0, 50.0)),
    Rope(dims=(8, 8, 8), style="half", over="model"),
    Rope(dims=(8, 6, 6), style="half_axis", over="model"),
    Rope(dims=(0, 6, 6), freqs="pixel", coords="linspace", theta=(1.0, 32.0, 32.0)),
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: f"{rope.style}-{rope.over}-{rope.coords}")
def test_rope_depends_on_displacement_only(rope: Rope) -> None:
    grid = TokenGrid(3, 4, 4)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 1, 1, 2, 12, generator=generator).expand(2, 1, grid.n_tokens, 2, 12)
    table = RotaryEmbedding(rope)(grid, vectors)
    q, k = (rotate(x, rope, table)[0] for x in vectors)
    close(q.flatten(1).norm(dim=-1), vectors[0, 0].flatten(1).norm(dim=-1))
    products = torch.einsum("q h e, k h e -> q k", q, k)
    values: dict[tuple[int, ...], list[float]] = {}
    for query in range(grid.n_tokens):
        for key in range(grid.n_tokens):
            values.setdefault(grid.displacement(query, key), []).append(products[query, key].item())
    spread = max(max(found) - min(found) for found in values.values())
    means = [found[0] for displacement, found in values.items() if displacement[0] == 0 or rope.dims[0]]
    assert spread < 1e-4 < 1e-2 < max(means) - min(means)


def test_rope_by_the_formula() -> None:
    """Channel pair (2i, 2i+1) of an axis turns by position * theta^(-2i/dim), spelled out in complex numbers."""
    rope, grid = Rope(dims=(4, 2, 4), theta=(100.0, 10.0, 50.0), scale=(1.0, 2.0, 3.0)), TokenGrid(2, 2, 3)
    x = torch.randn(1, grid.n_tokens, 1, 12, generator=torch.Generator().manual_seed(1))
    ours = rotate(x, rope, RotaryEmbedding(rope)(grid, x))
    naive = x.clone()
    for token in range(grid.n_tokens):
        start = 0
        for position, dim, theta, scale in zip(grid.coordinates(token), rope.dims, rope.theta, rope.scale, strict=True):
            for i in range(0, dim, 2):
                turn = torch.polar(torch.ones(()), torch.tensor(position * scale * theta ** (-i / dim)))
                pair = x[0, token, 0, start + i : start + i + 2]
                turned = torch.complex(pair[0], pair[1]) * turn
                naive[0, token, 0, start + i : start + i + 2] = torch.stack([turned.real, turned.imag])
            start += dim
    close(ours, naive)


# Norms, conditioning, residuals


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", ["head_rms", "head_layer", "full_rms", None])
def test_qk_norms(qk_norm: Any) -> None:
    model = tiny_model("table", qk_norm=qk_norm, qk_norm_eps=1e-3)
    _, cache = model.run_with_cache(**inputs(model))
    q, norm = cache["q", 0], model.blocks[0].attn.q_norm
    if qk_norm is None:
        naive = q
    elif qk_norm == "head_rms":
        naive = q / (q.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    elif qk_norm == "head_layer":
        centred = q - q.mean(-1, keepdim=True)
        naive = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight + norm.bias
    else:
        naive = q / (q.square().mean((-1, -2), keepdim=True) + 1e-3).sqrt() * norm.weight.view(2, 12)
    close(cache["rot_q", 0], naive)


def naive_forward(model: HookedVideoDiT, cond: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The stream after all blocks (3d attention, no rotation), in plain formulas."""
    cfg, n_frames = model.cfg, cond.shape[1]
    shared = model.shared_modulation.linear(F.silu(cond)) if model.shared_modulation is not None else None

    def tokens(per_frame: torch.Tensor) -> torch.Tensor:
        return per_frame.repeat_interleave(x.shape[1] // n_frames, dim=1)

    for block in model.blocks:
        slots = block.modulation.linear(F.silu(cond)) if shared is None else shared + block.modulation.table.flatten()
        slots = tokens(slots).chunk(6, dim=-1)
        for sublayer, (shift, scale, gate) in ((block.attn, slots[:3]), (block.mlp, slots[3:])):
            entered = F.layer_norm(x, (cfg.d_model,), eps=cfg.norm_eps) * (1 + scale) + shift
            if sublayer is block.mlp:
                out = F.gelu(entered @ block.mlp.W_in + block.mlp.b_in, approximate="tanh") @ block.mlp.W_out
                out = out + block.mlp.b_out
            else:
                out = sublayer.b_O.clone()
                for head in range(cfg.n_heads):
                    q, k, v = (
                        entered @ getattr(sublayer, f"W_{part}")[head] + getattr(sublayer, f"b_{part}")[head]
                        for part in "QKV"
                    )
                    out = out + (q @ k.mT / cfg.d_head**0.5).softmax(-1) @ v @ sublayer.W_O[head]
            x = (x if cfg.residual == "pre" else entered) + gate * out
    return x


@torch.no_grad()
@pytest.mark.parametrize("residual", ["pre", "normed"])
@pytest.mark.parametrize("modulation", ["mlp", "table"])
def test_against_plain_formulas(residual: Any, modulation: Any) -> None:
    model = tiny_model(residual=residual, modulation=modulation, rope={})
    _, cache = model.run_with_cache(**inputs(model))
    close(cache["resid_post", -1], naive_forward(model, cache["hook_cond"], cache["resid_pre", 0]), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("residual", ["pre", "normed"])
def test_the_stream_is_linear_in_its_parts(residual: Any) -> None:
    """With LayerNorm statistics frozen, the last stream is the sum of what every part becomes on its way there."""
    model = tiny_model(residual=residual)
    _, cache = model.run_with_cache(**inputs(model))
    parts = [cache["resid_pre", 0]]  # contributions to the stream so far, each carried along exactly
    shifts = torch.zeros_like(parts[0])  # what modulation itself added
    for layer in range(2):
        for sublayer in ("attn", "mlp"):
            if residual == "normed":
                scale, shift = (
                    cache[f"mod.{name}", layer, sublayer].repeat_interleave(6, dim=1) for name in ("scale", "shift")
                )

                def carry(part: torch.Tensor, layer=layer, sublayer=sublayer, scale=scale) -> torch.Tensor:
                    centred = part - part.mean(-1, keepdim=True)
                    return centred / cache["ln.scale", layer, sublayer] * (1 + scale)

                parts, shifts = [carry(part) for part in parts], carry(shifts) + shift
            parts.append(cache[f"{sublayer}_out", layer])
    close(sum(parts) + shifts, cache["resid_post", -1])
    assert len(parts) == 5 and min(part.abs().max() for part in parts) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("kind", "group"), [("causal", 1), ("space_time", 1), ("causal", 2)])
def test_nothing_flows_back_in_time(kind: str, group: int) -> None:
    period = {"period": (BlockSpec(causal_block=group),)} if kind == "causal" else {}
    model = tiny_model(kind, **period)
    given = inputs(model)
    before = model(**given)
    given["latents"][:, 2] += 1
    given["timestep"][:, 2] = 0
    after = model(**given)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2], after[:, 2])
    given["latents"][:, 0] += 1
    assert not torch.allclose(model(**given)[:, 1:], after[:, 1:])  # forward in time it does flow
    given["latents"][:, 1] += 1
    moved = (model(**given) - after)[:, 0].abs().max()
    assert moved > 0 if group == 2 else moved > 1e-4


@torch.no_grad()
def test_conditioning() -> None:
    model = tiny_model("table")
    given = inputs(model)
    bare = model(given["latents"], given["timestep"])
    dropped = model(**{**given, "cond": Conditions(actions=given["cond"], dropped=torch.tensor([True, False]))})
    full = model(**given)
    close(dropped[0], bare[0])
    assert torch.equal(dropped[1], full[1]) and not torch.allclose(full[0], bare[0])

    given["timestep"][:] = 0
    clean = model(**given)
    given["timestep"][:, 1] = -1
    assert torch.equal(model(**given), clean)  # a clean frame is embedded as level 0
    _, cache = model.run_with_cache(given["latents"], torch.tensor([[0, 500, 999]] * 2))
    for frame in range(3):
        alone = model.noise_embed(torch.tensor([[(0, 500, 999)[frame]]] * 2))
        close(cache["hook_noise_embed"][:, frame], alone[:, 0])

    fourier = tiny_model("causal")
    levels = torch.tensor([[-1.5, 0.25, 2.0]])
    naive = (levels[..., None] * fourier.noise_embed.freqs + fourier.noise_embed.phases).cos() * 2**0.5
    close(fourier.noise_embed.features(levels), naive)


@torch.no_grad()
def test_plain_blocks_need_no_modulation() -> None:
    plain = Sublayer("plain", None)
    for modulation in ("mlp", "table"):
        model = tiny_model(period=(BlockSpec(attn=plain, mlp=plain),), modulation=modulation)  # type: ignore[arg-type]
        assert torch.isfinite(model(**inputs(model))).all()
        assert not any("mod.hook_gate" in name for name in model.hook_names)


# Weight views


@torch.no_grad()
@pytest.mark.parametrize("kind", ["3d", "cross"])
def test_weight_views(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    _, cache = model.run_with_cache(**given)
    for sublayer in ("attn", "cross_attn") if kind == "cross" else ("attn",):
        attention = model.sublayer(1, sublayer)
        keys = given["cond"] if sublayer == "cross_attn" else cache["in", 1, sublayer]
        for part, source in (("Q", cache["in", 1, sublayer]), ("K", keys), ("V", keys)):
            weight, bias = getattr(attention, f"W_{part}"), getattr(attention, f"b_{part}")
            close(cache[part.lower(), 1, sublayer], torch.einsum("b p d, h d e -> b p h e", source, weight) + bias)
        out = torch.einsum("b p h e, h e d -> b p d", cache["z", 1, sublayer], attention.W_O) + attention.b_O
        close(cache["out", 1, sublayer], out)
    close(cache["pre", 0], cache["in", 0, "mlp"] @ model.W_in[0] + model.b_in[0])
    close(cache["out", 0, "mlp"], cache["post", 0] @ model.W_out[0] + model.b_out[0])
    assert model.W_Q.shape == model.W_K.shape == model.W_V.shape == (2, 2, 20, 12)
    assert model.W_O.shape == (2, 2, 12, 20) and model.b_Q.shape == (2, 2, 12) and model.b_O.shape == (2, 20)

    bare = model(**given)
    model.blocks[0].attn.W_Q[1] *= 0  # a layer's own view edits what is stored
    assert not torch.equal(model(**given), bare)
    with pytest.raises(ValueError, match="no b_Q"):
        _ = tiny_model("space_time").b_Q
    with pytest.raises(KeyError, match="has no 'cross_attn'"):
        tiny_model().sublayer(0, "cross_attn")


def test_initial_model_predicts_zero() -> None:
    """DiT's initialisation: closed gates and a zero last layer."""
    cfg = dataclasses.replace(tiny_model("normed").cfg, model_name="fresh")
    model = HookedVideoDiT(cfg)
    pred, cache = model.run_with_cache(**inputs(model))
    assert pred.abs().max() == 0 and cache["attn_out", 0].abs().max() == 0
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(p.numel() for p in model.parameters())
