"""Scores and intervals against naive formulas and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vdinterp.analysis import bootstrap_mean, deviation, motion_error, psnr, ssim, x0_error
from vdinterp.analysis.intervals import student, tails


def clips(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_x0_error_is_squared_error_over_variance_and_1_for_the_mean_frame() -> None:
    truth = clips(3, 4, 2, 5, 6)
    mean = truth.mean((0, 1))
    variance = float(deviation(truth, mean).mean())
    assert variance == pytest.approx(float(((truth - mean) ** 2).mean()), rel=1e-5)
    guess = x0_error(mean.expand_as(truth), truth, variance)
    assert guess.shape == (3, 4) and float(guess.mean()) == pytest.approx(1, rel=1e-5)
    assert torch.equal(x0_error(truth, truth, variance), torch.zeros(3, 4))
    shifted = truth.clone()
    shifted[1, 2] += 0.5
    error = x0_error(shifted, truth, 0.1)
    assert float(error[1, 2]) == pytest.approx(2.5, rel=1e-5) and float(error.sum()) == pytest.approx(2.5, rel=1e-5)
    with pytest.raises(ValueError, match="variance must be positive"):
        x0_error(truth, truth, 0.0)


def test_motion_error_is_1_for_standing_still_and_blind_to_a_constant_offset() -> None:
    clip = clips(2, 6, 3, 4, 4)
    before, truth = clip[:, :1], clip[:, 1:]
    scale = float(clip.diff(dim=1).square().mean())
    still = motion_error(before.expand_as(truth), truth, before, scale)
    assert float(still.mean()) == pytest.approx(1, rel=1e-5)
    offset = motion_error(truth + 0.3, truth, before, scale)
    assert float(offset[:, 0].mean()) == pytest.approx(0.09 / scale, rel=1e-4)  # the jump at the first frame
    assert float(offset[:, 1:].max()) == pytest.approx(0, abs=1e-9)
    assert motion_error(truth, truth, before, 0.0).isnan().all()
    with pytest.raises(ValueError, match="before of shape"):
        motion_error(truth, truth, clip[:, :2], scale)


def test_psnr_of_known_differences() -> None:
    truth = torch.full((1, 3, 1, 4, 4), 0.5)
    estimate = truth.clone()
    estimate[:, 1] += 0.1
    estimate[:, 2] -= 0.5
    assert psnr(estimate, truth)[0].tolist() == pytest.approx([60, 20, -20 * math.log10(0.5)], rel=1e-4)
    with pytest.raises(ValueError, match="different shape"):
        psnr(estimate[:, :2], truth)


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, window by window; x, y [height width]."""
    size = min(11, *x.shape)
    size -= 1 - size % 2
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    scores = []
    for row in range(x.shape[0] - size + 1):
        for col in range(x.shape[1] - size + 1):
            a, b = (image[row : row + size, col : col + size] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            scores.append(luminance * (2 * both + 9e-4) / (var_a + var_b + 9e-4))
    return float(np.mean(scores))


@pytest.mark.parametrize("size", [(16, 20), (8, 8), (5, 12)])
def test_ssim_against_the_formula(size: tuple[int, int]) -> None:
    truth, estimate = clips(2, 3, 2, *size), clips(2, 3, 2, *size, seed=1)
    estimate = 0.6 * truth + 0.4 * estimate
    wanted = [
        [np.mean([naive_ssim(estimate[b, f, c].numpy(), truth[b, f, c].numpy()) for c in range(2)]) for f in range(3)]
        for b in range(2)
    ]
    np.testing.assert_allclose(ssim(estimate, truth).numpy(), wanted, atol=1e-5)
    assert torch.equal(ssim(truth, truth), torch.ones(2, 3))


def test_bootstrap_of_known_samples() -> None:
    flat = bootstrap_mean(torch.full((10, 2), 3.0))
    assert flat.value.tolist() == flat.low.tolist() == flat.high.tolist() == [3, 3]
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    value, low, high = bootstrap_mean(values, n_resamples=4000)
    error = float(values.std()) / 20
    assert float(value) == pytest.approx(float(values.mean()))
    assert float(value - low) == pytest.approx(1.96 * error, rel=0.1)
    assert float(high - value) == pytest.approx(1.96 * error, rel=0.1)
    narrow = bootstrap_mean(values, n_resamples=4000, level=0.5)
    assert float(narrow.high - narrow.low) == pytest.approx(2 * 0.674 * error, rel=0.1)


def test_bootstrap_leaves_out_what_was_not_measured_and_is_deterministic() -> None:
    values = torch.tensor([[1.0, math.nan, 4.0], [3.0, math.nan, math.nan], [math.nan, math.nan, math.nan]])
    value, low, high = bootstrap_mean(values)
    assert value[0] == 2 and np.isnan([value[1], low[1], high[1]]).all()
    assert value[2] == 4 and np.isnan([low[2], high[2]]).all(), "one clip has no interval"
    again = bootstrap_mean(values)
    assert again.low[0] == low[0] and again.high[0] == high[0]
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap_mean(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean(torch.zeros(2, 2), level=1.0)


def test_few_clips_have_students_interval() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 5.0]).double()
    value, low, high = bootstrap_mean(values)
    error = float(values.std()) / 2
    assert (value, high - value, value - low) == pytest.approx((3.0, 3.182446 * error, 3.182446 * error), rel=1e-5)
    assert student(0.95, 28) == pytest.approx(2.048407, rel=1e-5) and student(0.5, 1) == pytest.approx(1, rel=1e-5)
    wide = tails(8)[0]
    assert 0 < wide < 0.01 and tails(8)[1] == 1 - wide and tails(30) == pytest.approx([0.025, 0.975])
    assert np.isnan(tails(1)).all()


@pytest.mark.parametrize("n_clips", [2, 8, 16, 29, 30])
def test_intervals_hold_the_mean_as_often_as_they_say(n_clips: int) -> None:
    """On either side, of normal values; 4,000 samples are as many columns. Percentiles alone would miss 6 % at 8."""
    drawn = torch.randn(n_clips, 4000, generator=torch.Generator().manual_seed(n_clips))
    _, low, high = bootstrap_mean(drawn)
    assert 0.015 < (low > 0).mean() < 0.04 and 0.015 < (high < 0).mean() < 0.04


@pytest.mark.parametrize("n_clips", [8, 40])
def test_intervals_of_pairs_keep_their_pairs(n_clips: int) -> None:
    """Every column and every call draws the same clips: what is shifted has the shifted interval, to the bit of it."""
    one = torch.randn(n_clips, generator=torch.Generator().manual_seed(0)).double()
    found = bootstrap_mean(torch.stack([one, one + 1, -2 * one], 1))
    assert found.low[1] - found.low[0] == pytest.approx(1) and found.high[1] - found.high[0] == pytest.approx(1)
    assert (found.low[2], found.high[2]) == pytest.approx((-2 * found.high[0], -2 * found.low[0]), rel=0.2)
    alone = bootstrap_mean(one + 1)
    assert alone.low == pytest.approx(found.low[1]) and alone.high == pytest.approx(found.high[1])
