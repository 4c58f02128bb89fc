"""The stream taken apart: parts sum to the whole in every kind of architecture, and the last lens is the prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import KINDS, inputs, tiny_model

import vdinterp as vd
from vdinterp.analysis.stream._direct_attribution import direct_attribution
from vdinterp.analysis.stream._direct_effect import direct_effect
from vdinterp.analysis.stream._lens import LensResult, TunedLens, lens, tuned_lens
from vdinterp.analysis.stream._lens_curve import lens_curve
from vdinterp.data.repeats import make_repeats
from vdinterp.data.textures import make_textures
from vdinterp.models import ActivationCache

BUNDLED = ("tiny-induction", "tiny-loop", "tiny-crafter")


def cached(kind: str, **settings: object) -> ActivationCache:
    model = tiny_model(kind, **settings)
    with torch.no_grad():
        return model.run_with_cache(**inputs(model))[1]


def noised(name: str, levels: tuple[float, ...] = (0.2, 0.6, 0.95), n: int = 4) -> vd.NoisedClips:
    clips = vd.data.sample_clips("crafter", n, 8) if name == "tiny-crafter" else vd.data.make_clips("snippet", n)
    return vd.NoisedClips(vd.load(name), clips, noise_levels=levels)


# The stream


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1, None])
def test_parts_sum_to_the_stream(kind: str, layer: int | None) -> None:
    cache = cached(kind)
    parts, names = cache.get_full_resid_decomposition(layer, expand_neurons=False, return_labels=True)
    whole = cache["resid_post", -1] if layer is None else cache["resid_pre", layer]
    torch.testing.assert_close(parts.sum(0), whole, atol=2e-5, rtol=0)
    assert len(set(names)) == len(names) == len(parts)
    assert ("1.attn.shift" in names) == (kind == "normed" and layer is None)
    few, labels = cache.decompose_resid(layer, return_labels=True)
    torch.testing.assert_close(few.sum(0), whole, atol=2e-5, rtol=0)
    assert torch.equal(cache.decompose_resid(layer), few)
    if kind != "normed" and layer != 0:
        for index, name in enumerate(labels):
            if name.endswith("_out"):
                number, sublayer = name.removesuffix("_out").split(".")
                torch.testing.assert_close(few[index], cache[f"blocks.{number}.hook_{sublayer}_out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["3d", "normed"])
def test_neurons_and_chosen_tokens(kind: str) -> None:
    cache = cached(kind)
    parts = dict(cache.stream_parts(None, [1, 4], neurons=True))
    torch.testing.assert_close(sum(parts.values()), cache["resid_post", -1][:, [1, 4]], atol=2e-5, rtol=0)
    whole = dict(cache.stream_parts())
    of_neurons = sum(part for name, part in parts.items() if name.startswith("mlp.0."))
    torch.testing.assert_close(of_neurons, whole["mlp.0"][:, [1, 4]], atol=1e-5, rtol=0)
    assert sum(name.startswith("mlp.1.") for name in parts) == 28 + 1


def test_heads_alone_and_accumulated_streams() -> None:
    cache = cached("3d")
    heads, names = cache.stack_head_results(1, return_labels=True)
    assert names == ["0.0", "0.1"]
    torch.testing.assert_close(heads.movedim(0, 2), cache.head_results(0), atol=1e-6, rtol=0)
    streams, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0.pre", "0.mid", "1.pre", "1.mid", "final"]
    assert torch.equal(streams[1], cache["resid_mid", 0]) and torch.equal(streams[-1], cache["resid_post", -1])
    assert cache.accumulated_resid(1, return_labels=True)[1] == ["0.pre", "1.pre"]
    with pytest.raises(ValueError, match="No head writes before"):
        cache.stack_head_results(0)
    with pytest.raises(KeyError, match="No layer 7"):
        cache.decompose_resid(7)


# Direct attribution


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neurons", [False, True])
def test_parts_sum_to_the_prediction(kind: str, neurons: bool) -> None:
    cache = cached(kind)
    assert cache.model is not None
    found = direct_attribution(cache.model, cache, neurons=neurons)
    torch.testing.assert_close(found.total, cache["hook_pred"])
    torch.testing.assert_close(found.parts.sum(0), found.total, atol=1e-4, rtol=0)
    assert found.table["share"].sum() == pytest.approx(1, abs=1e-4)
    one = direct_attribution(cache.model, cache, frames=[1], neurons=neurons)
    torch.testing.assert_close(one.parts, found.parts[:, :, [1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BUNDLED)
def test_parts_sum_to_x0_at_every_level(name: str) -> None:
    clips = noised(name)
    for level in clips.levels:
        cache = clips.cache(level, None, slice(0, 4))
        found = direct_attribution(clips.pipe, cache, frames=clips.target)
        torch.testing.assert_close(found.total, clips.x0(level), atol=1e-6, rtol=0)
        torch.testing.assert_close(found.parts.sum(0), found.total, atol=1e-4, rtol=0)
        direction = torch.randn(found.total.shape[1:], generator=torch.Generator().manual_seed(0))
        along = direct_attribution(clips.pipe, cache, frames=clips.target, direction=direction)
        torch.testing.assert_close(along.parts, (found.parts * direction).flatten(2).sum(-1), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(along.parts.sum(0), along.total, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("objective", ["eps", "x0", "v", "flow"])
def test_every_objective(objective: str) -> None:
    schedule = {"eps": "linear", "flow": "flow"}.get(objective, "cosine")
    model = tiny_model("3d", in_channels=1, out_channels=1)
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig(objective, schedule))  # type: ignore[arg-type]
    noisy, k = torch.randn(2, 3, 1, 4, 6), torch.tensor([[3, 400, 700], [10, 600, 900]])
    with torch.no_grad():
        _, cache = model.run_with_cache(noisy, pipe.schedule.timestep(k))
        wanted = pipe.denoise(noisy, pipe.schedule.level(k))
    found = direct_attribution(pipe, cache)
    torch.testing.assert_close(found.total, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.parts.sum(0), wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(lens(pipe, cache).x0[-1], wanted, atol=1e-4, rtol=1e-4)


def test_the_parts_are_what_is_lost_without_them() -> None:
    """With nothing after it but the final layer and LayerNorm's scale held, a head's part is what ablation takes."""
    model = tiny_model("3d")
    given = inputs(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(**given)
        held = {name: cache[name] for name in cache if name == "final.ln.hook_scale"}
        part = direct_attribution(model, cache).part("1.1")
        mlp = vd.Patch("blocks.1.hook_mlp_out", cache)
        scale = vd.Patch("final.ln.hook_scale", held)
        with model.intervene(vd.Ablate("blocks.1.attn.hook_z", heads=[1]), mlp, scale):
            without = model(**given)
    torch.testing.assert_close(cache["hook_pred"] - without, part, atol=1e-5, rtol=0)


def test_edited_runs_are_refused() -> None:
    model = tiny_model("3d")
    given = inputs(model)
    with torch.no_grad(), model.intervene(vd.Ablate("blocks.1.hook_resid_post", mode="scaled", factor=2.0)):
        _, cache = model.run_with_cache(**given)
    with pytest.raises(ValueError, match=r"a hook changed blocks\.1\.hook_resid_post"):
        direct_attribution(model, cache)


def test_a_plot_and_a_saved_result(tmp_path: Path) -> None:
    cache = cached("normed")
    assert cache.model is not None
    found = direct_attribution(cache.model, cache)
    assert len(found.plot()) == 2 and "Shares of the prediction" in found.summary()
    again = type(found).load(found.save(tmp_path))
    assert torch.equal(again.parts, found.parts) and again.names == found.names
    with pytest.raises(KeyError, match=r"no part is called '9\.9'"):
        found.part("9.9")


# Direct against total effect


def test_heads_of_the_last_layer_act_directly_and_those_before_through_others() -> None:
    """In a circuit of two layers the sender has a total effect only, the reader's is nearly all direct."""
    organism = vd.organisms.build("induction", 1, placement={"previous frame": (0, 0), "induction": (3, 1)})
    repeats = make_repeats("one-off", make_textures(128)[:, None], 14, n_frames=16)
    clips = vd.data.Clips(kind="repeats", video=repeats.video)
    found = direct_effect(vd.NoisedClips(organism, clips, noise_levels=(0.95,)))
    table = found.table.set_index(["layer", "head"])
    assert table["total"].drop([(0, 0), (3, 1)]).abs().max() < 0.05
    assert table.loc[(0, 0), "total"] > 0.5 and abs(table.loc[(0, 0), "direct"]) < 0.02
    assert table.loc[(3, 1), "direct"] == pytest.approx(table.loc[(3, 1), "total"], rel=0.15)
    assert found.rank_correlation["heads"].tolist() == [16] and len(found.plot()) == 1
    assert "0.0" in found.summary()


def test_the_total_effect_is_the_head_tables() -> None:
    clips = noised("tiny-induction", (0.9,), n=8)
    found = direct_effect(clips).table["total"].to_numpy()
    table = vd.analysis.head_table(clips).table["effect"].to_numpy()
    torch.testing.assert_close(torch.tensor(found), torch.tensor(table), atol=1e-5, rtol=0)


# The lens


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_lens_is_the_prediction(kind: str) -> None:
    cache = cached(kind)
    assert cache.model is not None
    found = lens(cache.model, cache)
    assert found.x0.shape[0] == 3
    torch.testing.assert_close(found.x0[-1], cache["hook_pred"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", BUNDLED)
def test_the_last_lens_is_x0(name: str) -> None:
    clips = noised(name)
    for level in clips.levels:
        found = lens(clips.pipe, clips.cache(level, None, slice(0, 4)), frames=clips.target)
        torch.testing.assert_close(found.x0[-1], clips.x0(level), atol=1e-6, rtol=0)
        error = found.table.set_index("layer")["error"]
        assert error[4] == 0 and error[3] > 0


def test_a_tuned_lens_is_closer_on_other_clips(tmp_path: Path) -> None:
    clips = vd.data.make_clips("snippet", 24)
    pipe = vd.load("tiny-induction")
    train, test = (vd.NoisedClips(pipe, part, noise_levels=(0.6, 0.9)) for part in (clips[:16], clips[16:]))
    tuned = tuned_lens(train, steps=60, lr=3e-3)
    assert tuned.losses[-4:].mean() < 0.7 * tuned.losses[:4].mean()
    found = lens(pipe, test.cache(0.9, None, slice(0, 8)), frames=test.target, tuned=tuned)
    error = found.table.pivot(index="layer", columns="lens", values="error")
    assert (error["tuned lens"][:4] < error["lens"][:4]).all()
    again = LensResult.load(found.save(tmp_path))
    assert torch.equal(again.x0, found.x0) and again.frames == [15]
    assert len(found.plot()) == 2 and "tuned lens" in found.summary()
    whole = lens(pipe, test.cache(0.9, None, slice(0, 1)), tuned=tuned)
    assert len(whole.plot()) == 3 and whole.title == "Lens" and found.title == "Lens at noise level 0.9"
    curve = lens_curve(test, tuned)
    assert len(curve.table) == 2 * 5 * 2 * 2 and len(curve.plot()) == 2
    assert "levels" in curve.meta and "clips of kind" in curve.summary(), "over all clips, and says so"
    one = whole.sections()[0]
    assert not one.tables and "of one clip" in one.text, "one clip decides nothing"
    assert whole.table[["low", "high"]].isna().all(axis=None) and found.table["high"].notna().all()
    ends = curve.table[(curve.table["layer"] == 4) & (curve.table["to"] == "the prediction")]
    assert (ends["error"] == 0).all() and "before the last block" in curve.summary()


def test_an_untrained_tuned_lens_is_the_lens() -> None:
    cache = cached("3d")
    assert cache.model is not None
    nothing = TunedLens(weight=torch.zeros(2, 20, 20), bias=torch.zeros(2, 20), losses=torch.zeros(0))
    found = lens(cache.model, cache, tuned=nothing)
    assert found.tuned is not None and torch.equal(found.tuned, found.x0)
    wrong = TunedLens(weight=torch.zeros(3, 20, 20), bias=torch.zeros(3, 20), losses=torch.zeros(0))
    with pytest.raises(ValueError, match="of another model"):
        lens(cache.model, cache, tuned=wrong)


def test_bad_requests() -> None:
    cache = cached("3d")
    model = cache.model
    assert model is not None
    with pytest.raises(ValueError, match=r"frames 0\.\.2"):
        lens(model, cache, frames=[3])
    with pytest.raises(ValueError, match="of another model"):
        lens(tiny_model("3d"), cache)
    with pytest.raises(ValueError, match="direction"):
        direct_attribution(model, cache, direction=torch.zeros(2, 2))
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig())
    bare = ActivationCache(dict(cache.tensors), cache.grid, model)
    with pytest.raises(ValueError, match="does not hold what the model was given"):
        direct_attribution(pipe, bare)
    with torch.no_grad():
        _, few = model.run_with_cache(**inputs(model), names=["resid_pre"])
    with pytest.raises(KeyError, match="not cached"):
        direct_attribution(model, few)
    with pytest.raises(ValueError, match="steps must be a whole number in 1"):
        tuned_lens(noised("tiny-loop", (0.5,)), steps=0)
