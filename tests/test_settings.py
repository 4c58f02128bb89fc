"""Settings from files: types, limits, and what is said of a value that does not fit."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from factories import golden, tiny_model

from vdinterp.checks.settings import read_json
from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import BlockSpec, Rope, VideoDiTConfig
from vdinterp.models.loading import convert_config, dfot, oasis
from vdinterp.vae import LatentStats

CFG = tiny_model("3d").cfg.to_dict()
NAN = float("nan")


def with_config(**changes: Any) -> None:
    VideoDiTConfig.from_dict({**CFG, **changes})


def with_backbone(**changes: Any) -> None:
    config = golden("dfot_golden")[0]
    convert_config("dfot", {**config, "backbone": {**config["backbone"], **changes}})


@pytest.mark.parametrize("value", ["4", True, 4.0, None, [4], [[[[4]]]], NAN, float("inf"), {}, 10**9, -1])
@pytest.mark.parametrize("name", ["n_layers", "d_model", "d_head", "height", "noise_embed_dim"])
def test_counts_are_whole_numbers_within_reason(name, value):
    with pytest.raises(ValueError, match=name):
        with_config(**{name: value})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: with_config(patch_size=[1, 2]), r"VideoDiTConfig.patch_size is \[1, 2\]; 3 whole numbers are wanted"),
        (lambda: with_config(patch_size=2), "patch_size is 2; 3 whole numbers"),
        (lambda: with_config(patch_size=[1, 2, 2.0]), "patch_size"),
        (lambda: with_config(norm_eps=-1e-6), "norm_eps is added to a variance"),
        (lambda: with_config(norm_eps=NAN), "norm_eps is nan; a finite number is wanted"),
        (lambda: with_config(qk_norm_eps="1e-6"), "qk_norm_eps is '1e-6'"),
        (lambda: with_config(qkv_bias=1), "qkv_bias is 1; True or False"),
        (lambda: with_config(model_name=3), "model_name is 3; a text"),
        (lambda: with_config(act_fn="relu"), r"act_fn is 'relu'; choose one of \['gelu_tanh', 'gelu'\]"),
        (lambda: with_config(residual=None), "residual is None; choose one of"),
        (lambda: with_config(act_fn=["gelu"]), "act_fn is"),
        (lambda: with_config(n_heads=10**5, d_head=10**5), r"n_heads \* d_head"),
        (lambda: with_config(rope=None), "rope is None; a dictionary of Ropes by name"),
        (lambda: with_config(rope={"3d": [4, 4, 4]}), "rope is"),
        (lambda: with_config(rope={"3d": {"dims": [4, 4]}}), r"Rope.dims is \[4, 4\]"),
        (lambda: with_config(rope={"3d": {"dims": [4, 4, 4], "theta": [0, 1e4, 1e4]}}), "Rope.theta .* above 0"),
        (lambda: with_config(rope={"3d": {"dims": [4, 4, 4], "scale": [NAN, 1, 1]}}), "Rope.scale"),
        (lambda: with_config(rope={"3d": {"dim": [4, 4, 4]}}), "Rope: unknown dim"),
        (lambda: with_config(rope={"3d": {}}), "Rope: missing dims"),
        (lambda: with_config(period=[3]), "period is .*; a list of BlockSpecs"),
        (lambda: with_config(period=[{"axis": ["3d"]}]), "BlockSpec.axis"),
        (lambda: with_config(period=[{"attn": {"mod": [0, 1, 10**9]}}]), "Sublayer.mod"),
        (lambda: with_config(d_modle=3), "unknown d_modle; there are model_name, d_model"),
        (lambda: VideoDiTConfig.from_dict([1]), "VideoDiTConfig is .* dictionary"),  # type: ignore[arg-type]
        (lambda: VideoDiTConfig.from_dict({"d_model": 8}), "missing d_head"),
        (lambda: DiffusionConfig.from_dict({"n_levels": "1000"}), "n_levels is '1000'"),
        (lambda: DiffusionConfig.from_dict({"n_levels": 10**9}), "n_levels"),
        (lambda: DiffusionConfig.from_dict({"clip": NAN}), "clip is nan"),
        (lambda: DiffusionConfig.from_dict({"precond_scale": [1]}), "precond_scale is .*; a finite number or None"),
        (lambda: DiffusionConfig.from_dict({"zero_terminal_snr": 0}), "zero_terminal_snr"),
        (lambda: DiffusionConfig.from_dict({"shift": 1e308}), "shift must be a positive number, at most"),
        (lambda: LatentStats.from_dict(None), "LatentStats is None; a dictionary"),  # type: ignore[arg-type]
        (lambda: LatentStats.from_dict({"mean": "12", "std": "12"}), "mean is '12'"),
        (lambda: LatentStats.from_dict({"mean": [0]}), "missing std"),
        (lambda: LatentStats((NAN,), (1.0,)), "mean is"),
        (lambda: LatentStats((0.0,), (NAN,)), "std is"),
        (lambda: LatentStats((0.0,), (float("inf"),)), "std is"),
        (lambda: with_backbone(hidden_size="64"), r"config\['backbone'\]: hidden_size is '64'"),
        (lambda: with_backbone(depth=10**9), "n_layers"),
        (lambda: with_backbone(num_heads=0), "hidden_size 64 does not divide into num_heads 0"),
        (lambda: with_backbone(num_heads=3), "does not divide"),
        (lambda: with_backbone(mlp_ratio=NAN), "mlp_ratio is nan"),
        (lambda: with_backbone(mlp_ratio=1e308), "mlp_ratio is 1e.308"),
        (lambda: with_backbone(use_fourier_noise_embedding="yes"), "use_fourier_noise_embedding is 'yes'"),
        (lambda: convert_config("dfot", {**dfot.K600, "backbone": [1]}), "backbone is .* dictionary"),
        (lambda: convert_config("dfot", {**dfot.K600, "max_tokens": None}), "max_tokens is None"),
        (lambda: convert_config("oasis", {**oasis.OASIS_500M, "input_h": [18]}), "input_h is"),
        (lambda: convert_config("oasis", {"config": None}), "dictionary is wanted"),
        (lambda: convert_config("dfot", "K601"), "no published configuration 'K601'; there are K600, MCRAFT"),
    ],
)
def test_a_value_that_does_not_fit_is_named(make, says):
    with pytest.raises(ValueError, match=says) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_plain_data_comes_back_as_the_same_settings():
    for cfg in (tiny_model(kind).cfg for kind in ("3d", "space_time", "cross", "table")):
        assert VideoDiTConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    diffusion = DiffusionConfig("flow", "flow", precond_scale=1000.0)
    assert DiffusionConfig.from_dict(json.loads(json.dumps(diffusion.to_dict()))) == diffusion


@pytest.mark.parametrize("text", ["{", "\xff", "[" * 100_000, '{"a": ' + "1" * 10_000 + "}"])
def test_files_that_are_no_json(tmp_path, text):
    (tmp_path / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="is no JSON"):
        read_json(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("settings", "blind"),
    [
        ({}, ["frames", "rows", "columns"]),
        ({"rope": {"3d": Rope(dims=(0, 6, 6))}}, ["frames"]),
        ({"abs_pos": "learned_spatial"}, ["frames"]),
        ({"abs_pos": "learned_spatial", "period": (BlockSpec(causal_block=1),)}, []),
        ({"rope": {"3d": Rope(dims=(4, 4, 4))}}, []),
        ({"n_frames": 1, "abs_pos": "learned_spatial"}, []),
        ({"abs_pos": "none"}, []),
    ],
)
def test_a_network_without_positions_says_so(caplog, settings, blind):
    with caplog.at_level(logging.WARNING, "vdinterp"):
        cfg = VideoDiTConfig.from_dict({**CFG, "rope": {}, **settings})
    assert cfg.unplaced_axes == blind
    assert [bool(blind)] == [any("no positions along its" in text for text in caplog.messages)]
    assert all(axis in caplog.text for axis in blind)


@torch.no_grad()
def test_axes_without_positions_are_those_whose_order_does_not_matter():
    """What `unplaced_axes` says, against the network itself."""
    latents = torch.randn(1, 3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    levels = torch.full((1, 3), 500)
    for settings in ({"rope": {}}, {"rope": {}, "abs_pos": "learned_spatial"}, {"rope": {"3d": Rope(dims=(0, 6, 0))}}):
        model = tiny_model("3d", **settings)
        pred = model(latents, levels)
        for axis, dim, order in (
            ("frames", 1, [2, 0, 1]),
            ("rows", 3, [2, 3, 0, 1]),
            ("columns", 4, [4, 5, 0, 1, 2, 3]),
        ):
            index = torch.tensor(order)
            moved = model(latents.index_select(dim, index), levels)
            same = torch.allclose(moved, pred.index_select(dim, index), atol=1e-4)
            assert same == (axis in model.cfg.unplaced_axes), (settings, axis)
