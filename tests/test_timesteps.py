"""What a network may be fed of the noise, and what noise levels are: whole timesteps where it was trained on those,
shares of noise everywhere else, never NaN or flags."""

from __future__ import annotations

import pytest
import torch
from factories import inputs, tiny_model

import vdinterp as vd

MODEL = tiny_model("3d")
PIPE = vd.VideoDiffusion(MODEL, None, vd.DiffusionConfig())
LATENTS = inputs(MODEL)["latents"]


@pytest.mark.parametrize(
    ("timestep", "says"),
    [
        (
            0.95,
            r"0.95 is a share of noise; tiny-3d is fed whole ones, -1 .clean. to 999: give pipe.timestep",
        ),
        (900.5, "got 900.5; tiny-3d is fed whole ones"),
        (1000, "got 1000"),
        (1e9, "got 1e.09"),
        (-2, "got -2"),
        (float("nan"), "NaN or infinity"),
        (float("inf"), "NaN or infinity"),
        (True, "torch.bool"),
        (1j, "torch.complex64"),
    ],
)
def test_timesteps_that_no_such_network_was_trained_on(timestep, says):
    with pytest.raises(ValueError, match=says):
        MODEL(LATENTS, torch.full((2, 3), timestep))


@pytest.mark.parametrize("level", [949, 1.5, 1e9, -1, -0.1, float("nan"), float("inf"), True, 1j])
def test_noise_levels_are_shares_wherever_they_are_given(level):
    for ask in (
        lambda: PIPE.timestep(level),
        lambda: PIPE.denoise(LATENTS, level),
        lambda: PIPE.denoise(LATENTS, torch.full((2, 3), level)),
        lambda: PIPE.add_noise(LATENTS, torch.full((2, 3), level), LATENTS),
        lambda: vd.SetNoiseLevel(level).hooks(MODEL),
        lambda: vd.SetNoiseLevel(torch.full((3,), level)).hooks(MODEL),
        lambda: vd.circuits.ov(MODEL, 0, 0, level),
        lambda: vd.circuits.ov(MODEL, 0, 0, 0.9, query_level=level),
        lambda: vd.circuits.copying(PIPE, level),
        lambda: vd.modulation_atlas(MODEL, noise_levels=[level]),
        lambda: vd.neurons.write_directions(PIPE, 0, level),
        lambda: vd.Ablate("z", noise_levels=[level]),
        lambda: vd.Between(0.0, level),
        lambda: vd.Contrast(PIPE, LATENTS, LATENTS, [level]),
        lambda: PIPE.sample(LATENTS[:, :1], matrix=torch.full((2, 3), level)),
    ):
        with pytest.raises(ValueError, match=r"level|noise"):
            ask()


@pytest.mark.parametrize("call", [MODEL, MODEL.run_with_cache, MODEL.run_with_hooks])
def test_the_old_name_of_timesteps_is_in_the_error(call):
    with pytest.raises(TypeError, match=r"noise_levels=: give timestep="):
        call(LATENTS, noise_levels=torch.full((2, 3), 99))


def test_the_old_name_of_levels_is_in_the_error():
    with pytest.raises(TypeError, match=r"levels=: NoisedClips takes noise_levels"):
        vd.NoisedClips(PIPE, vd.data.Clips(kind="x", encoded=LATENTS), levels=(0.9,))


@torch.no_grad()
def test_whole_timesteps_of_any_type_are_the_same():
    expected = MODEL(LATENTS, torch.full((2, 3), 99))
    for dtype in (torch.float32, torch.float64, torch.int32, torch.int16, torch.uint8, torch.float16):
        assert torch.equal(MODEL(LATENTS, torch.full((2, 3), 99, dtype=dtype)), expected)
    assert torch.equal(MODEL(LATENTS, torch.full((2, 3), -1)), MODEL(LATENTS, torch.full((2, 3), 0)))


@torch.no_grad()
def test_noise_levels_of_any_type_are_the_same():
    expected = PIPE.denoise(LATENTS, 0.1)
    assert int(PIPE.timestep(0.1)) == 99 and PIPE.timestep(torch.tensor([[0, 1]])).tolist() == [[0, 999]]
    for level in (torch.full((2, 3), 0.1), torch.full((2, 3), 0.1, dtype=torch.double), torch.tensor(0.1)):
        assert torch.equal(PIPE.denoise(LATENTS, level), expected)
    assert torch.equal(PIPE.denoise(LATENTS, torch.zeros(2, 3, dtype=torch.uint8)), LATENTS), "clean"


@torch.no_grad()
def test_networks_that_are_told_something_else_take_it():
    for diffusion in (
        vd.DiffusionConfig("flow", "flow", shift=1 / 3),
        vd.DiffusionConfig("v", "cosine_simple_diffusion", shift=0.125, precond_scale=0.125),
    ):
        pipe = vd.VideoDiffusion(tiny_model("normed"), None, diffusion)
        pipe.model(LATENTS, torch.full((2, 3), 0.5))
        pipe.denoise(LATENTS, 0.5)
        with pytest.raises(ValueError, match="NaN or infinity"):
            pipe.model(LATENTS, torch.full((2, 3), float("nan")))
    assert float(vd.VideoDiffusion(tiny_model("3d"), None, vd.DiffusionConfig("flow", "flow")).timestep(0.3)) == 300


def test_the_range_is_the_pipelines():
    pipe = vd.VideoDiffusion(tiny_model("3d"), None, vd.DiffusionConfig(n_levels=100))
    with pytest.raises(ValueError, match=r"got 100; tiny-3d is fed whole ones, -1 .clean. to 99"):
        pipe.model(LATENTS, torch.full((2, 3), 100))
    assert int(pipe.timestep(1.0)) == 99


@pytest.mark.parametrize(
    ("latents", "levels", "says"),
    [
        (LATENTS, [[0.9] * 3] * 2, "noise levels are a list: a share of noise"),
        (LATENTS, None, "noise levels are a NoneType"),
        (None, 0.9, "takes a tensor"),
        (LATENTS.tolist(), 0.9, "takes a tensor"),
        (LATENTS, torch.full((2, 3), True), "torch.bool is no share"),
        (LATENTS, torch.full((2, 2), 0.9), "expected .batch frame. = .2 3."),
    ],
)
def test_what_a_pipeline_is_given(latents, levels, says):
    for call in (PIPE.denoise, lambda *given: PIPE.add_noise(*given, LATENTS)):
        with pytest.raises(ValueError, match=says):
            call(latents, levels)
    with pytest.raises(ValueError, match="latents are NoneType"):
        MODEL(None, torch.full((2, 3), 99))
