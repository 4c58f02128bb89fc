"""Activation patching: identities, exactness against a loop of full forward passes, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from contrasts import KINDS, QUIET, actions, given, latents, small_pipe

import vdinterp as vd
from vdinterp.analysis import Contrast, NoisedClips
from vdinterp.data import Clips
from vdinterp.interventions import Patch

SITES = [
    ("resid_pre", ("layer", "frame")), ("resid_mid", ("layer",)), ("attn_out", ("layer", "frame")),
    ("mlp_out", ("layer", "token")), ("z", ("layer", "head", "frame")), ("q", ("layer", "head")),
    ("k", ("layer", "head")), ("v", ("layer", "head")), ("pattern", ("layer", "head")), ("mod.shift", ("layer",)),
    ("mod.scale", ("layer", "frame")), ("mod.gate", ("layer", "frame")), ("cond", ("frame",)),
]  # fmt: skip


def recovered(x0: torch.Tensor, clean: torch.Tensor, corrupted: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    way = (clean - corrupted) * region
    return ((x0 - corrupted) * way).flatten(1).sum(1) / way.square().flatten(1).sum(1)


def by_hand(pair: Contrast, hooks_of: Any, direction: str = "denoising") -> torch.Tensor:
    """The metric of every clip from full forward passes; `hooks_of(cache)` gives hook functions that patch."""
    found = []
    base, source = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    with torch.no_grad():
        for start in range(0, len(pair), pair.batch):
            clips = slice(start, start + pair.batch)
            runs = pair.inputs(clips, next(iter(pair.levels)))
            x0 = {name: pair.denoiser.denoise(*run) for name, run in runs.items()}
            with pair.model.record() as recording:
                pair.denoiser.denoise(*runs[source])
            with pair.model.hooks(hooks_of(recording[0])):
                patched = pair.denoiser.denoise(*runs[base])
            found.append(recovered(patched, x0["clean"], x0["corrupted"], pair.region[clips]))
    return torch.cat(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("site", "over"), SITES, ids=[site for site, _ in SITES])
def test_batched_trials_agree_with_single_ones(kind: str, site: str, over: tuple[str, ...]) -> None:
    arguments = given(kind)
    one = vd.activation_patch(**arguments, site=site, over=over, sweep_options=QUIET)
    four = vd.activation_patch(**arguments, site=site, over=over, sweep_options={**QUIET, "trials_per_pass": 4})
    assert one.values.shape == tuple(len(one.coordinates[name]) for name in over)
    torch.testing.assert_close(one.per_clip, four.per_clip, atol=2e-6, rtol=0)
    assert not len(one.failures) and float(one.values.abs().max()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_bitwise_what_a_loop_of_full_passes_gives(kind: str, direction: str) -> None:
    arguments = given(kind)
    result = vd.activation_patch(
        **arguments, site="z", over=("layer", "head", "frame"), direction=direction, sweep_options=QUIET
    )
    pair = Contrast(**arguments)
    per_frame = pair.model.grid().tokens_per_frame
    for layer, head, frame in [(0, 1, 1), (1, 0, 3), (1, 1, 0)]:

        def hooks(cache: Any, layer: int = layer, head: int = head, frame: int = frame) -> list:
            tokens = slice(frame * per_frame, (frame + 1) * per_frame)

            def patch(z: torch.Tensor, hook: Any) -> torch.Tensor:
                z[:, tokens, head] = cache[hook.name][:, tokens, head]
                return z

            return [(("z", layer), patch)]

        wanted = by_hand(pair, hooks, direction)
        assert torch.equal(result.per_clip[:, layer, head, frame], wanted.double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "mlp.hook_post"])
def test_bitwise_also_where_sublayers_before_the_patch_are_not_run(kind: str, site: str) -> None:
    arguments = given(kind)
    result = vd.activation_patch(**arguments, site=site, over=("layer", "frame"), sweep_options=QUIET)
    pair = Contrast(**arguments)
    per_frame = pair.model.grid().tokens_per_frame
    for layer in (0, 1):

        def hooks(cache: Any, layer: int = layer) -> list:
            def patch(activation: torch.Tensor, hook: Any) -> torch.Tensor:
                activation[:, per_frame : 2 * per_frame] = cache[hook.name][:, per_frame : 2 * per_frame]
                return activation

            return [([name for name in pair.model.resolve_names(site) if f"blocks.{layer}." in name], patch)]

        assert torch.equal(result.per_clip[:, layer, 1], by_hand(pair, hooks).double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_patching_everything_gives_the_other_run_bitwise(kind: str, direction: str) -> None:
    arguments = given(kind, same_action=True)
    result = vd.activation_patch(
        **arguments, site="resid_pre", over=("layer",), direction=direction, sweep_options=QUIET
    )
    wanted = 1.0 if direction == "denoising" else 0.0
    assert (result.per_clip == wanted).all(), "the whole stream is all there is"
    assert result.untouched == {"clean": 1.0, "corrupted": 0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_patching_nothing_gives_the_base_bitwise(kind: str) -> None:
    arguments = given(kind)
    arguments |= {"clean": arguments["clean"][:2], "corrupted": arguments["corrupted"][:2]}
    arguments |= {"cond": arguments["cond"][:2], "corrupted_cond": arguments["corrupted_cond"][:2]}
    pair = Contrast(**arguments)
    (case,) = pair.cases()
    trial = vd.sweep.Trial(interventions=(Patch("z", "corrupted"),), label={"what": "itself"})
    seen = {}

    def metric(x0: torch.Tensor, moment: Any) -> torch.Tensor:
        seen["equal"] = torch.equal(x0, moment.x0["corrupted"])
        return x0.flatten(1).mean(1)

    vd.sweep.run(pair.denoiser, [case], [trial], {"mean": metric}, **QUIET)
    assert seen["equal"]


def test_all_layers_or_heads_together_when_they_are_not_named() -> None:
    arguments = given()
    pair = Contrast(**arguments)
    result = vd.activation_patch(**arguments, site="z", over=("frame",), sweep_options=QUIET)
    per_frame = pair.model.grid().tokens_per_frame

    def hooks(cache: Any) -> list:
        def patch(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z[:, per_frame : 2 * per_frame] = cache[hook.name][:, per_frame : 2 * per_frame]
            return z

        return [("z", patch)]

    assert torch.equal(result.per_clip[:, 1], by_hand(pair, hooks).double())


def test_pattern_is_attention_without_values() -> None:
    arguments = given()
    pair = Contrast(**arguments)
    result = vd.activation_patch(**arguments, site="pattern", over=("layer", "head"), sweep_options=QUIET)

    def hooks(cache: Any) -> list:
        def patch(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
            pattern[:, 1] = cache["pattern", 0].materialize()[:, 1]
            return pattern

        return [(("pattern", 0), patch)]

    torch.testing.assert_close(result.per_clip[:, 0, 1], by_hand(pair, hooks).double(), atol=1e-5, rtol=0)


def test_levels_regions_and_subspaces() -> None:
    arguments = {**given(same_action=True), "noise_levels": (0.3, 0.9)}
    regions = {"left": [0, 3, 6, 9, 12, 15, 18, 21], "rest": [t for t in range(24) if t % 3]}
    result = vd.activation_patch(
        **arguments, site="resid_pre", over=("level", "layer", "region"), regions=regions, sweep_options=QUIET
    )
    assert result.values.shape == (2, 2, 2) and result.coordinates["level"] == [0.3, 0.9]
    alone = vd.activation_patch(
        **{**arguments, "noise_levels": 0.9}, site="resid_pre", over=("layer", "region"), regions=regions,
        sweep_options=QUIET,
    )  # fmt: skip
    assert torch.equal(result.per_clip[:, 1], alone.per_clip)
    mean = vd.activation_patch(
        **arguments, site="resid_pre", over=("layer", "region"), regions=regions, sweep_options=QUIET
    )
    torch.testing.assert_close(mean.per_clip, result.per_clip.mean(1))
    whole = vd.activation_patch(
        **{**arguments, "noise_levels": 0.9},
        site="resid_pre",
        over=("layer",),
        subspace=torch.eye(20),
        sweep_options=QUIET,
    )
    torch.testing.assert_close(whole.per_clip, torch.ones_like(whole.per_clip), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["3d", "normed", "causal"])
@pytest.mark.parametrize("at", ["step", "from"])
@pytest.mark.parametrize("trials_per_pass", [1, 3])
def test_trajectories_are_what_sampling_from_the_start_gives(kind: str, at: str, trials_per_pass: int) -> None:
    pipe, (clean, corrupted), action = small_pipe(kind), latents(3), actions(3)
    sampling = {"guidance": vd.HistoryGuidance.vanilla(1.5), "eta": 0.5} if kind == "3d" else {}
    result = vd.activation_patch(
        pipe, clean, corrupted, steps=4, n_context=2, cond=action, corrupted_cond=action.roll(1, 0), site="z",
        over=("layer", "step"), at=at, sampling=sampling, sweep_options={**QUIET, "trials_per_pass": trials_per_pass},
    )  # fmt: skip
    pair = Contrast(
        pipe, clean, corrupted, steps=4, n_context=2, cond=action, corrupted_cond=action.roll(1, 0), sampling=sampling
    )
    options = {"n_frames": 4, "steps": 4, "noise": pair.noise, **sampling}
    one = pipe.sample(clean[:, :2], cond=action, record=["z"], **options)
    other = pipe.sample(corrupted[:, :2], cond=action.roll(1, 0), **options)
    for layer, step in [(0, 0), (1, 2), (1, 3)]:
        steps = [step] if at == "step" else range(step, 4)
        patches = [Patch(("z", layer), one.record[s], steps=[s]) for s in steps]
        patched = pipe.sample(corrupted[:, :2], cond=action.roll(1, 0), interventions=patches, **options)
        wanted = recovered(patched.latents, one.latents, other.latents, pair.region)
        torch.testing.assert_close(result.per_clip[:, layer, step], wanted.double(), atol=2e-6, rtol=0)
        if trials_per_pass == 1:
            assert torch.equal(result.per_clip[:, layer, step], wanted.double())


def test_a_bare_model_is_compared_in_its_predictions() -> None:
    pipe, (clean, corrupted) = small_pipe(d_action=0), latents()
    levels = torch.full((4,), 0.7)
    result = vd.activation_patch(
        pipe.model, clean, corrupted, levels, site="resid_pre", over=("layer",), sweep_options=QUIET
    )
    assert (result.per_clip == 1).all()
    with pytest.raises(ValueError, match="pipeline"):
        vd.activation_patch(pipe.model, clean, corrupted, 0.5)


def test_metrics_of_the_library_and_of_the_user() -> None:
    arguments = given()
    pair = Contrast(**arguments)
    error = vd.activation_patch(**arguments, site="z", metric="error", sweep_options=QUIET)
    psnr = vd.activation_patch(**arguments, site="z", metric="psnr", sweep_options=QUIET)
    clean, runs = [], pair.inputs(slice(0, 5), 0.6)
    with torch.no_grad():
        x0 = pair.denoiser.denoise(*runs["clean"])
    clean = (x0 - pair.clean.latents)[:, 3].square().mean() / pair.variance
    assert error.untouched["clean"] == pytest.approx(float(clean), rel=1e-5)
    assert psnr.untouched["clean"] != psnr.untouched["corrupted"]

    def last_pixel(x0: torch.Tensor, pair: Any) -> torch.Tensor:
        return x0[:, -1, 0, -1, -1]

    mine = vd.activation_patch(**arguments, site="z", metric=last_pixel, sweep_options=QUIET)
    assert mine.unit == "last_pixel"


def test_noised_clips_and_clips_are_the_same_as_their_latents() -> None:
    pipe = small_pipe(d_action=0)
    clean, corrupted = (x.sigmoid() for x in latents())
    clips, twins = Clips(kind="file", video=clean), Clips(kind="file", video=corrupted)
    one = vd.activation_patch(pipe, clips, twins, 0.6, sweep_options=QUIET)
    two = vd.activation_patch(pipe, clean * 2 - 1, corrupted * 2 - 1, 0.6, sweep_options=QUIET)
    noised = [NoisedClips(pipe, one, noise_levels=(0.6,)) for one in (clips, twins)]
    three = vd.activation_patch(pipe, *noised, sweep_options=QUIET)
    torch.testing.assert_close(one.per_clip, two.per_clip, atol=1e-5, rtol=0)
    assert torch.equal(one.per_clip, three.per_clip)
    with pytest.raises(ValueError, match="share their noise"):
        vd.activation_patch(pipe, noised[0], NoisedClips(pipe, twins, noise_levels=(0.6,), seed=1))
    with pytest.raises(ValueError, match="share their noise"):
        vd.activation_patch(pipe, noised[0], NoisedClips(pipe, twins, noise_levels=(0.7,)))


def test_the_result_is_a_table_and_figures(tmp_path: Any) -> None:
    result = vd.activation_patch(**given(), site="z", over=("layer", "head", "frame"), sweep_options=QUIET)
    table = result.to_frame()
    assert list(table.columns) == ["layer", "head", "frame", "value", "low", "high", "n_clips"]
    assert len(table) == 2 * 2 * 4 and (table["n_clips"] == 5).all()
    np.testing.assert_allclose(table["value"].to_numpy().reshape(2, 2, 4), result.values)
    assert len(result.plot()) == 1 and next(iter(result.plot().values())).layout.sliders
    assert "clean 1" in result.summary()
    again = type(result).load(result.save(tmp_path))
    assert torch.equal(again.values, result.values) and again.over == result.over
    for over in (("layer",), ("layer", "head")):
        assert vd.activation_patch(**given(), site="z", over=over, sweep_options=QUIET).plot()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corrupted": torch.zeros(5, 3, 1, 4, 6)}, ValueError, "same shape"),
        ({"corrupted": torch.zeros(4, 4, 1, 4, 6)}, ValueError, "same shape"),
        ({"corrupted": None}, ValueError, "twin"),
        ({"clean": torch.zeros(5, 4, 2, 4, 6)}, ValueError, "do not fit"),
        ({"noise": torch.zeros(5, 3, 1, 4, 6)}, ValueError, "as the latents are"),
        ({"site": "zz"}, KeyError, "zz"),
        ({"site": "entropy", "over": ("layer",)}, ValueError, "statistic"),
        ({"site": "cross_attn.z"}, KeyError, "cross_attn"),
        ({"site": "cond", "over": ("layer",)}, ValueError, "leave 'layer' out"),
        ({"site": "resid_pre", "over": ("layer", "head")}, ValueError, "no heads"),
        ({"over": ("layer", "heads")}, ValueError, "over="),
        ({"over": "layer"}, ValueError, "over="),
        ({"over": ("frame", "token")}, ValueError, "choose one"),
        ({"over": ("step",)}, ValueError, "trajectories"),
        ({"over": ("region",)}, ValueError, "regions"),
        ({"over": ("region",), "regions": {"a": [99]}}, ValueError, "0..23"),
        ({"metric": "loss"}, ValueError, "unknown metric"),
        ({"direction": "both"}, ValueError, "unknown direction"),
        ({"noise_levels": None}, ValueError, "either noise_levels"),
        ({"noise_levels": 1.5}, ValueError, "noise levels in"),
        ({"noise_levels": torch.zeros(3)}, ValueError, "a level for every frame"),
        ({"noise_levels": torch.full((4,), 949)}, ValueError, "level k = 949 of 1000 is 0.95"),
        ({"cond": torch.zeros(5, 4, 2)}, ValueError, "one action a frame"),
        ({"region": {"frame": [1]}}, ValueError, "frames, rows and cols"),
        ({"region": torch.zeros(4, 4, 6)}, ValueError, "a mask is boolean"),
        ({"region": torch.zeros(4, 4, 6).bool()}, ValueError, "empty"),
        ({"region": {"frames": [True, False, True, False]}}, ValueError, "booleans are no indices"),
        ({"over": ("region",), "regions": {"a": [1.5]}}, ValueError, "whole numbers"),
        ({"batch": True}, ValueError, "batch must be"),
        ({"batch": 1.5}, ValueError, "batch must be"),
        ({"seed": "0"}, ValueError, "seed must be"),
        ({"n_context": 2.0}, ValueError, "n_context must be"),
        ({"noise_levels": None, "steps": True}, ValueError, "steps must be"),
        ({"noise_levels": None, "steps": 2, "sampling": {"eta": 3}}, ValueError, "eta must be"),
        ({"subspace": torch.eye(3)}, ValueError, "channels"),
        ({"engine": "dask"}, ValueError, "unknown engine"),
        ({"sweep_options": {"shard": (0, 2)}}, ValueError, "shard"),
        ({"sweep_options": {"trials_per_pass": 0}}, ValueError, "trials_per_pass"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {**given(), **change}
    monkeypatch.setattr(arguments["model"].model, "forward", lambda *a, **k: pytest.fail("it ran"))
    with pytest.raises(error, match=message):
        vd.activation_patch(**arguments)


def test_what_is_the_same_has_nothing_to_recover() -> None:
    arguments = given(same_action=True)
    with pytest.raises(ValueError, match="nothing to recover"):
        vd.activation_patch(**{**arguments, "corrupted": arguments["clean"]}, sweep_options=QUIET)


def test_a_metric_that_fails_somewhere_is_named_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    counts = {"calls": 0}

    def flaky(x0: torch.Tensor, pair: Any) -> torch.Tensor:
        counts["calls"] += 1
        if counts["calls"] == 4:  # after the two untouched runs, the second trial
            return torch.full((len(x0),), math.nan)
        return x0.flatten(1).mean(1)[: 1 if counts["calls"] == 5 else None]

    arguments = given(n=2)
    result = vd.activation_patch(**arguments, metric=flaky, sweep_options=QUIET)
    assert result.failures["trial"].tolist() == ["layer 0, head 1", "layer 1, head 0"]
    assert "nan" in result.failures["error"][0] and "one number a clip" in result.failures["error"][1]
    assert torch.isnan(result.values).tolist() == [[False, True], [True, False]]
    assert "layer 0, head 1 gave no number" in caplog.text and "2 trials failed" in result.summary()
    with pytest.raises(ValueError, match="gave float"):
        vd.activation_patch(**arguments, metric=lambda x0, pair: float(x0.mean()), sweep_options=QUIET)
