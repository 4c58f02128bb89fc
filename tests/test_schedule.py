"""Noise schedules, objectives and scheduling matrices: the reference's numbers, and what must hold for any of them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from sampling_goldens import load_tensors

from vdinterp.diffusion import (
    MATRICES,
    OBJECTIVES,
    SCHEDULES,
    DiffusionConfig,
    amplitudes,
    autoregressive,
    convert,
    full_sequence,
    levels,
    make_matrix,
    make_schedule,
    pyramid,
    split_prediction,
    target,
    to_eps,
    to_x0,
    trapezoid,
    with_mask,
)

SHIFTED = DiffusionConfig(schedule="cosine_simple_diffusion", shift=0.125, precond_scale=0.125)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_tensors()


def test_cosine_is_the_references(golden):
    schedule = make_schedule(DiffusionConfig(schedule="cosine"))
    torch.testing.assert_close(schedule.alphas_cumprod, golden["sched.cosine.alphas_cumprod"], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(schedule.betas, golden["sched.cosine.betas"], atol=1e-7, rtol=1e-6)


def test_shifted_simple_diffusion_is_the_references(golden):
    schedule = make_schedule(SHIFTED)
    torch.testing.assert_close(schedule.alphas_cumprod, golden["sched.csd0125.alphas_cumprod"], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(schedule.logsnr, golden["sched.csd0125.logsnr"], atol=1e-5, rtol=0)


def test_levels_and_the_full_sequence_matrix_are_the_references(golden):
    assert torch.equal(levels(50, 1000), golden["sched.ddim_levels_S50"])
    mask = torch.tensor([[0, 0, 0, -1, -1]])
    assert torch.equal(with_mask(full_sequence(5, 50, 1000), mask, 1000)[:, 0], golden["sched.matrix_full_S50_h3_pad2"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_only_adds_noise(name):
    schedule = make_schedule(DiffusionConfig(schedule=name))
    for rising in (schedule.sigma, -schedule.signal, -schedule.alphas_cumprod, -schedule.logsnr):
        assert bool((rising[1:] >= rising[:-1]).all())
    assert schedule.signal[0] > 0.9 and schedule.sigma[-1] > 0.9
    if name == "flow":
        torch.testing.assert_close(schedule.signal + schedule.sigma, torch.ones(1000))
    else:
        torch.testing.assert_close(schedule.signal**2 + schedule.sigma**2, torch.ones(1000))
        torch.testing.assert_close(schedule.alphas_cumprod, torch.cumprod(1 - schedule.betas.double(), 0).float())


def test_linear_is_ddpms():
    schedule = make_schedule(DiffusionConfig(schedule="linear"))
    torch.testing.assert_close(schedule.betas, torch.linspace(1e-4, 0.02, 1000))
    assert schedule.signal[-1] > 0
    rescaled = make_schedule(DiffusionConfig(schedule="linear", zero_terminal_snr=True))
    assert rescaled.signal[-1] == 0 and torch.isclose(rescaled.signal[0], schedule.signal[0])


@pytest.mark.parametrize("name", ["cosine", "cosine_simple_diffusion", "linear", "flow"])
def test_shift_scales_the_amplitude_ratio(name):
    plain, shifted = (make_schedule(DiffusionConfig(schedule=name, shift=shift)) for shift in (1.0, 0.5))
    k = torch.tensor([10, 300, 900])
    expected = 0.5 * plain.signal[k] / plain.sigma[k]
    torch.testing.assert_close(shifted.signal[k] / shifted.sigma[k], expected, rtol=1e-4, atol=0)


def test_add_noise_leaves_clean_frames_bitwise_alone():
    schedule = make_schedule(DiffusionConfig())
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 1, 4, 4, generator=generator)
    k = torch.tensor([[-1, 0, 999], [500, -1, 20]])
    x = schedule.add_noise(x0, noise, k)
    assert torch.equal(x[0, 0], x0[0, 0]) and torch.equal(x[1, 1], x0[1, 1])
    assert torch.equal(x[0, 2], noise[0, 2]), "the last cosine level holds no signal at all"
    a = schedule.alphas_cumprod[500]
    torch.testing.assert_close(x[1, 0], a.sqrt() * x0[1, 0] + (1 - a).sqrt() * noise[1, 0])


def test_timesteps():
    k = torch.tensor([[-1, 0, 999]])
    assert make_schedule(DiffusionConfig()).timestep(k).tolist() == [[0, 0, 999]]
    shifted = make_schedule(SHIFTED)
    expected = 0.125 * shifted.logsnr[torch.tensor([[0, 0, 999]])]
    torch.testing.assert_close(shifted.timestep(k), expected)
    bounded = make_schedule(dataclasses.replace(SHIFTED, schedule="cosine", shift=1.0)).timestep(k)
    assert bounded[0, 2] == -15 * 0.125, "the log-SNR of a level without signal is bounded as in training"
    flow = make_schedule(DiffusionConfig(objective="flow", schedule="flow", n_levels=10))
    torch.testing.assert_close(flow.timestep(torch.tensor([[-1, 0, 9]])), torch.tensor([[0.0, 1.0, 10.0]]))


@pytest.mark.parametrize("bad", [torch.tensor([[-2, 0]]), torch.tensor([[0, 1000]]), torch.tensor([[0.5, 1.0]])])
def test_levels_out_of_range_raise(bad):
    with pytest.raises(ValueError, match=r"\[-1, 999\]"):
        make_schedule(DiffusionConfig()).check_levels(bad)


@pytest.mark.parametrize("config", [DiffusionConfig(), DiffusionConfig(n_levels=7), SHIFTED,
                                    DiffusionConfig("flow", "flow", shift=1 / 3)])  # fmt: skip
def test_noise_levels_are_shares_of_the_levels(config):
    schedule = make_schedule(config)
    k = torch.arange(-1, len(schedule))
    levels = schedule.level(k)
    assert torch.equal(schedule.k(levels), k), "back exactly"
    assert levels[0] == 0 and levels[-1] == 1 and bool((levels.diff() > 0).all())
    if config.path == "flow":
        assert torch.equal(levels[1:], schedule.sigma)
    else:
        torch.testing.assert_close(levels, (k + 1) / len(schedule))
    half = float(levels[1:].diff().min()) * 0.4
    assert torch.equal(schedule.k((levels[1:-1] + half).double()), k[1:-1]), "others are rounded"
    assert int(schedule.k(0.3)) == int(schedule.k(torch.tensor(0.3)))
    told = schedule.timestep(k[1:])
    assert torch.equal(schedule.k_of(told), k[1:])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (949, "level k = 949 of 1000 is 0.95$"),
        (torch.tensor([[0, 949]]), "level k = 949 of 1000 is 0.95$"),
        (-1, "level k = -1 of 1000 is 0$"),
        (1.5, "shares of noise in .0, 1. .0 clean, 1 pure noise., got 1.5$"),
        (1000, "got 1000$"),
        (float("nan"), "got nan$"),
        (True, "torch.bool is no share"),
        ("0.9", "'0.9' is no share"),
        (None, "None is no share"),
    ],
)
def test_what_is_no_share_raises(given, says):
    with pytest.raises(ValueError, match=says):
        make_schedule(DiffusionConfig()).k(given)


def test_add_noise_checks_shapes():
    schedule = make_schedule(DiffusionConfig())
    x = torch.zeros(2, 3, 1, 4, 4)
    with pytest.raises(ValueError, match="noise has shape"):
        schedule.add_noise(x, x[:1], torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected \[batch frame\]"):
        schedule.add_noise(x, x, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("steps", [0, 1001, -3, 2.0, True])
def test_impossible_step_counts_raise(steps):
    with pytest.raises(ValueError, match="steps must be a whole number"):
        levels(steps, 1000)


# Objectives


@pytest.mark.parametrize("path", ["vp", "flow"])
@pytest.mark.parametrize(("src", "dst"), [*itertools.product(OBJECTIVES, OBJECTIVES)])
def test_objectives_convert_into_one_another(src, dst, path):
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 2, 4, 1, 3, 3, generator=generator, dtype=torch.float64)
    alpha_bar = torch.tensor([[0.99, 0.7, 0.3, 0.02], [0.5, 0.9, 0.1, 0.6]], dtype=torch.float64)
    signal, sigma = amplitudes(alpha_bar, path)
    x = signal[..., None, None, None] * x0 + sigma[..., None, None, None] * noise
    pred = target(src, x0, noise, alpha_bar, path)
    torch.testing.assert_close(to_x0(src, pred, x, alpha_bar, path), x0)
    torch.testing.assert_close(to_eps(src, pred, x, alpha_bar, path), noise)
    there = convert(pred, x, alpha_bar, src, dst, path)
    torch.testing.assert_close(there, target(dst, x0, noise, alpha_bar, path))
    torch.testing.assert_close(convert(there, x, alpha_bar, dst, src, path), pred)


def test_the_flow_objective_means_a_straight_path_unless_told_otherwise():
    x0, noise = torch.randn(2, 1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    schedule = make_schedule(DiffusionConfig(objective="flow", schedule="flow", n_levels=10))
    k = torch.tensor([[6]])
    x = schedule.add_noise(x0, noise, k)
    torch.testing.assert_close(x, 0.3 * x0 + 0.7 * noise)
    torch.testing.assert_close(to_x0("flow", noise - x0, x, schedule.alpha_bar(k)), x0)


def test_v_is_the_references_sign(golden):
    k = golden["step.cur"].clamp(min=0)
    schedule = make_schedule(DiffusionConfig())
    x0, eps = split_prediction("v", golden["step.v"], golden["step.x"], *schedule.coefficients(k))
    torch.testing.assert_close(x0, golden["step.x0"], atol=1e-5, rtol=0)
    torch.testing.assert_close(eps, golden["step.eps"], atol=1e-5, rtol=0)


def test_undetermined_conversions_raise():
    x = torch.zeros(1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="without signal"):
        to_x0("eps", x, x, 0.0)
    with pytest.raises(ValueError, match="without noise"):
        to_eps("x0", x, x, 1.0)
    with pytest.raises(ValueError, match="choose one of"):
        to_x0("epsilon", x, x, 0.5)
    with pytest.raises(ValueError, match="unknown path"):
        to_x0("eps", x, x, 0.5, path="ve")


# Configuration


def test_config_round_trip():
    assert DiffusionConfig.from_dict(SHIFTED.to_dict()) == SHIFTED
    with pytest.raises(ValueError, match="steps"):
        DiffusionConfig.from_dict({"steps": 3})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"objective": "score"}, "objective is 'score'; choose one of"),
        ({"schedule": "cos"}, "schedule is 'cos'; choose one of"),
        ({"n_levels": 1}, "n_levels"),
        ({"clip": 0.0}, "clip"),
        ({"shift": float("nan")}, "shift"),
        ({"precond_scale": -1.0}, "precond_scale"),
        ({"objective": "eps", "schedule": "cosine"}, "says nothing about x0"),
        ({"objective": "eps", "schedule": "linear", "zero_terminal_snr": True}, "says nothing about x0"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr"),
    ],
)
def test_bad_configs_raise(settings, says):
    with pytest.raises(ValueError, match=says):
        DiffusionConfig(**settings)


# Matrices


def test_autoregressive_finishes_one_frame_before_the_next():
    matrix = autoregressive(3, 4, 100)
    assert matrix.shape == (13, 3)
    for row in matrix:
        moving = (row != 99) & (row != -1)
        assert moving.sum() <= 1
        assert torch.equal(row, row.sort().values), "earlier frames are never noisier"
    assert matrix[4].tolist() == [-1, 99, 99]


def test_pyramid_lags_by_the_uncertainty():
    matrix = pyramid(3, 4, 100, uncertainty=1.5)
    assert torch.equal(matrix[:5, 0], levels(4, 100).flip(0))
    assert torch.equal(matrix[1:6, 1], levels(4, 100).flip(0)), "int(1 * 1.5) = 1 row late"
    assert torch.equal(matrix[3:8, 2], levels(4, 100).flip(0)), "int(2 * 1.5) = 3 rows late"
    assert torch.equal(pyramid(3, 4, 100, uncertainty=0.0), full_sequence(3, 4, 100))
    assert torch.equal(pyramid(3, 4, 100, uncertainty=4.0), autoregressive(3, 4, 100))


@pytest.mark.parametrize("n_frames", [1, 4, 5])
def test_trapezoid_goes_inwards_from_both_ends(n_frames):
    matrix = trapezoid(n_frames, 4, 100, uncertainty=2.0)
    assert torch.equal(matrix, matrix.flip(1))
    half = (n_frames + 1) // 2
    assert torch.equal(matrix[:, :half], pyramid(half, 4, 100, uncertainty=2.0)[: len(matrix)])


@pytest.mark.parametrize("kind", MATRICES)
def test_every_matrix_goes_from_noise_to_clean(kind):
    matrix = make_matrix(kind, 5, 7, 1000, 2.0)
    assert bool((matrix[0] == 999).all()) and bool((matrix[-1] == -1).all())
    assert bool((matrix[1:] <= matrix[:-1]).all())


def test_context_and_padding_in_a_matrix():
    mask = torch.tensor([[1, 0, 0, -1], [2, 0, 0, -1]])
    rows = with_mask(autoregressive(4, 3, 100), mask, 100)
    assert bool((rows[:, :, 0] == -1).all()) and bool((rows[:, :, 3] == 99).all())
    assert rows[0, 0].tolist() == [-1, 99, 99, 99] and rows[-1, 0].tolist() == [-1, -1, -1, 99]
    assert rows[1, 0, 1] < 99, "rows in which only the context would have moved are gone"
    assert len(rows) == 7


def test_bad_matrices_raise():
    good = full_sequence(2, 3, 100)
    with pytest.raises(ValueError, match="unknown scheduling matrix 'diagonal'"):
        make_matrix("diagonal", 2, 3, 100)
    with pytest.raises(ValueError, match="uncertainty"):
        pyramid(2, 3, 100, uncertainty=-1.0)
    with pytest.raises(ValueError, match="must not rise"):
        with_mask(good.flip(0), torch.zeros(1, 2, dtype=torch.long), 100)
    with pytest.raises(ValueError, match=r"in \[-1, 49\]"):
        with_mask(good, torch.zeros(1, 2, dtype=torch.long), 50)
    with pytest.raises(ValueError, match="same number of frames"):
        with_mask(good, torch.zeros(1, 3, dtype=torch.long), 100)
    with pytest.raises(ValueError, match="mask values"):
        with_mask(good, torch.full((1, 2), 3), 100)
    with pytest.raises(ValueError, match="n_frames"):
        full_sequence(0, 3, 100)
