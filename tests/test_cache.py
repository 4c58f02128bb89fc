"""ActivationCache: keys, what is computed on demand, whole-cache operations, and the descriptions of hooks."""

from __future__ import annotations

import pytest
import torch
from factories import KINDS, inputs, tiny_model

from vdinterp.grid import TokenGrid
from vdinterp.models import ActivationCache


def test_keys() -> None:
    model = tiny_model()
    _, cache = model.run_with_cache(**inputs(model))
    assert cache["z", 1] is cache["blocks.1.attn.hook_z"] is cache["z", -1]
    assert cache["mod.gate", 0] is cache["blocks.0.attn.mod.hook_gate"]
    assert cache["mod.gate", 0, "mlp"] is cache["blocks.0.mlp.mod.hook_gate"]
    assert cache["hook_pred"] is cache["pred"] and cache["post", 0] is cache["blocks.0.mlp.hook_post"]
    assert ("z", 0) in cache and ("pattern", 0) not in cache and "z" not in cache and ("z", 9) not in cache
    for key, message in (
        ("z", "ambiguous"),
        (("scale", 0), "ambiguous"),
        (("z", 2), "No layer 2"),
        (("zz", 0), "No hook"),
        (("z", 0, "mlp"), "No hook"),
        (3, "no key"),
    ):
        with pytest.raises(KeyError, match=message):
            cache[key]
    _, few = model.run_with_cache(**inputs(model), names="resid_post")
    for key in (("z", 0), "blocks.0.attn.hook_z", ("mod.gate", 1, "mlp")):
        with pytest.raises(KeyError, match="was not cached"):
            few[key]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_on_demand_equals_hooked(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    _, cache = model.run_with_cache(**given)
    _, hooked = model.run_with_cache(**given, names=["pattern", "attn_scores", "result"])
    for name in hooked:
        assert name not in cache
        found = cache[name].materialize() if name.endswith("hook_pattern") else cache[name]
        torch.testing.assert_close(found, hooked[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(cache["pattern", 1].q, cache["blocks.1.attn.hook_pattern"].q)
    assert torch.allclose(cache["pattern", 0].materialize().sum(-1), torch.ones(()))


@torch.no_grad()
def test_whole_cache(tmp_path) -> None:
    model = tiny_model()
    _, cache = model.run_with_cache(**inputs(model))
    assert cache.stack("z").shape == (2, 2, 18, 2, 12) and cache.stack("attn_scores").shape == (2, 2, 2, 18, 18)
    with pytest.raises(ValueError, match="materialize"):
        cache.stack("pattern")
    assert torch.equal(cache.stack("mod.gate", "mlp")[1], cache["mod.gate", 1, "mlp"])
    with pytest.raises(KeyError, match="No hook"):
        cache.stack("zz")
    half = cache.to(dtype=torch.float16)
    assert half["z", 0].dtype == torch.float16 and len(half) == len(cache)

    cache.save(tmp_path / "run")
    for path in ("run", "run.safetensors", "run.json"):
        loaded = ActivationCache.load(tmp_path / path, model)
        assert loaded.grid == cache.grid and all(torch.equal(loaded[name], cache[name]) for name in cache)
    assert torch.equal(loaded["pattern", 0].materialize(), cache["pattern", 0].materialize())
    with pytest.raises(ValueError, match="weights"):
        ActivationCache.load(tmp_path / "run")["pattern", 0]
    with pytest.raises(ValueError, match="tiny-3d"):
        ActivationCache.load(tmp_path / "run", tiny_model("normed"))
    with pytest.raises(FileNotFoundError, match="No cache"):
        ActivationCache.load(tmp_path / "absent")
    (tmp_path / "run.safetensors").write_bytes((tmp_path / "run.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="not complete"):
        ActivationCache.load(tmp_path / "run")
    mixed = tiny_model("space_time")
    with pytest.raises(ValueError, match="another shape"):
        mixed.run_with_cache(**inputs(mixed))[1].stack("attn_scores")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_frames", [2, 3])
def test_described_shapes_are_real(kind: str, n_frames: int) -> None:
    model = tiny_model(kind)
    _, cache = model.run_with_cache(**inputs(model, n_frames=n_frames), names=model.hook_names)
    for name in model.hook_names:
        assert tuple(cache[name].shape) == model.hook_shape(name, 2, n_frames, n_text=4), name
    table = model.describe_hooks()
    assert list(table.columns) == ["hook", "shape", "meaning", "layers", "on demand"]
    assert set(table["on demand"]) == {True, False} and table["meaning"].str.len().min() > 5
    with pytest.raises(KeyError, match="hook_z"):
        model.hook_shape("blocks.0.attn.hook_zz")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_estimate_is_what_is_kept(kind: str) -> None:
    model = tiny_model(kind)
    for names in ("z", ["q", "pattern"], "mlp.pre", None):
        _, cache = model.run_with_cache(**inputs(model), names=names)
        estimate = model.estimate_cache(names, batch=2, n_text=4)
        summed = sum(tensor.nbytes for tensor in cache.values())
        assert estimate == summed >= cache.nbytes
        if names is not None:
            assert cache.nbytes == estimate


def test_grid() -> None:
    grid = TokenGrid(3, 2, 4)
    for token in range(grid.n_tokens):
        assert grid.index(*grid.coordinates(token)) == token
        assert grid.all_coordinates()[token].tolist() == list(grid.coordinates(token))
    assert grid.index(-1, -1, -1) == 23 and grid.displacement(17, 9) == (-1, 0, 0)
    shifted = grid.displaced(-1, 0, 1)
    pairs = [(q, k) for q in range(24) for k in range(24) if grid.displacement(q, k) == (-1, 0, 1)]
    assert shifted.nonzero().tolist() == [list(pair) for pair in pairs] and len(pairs) == 2 * 2 * 3
    assert grid.neighbours(0) == [1, 4, 5] and grid.tokens(frames=[2, 0], cols=[1]) == [1, 5, 17, 21]
    for wrong in (lambda: grid.index(3, 0, 0), lambda: grid.coordinates(24), lambda: grid.tokens(rows=[2])):
        with pytest.raises(ValueError, match="outside the grid"):
            wrong()
    with pytest.raises(ValueError, match="n_rows must be a whole number"):
        TokenGrid(1, 0, 1)


@torch.no_grad()
def test_a_cache_does_not_compute_anew_what_a_hook_replaced() -> None:
    model = tiny_model()
    given = inputs(model)
    for site, key in (
        ("pattern", "pattern"),
        ("attn_scores", "pattern"),
        ("attn_scores", "attn_scores"),
        ("result", "result"),
    ):
        edit = [((site, 1), lambda x, hook: x * 0.5)]
        with model.hooks(edit):
            _, cache = model.run_with_cache(**given)
            _, recorded = model.run_with_cache(**given, names=[key])
        by_name = {"pattern": cache.pattern, "attn_scores": cache.attn_scores, "result": cache.head_results}[key]
        for take in (lambda cache=cache, key=key: cache[key, 1], lambda by_name=by_name: by_name(1)):
            with pytest.raises(ValueError, match=f"blocks.1.attn.hook_{site} in this run"):
                take()
        assert cache[key, 0] is not None and recorded[key, 1] is not None
        with model.hooks([((site, 1), lambda x, hook: None)]):  # looking is no change
            _, cache = model.run_with_cache(**given)
        assert cache[key, 1] is not None


def test_names_may_be_keys() -> None:
    model = tiny_model("cross")
    assert model.resolve_names([("z", -1), "hook_pred"]) == ["blocks.1.attn.hook_z", "hook_pred"]
    assert model.resolve_names(("z", 0, "cross_attn")) == ["blocks.0.cross_attn.hook_z"]
    for key, message in (
        (("z", 2), "there are 2"),
        (("zz", 0), "No hook"),
        (("z", 0, "mlp"), "No hook"),
        (("scale", 0), "ambiguous"),
    ):
        with pytest.raises(KeyError, match=message):
            model.resolve_names([key])
    with pytest.raises(ValueError, match="no hook name"):
        model.resolve_names([3])  # type: ignore[list-item]
