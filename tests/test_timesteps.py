"""What a network may be told of the noise: whole levels where it was trained on those, never NaN or flags."""

from __future__ import annotations

import pytest
import torch
from factories import inputs, tiny_model

import vdinterp as vd

MODEL = tiny_model("3d")
PIPE = vd.VideoDiffusion(MODEL, None, vd.DiffusionConfig())
LATENTS = inputs(MODEL)["latents"]


@pytest.mark.parametrize(
    ("level", "says"),
    [
        (0.9, "0.9 is a share of noise; tiny-3d takes whole levels k, -1 .clean. to 999: give k = 899"),
        (0.3, "give k = 299"),
        (900.5, "got 900.5; tiny-3d takes whole levels k"),
        (1000, "got 1000"),
        (1e9, "got 1e.09"),
        (-2, "got -2"),
        (float("nan"), "NaN or infinity"),
        (float("inf"), "NaN or infinity"),
        (True, "torch.bool"),
        (1j, "torch.complex64"),
    ],
)
def test_levels_that_no_such_network_was_trained_on(level, says):
    with pytest.raises(ValueError, match=says):
        MODEL(LATENTS, torch.full((2, 3), level))
    with pytest.raises(ValueError, match=r"level"):
        vd.SetNoiseLevel(level).hooks(MODEL)
    with pytest.raises(ValueError, match="level"):
        vd.circuits.ov(MODEL, 0, 0, level)
    with pytest.raises(ValueError, match="level"):
        vd.circuits.ov(MODEL, 0, 0, 900, query_level=level)
    with pytest.raises(ValueError, match="level"):
        vd.modulation_atlas(MODEL, noise_levels=[level])


@torch.no_grad()
def test_whole_levels_of_any_type_are_the_same():
    expected = MODEL(LATENTS, torch.full((2, 3), 99))
    for dtype in (torch.float32, torch.float64, torch.int32, torch.int16, torch.uint8, torch.float16):
        assert torch.equal(MODEL(LATENTS, torch.full((2, 3), 99, dtype=dtype)), expected)
    assert torch.equal(MODEL(LATENTS, torch.full((2, 3), -1)), MODEL(LATENTS, torch.full((2, 3), 0)))
    assert torch.equal(PIPE.denoise(LATENTS, torch.full((2, 3), 99, dtype=torch.uint8)),
                       PIPE.denoise(LATENTS, torch.full((2, 3), 99)))  # fmt: skip
    noise = torch.ones_like(LATENTS)
    assert torch.equal(PIPE.add_noise(LATENTS, torch.full((2, 3), 99, dtype=torch.int8), noise),
                       PIPE.add_noise(LATENTS, torch.full((2, 3), 99), noise))  # fmt: skip


@torch.no_grad()
def test_networks_that_are_told_something_else_take_it():
    for diffusion in (
        vd.DiffusionConfig("flow", "flow", shift=1 / 3),
        vd.DiffusionConfig("v", "cosine_simple_diffusion", shift=0.125, precond_scale=0.125),
    ):
        pipe = vd.VideoDiffusion(tiny_model("normed"), None, diffusion)
        assert pipe.model.n_levels is None
        pipe.denoise(LATENTS, torch.full((2, 3), 500))
        with pytest.raises(ValueError, match="NaN or infinity"):
            pipe.model(LATENTS, torch.full((2, 3), float("nan")))


def test_the_range_is_the_pipelines():
    pipe = vd.VideoDiffusion(tiny_model("3d"), None, vd.DiffusionConfig(n_levels=100))
    with pytest.raises(ValueError, match=r"got 100; tiny-3d takes whole levels k, -1 .clean. to 99"):
        pipe.model(LATENTS, torch.full((2, 3), 100))
    assert vd.modulation_atlas(pipe.model).levels[-1] == 99


@pytest.mark.parametrize(
    ("latents", "levels", "says"),
    [
        (LATENTS, [[99] * 3] * 2, "noise levels are a list: a tensor of whole levels k"),
        (LATENTS, None, "noise levels are a NoneType"),
        (None, torch.full((2, 3), 99), "must be a tensor"),
        (LATENTS.tolist(), torch.full((2, 3), 99), "must be a tensor"),
        (LATENTS, torch.full((2, 3), 0.9), r"integers in \[-1, 999\]"),
        (LATENTS, torch.full((2, 3), True), r"integers in \[-1, 999\]"),
        (LATENTS, torch.full((2, 2), 99), "expected .batch frame. = .2 3."),
    ],
)
def test_what_a_pipeline_is_given(latents, levels, says):
    for call in (PIPE.denoise, lambda *given: PIPE.add_noise(*given, LATENTS)):
        with pytest.raises(ValueError, match=says):
            call(latents, levels)
    with pytest.raises(ValueError, match="latents are NoneType"):
        MODEL(None, torch.full((2, 3), 99))
