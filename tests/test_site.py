"""A place in the network as a value."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import KINDS, inputs, tiny_model
from site_names import cuts

import vdinterp as vd
from vdinterp.site import Site


def test_every_name_is_a_place_and_back() -> None:
    for model in map(tiny_model, KINDS):
        for name in model.hook_names:
            site = Site.parse(name)
            assert str(site) == name and site == name and hash(site) == hash(name)
            assert Site(site.layer, site.sublayer, site.what) == Site.parse(site) == name
            if site.owner is not None:
                assert site.owner in model.mod_dict and Site.parse(site.owner) == site.owner
                assert site.owner.at(site.what or "") == name
                assert model.hook_dict[name] in model.mod_dict[site.owner].modules()
            if site.sublayer is not None:
                assert model.sublayer_at(site) is model.mod_dict[site.owner]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("blocks.3.attn.hook_z", (3, "attn", "z")),
        (("z", 3), (3, "attn", "z")),
        (("z", 3, "cross_attn"), (3, "cross_attn", "z")),
        (("mod.gate", 1, "mlp"), (1, "mlp", "mod.gate")),
        (("resid_pre", 0), (0, None, "resid_pre")),
        ("k6", (6, "attn", "k")),
        ("scale4ln2", (4, "mlp", "ln.scale")),
        ("blocks.12.cross_attn.ln.hook_normalized", (12, "cross_attn", "ln.normalized")),
        ("blocks.3.attn.pattern", (3, "attn", "pattern")),
        ("blocks.3.attn", (3, "attn", None)),
        ("blocks.3", (3, None, None)),
        ("final.mod.hook_shift", (None, "final", "mod.shift")),
        ("final", (None, "final", None)),
        ("hook_patch_embed", (None, None, "patch_embed")),
        ("embed", (None, None, "patch_embed")),
    ],
)
def test_how_places_are_written(given: Any, wanted: tuple) -> None:
    site = Site.parse(given)
    assert (site.layer, site.sublayer, site.what) == wanted and site == Site(*wanted)
    assert isinstance(site.at("z"), Site) and vd.Site is Site


def test_what_a_place_knows() -> None:
    z = Site(3, "attn", "z")
    assert z.added == "blocks.3.hook_attn_out" and z.added.adds_of == "attn" and z.adds_of is None
    assert z.at("mod.gate").alias == "gate" and z.label == "3.attn" and Site(None, "final").label == "final"
    assert z.template == "blocks.{i}.attn.hook_z" and Site(what="pred").template == "hook_pred"
    blocks = {"hook_cond": 0, "hook_patch_embed": 0, "blocks.2.hook_resid_mid": 2, "final.hook_in": 4, "hook_pred": 4}
    assert {name: Site.parse(name).block(4) for name in blocks} == blocks


def test_a_place_is_a_value() -> None:
    site = Site(1, "mlp", "mod.gate")
    for again in (copy.deepcopy(site), pickle.loads(pickle.dumps(site))):
        assert again == site and (again.layer, again.sublayer, again.what) == (1, "mlp", "mod.gate")
    with pytest.raises(AttributeError, match="make another one"):
        site.layer = 2
    for layer in (-1, True, "1"):
        with pytest.raises(ValueError, match="give the number of a block, from 0"):
            Site(layer, "attn", "z")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a layer, a sublayer"):
        Site()
    for unknown in ("zz", "attn.z", ("zz", 0), "blocks"):
        with pytest.raises(KeyError, match="no activation is called"):
            Site.parse(unknown)


@torch.no_grad()
def test_a_place_goes_wherever_a_name_does() -> None:
    model = tiny_model("cross")
    given, site = inputs(model), Site(1, "cross_attn", "z")
    pred, cache = model.run_with_cache(**given, names=[site])
    assert set(cache) == {site} and torch.equal(cache[site], cache["z", 1, "cross_attn"])
    changed = [
        vd.Ablate(site, heads=[0]), vd.Patch([site], {site: torch.zeros_like(cache[site])}, heads=[0]),
        vd.Freeze(site, 0.0, heads=[0]),
    ]  # fmt: skip
    found = []
    for one in changed:
        with model.intervene(vd.interventions.from_json(vd.interventions.to_json([one]))[0]):
            found.append(model(**given))
    found.append(model.run_with_hooks(**given, fwd_hooks=[(site, lambda z, hook: z.index_fill(2, torch.tensor(0), 0))]))
    assert all(torch.equal(one, found[0]) and not torch.equal(one, pred) for one in found)


def test_nobody_else_cuts_names_up(tmp_path: Path) -> None:
    assert not cuts(Path(vd.__file__).parent), "go through vdinterp.site.Site"
    (tmp_path / "models").mkdir()
    by_hand = [
        'f"blocks.{layer}.attn.hook_z"', 'f"{site}.hook_in"', 'name.split(".mod.hook_")', 'name.endswith(".hook_z")',
        're.match(r"blocks\\.(\\d+)", name)', 'name.replace("hook_q", "hook_z")', '".mod.hook_" in name',
        'layer = int(name.split(".")[1])', 'hook.name.rpartition(".")',
    ]  # fmt: skip
    fine = ['error(f"no hook_z in {name}")', "self.hook_z(z)", 'doc.split(".")', 'Site(layer, "attn", f"mod.{part}")']
    (tmp_path / "models" / "some.py").write_text("\n".join([*by_hand, *fine]))
    assert [line.partition(": ")[2] for line in cuts(tmp_path)] == by_hand
