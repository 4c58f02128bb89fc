"""What TransformerLens users type: the same words mean the same here, or an error names ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from factories import KINDS, inputs, tiny_model

import vdinterp as vd
from vdinterp.models import ActivationCache, AttentionPattern

LABELLED: dict[str, Any] = {"return_labels": True}


def cached(kind: str = "3d", **more: Any) -> ActivationCache:
    model = tiny_model(kind)
    with torch.no_grad():
        return model.run_with_cache(**inputs(model), **more)[1]


# The stream


@pytest.mark.parametrize("kind", KINDS)
def test_minus_one_is_all_of_the_stream(kind: str) -> None:
    cache = cached(kind)
    whole, close = cache["resid_post", -1], {"atol": 2e-5, "rtol": 0}
    for layer in (-1, None, 2):
        torch.testing.assert_close(cache.decompose_resid(layer).sum(0), whole, **close)
        torch.testing.assert_close(cache.get_full_resid_decomposition(layer).sum(0), whole, **close)
        torch.testing.assert_close(cache.stack_head_results(layer, incl_remainder=True).sum(0), whole, **close)
        torch.testing.assert_close(cache.stack_neuron_results(layer, incl_remainder=True).sum(0), whole, **close)
        assert cache.accumulated_resid(layer, return_labels=True)[1] == ["0.pre", "1.pre", "final"]
        assert sum(part for _, part in cache.stream_parts(layer)).allclose(whole, **close)
    _, names = cache.stack_head_results(**LABELLED)
    assert [name for name in names if "cross" not in name] == ["0.0", "0.1", "1.0", "1.1"]
    for take in (cache.decompose_resid, cache.stack_head_results, cache.accumulated_resid):
        for layer in (-2, 3):
            with pytest.raises(KeyError, match=f"No layer {layer}"):
                take(layer)
    with pytest.raises(ValueError, match="No head writes before layer 0"):
        cache.stack_head_results(0)


@pytest.mark.parametrize("kind", KINDS)
def test_mlp_input_and_norm(kind: str) -> None:
    cache, close = cached(kind), {"atol": 5e-5, "rtol": 0}
    for layer in (0, 1):
        torch.testing.assert_close(
            cache.decompose_resid(layer, mlp_input=True).sum(0), cache["resid_mid", layer], **close
        )
        parts = cache.get_full_resid_decomposition(layer, mlp_input=True, apply_ln=True)
        torch.testing.assert_close(parts.sum(0), cache["ln.normalized", layer, "mlp"], **close)
        before = cache.decompose_resid(layer, apply_ln=True).sum(0)
        torch.testing.assert_close(before, cache["ln.normalized", layer], **close)
    last = cache.decompose_resid(apply_ln=True)
    torch.testing.assert_close(last.sum(0), cache["final.ln.hook_normalized"], **close)
    torch.testing.assert_close(cache.apply_ln_to_stack(cache.decompose_resid()), last)
    streams = cache.accumulated_resid(incl_mid=True, apply_ln=True)
    torch.testing.assert_close(streams[-1], cache["final.ln.hook_normalized"], **close)
    own = cache.apply_ln_to_stack(cache.accumulated_resid(incl_mid=True), recompute_ln=True)
    torch.testing.assert_close(streams, own)
    held = cache.accumulated_resid(1, apply_ln=True)
    torch.testing.assert_close(held[-1], cache["ln.normalized", 1], **close)
    assert cache.accumulated_resid(1, mlp_input=True, return_labels=True)[1] == ["0.pre", "1.pre", "1.mid"]
    with pytest.raises(ValueError, match="mlp_input"):
        cache.decompose_resid(-1, mlp_input=True)


@pytest.mark.parametrize("kind", ["3d", "normed", "cross"])
def test_some_parts_of_some_tokens(kind: str) -> None:
    cache = cached(kind)
    stack, names = cache.decompose_resid(**LABELLED)
    for mode, ends in (("attn", ("attn_out", "embed")), ("mlp", ("mlp_out", "embed"))):
        some, few = cache.decompose_resid(mode=mode, return_labels=True)
        assert few == [name for name in names if name.endswith(ends)]
        assert torch.equal(some, stack[[names.index(name) for name in few]])
        assert cache.decompose_resid(mode=mode, incl_embeds=False, return_labels=True)[1] == few[1:]
    with pytest.raises(ValueError, match="choose 'all'"):
        cache.decompose_resid(mode="heads")  # type: ignore[arg-type]
    for chosen, index in (
        (4, 4),
        (-1, 17),
        ([5, 1], [5, 1]),
        (slice(2, 9, 3), slice(2, 9, 3)),
        ((1, 4), slice(1, 4)),
        (torch.tensor([3]), [3]),
    ):
        torch.testing.assert_close(cache.decompose_resid(pos_slice=chosen), stack[:, :, index], atol=1e-5, rtol=1e-5)
        assert torch.equal(cache.accumulated_resid(pos_slice=chosen), cache.accumulated_resid()[:, :, index])
        normal = cache.stack_head_results(pos_slice=chosen, apply_ln=True)
        torch.testing.assert_close(normal, cache.stack_head_results(apply_ln=True)[:, :, index])
        again = cache.apply_ln_to_stack(cache.stack_head_results(pos_slice=chosen), pos_slice=chosen)
        torch.testing.assert_close(again, normal)
    for wrong in (18, [0, -19], [0.5], "1"):
        with pytest.raises(ValueError, match=r"tokens 0\.\.17"):
            cache.decompose_resid(pos_slice=wrong)
    direction = torch.randn(20, 3)
    along = cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=direction, pos_slice=[2])
    wanted = cache.get_full_resid_decomposition(apply_ln=True)[:, :, [2]] @ direction
    torch.testing.assert_close(along, wanted, atol=1e-5, rtol=1e-5)
    assert cache.get_full_resid_decomposition(project_output_onto=direction[:, 0]).shape[1:] == (2, 18)


def test_neurons() -> None:
    cache = cached()
    assert cache.model is not None
    model = cache.model
    results = cache.get_neuron_results(1)
    gate = cache["mod.gate", 1, "mlp"].repeat_interleave(6, dim=1)
    bias = gate * model.blocks[1].mlp.b_out
    torch.testing.assert_close(results.sum(2) + bias, cache["mlp_out", 1], atol=1e-5, rtol=0)
    assert torch.equal(cache.get_neuron_results(-1, [3, 7], pos_slice=2), results[:, 2][:, [3, 7]])
    assert torch.equal(cache.get_neuron_results(1, 5), results[:, :, 5])
    onto = torch.randn(20)
    torch.testing.assert_close(cache.get_neuron_results(1, project_output_onto=onto), results @ onto)
    stack, names = cache.stack_neuron_results(neuron_slice=[3, -1], **LABELLED)
    assert names == ["mlp.0.3", "mlp.0.27", "mlp.1.3", "mlp.1.27"]
    torch.testing.assert_close(stack[2:].movedim(0, 2), results[:, :, [3, 27]])
    with pytest.raises(ValueError, match=r"neurons 0\.\.27"):
        cache.get_neuron_results(0, 28)


# What hooks changed


def scaled(x: torch.Tensor, hook: Any) -> torch.Tensor:
    return 1.5 * x


EXACT = ("blocks.0.attn.hook_z", "blocks.0.attn.hook_q", "blocks.0.attn.hook_pattern", "blocks.1.mlp.hook_pre",
         "mod.gate", "mod.scale", "mod.shift", "ln.scale", "hook_patch_embed", "hook_cond",
         "hook_pred")  # fmt: skip
HIDDEN = ("blocks.0.hook_attn_out", "blocks.0.attn.hook_out", "blocks.0.attn.hook_result", "blocks.0.hook_resid_pre",
          "blocks.0.hook_resid_mid", "blocks.1.hook_resid_post")  # fmt: skip
OF_NORMED = ("blocks.1.mlp.hook_in", "blocks.1.attn.ln.hook_normalized")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["3d", "normed"])
@pytest.mark.parametrize("site", [*EXACT, *HIDDEN, *OF_NORMED])
def test_parts_add_up_or_say_why_not(kind: str, site: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    hidden = site in HIDDEN or (kind == "normed" and site in OF_NORMED)
    with model.hooks([(site, scaled)]), model.record() as recording:
        _, cache = model.run_with_cache(**inputs(model))
    cache.save(tmp_path / "run")
    for run in (cache, recording[0], cache[:1], cache.to("cpu"), ActivationCache.load(tmp_path / "run", model)):
        if hidden:
            for take in (run.decompose_resid, run.stack_head_results):
                with pytest.raises(ValueError, match=f"a hook changed .*{site}"):
                    take()
        else:
            torch.testing.assert_close(run.decompose_resid().sum(0), run["resid_post", -1], atol=5e-5, rtol=1e-5)
    if site == "blocks.1.hook_resid_post":
        torch.testing.assert_close(cache.decompose_resid(1).sum(0), cache["resid_pre", 1], atol=5e-5, rtol=1e-5)
    with model.hooks([(site, lambda x, hook: x.clone())]):  # a hook that puts back what was there
        _, cache = model.run_with_cache(**inputs(model))
    torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1], atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_interventions_are_seen_with_few_activations_kept() -> None:
    model = tiny_model()
    names = ["patch_embed", "z", "mod.gate", "mlp_out", "post"]
    for edit in (vd.Ablate("attn_out"), vd.Steer("resid_post", torch.ones(20))):
        with model.intervene(edit):
            _, cache = model.run_with_cache(**inputs(model), names=names)
        with pytest.raises(ValueError, match=r"a hook changed blocks\.0\.hook_"):
            cache.decompose_resid()
    _, cache = model.run_with_cache(**inputs(model), names=names)
    assert not cache.edited and cache.decompose_resid().shape[0] == 5
    with pytest.raises(KeyError, match=r"mod.hook_gate' was not cached"):
        model.run_with_cache(**inputs(model), names=["patch_embed", "z", "mlp_out"])[1].decompose_resid()
    with model.intervene(vd.Ablate("mlp_out")):  # the MLP as a whole is what was put there; its neurons are not
        _, cache = model.run_with_cache(**inputs(model))
    torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1], atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="hook_mlp_out"):
        cache.stack_neuron_results()
    with model.intervene(vd.Ablate("attn_out")):
        _, cache = model.run_with_cache(**inputs(model))
    with pytest.raises(ValueError, match="heads did not add"):
        cache.head_results(0)
    with model.hooks([("final.hook_in", scaled)]):
        _, cache = model.run_with_cache(**inputs(model))
    for analysis in (vd.lens, vd.direct_attribution):
        with pytest.raises(ValueError, match=r"a hook changed final\.hook_in"):
            analysis(model, cache)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["3d", "normed"])
def test_half_precision_rounds(dtype: torch.dtype, kind: str) -> None:
    model = tiny_model(kind).to(dtype)
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs(model).items()}
    _, cache = model.run_with_cache(**given)
    found = vd.direct_attribution(model, cache)
    assert (found.parts.float().sum(0) - found.total.float()).norm() < 0.05 * found.total.float().norm()
    with model.hooks([("hook_pred", scaled)]):
        _, cache = model.run_with_cache(**given)
    with pytest.raises(ValueError, match=f"{dtype} rounds by up to .* a hook changed hook_pred"):
        vd.direct_attribution(model, cache)


# Running


@torch.no_grad()
def test_arguments_of_run_with_cache() -> None:
    model = tiny_model()
    given = inputs(model)
    _, cache = model.run_with_cache(**given)
    for names in ("z", lambda name: name.endswith("hook_z"), [("z", 0), ("z", 1)]):
        assert list(model.run_with_cache(**given, names_filter=names)[1]) == [f"blocks.{i}.attn.hook_z" for i in (0, 1)]
    calls: list[int] = []
    handles = [block.register_forward_hook(lambda *_, at=at: calls.append(at)) for at, block in enumerate(model.blocks)]
    for stop in (1, -1):
        stream, early = model.run_with_cache(**given, stop_at_layer=stop)
        assert torch.equal(stream, cache["resid_pre", 1]) and "hook_pred" not in early
        assert {name.split(".")[1] for name in early if name.startswith("blocks")} == {"0"}
        assert all(torch.equal(early[name], cache[name]) for name in early)
    _, early = model.run_with_cache(**given, names="z", stop_at_layer=1)
    assert list(early) == ["blocks.0.attn.hook_z"] and calls == [0, 0, 0]
    for handle in handles:
        handle.remove()
    one = {name: x[:1] for name, x in given.items()}
    _, alone = model.run_with_cache(**one, remove_batch_dim=True)
    assert alone["z", 0].shape == (18, 2, 12)
    for wrong, message in (
        ({"names": "z", "names_filter": "z"}, "give one of them"),
        ({"pos_slice": 3}, "choose tokens afterwards"),
        ({"remove_batch_dim": True}, "with 2 clips"),
        ({"names": ("z", 1), "stop_at_layer": 1}, "ends the pass before blocks.1.attn.hook_z"),
        ({"stop_at_layer": 3}, "0 <= start <= stop <= 2"),
        ({"stop_at_layer": -3}, "0 <= start <= stop <= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.run_with_cache(**given, **wrong)


# Clips of a cache


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_a_cache(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model, batch=4)
    with model.intervene(vd.MaskAttention(cut=((0,), (1,)))) if kind == "3d" else model.hooks():
        _, cache = model.run_with_cache(**given)
    for index, clips in ((slice(1, 3), [1, 2]), ([3, 0], [3, 0]), (torch.tensor([2]), [2])):
        some = cache[index]
        assert some.n_clips == len(clips) and torch.equal(some.inputs["latents"], given["latents"][clips])
        assert torch.equal(some["z", 1], cache["z", 1][clips])
        torch.testing.assert_close(some.decompose_resid(), cache.decompose_resid()[:, clips])
        torch.testing.assert_close(some["pattern", 0][:], cache["pattern", 0][:][clips])
    alone = cache.apply_slice_to_batch_dim(-2)
    wanted = cache[2:3]
    assert alone["z", 0].shape == cache["z", 0].shape[1:] and alone["pattern", 0].shape == cache["pattern", 0].shape[1:]
    torch.testing.assert_close(alone["pattern", 0][1], cache["pattern", 0][2, 1])
    torch.testing.assert_close(alone["attn_scores", 0], wanted["attn_scores", 0][0])
    for name in ("decompose_resid", "accumulated_resid", "stack_head_results"):
        for more in ({}, {"pos_slice": 4}, {"apply_ln": True}):
            torch.testing.assert_close(getattr(alone, name)(**more), getattr(wanted, name)(**more)[:, 0])
    stack = wanted.decompose_resid()
    torch.testing.assert_close(alone.apply_ln_to_stack(stack[:, 0]), wanted.apply_ln_to_stack(stack)[:, 0])
    torch.testing.assert_close(alone.head_results(0), wanted.head_results(0)[0])
    torch.testing.assert_close(alone.get_neuron_results(0, 3), wanted.get_neuron_results(0, 3)[0])
    assert alone.stack_activation("z").shape == (2, 18, 2, 12)
    torch.testing.assert_close(vd.direct_attribution(model, alone).parts, vd.direct_attribution(model, wanted).parts)
    with pytest.raises(ValueError, match=r"The stored blocks\.0\.attn\.hook_z is \[18, 2, 12\]"):
        vd.Ablate(("z", 0), mode="mean", reference=alone).hooks(model)
    assert alone.remove_batch_dim() is alone and alone.batched["z", 0].shape == wanted["z", 0].shape
    for wrong in (slice(4, 9), [4], [0.5], []):
        with pytest.raises(ValueError, match=r"clips 0\.\.3"):
            cache[wrong]
    for use, message in ((cache.remove_batch_dim, r"cache\[:1\]"), (lambda: alone[:1], "nothing to choose from")):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(KeyError, match=r"cache\[:4\] for clips"):
        cache[0]


def test_words_of_the_cache(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    cache = cached("space_time")
    for layer in (-1, None, 2):
        assert torch.equal(cache.stack_activation("z", layer), torch.stack([cache["z", 0], cache["z", 1]]))
    assert torch.equal(cache.stack_activation("mod.gate", 1, "mlp")[0], cache["mod.gate", 0, "mlp"])
    assert torch.equal(cache.stack("mod.gate", "mlp")[1], cache["mod.gate", 1, "mlp"])
    for layer in (0, -2, 3):
        with pytest.raises(KeyError, match=r"1\.\.2"):
            cache.stack_activation("z", layer)
    for word, ours in (("logit_lens", "vd.lens"), ("logit_attrs", "vd.direct_attribution"), ("cache_dict", "tensors")):
        with pytest.raises(AttributeError, match=ours):
            getattr(cache, word)
    assert not hasattr(cache, "logit_lens") and not hasattr(cache, "no_such_thing")
    wanted = cache["result", 1]
    cache.compute_head_results()
    assert ("result", 1) in cache and torch.equal(cache["result", 1], wanted)
    one = cache[:1].remove_batch_dim()
    one.save(tmp_path / "one")
    assert torch.equal(ActivationCache.load(tmp_path / "one", cache.model)["z", 0], one["z", 0])
    try:
        cache.toggle_autodiff()
        assert not torch.is_grad_enabled() and "switched off" in caplog.text
    finally:
        torch.set_grad_enabled(True)


# Patterns


INDICES = (
    0, -1, (1, 0), (slice(None), 1), (..., 2), (0, ..., slice(1, 3)), (0, 1, 3, 2), (slice(0, 1), [1, 0]),
    (0, 1, [4, 2, 4]), ([0, 1], [1, 0]), (1, slice(None), [0, 5]), (..., [1, 0], [2, 3]), (None, 1), (0, None, 1),
    (1, torch.tensor([True, False])), torch.tensor([[0, 1], [1, 1]]), ..., (slice(None), slice(None), slice(1, 6, 2)),
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["3d", "space_time", "cross", "causal"])
def test_patterns_are_indexed_as_the_whole_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(kind)
    edit = model.intervene(vd.MaskAttention(cut=((0,), (2,)))) if kind == "3d" else model.hooks()
    with edit:
        _, cache = model.run_with_cache(**inputs(model), names=["rot_q", "rot_k"])
    patterns = [cache["pattern", layer] for layer in (0, 1)]
    patterns += [cache["pattern", 0, "cross_attn"]] if kind == "cross" else []
    for pattern in patterns:
        dense = pattern.materialize()
        assert pattern.shape == dense.shape and pattern.ndim == dense.ndim and len(pattern) == 2
        for index in INDICES:
            try:
                wanted = dense[index]
            except IndexError:
                with pytest.raises(IndexError):
                    pattern[index]
                continue
            torch.testing.assert_close(pattern[index], wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.stack(list(pattern)), dense, atol=1e-6, rtol=0)
        for wrong in (2, -3, (0,) * 6, (0, [50]), (0, 0.5)):
            with pytest.raises(IndexError):
                pattern[wrong]
    made: list[int] = []
    whole = AttentionPattern.materialize
    monkeypatch.setattr(AttentionPattern, "materialize", lambda self: made.append(self.dense_bytes) or whole(self))
    first = patterns[0]
    assert first[1, 1].shape == first.shape[2:]
    assert made == [first.dense_bytes // 2 // first.shape[1]]


# Names and printing


def test_names_without_a_model() -> None:
    for model in map(tiny_model, KINDS):
        for name in model.hook_names:
            assert vd.get_act_name(name) == name
            if not name.startswith("blocks"):
                place, _, last = name.rpartition("hook_")
                assert vd.get_act_name(place.removeprefix("final.") + last, None, "final" if place else None) == name
                continue
            _, layer, *middle, last = name.split(".")
            sublayer = middle.pop(0) if middle else None
            short = ".".join([*middle, last.removeprefix("hook_")])
            assert vd.get_act_name(short, int(layer), sublayer) == name
    for given, wanted in (
        (("k6",), "blocks.6.attn.hook_k"),
        (("k", 6, "a"), "blocks.6.attn.hook_k"),
        (("pre", 2), "blocks.2.mlp.hook_pre"),
        (("embed",), "hook_patch_embed"),
        (("normalized", 27, "ln2"), "blocks.27.mlp.ln.hook_normalized"),
        (("scale4ln1",), "blocks.4.attn.ln.hook_scale"),
        (("gate", 1, "mlp"), "blocks.1.mlp.mod.hook_gate"),
        (("pattern", 0), "blocks.0.attn.hook_pattern"),
    ):
        assert vd.get_act_name(*given) == wanted
    for wrong in (("zz", 0), ("z",), ("z", 0, "mlp"), ("pre", 0, "attn"), ("resid_pre",), ("embed", 3)):
        with pytest.raises(KeyError, match="no activation is called"):
            vd.get_act_name(*wrong)
    with pytest.raises(KeyError, match="did you mean 'resid_post'"):
        vd.get_act_name("resid_posts", 1)


def test_printing_is_short() -> None:
    model = tiny_model("space_time")
    shown = repr(model)
    assert len(shown.splitlines()) == 4 and max(map(len, shown.splitlines())) < 140
    n = sum(parameter.numel() for parameter in model.parameters())
    for word in (
        "tiny-space_time",
        f"{n:,} parameters",
        "torch.float32 on cpu",
        "3 x 2 x 3",
        "over space",
        "over time",
    ):
        assert word in shown
    lines = repr(tiny_model("normed").cfg).splitlines()
    assert lines[0] == "VideoDiTConfig(" and "    residual='normed'," in lines and "    d_model=20," in lines
    assert not any("norm_eps" in line for line in lines), "defaults are left out"


# Stimuli


def test_plain_inputs_of_noised_clips() -> None:
    pipe = planted.pipe()
    given = vd.NoisedClips(pipe, planted.clips(), noise_levels=(0.9,), batch=2)
    inputs_of_all = given.inputs(0.9)
    noisy, noise_levels, cond = inputs_of_all
    assert noisy.shape == (5, 4, 1, 3, 4) and not cond
    assert torch.equal(noise_levels, torch.tensor([[0, 0, 0, 0.9]] * 5))
    with torch.no_grad():
        torch.testing.assert_close(pipe.denoise(*inputs_of_all)[:, 3:], given.x0(0.9))
        torch.testing.assert_close(given.cache(0.9)["z", 0][1:3], given.cache(0.9, "z", slice(1, 3))["z", 0])
    acting = vd.NoisedClips(planted.pipe(d_action=2), planted.clips(action=torch.randn(5, 4, 2)), noise_levels=(0.9,))
    assert acting.inputs(0.9).cond.actions.shape == (5, 4, 2)


def test_analyses_say_what_they_take() -> None:
    pipe = planted.pipe()
    analyses = [
        vd.analysis.frame_mass, vd.analysis.chunk_mass, vd.analysis.displacement_kernel, vd.analysis.synopsis,
        vd.analysis.head_table, vd.analysis.correspondence, vd.analysis.direct_effect, vd.analysis.tuned_lens,
        vd.analysis.lens_curve, vd.analysis.massive_activations, vd.analysis.patch_crossing, vd.analysis.head_consensus,
        vd.analysis.step_redundancy, vd.analysis.rope_reliance, vd.analysis.scroll_heads, vd.analysis.sinks,
        vd.analysis.spatial_temporal, vd.AttentionExplorer.of, vd.neurons.top_patches, vd.neurons.ablation_effects,
        vd.probes.fit,
    ]  # fmt: skip
    for analysis in analyses:
        with pytest.raises(ValueError, match="noised is VideoDiffusion; give vd"):
            analysis(pipe)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="noised is Clips"):
        vd.analysis.frame_mass(noised=planted.clips())  # type: ignore[arg-type]
