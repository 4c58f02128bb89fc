"""A cache of a run that somebody intervened in is taken apart exactly, or says what was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import inputs, tiny_model

import vdinterp as vd
from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.site import Site

KINDS = ("3d", "normed", "table", "cross")
SMALL = 2e-4  # of the stream: an edit that rounding does not hide


def towards(x: torch.Tensor, hook: Any) -> torch.Tensor:
    return x + SMALL * x.norm(dim=-1, keepdim=True) * x.roll(1, -1).sign()  # which no norm takes away


def at(*place: Any) -> Callable[[HookedVideoDiT], Any]:
    site = Site(*place)
    return lambda model: [(site, towards)]


def mask(model: HookedVideoDiT) -> Any:
    return vd.MaskAttention("same_position", layers=[0])


# What was done, and in which streams no part shows it.
NOWHERE, NORMED, EVERYWHERE = (), ("normed",), KINDS
EDITS: dict[str, tuple[Callable[[HookedVideoDiT], Any], tuple[str, ...]]] = {
    "a head's output ablated": (lambda _: vd.Ablate(("z", 0), heads=[1]), NOWHERE),
    "a query": (at(0, "attn", "rot_q"), NOWHERE),
    "scores": (at(0, "attn", "attn_scores"), NOWHERE),
    "attention masked": (mask, NOWHERE),
    "another run's attention": (
        lambda model: vd.TransferAttention(model.run_with_cache(**inputs(model, seed=5))[1], layers=[0]), NOWHERE,
    ),
    "a value": (at(0, "attn", "v"), NOWHERE),
    "a neuron ablated": (lambda _: vd.Ablate(("post", 0), channels=[3]), NOWHERE),
    "an MLP's sum": (at(1, "mlp", "pre"), NOWHERE),
    "the embedding": (at(None, None, "patch_embed"), NOWHERE),
    "the condition": (at(None, None, "cond"), NOWHERE),
    "another noise level": (lambda _: vd.SetNoiseLevel(0.7), NOWHERE),
    "a scale steered": (at(0, "mlp", "mod.scale"), NOWHERE),
    "a shift": (at(1, "attn", "mod.shift"), NOWHERE),
    "a gate frozen": (lambda _: vd.Freeze(("mod.gate", 0, "mlp"), 1.0), NOWHERE),
    "the norm's scale": (at(0, "attn", "ln.scale"), NOWHERE),
    "the prediction": (lambda model: [("hook_pred", lambda x, hook: 2 * x)], NOWHERE),
    "what the norm makes": (at(1, "mlp", "ln.normalized"), NORMED),
    "a sublayer's input": (at(0, "mlp", "in"), NORMED),
    "an attention's output": (at(0, "attn", "out"), EVERYWHERE),
    "a head's result": (at(0, "attn", "result"), EVERYWHERE),
    "what attention adds": (at(1, None, "attn_out"), EVERYWHERE),
    "the stream patched": (
        lambda model: vd.Patch(("resid_pre", 1), model.run_with_cache(**inputs(model, seed=5))[1]), EVERYWHERE,
    ),
    "the stream between": (at(0, None, "resid_mid"), EVERYWHERE),
    "the stream after all": (at(1, None, "resid_post"), EVERYWHERE),
}  # fmt: skip
ROTATED = {
    f"rope {way}": (lambda _, way=way: vd.RotateRope("frame", way, layers=[0]), NOWHERE)
    for way in ("shifted", "frozen")
}
CROSS = {
    "cross-attention's heads": (lambda _: vd.Ablate(("z", 0, "cross_attn"), heads=[0]), NOWHERE),
    "what cross-attention adds": (at(0, None, "cross_attn_out"), EVERYWHERE),
}
CASES = {
    f"{name}, {kind}": (kind, *case)
    for kind in KINDS
    for name, case in {**EDITS, **(ROTATED if kind != "table" else {}), **(CROSS if kind == "cross" else {})}.items()
}


def run(model: HookedVideoDiT, edit: Any) -> ActivationCache:
    given = inputs(model)
    scope = model.hooks(edit) if isinstance(edit, list) else model.intervene(edit)
    with scope:
        return model.run_with_cache(**given)[1]


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found - wanted).norm(dim=-1).div(wanted.norm(dim=-1)).max()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("kind", "edit", "hidden"), CASES.values(), ids=CASES)
def test_exact_or_refused(kind: str, edit: Callable[[HookedVideoDiT], Any], hidden: tuple[str, ...]) -> None:
    model = tiny_model(kind)
    cache = run(model, edit(model))
    assert cache.edited
    if kind in hidden:
        for take in (cache.decompose_resid, cache.stack_head_results, cache.get_full_resid_decomposition):
            with pytest.raises(ValueError, match="a hook changed (.*, )*" + "|".join(cache.edited)):
                take()
        return
    assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1])
    assert_close(cache.decompose_resid(1, mlp_input=True).sum(0), cache["resid_mid", 1])
    assert_close(cache.get_full_resid_decomposition(1).sum(0), cache["resid_pre", 1])
    for layer, at_mlp, place in ((1, True, Site(1, "mlp")), (None, False, Site(None, "final"))):
        site = place.at("ln.normalized")
        if site in cache.edited:
            with pytest.raises(ValueError, match=f"a hook changed {site}"):
                cache.decompose_resid(layer, mlp_input=at_mlp, apply_ln=True)
        elif site in cache:
            assert_close(cache.decompose_resid(layer, mlp_input=at_mlp, apply_ln=True).sum(0), cache[site])
    bias = model.sublayer(0).b_O
    gate = cache["mod.gate", 0].repeat_interleave(6, 1) if ("mod.gate", 0) in cache else 1
    assert_close(cache.head_results(0).sum(2) + (0 if bias is None else bias * gate), cache["attn_out", 0])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_single_components_of_changed_sublayers(kind: str) -> None:
    """Heads are refused where a hook came after them, neurons too; also where few activations were kept."""
    model = tiny_model(kind)
    for edit in (at(0, "attn", "out"), at(0, None, "attn_out"), at(0, "attn", "result")):
        with model.hooks(edit(model)):
            few = model.run_with_cache(**inputs(model), names=["z", "mod.gate"])[1]
        for cache in (few, run(model, edit(model))):
            with pytest.raises(ValueError, match=str(edit(model)[0][0])):
                cache.head_results(0)
            cache.head_results(1)
    for edit in (at(1, "mlp", "out"), at(1, None, "mlp_out")):
        cache = run(model, edit(model))
        assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1])
        with pytest.raises(ValueError, match="neurons did not add what their weights make"):
            cache.get_neuron_results(1)
        with pytest.raises(ValueError, match="no part of the stream shows"):
            cache.stack_neuron_results()
        cache.get_neuron_results(0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_runs(kind: str) -> None:
    """What the caller gave (`resid_pre`, `known`) is no part that anyone wrote."""
    model = tiny_model(kind)
    given = inputs(model)
    whole = model.run_with_cache(**given)[1]
    resumed = {"start_at_layer": 1, "resid_pre": whole["resid_pre", 1], "known": {"attn": whole["attn_out", 1]}}
    with model.record() as recording:
        model(**given, **resumed)
    assert recording[0].edited == {"blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"}
    for take in (recording[0].decompose_resid, recording[0].stack_head_results):
        with pytest.raises(ValueError, match=r"blocks\.1\.hook_resid_pre in this run \(or the call was given it\)"):
            take()
    with pytest.raises(ValueError, match=r"blocks\.1\.hook_attn_out in this run \(or the call was given it\)"):
        recording[0].head_results(1)
    assert not whole.edited


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["mod.shift", "mod.scale", "ln.scale", "in", "ln.normalized"])
def test_the_final_layer(kind: str, what: str) -> None:
    model, site = tiny_model(kind), Site(None, "final", what)
    cache = run(model, [(site, towards)])
    if what in ("in", "ln.normalized"):
        with pytest.raises(ValueError, match=f"a hook changed {site}"):
            vd.direct_attribution(model, cache)
    else:
        found = vd.direct_attribution(model, cache)
        torch.testing.assert_close(found.parts.sum(0), cache["hook_pred"], atol=1e-5, rtol=1e-5)
