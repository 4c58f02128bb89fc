"""One model at the sizes it was trained at, longer, and at other resolutions: everything follows the latents."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from factories import KINDS, inputs, tiny_model

import vdinterp as vd
from vdinterp.interventions import Ablate, Freeze, MaskAttention, Patch, RotateRope, SetNoiseLevel
from vdinterp.models import HookedVideoDiT

SIZES = {"trained": (3, 4, 6), "longer": (5, 4, 6), "other resolution": (3, 8, 4)}  # frames, height, width
ROPED = ["3d", "normed", "space_time", "cross", "causal"]
MODELS = {kind: tiny_model(kind) for kind in ROPED}


@pytest.fixture(params=SIZES.values(), ids=list(SIZES))
def size(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return request.param


def given_at(model: HookedVideoDiT, size: tuple[int, int, int], batch: int = 2) -> dict[str, Any]:
    """Inputs of a size."""
    given = inputs(model, batch, n_frames=size[0])
    generator = torch.Generator().manual_seed(3)
    return {**given, "latents": torch.randn(batch, size[0], model.cfg.in_channels, *size[1:], generator=generator)}


def configured(model: HookedVideoDiT, size: tuple[int, int, int]) -> HookedVideoDiT:
    """The same weights, in a model that was made for that size."""
    n_frames, height, width = size
    made = HookedVideoDiT(dataclasses.replace(model.cfg, n_frames=n_frames, height=height, width=width))
    made.load_state_dict(model.state_dict())
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ROPED)
def test_as_a_model_that_was_made_for_that_size(kind: str, size: tuple[int, int, int]) -> None:
    model, given = MODELS[kind], given_at(MODELS[kind], size)
    pred, cache = model.run_with_cache(**given)
    again, expected = configured(model, size).run_with_cache(**given)
    assert torch.equal(pred, again) and pred.shape == given["latents"].shape
    assert cache.grid == expected.grid == model.grid_of(given["latents"])
    for name, value in expected.tensors.items():
        assert torch.equal(cache[name], value), name
        assert tuple(value.shape) == model.hook_shape(name, 2, n_text=4, grid=cache.grid), name
    sizes = sum(value.nbytes for value in cache.tensors.values())
    assert cache.nbytes <= sizes == model.estimate_cache(batch=2, n_text=4, grid=cache.grid)
    for layer in range(2):
        rows = cache["pattern", layer].materialize().sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))


@torch.no_grad()
@pytest.mark.parametrize("kind", ROPED)
def test_what_changes_nothing_and_what_restores_all(kind: str, size: tuple[int, int, int]) -> None:
    model, given = MODELS[kind], given_at(MODELS[kind], size)
    pred, cache = model.run_with_cache(**given)
    other = {**given, "latents": given["latents"].flip(0)}
    identities = [lambda x, hook: x.clone()] * 2
    assert torch.equal(
        model.run_with_hooks(**given, fwd_hooks=[("z", identities[0]), ("resid_post", identities[1])]), pred
    )
    with model.intervene(Patch(["resid_post"], cache), Patch("hook_cond", cache)):
        assert torch.equal(model(**other), pred)
    rows = cache.decompose_resid().sum(0) if kind != "normed" else None
    if rows is not None:
        torch.testing.assert_close(rows, cache["resid_post", -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_places_are_those_of_the_run(size: tuple[int, int, int]) -> None:
    model, given = MODELS["3d"], given_at(MODELS["3d"], size)
    grid = model.grid_of(given["latents"])
    last = {"frames": [grid.n_frames - 1], "rows": [grid.n_rows - 1], "cols": [0]}
    for where in (last, {"tokens": grid.tokens(**last)}):
        with model.intervene(Freeze(("z", 0), 7.5, **where)):
            z = model.run_with_cache(**given, names="z")[1]["z", 0]
        assert (z == 7.5).flatten(2).all(-1).nonzero()[:, 1].unique().tolist() == grid.tokens(**last)
    for where in (
        {"frames": [grid.n_frames]},
        {"rows": [grid.n_rows]},
        {"cols": [grid.n_cols]},
        {"tokens": [grid.n_tokens]},
    ):
        with pytest.raises(ValueError, match="are outside these clips"), model.intervene(Ablate("z", **where)):
            model(**given)
    with model.intervene(MaskAttention("same_position", layers=[0])):
        pattern = model.run_with_cache(**given, names="pattern")[1]["pattern", 0]
    cell = grid.cell_of()
    assert torch.equal(pattern[0, 0] > 0, cell[:, None] == cell[None])
    made = configured(model, size)
    for each in (model, made):
        vd.VideoDiffusion(each, None, vd.DiffusionConfig())  # which says how noise levels are told
    for one in (RotateRope("row", "permuted", seed=2), SetNoiseLevel(0.3, frames=[0])):
        with model.intervene(one), made.intervene(one):
            assert torch.equal(model(**given), made(**given))


@torch.no_grad()
def test_statistics_of_attention(size: tuple[int, int, int]) -> None:
    model, given = MODELS["causal"], given_at(MODELS["causal"], size)
    stats = ["frame_mass", "mass", "sinks", "entropy", "displacement_kernel"]
    found = model.run_with_stats(**given, stats=stats)[1]
    expected = configured(model, size).run_with_stats(**given, stats=stats)[1]
    for name in stats:
        torch.testing.assert_close(found[name], expected[name], atol=0, rtol=0)


@torch.no_grad()
def test_sampling(size: tuple[int, int, int]) -> None:
    model = MODELS["3d"]
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig())
    made = vd.VideoDiffusion(configured(model, size), None, vd.DiffusionConfig())
    n_frames, height, width = size
    context = given_at(model, size)["latents"][:, :1]
    options = {"steps": 2, "seed": 4, "record": "z"}
    found, expected = (each.sample(context, n_frames, **options) for each in (pipe, made))
    assert torch.equal(found.latents, expected.latents) and found.latents.shape[1:] == (n_frames, 2, height, width)
    assert found.record[0].grid == model.grid(*size)
    noise = torch.randn(2, n_frames, 2, height, width)
    assert pipe.sample(None, n_frames, batch=2, noise=noise, steps=1).latents.shape == noise.shape
    assert pipe.rollout(context, n_frames + 3, steps=1).latents.shape[1:] == (n_frames + 3, 2, height, width)
    assert pipe.rollout(context, 7, window=5, steps=1).latents.shape[1] == 7


def test_padding_is_for_clips_shorter_than_those_of_training() -> None:
    pipe = vd.VideoDiffusion(MODELS["3d"], None, vd.DiffusionConfig())
    context = torch.zeros(1, 1, 2, 4, 6)
    for n_frames, seen in ((2, [[0, 1, -1]]), (3, [[0, 1, 2]]), (5, [[0, 1, 2, 3, 4]])):
        record = pipe.sample(context, n_frames, steps=1, record="hook_cond").record
        assert record[0].frames.tolist() == seen


def test_a_table_of_positions_refuses_by_name() -> None:
    model = tiny_model("table")
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig())
    given = given_at(model, (3, 8, 4))
    says = r"of 8x4: tiny-table has learned positions \(abs_pos='learned_spatial'\), so it takes 4x6"
    with pytest.raises(ValueError, match=says):
        model(**given)
    with pytest.raises(ValueError, match=says):
        pipe.sample(given["latents"][:, :1], cond=vd.NO_CONDITION)
    longer = model(**given_at(model, (5, 4, 6)))  # the table is of rows and columns
    assert longer.shape[1] == 5


def test_sizes_divide_into_patches_and_channels_are_the_models() -> None:
    model = MODELS["3d"]
    for shape, says in (
        ((2, 3, 2, 5, 6), "of 5x6 do not divide into tiny-3d's 2x2 patches"),
        ((2, 3, 1, 4, 6), "do not fit"),
    ):
        with pytest.raises(ValueError, match=says):
            model(torch.zeros(shape), torch.zeros(2, 3))


def test_running_longer_than_trained_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("3d", model_name="tiny-said-once")
    with caplog.at_level(logging.WARNING, logger="vdinterp"):
        for _ in range(2):
            model(**given_at(model, SIZES["longer"]))
    assert [m for m in caplog.messages if "was trained on" in m] == [
        "tiny-said-once runs on 5 frames at once; it was trained on 3 (pipe.rollout continues clips in windows of that)"
    ]


def test_kinds_are_all_here() -> None:
    assert set(ROPED) | {"table"} == set(KINDS)


@torch.no_grad()
def test_a_stimulus_of_any_size(size: tuple[int, int, int]) -> None:
    model = tiny_model("causal")
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig())
    made = vd.VideoDiffusion(configured(model, size), None, vd.DiffusionConfig())
    latents = torch.randn(3, size[0], 2, *size[1:], generator=torch.Generator().manual_seed(5))
    noised, expected = (vd.NoisedClips(each, latents, n_frames=size[0]) for each in (pipe, made))
    assert noised.grid == model.grid(*size) and noised.shape == latents.shape
    found, wanted = (vd.analysis.sinks(each).table for each in (noised, expected))
    assert found.equals(wanted)
    found, wanted = (
        torch.stack([pattern.mass() for pattern in next(each.patterns(0.9))]) for each in (noised, expected)
    )
    assert torch.equal(found, wanted)
    changed, same = (each.x0_change(0.9, Ablate("z", heads=[0])) for each in (noised, expected))
    assert torch.equal(changed, same)
