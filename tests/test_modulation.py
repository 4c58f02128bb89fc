"""The modulation atlas: what hooks of a forward pass show, at every level, for every action; and planted gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import inputs, tiny_model

import vdinterp as vd
from vdinterp.analysis.stream.modulation import ModulationAtlas, modulation_atlas
from vdinterp.models import BlockSpec, HookedVideoDiT, Sublayer
from vdinterp.models.stream import modulations
from vdinterp.results import rows_of


def hooked(model: HookedVideoDiT, levels: torch.Tensor, action: int | None) -> dict[str, torch.Tensor]:
    """Shift, scale and gate that a forward pass shows, `[level d_model]`."""
    given = inputs(model, batch=len(levels), n_frames=1)
    given["timestep"] = model.timestep(levels[:, None])
    given.pop("cond", None)
    if action is not None:
        given["cond"] = torch.eye(model.cfg.d_action)[action].expand(len(levels), 1, -1)
    with torch.no_grad():
        cache = model.run_with_cache(**given, names=lambda name: ".mod." in name)[1]
    return {name: tensor[:, 0] for name, tensor in cache.items()}


@pytest.mark.parametrize("kind", ["3d", "normed", "space_time", "table", "cross", "causal"])
def test_it_is_what_a_forward_pass_shows(kind: str) -> None:
    model = tiny_model(kind)
    levels = torch.tensor([0.0, 0.4, 0.9], dtype=torch.double)
    atlas = modulation_atlas(model, levels)
    actions = [None, *range(model.cfg.d_action)]
    assert atlas.actions == ["none", *map(str, range(model.cfg.d_action))]
    plain = hooked(model, levels, None)
    for action in actions:
        given = None if action is None else torch.eye(model.cfg.d_action)[action].expand(3, -1)
        wanted, found = hooked(model, levels, action), modulations(model, model.timestep(levels), given)
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)
            site, part = name.removeprefix("blocks.").split(".mod.hook_")
            rows = rows_of(atlas.table, site=site, part=part, action="none" if action is None else str(action))
            assert list(rows["level"]) == levels.tolist()
            for column, value in {
                "rms": tensor.square().mean(1).sqrt(), "mean": tensor.mean(1), "mean_abs": tensor.abs().mean(1),
                "max_abs": tensor.abs().amax(1), "from_none": (tensor - plain[name]).square().mean(1).sqrt(),
            }.items():  # fmt: skip
                np.testing.assert_allclose(rows[column], value, atol=1e-6)
    whole = torch.cat(list(plain.values()), 1)
    cosine = torch.nn.functional.cosine_similarity(whole[:, None], whole[None], dim=-1)
    torch.testing.assert_close(atlas.similarity, cosine, atol=1e-5, rtol=0)


def planted() -> HookedVideoDiT:
    """Condition 0 is 1 above noise level 0.5, else 0, and closes the gate of layer 1's MLP; nothing else changes."""
    model: Any = tiny_model("3d")
    embed = model.noise_embed
    with torch.no_grad():
        for parameter in (*embed.parameters(), *model.blocks[1].modulation.parameters()):
            parameter.zero_()
        embed.linear_1.weight[:2, -1] = 10_000.0 ** (7 / 8)  # the slowest sine, about the level
        embed.linear_1.bias[:2] = torch.tensor([-495.0, -515.0])
        embed.linear_2.weight[0, :2] = torch.tensor([0.05, -0.05])
        linear = model.blocks[1].modulation.linear
        linear.bias.fill_(0.5)
        linear.weight[100:120, 0] = -0.5 / float(torch.nn.functional.silu(torch.ones(())))
    return model


def test_a_planted_switch_is_found() -> None:
    atlas = modulation_atlas(planted())
    assert len(atlas.levels) == 41 and atlas.levels[0] == 0.001 and atlas.levels[-1] == 1
    row = rows_of(atlas.off, site="1.mlp").iloc[0]
    assert 0.495 < row["from_level"] < 0.56 and row["to_level"] == 1
    assert row["maximum"] == pytest.approx(0.5) and row["lowest"] < 0.05 and row["maximum_level"] < 0.5
    assert "1.mlp from level" in atlas.summary() and "1.attn" not in set(atlas.off["site"])
    gates = atlas.values("gate")
    assert list(gates.index) == ["0.attn", "0.mlp", "1.attn", "1.mlp"] and gates.shape == (4, 41)
    depth = atlas.depth.set_index("level")
    shares = gates.div(gates.max(axis=1), axis=0)
    np.testing.assert_allclose(depth["effective_depth"], shares.sum(axis=0), atol=1e-6)
    assert depth["open"].iloc[0] >= depth["open"].iloc[-1] + 1


def test_a_gate_that_never_opens_and_models_without() -> None:
    model: Any = tiny_model("3d")
    with torch.no_grad():
        for parameter in model.blocks[0].modulation.linear.parameters():
            parameter[40:60] = 0
    atlas = modulation_atlas(model, [0.0, 0.5, 1.0])
    assert rows_of(atlas.off, site="0.attn").iloc[0][["from_level", "to_level"]].tolist() == [0, 1]
    assert "0.attn at all levels (its gate is zero)" in atlas.summary()
    plain = BlockSpec(attn=Sublayer("plain", None), mlp=Sublayer(mod=(0, 1, -1)))
    bare = modulation_atlas(tiny_model("3d", period=(plain,)), [0.0, 0.5])
    assert not len(bare.depth) and not len(bare.off) and "No sublayer has a gate" in bare.summary()
    assert set(bare.table["site"]) == {"0.mlp", "1.mlp", "final"} and len(bare.plot()) == 2
    with pytest.raises(KeyError, match="no 'gate'"):
        bare.values("gate")


def test_a_model_before_training() -> None:
    """AdaLN-Zero starts with no modulation at all: nothing to compare, and every gate closed."""
    fresh = HookedVideoDiT(tiny_model("table", modulation="mlp").cfg)
    with pytest.raises(ValueError, match=r"tiny-table alone does not know its noise levels.*vd.VideoDiffusion"):
        modulation_atlas(fresh, [0.0, 0.5])
    atlas = modulation_atlas(vd.VideoDiffusion(fresh, None, vd.DiffusionConfig()).model, [0.0, 0.5])
    assert atlas.similarity.isnan().all() and (atlas.depth["effective_depth"] == 0).all() and len(atlas.plot()) == 3
    assert "3 actions" not in atlas.summary() and "nan" not in atlas.summary()


def test_actions_of_the_users_own() -> None:
    model = tiny_model("table")
    given = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    atlas = modulation_atlas(model, [0.0, 0.5], given)
    assert atlas.actions == ["none", "0", "1"]
    moved = atlas.action_change()
    one_hot = modulation_atlas(model, [0.0, 0.5]).action_change()
    pd.testing.assert_series_equal(moved["0"], one_hot["0"])
    assert list(moved.index) == ["0.attn", "0.mlp", "1.attn", "1.mlp", "final"]
    rows = atlas.table[atlas.table["site"] == "0.mlp"]
    squares = rows.assign(a=rows["from_none"] ** 2, b=rows["rms"] ** 2).groupby("action")[["a", "b"]].sum()
    assert moved.loc["0.mlp", "0"] == pytest.approx((squares.loc["0", "a"] / squares.loc["none", "b"]) ** 0.5)


def test_levels_are_sorted_and_default_to_the_networks_own() -> None:
    assert modulation_atlas(tiny_model("3d"), [0.9, 0.0, 0.0, 0.3]).levels == (0, 0.3, 0.9)
    few = vd.VideoDiffusion(tiny_model("3d"), None, vd.DiffusionConfig(n_levels=10))
    assert modulation_atlas(few.model).levels == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


@pytest.mark.parametrize("name", ["tiny-crafter", "tiny-induction"])
def test_bundled_models_are_drawn_and_come_back(name: str, tmp_path: Path) -> None:
    atlas = modulation_atlas(vd.load(name).model)
    assert len(atlas.plot()) == (5 if name == "tiny-crafter" else 4)
    assert f"{name}: 41 noise levels from 0.001 to 1" in atlas.summary()
    again = ModulationAtlas.load(atlas.save(tmp_path))
    pd.testing.assert_frame_equal(again.table, atlas.table)
    assert again.summary() == atlas.summary() and torch.equal(again.similarity, atlas.similarity)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("3d", {"noise_levels": []}, "noise_levels is empty"),
        ("3d", {"noise_levels": [0.0, float("nan")]}, "shares of noise in .*got nan"),
        ("3d", {"noise_levels": ["clean"]}, "is no share of noise"),
        ("3d", {"cond": torch.zeros(2, 3)}, "takes no actions"),
        ("table", {"cond": torch.zeros(2, 4)}, r"cond \[2, 4\]: one action a row is needed, \[any number, 3\]"),
        ("table", {"cond": [1, 0, 0]}, "cond list"),
    ],
)
def test_bad_requests(kind: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modulation_atlas(tiny_model(kind), **given)


def test_a_pipeline_is_no_model() -> None:
    with pytest.raises(ValueError, match="pipeline: pipe"):
        modulation_atlas(vd.load("tiny-induction"))  # type: ignore[arg-type]
