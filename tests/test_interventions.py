"""Interventions: each hits exactly the part it names, identities hold, bad ones are refused before anything runs."""

from __future__ import annotations

import math

import pytest
import torch
from factories import KINDS, inputs, tiny_model

from vdinterp.grid import TokenGrid
from vdinterp.interventions import Ablate, Custom, Freeze, MaskAttention, Patch


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_patching_from_the_same_run_changes_nothing(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    bare, cache = model.run_with_cache(**given)
    for site in cache:
        for intervention in (Patch(site, cache), Ablate(site, "frozen", cache)):
            with model.intervene(intervention):
                torch.testing.assert_close(model(**given), bare, atol=1e-6, rtol=0)
    other = inputs(model, seed=7)
    with model.intervene(Patch("hook_pred", cache)):
        assert torch.equal(model(**other), bare)


@torch.no_grad()
def test_zero_ablation_of_z_leaves_the_bias() -> None:
    model = tiny_model()
    with model.intervene(Ablate("z")):
        _, cache = model.run_with_cache(**inputs(model))
    for layer in range(2):
        bias = model.blocks[layer].attn.b_O.expand_as(cache["out", layer])
        assert torch.equal(cache["out", layer], bias)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "site", "choice", "index"),
    [
        ("3d", "blocks.0.attn.hook_z", {"heads": [1]}, (slice(None), slice(None), 1)),
        ("3d", "blocks.0.attn.hook_z", {"frames": [1], "channels": [0]}, (slice(None), slice(6, 12), slice(None), 0)),
        ("3d", "blocks.0.hook_resid_post", {"rows": [1], "cols": [2]}, (slice(None), [5, 11, 17])),
        ("3d", "blocks.0.mlp.mod.hook_gate", {"frames": [2]}, (slice(None), 2)),
        ("3d", "blocks.0.attn.hook_pattern", {"heads": [0], "frames": [1]}, (slice(None), 0, slice(6, 12))),
        ("space_time", "blocks.0.attn.hook_pattern", {"frames": [1], "rows": [1]},
         (slice(None), 1, slice(None), slice(3, 6))),
        ("space_time", "blocks.1.attn.hook_pattern", {"frames": [2], "cols": [0]},
         (slice(None), [0, 3], slice(None), 2)),
        ("3d", "hook_pred", {"frames": [0], "channels": [1]}, (slice(None), 0, 1)),
    ],
)  # fmt: skip
def test_selection_hits_exactly_the_chosen_part(kind: str, site: str, choice: dict, index: tuple) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    _, clean = model.run_with_cache(**given, names=site)
    for intervention in (Freeze(site, 7.5, **choice), Custom(site, lambda x, hook: x.fill_(7.5), **choice)):
        with model.intervene(intervention):
            _, changed = model.run_with_cache(**given, names=site)
        wanted = clean[site].clone()
        wanted[index] = 7.5
        assert torch.equal(changed[site], wanted)


@torch.no_grad()
def test_means_and_resamples() -> None:
    model = tiny_model()
    given, reference = inputs(model, batch=2), inputs(model, batch=4, seed=5)
    site = "blocks.1.attn.hook_z"
    _, stored = model.run_with_cache(**reference, names=site)
    with model.intervene(Ablate(site, "mean", stored)):
        _, cache = model.run_with_cache(**given, names=site)
    assert torch.allclose(cache[site], stored[site].mean((0, 1)).expand_as(cache[site]))
    with model.intervene(Ablate(site, "resample", stored)):
        _, cache = model.run_with_cache(**reference, names=site)
    assert torch.equal(cache[site], stored[site][[3, 0, 1, 2]])
    with pytest.raises(ValueError, match="equally many"), model.intervene(Patch(site, stored)):
        model(**given)


# Masks


def explicit(model, given: dict, allowed: dict[int, torch.Tensor]) -> torch.Tensor:
    """The same mask, as -inf scores set by hand."""
    hooks = [
        (f"blocks.{layer}.attn.hook_attn_scores", lambda s, hook, mask=mask: s.masked_fill(~mask, -math.inf))
        for layer, mask in allowed.items()
    ]
    return model.run_with_hooks(**given, fwd_hooks=hooks)


@torch.no_grad()
def test_mask_attention_is_minus_infinity() -> None:
    frame = TokenGrid(3, 2, 3).frame_of()
    cell = TokenGrid(3, 2, 3).cell_of()
    own, place = frame[:, None] == frame, cell[:, None] == cell
    cut = ~((frame[:, None] == 2) & (frame == 0))
    model = tiny_model()
    given = inputs(model)
    one_head = torch.stack([torch.ones_like(own), own])
    for intervention, mask in (
        (MaskAttention("own_frame"), own),
        (MaskAttention("same_position"), place),
        (MaskAttention(place | own), place | own),
        (MaskAttention(cut=([2], [0])), cut),
        (MaskAttention("own_frame", heads=[1]), one_head),
    ):
        wanted = explicit(model, given, {0: mask, 1: mask})
        with model.intervene(intervention):
            pred, cache = model.run_with_cache(**given)
        torch.testing.assert_close(pred, wanted, atol=1e-5, rtol=0)
        seen = cache["pattern", 0].materialize()
        assert seen[~mask.expand(seen.shape)].abs().max() == 0  # the cache knows the mask that was set
        assert (pred - model(**given)).abs().max() > 1e-3

    model = tiny_model("space_time")
    given = inputs(model)
    eye_cells, eye_frames = torch.eye(6, dtype=torch.bool), torch.eye(3, dtype=torch.bool)
    for intervention, masks in (
        (MaskAttention("own_frame"), {1: eye_frames}),
        (MaskAttention("same_position"), {0: eye_cells}),
    ):
        with model.intervene(intervention):
            torch.testing.assert_close(model(**given), explicit(model, given, masks), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["3d", "normed", "space_time"])
def test_own_frame_isolates_frames(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    with model.intervene(MaskAttention("own_frame")):
        before = model(**given)
        given["latents"][:, 1] += 3
        after = model(**given)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]]) and not torch.equal(before[:, 1], after[:, 1])


# Refusals


def stored_z(*shape: int) -> dict[str, torch.Tensor]:
    return {f"blocks.{layer}.attn.hook_z": torch.ones(shape) for layer in (0, 1)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ablate("z", heads=[5]), ValueError, "0..1"),
        (lambda: Ablate("z", heads=[-1]), ValueError, "0..1"),
        (lambda: Ablate("z", heads=1), ValueError, "give a list"),
        (lambda: Ablate("z", frames=[]), ValueError, "one or more"),
        (lambda: Ablate("z", frames=[3]), ValueError, "0..2"),
        (lambda: Ablate("z", channels=[12]), ValueError, "0..11"),
        (lambda: Ablate("pattern", channels=[0]), ValueError, "no channels"),
        (lambda: Ablate("resid_post", heads=[0]), ValueError, "no heads"),
        (lambda: Ablate("mod.gate", rows=[0]), ValueError, "no rows"),
        (lambda: Ablate("zz"), KeyError, "zz"),
        (lambda: Ablate("z", "median"), ValueError, "median"),
        (lambda: Ablate("z", "mean"), ValueError, "reference"),
        (lambda: Ablate("z", "mean", {}), KeyError, "reference has no"),
        (lambda: Ablate("z", "mean", stored_z(2, 18, 3, 12)), ValueError, "another model"),
        (lambda: Ablate("z", "resample", stored_z(1, 18, 2, 12)), ValueError, "two clips"),
        (lambda: Patch("z", {}), KeyError, "source has no"),
        (lambda: MaskAttention(), ValueError, "needs allow"),
        (lambda: MaskAttention("self"), ValueError, "self"),
        (lambda: MaskAttention(cut=([0], [0])), ValueError, "share"),
        (lambda: MaskAttention(cut=([0], [4])), ValueError, "0..2"),
        (lambda: MaskAttention("own_frame", layers=[2]), ValueError, "layers 2"),
        (lambda: MaskAttention("own_frame", heads=[2]), ValueError, "heads 2"),
        (lambda: Ablate("z", steps=3), ValueError, "steps"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(make, error: type[Exception], message: str) -> None:
    model = tiny_model()
    before = [("hook_patch_embed", lambda x, hook: pytest.fail("it was accepted"))]
    with pytest.raises(error, match=message), model.intervene(make()):
        model.run_with_hooks(**inputs(model), fwd_hooks=before)
    assert not model.has_live_hooks


@torch.no_grad()
def test_refused_when_they_meet_the_clip() -> None:
    model = tiny_model()
    given = inputs(model)
    with pytest.raises(ValueError, match="sampler"), model.intervene(Ablate("z", steps=[0])):
        model(**given)
    with pytest.raises(ValueError, match=r"whose frames are 0\.\.1"), model.intervene(Ablate("z", frames=[2])):
        model(**inputs(model, n_frames=2))
    with pytest.raises(ValueError, match="does not broadcast"), model.intervene(Freeze("z", torch.ones(5))):
        model(**given)
    with pytest.raises(ValueError, match="Custom"), model.intervene(Custom("z", lambda x, hook: x[:1])):
        model(**given)
    with pytest.raises(ValueError, match="18 tokens"), model.intervene(MaskAttention(torch.ones(4, 4).bool())):
        model(**given)
    spatial = tiny_model("space_time")
    with pytest.raises(ValueError, match="forbids nothing"), spatial.intervene(MaskAttention("own_frame", layers=[0])):
        pass
    model.set_hook_ctx(step=3)
    idle = pytest.warns(UserWarning, match=r"Ablate\(steps=range\(0, 2\)\) never acted")
    with idle, model.intervene(Ablate("z", steps=range(2))):
        active_elsewhere = model(**given)
    model.clear_hook_ctx()
    assert torch.equal(active_elsewhere, model(**given))


def test_what_is_no_intervention_is_refused() -> None:
    model = tiny_model()
    for given in (([Ablate("z"), Ablate("q")],), (("z", lambda x, hook: x),)):
        with pytest.raises(ValueError, match="is no intervention"), model.intervene(*given):
            pass
    float_mask = [("mask", lambda mask, hook: torch.zeros(mask.shape))]
    with pytest.raises(ValueError, match="True lets a query see a key"):
        model.run_with_hooks(**inputs(model), fwd_hooks=float_mask)
