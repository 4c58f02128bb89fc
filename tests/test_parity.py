"""Our models against recorded runs of the reference code: outputs, every inner activation, and proof of sharpness.

The recorded weights are hot: they magnify rounding, so that one CPU's float32 kernels (products, `exp`) differ from
another's by more than 1e-5 here and there. On the CPU of the recording the worst error is 8e-6. Elsewhere, more than
1e-5 is accepted up to what rounding does to that activation on the CPU at hand, measured with the same model: float32
against float64. The noise embedding, whose `exp` is multiplied by levels up to 999, is judged by itself; for the rest
of the network the recorded one is put in its place.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import pytest
import torch
from factories import golden
from safetensors.torch import save_file
from torch import nn

import vdinterp as vd
from vdinterp.conditions import Conditions
from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.models.config import Rope
from vdinterp.models.loading import convert_config, dfot, read_checkpoint

ATOL = 1e-5
FAMILY = {"dfot_golden": "dfot", "dfot_mcraft_golden": "dfot", "oasis_golden": "oasis"}


def build(name: str) -> tuple[HookedVideoDiT, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    config, weights, recorded = golden(name)
    model = HookedVideoDiT.from_state_dict(FAMILY[name], config, weights)
    given = {"latents": recorded["in.x"], "timestep": recorded.get("in.noise_levels", recorded.get("in.t"))}
    if "in.external_cond" in recorded:
        given["cond"] = recorded["in.external_cond"]
    return model, given, recorded


Errors = dict[str, float]


def activations(name: str, model: HookedVideoDiT, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our counterpart of everything that was recorded, by the reference's names, given its noise embedding."""
    _, _, recorded = golden(name)
    theirs = recorded["act.t_embedder" if name == "oasis_golden" else "act.noise_level_pos_embedding"]
    fixed = vd.Custom("hook_noise_embed", lambda ours, hook: theirs.view(ours.shape).to(ours))
    with model.intervene(fixed):
        ours = {"out.y": model(**given)}
        if name == "oasis_golden":  # its activations were recorded in the call without actions
            given = {key: value for key, value in given.items() if key != "cond"}
        _, cache = model.run_with_cache(**given)
    find = dfot_activation if FAMILY[name] == "dfot" else oasis_activation
    keys = [key for key in recorded if key.startswith(("act.", "rope.")) and not key.endswith(".timesteps")]
    return ours | {key: find(key, model, cache, given) for key in keys}


def double(model: HookedVideoDiT, given: dict[str, torch.Tensor]) -> tuple[HookedVideoDiT, dict[str, torch.Tensor]]:
    return model.double(), {key: value.double() if value.is_floating_point() else value for key, value in given.items()}


@functools.cache
def rounding(name: str) -> Errors:
    """How far rounding alone moves each activation on this machine."""
    model, given, _ = build(name)
    with torch.no_grad():
        single = activations(name, model, given)
        exact = activations(name, *double(model, given))
    return {key: (single[key] - exact[key]).abs().max().item() for key in exact}


@functools.cache
def rounding_of_the_whole(name: str) -> float:
    """How far rounding moves the prediction: also that of frequencies, by one unit in the last place."""
    model, given, _ = build(name)
    with torch.no_grad():
        single = model(**given)
        model, given = double(model, given)
        levels = given.pop("timestep")
        down, exact, up = (model(timestep=levels * (1 + ulp), **given) for ulp in (-(2**-23), 0.0, 2**-23))
    return max((run - exact).abs().max().item() for run in (single, down, up))


def bound(name: str) -> float:
    return max(ATOL, rounding_of_the_whole(name))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(ours, theirs, atol=bound(name), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("path", ["fused", "explicit"])
@pytest.mark.parametrize("name", FAMILY)
def test_output(name: str, path: str) -> None:
    model, given, recorded = build(name)
    if path == "explicit":
        pred, _ = model.run_with_cache(**given, names="pattern")
    else:
        pred = model(**given)
    assert_same(pred, recorded["out.y"], name)


@pytest.mark.parametrize("name", FAMILY)
def test_rounding_is_small_beside_any_mistake(name: str) -> None:
    print(f"{name}: {rounding_of_the_whole(name):.1e}, inner {max(rounding(name).values()):.1e}")
    assert rounding_of_the_whole(name) < 1e-4 and max(rounding(name).values()) < 2e-4


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILY)
def test_noise_embedding(name: str) -> None:
    model, given, recorded = build(name)
    levels = given["timestep"].float()
    features = model.noise_embed.features(levels)
    last_place = (model.noise_embed.features(levels * (1 + 2**-23)) - features).abs()
    if "act.noise_level_pos_embedding.timesteps" in recorded:
        error = (features - recorded["act.noise_level_pos_embedding.timesteps"].view(features.shape)).abs()
        assert (error <= torch.clamp(2 * last_place, min=ATOL)).all(), error.max()
    theirs = recorded["act.t_embedder" if name == "oasis_golden" else "act.noise_level_pos_embedding"]
    ours = model.noise_embed(given["timestep"])
    torch.testing.assert_close(ours, theirs.view(ours.shape), atol=2 * ATOL, rtol=0)


@torch.no_grad()
def test_shorter_clip_and_dropped_actions() -> None:
    model, given, recorded = build("dfot_golden")
    assert_same(model(given["latents"][:, :3], given["timestep"][:, :3]), recorded["out.y_first3"], "dfot_golden")

    model, given, recorded = build("dfot_mcraft_golden")
    masked = model(**{**given, "cond": Conditions(actions=given["cond"], dropped=recorded["in.external_cond_mask"])})
    assert_same(masked, recorded["out.y_masked_first"], "dfot_mcraft_golden")
    assert (masked - recorded["out.y"]).abs().max() > 1e-3

    model, given, recorded = build("oasis_golden")
    assert_same(model(given["latents"], given["timestep"]), recorded["out.y_nocond"], "oasis_golden")


def dfot_activation(key: str, model: HookedVideoDiT, cache: ActivationCache, given: dict) -> torch.Tensor:
    """What the reference calls `key`, from our cache."""
    block = re.fullmatch(r"act\.dit_base\.blocks\.(\d+)(?:\.(.*))?", key)
    if block is not None:
        layer, part = int(block[1]), block[2]
        sublayer = {"1": "attn", "2": "mlp"}.get((part or "").removeprefix("norm")[:1], "attn")
        if part is None:
            return cache["resid_post", layer]
        if part == "attn.qkv":
            return torch.cat([cache[which, layer].flatten(2) for which in "qkv"], dim=-1)
        if part in ("attn", "mlp"):
            return cache["out", layer, part]
        if part.endswith(".gate"):
            gate = cache["mod.gate", layer, sublayer]
            return gate.repeat_interleave(cache.grid.tokens_per_frame, dim=1)
        return cache["in", layer, sublayer]
    if key == "act.dit_base.final_layer":
        return model.final.linear(cache["final.hook_in"])
    if key == "act.patch_embedder":
        return cache["hook_patch_embed"].unflatten(1, (cache.grid.n_frames, -1)).flatten(0, 1)
    if key == "act.external_cond_embedding":
        assert model.action_embed is not None
        return model.action_embed(given["cond"], None)
    if key == "act.noise_level_pos_embedding.timesteps":
        return model.noise_embed.features(given["timestep"])
    if key == "act.noise_level_pos_embedding":
        return cache["hook_noise_embed"]
    assert key == "rope.freqs"
    return model.rope["3d"].angles(cache.grid).repeat_interleave(2, dim=-1)


def oasis_activation(key: str, model: HookedVideoDiT, cache: ActivationCache, given: dict) -> torch.Tensor:
    grid = cache.grid
    block = re.fullmatch(r"act\.blocks\.(\d+)(?:\.([st])_(attn|mlp))?", key)
    if block is not None:
        first = 2 * int(block[1])
        if block[2] is None:
            ours = cache["resid_post", first + 1]
        else:
            ours = cache["out", first + "st".index(block[2]), block[3]]
        return ours.unflatten(1, grid.shape)
    if key == "act.final_layer":
        return model.final.linear(cache["final.hook_in"]).unflatten(1, grid.shape)
    if key == "act.x_embedder":
        return cache["hook_patch_embed"].unflatten(1, grid.shape).flatten(0, 1)
    if key in ("act.c", "act.t_embedder"):
        return cache["hook_cond" if key == "act.c" else "hook_noise_embed"].flatten(0, 1)
    angles = model.rope["space" if key == "rope.spatial_axial" else "time"].angles(grid).repeat_interleave(2, dim=-1)
    angles = angles.unflatten(0, grid.shape)
    return angles[0] if key == "rope.spatial_axial" else angles[:, 0, 0]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILY)
def test_every_recorded_activation(name: str) -> None:
    model, given, recorded = build(name)
    ours = activations(name, model, given)
    assert len(ours) >= 5
    worst = {}
    for key, activation in ours.items():
        assert activation.shape == recorded[key].shape, key
        worst[key] = (activation - recorded[key]).abs().max().item()
    allowed = {key: max(ATOL, 2 * error) for key, error in rounding(name).items()}
    beyond = {key: (error, allowed[key]) for key, error in worst.items() if error > allowed[key]}
    print(f"{name}: worst {max(worst.values()):.1e}, {sum(e > ATOL for e in worst.values())} above {ATOL}")
    assert not beyond, beyond


# The check is sharp: each plausible mistake fails it.


def wrong_eps(model: HookedVideoDiT) -> None:
    for module in model.modules():
        if hasattr(module, "eps") and hasattr(module, "hook_normalized"):
            module.eps = 1e-5


def exact_gelu(model: HookedVideoDiT) -> None:
    for block in model.blocks:
        block.mlp.approximate = "none"


def swapped_chunks(model: HookedVideoDiT) -> None:
    for block in model.blocks:
        for sublayer in (block.attn, block.mlp):
            shift, scale, gate = (sublayer.mod.slots[name] for name in ("shift", "scale", "gate"))
            sublayer.mod.slots = {"shift": scale, "scale": shift, "gate": gate}


def pre_residual(model: HookedVideoDiT) -> None:
    for block in model.blocks:
        block.residual = "pre"


def other_rope(model: HookedVideoDiT, **changes: object) -> None:
    for axis, embedding in model.rope.items():
        embedding.rope = dataclasses.replace(embedding.rope, **changes)
        for block in model.blocks:
            if block.axis == axis:
                block.attn.rope = embedding.rope


def wrong_split(model: HookedVideoDiT) -> None:
    first, second, third = model.cfg.rope["3d"].dims
    other_rope(model, dims=(second, first, third) if first != second else (first + 4, second - 2, third - 2))


def sine_first(model: HookedVideoDiT) -> None:
    features = model.noise_embed.features
    half = model.cfg.noise_embed_dim // 2
    model.noise_embed.features = lambda levels: features(levels).roll(half, dims=-1)


def wrong_unpatch(model: HookedVideoDiT) -> None:
    model.cfg = dataclasses.replace(model.cfg, unpatch_order="cpq")


def no_causality(model: HookedVideoDiT) -> None:
    for block in model.blocks:
        block.attn.causal_block = 0


def index_coordinates(model: HookedVideoDiT) -> None:
    embedding = model.rope["space"]
    embedding.rope = dataclasses.replace(embedding.rope, coords="index")


MUTATIONS: list[tuple[str, Callable[[HookedVideoDiT], None]]] = [
    ("dfot_golden", wrong_eps),
    ("dfot_golden", exact_gelu),
    ("dfot_golden", swapped_chunks),
    ("dfot_golden", pre_residual),
    ("dfot_golden", wrong_split),
    ("dfot_golden", lambda model: other_rope(model, style="half")),
    ("dfot_golden", lambda model: other_rope(model, style="half_axis")),
    ("dfot_golden", sine_first),
    ("dfot_golden", wrong_unpatch),
    ("oasis_golden", wrong_eps),
    ("oasis_golden", exact_gelu),
    ("oasis_golden", swapped_chunks),
    ("oasis_golden", no_causality),
    ("oasis_golden", index_coordinates),
    ("oasis_golden", wrong_unpatch),
]
MUTATION_IDS = [
    f"{name}-{'half' if i == 5 else 'half_axis' if i == 6 else change.__name__}"
    for i, (name, change) in enumerate(MUTATIONS)
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "change"), MUTATIONS, ids=MUTATION_IDS)
def test_a_mistake_fails_parity(name: str, change: Callable[[HookedVideoDiT], None]) -> None:
    model, given, recorded = build(name)
    change(model)
    error = (model(**given) - recorded["out.y"]).abs().max().item()
    print(f"{name} {change.__name__}: {error:.1e}")
    assert error > 2 * bound(name)


# Published sizes, and what a checkpoint may look like.


@pytest.mark.parametrize(("config", "millions"), [(dfot.K600, 673.66), (dfot.MCRAFT, 130.13)], ids=["K600", "MCRAFT"])
def test_published_parameter_counts(config: dict, millions: float) -> None:
    with torch.device("meta"):
        model = HookedVideoDiT(convert_config("dfot", config))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def lightning(weights: dict[str, torch.Tensor]) -> dict:
    renamed = {f"diffusion_model._orig_mod.model.{key}": tensor for key, tensor in weights.items()}
    return {"state_dict": renamed, "epoch": 3, "global_step": 7, "loops": {}, "pytorch-lightning_version": "2.4"}


@torch.no_grad()
def test_lightning_checkpoint_round_trip(tmp_path) -> None:
    config, weights, recorded = golden("dfot_golden")
    torch.save(lightning(weights), tmp_path / "model.ckpt")
    save_file(weights, tmp_path / "model.safetensors")
    for path in ("model.ckpt", "model.safetensors"):
        model = HookedVideoDiT.from_state_dict("dfot", config, read_checkpoint(tmp_path / path))
        assert_same(model(recorded["in.x"], recorded["in.noise_levels"]), recorded["out.y"], "dfot_golden")


@pytest.mark.parametrize("name", FAMILY)
def test_every_key_counts(name: str) -> None:
    """Each single key that is missing raises, whichever it is; only Oasis's stored frequencies are optional."""
    config, weights, _ = golden(name)
    for key in weights:
        if key.endswith("rotary_emb.freqs"):
            continue
        with pytest.raises(ValueError, match=re.escape(key.rpartition("embedding.")[2])):
            HookedVideoDiT.from_state_dict(FAMILY[name], config, {k: v for k, v in weights.items() if k != key})


def test_unknown_and_misshapen_keys() -> None:
    config, weights, _ = golden("dfot_golden")
    key = "dit_base.blocks.0.attn.qkv.weight"
    wrong = {
        "diffusion_model.stray": ({**weights, "diffusion_model.stray": torch.zeros(1)}, "1 unknown: diffusion_model"),
        "transposed": ({**weights, key: weights[key].t().contiguous()}, "another architecture"),
        "scalar": ({**weights, key: torch.tensor(1.0)}, "another architecture"),
        "twice": ({**weights, f"diffusion_model.model.{key}": weights[key]}, "two names"),
    }
    for given, message in wrong.values():
        with pytest.raises(ValueError, match=message):
            HookedVideoDiT.from_state_dict("dfot", config, given)
    _, oasis, _ = golden("oasis_golden")
    with pytest.raises(ValueError, match=r"\d missing: .*\d unknown"):
        HookedVideoDiT.from_state_dict("dfot", config, oasis)
    smaller = {**config, "backbone": {**config["backbone"], "hidden_size": 32}}
    with pytest.raises(ValueError, match="another architecture"):
        HookedVideoDiT.from_state_dict("dfot", smaller, weights)
    config, oasis, _ = golden("oasis_golden")
    with pytest.raises(ValueError, match="rotary frequencies"):
        HookedVideoDiT.from_state_dict("oasis", config, {**oasis, "spatial_rotary_emb.freqs": torch.ones(4)})


def test_bad_configurations() -> None:
    with pytest.raises(ValueError, match="unknown family 'wan'"):
        convert_config("wan", {})
    with pytest.raises(ValueError, match="backbone"):
        convert_config("dfot", {"x_shape": [1, 2, 3], "max_tokens": 2})
    with pytest.raises(ValueError, match="num_heads"):
        convert_config("dfot", {**dfot.K600, "backbone": {"hidden_size": 3}})
    with pytest.raises(ValueError, match="x_shape"):
        convert_config("dfot", {**dfot.K600, "x_shape": [16, 16]})
    with pytest.raises(ValueError, match="'u_vit3d'"):
        convert_config("dfot", {**dfot.K600, "backbone": {**dfot.K600["backbone"], "name": "u_vit3d"}})
    with pytest.raises(ValueError, match="missing external_cond_dim"):
        convert_config("oasis", {"depth": 2})


class Stranger(nn.Module):
    """Something a weights-only load must refuse."""


def test_bad_checkpoint_files(tmp_path) -> None:
    _, weights, _ = golden("dfot_golden")
    with pytest.raises(FileNotFoundError, match="No checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")
    torch.save(lightning(weights), tmp_path / "whole.ckpt")
    save_file(weights, tmp_path / "whole.safetensors")
    for suffix in ("ckpt", "safetensors"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for n in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / f"cut.{suffix}").write_bytes(whole[:n])
            with pytest.raises(ValueError, match=r"cut\.") as caught:
                read_checkpoint(tmp_path / f"cut.{suffix}")
            assert "truncated" in str(caught.value), (suffix, n)
    (tmp_path / "text.ckpt").write_text("this is no checkpoint, it is a letter")
    with pytest.raises(ValueError, match="truncated, or another kind of file"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": weights, "callbacks": Stranger()}, tmp_path / "pickled.ckpt")
    with pytest.raises(ValueError, match="objects besides tensors"):
        read_checkpoint(tmp_path / "pickled.ckpt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no state dict"):
        read_checkpoint(tmp_path / "list.pt")


def test_naive_rope_agrees() -> None:
    """The split rule in words: a third of the half each, the remainder to time first, or to both space axes."""
    assert [dfot.rope_dims(d) for d in (12, 14, 16, 64, 72)] == [
        (4, 4, 4),
        (6, 4, 4),
        (4, 6, 6),
        (20, 22, 22),
        (24, 24, 24),
    ]
    assert Rope(dims=dfot.rope_dims(16)).dims == (4, 6, 6)
