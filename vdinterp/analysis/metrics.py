"""How far a generated clip is from another one, frame by frame.

Each score comes as `[batch frame]`, so that it can be averaged over clips with an interval
(`vdinterp.analysis.bootstrap_mean`). Latents are normalised latents, videos are pixels in [0, 1].
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float

PSNR_CAP = 60.0


def x0_error(
    estimate: Float[torch.Tensor, "batch frame channel height width"],
    truth: Float[torch.Tensor, "batch frame channel height width"],
    variance: float,
) -> Float[torch.Tensor, "batch frame"]:
    """Squared error of clean latents over their variance: `mean((estimate - truth)^2) / variance`.

    Range 0 (equal) to infinity. Chance: 1 is what the best constant frame scores if `variance` is `deviation` from the
    mean frame. Misleads: the sum of many small errors looks like a few large ones, and a blurred average of all
    possible futures beats a sharp but wrong one, so a model that commits itself can lie above 1. ValueError for latents
    that are not finite.
    """
    _same_shape(estimate, truth)
    if not variance > 0:
        raise ValueError(f"variance must be positive, got {variance}; do the clips show anything but one flat colour?")
    found = (estimate - truth).square().mean((2, 3, 4)) / variance
    if not bool(found.isfinite().all()):
        clip, frame = (~found.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"clip {clip}, frame {frame}: NaN or infinity among the latents, so there is no error to give")
    return found


def deviation(
    latents: Float[torch.Tensor, "batch frame channel height width"],
    mean_frame: Float[torch.Tensor, "channel height width"],
) -> Float[torch.Tensor, "batch frame"]:
    """Mean squared distance to a constant frame: the mean frame's own squared error, which `x0_error` divides by."""
    return (latents - mean_frame).square().mean((2, 3, 4))


def motion_error(
    estimate: Float[torch.Tensor, "batch frame channel height width"],
    truth: Float[torch.Tensor, "batch frame channel height width"],
    before: Float[torch.Tensor, "batch 1 channel height width"],
    scale: float,
) -> Float[torch.Tensor, "batch frame"]:
    """Squared error of frame differences over `scale`, the mean square of the true differences.

    `d[t] = x[t] - x[t-1]` with `x[-1] = before`, the last context frame, for both. Range 0 to infinity. Chance: 1 is
    what a still picture scores. Misleads: a frame that is wrong in the same way throughout scores well (only changes
    count), one wrong frame counts twice (coming and going), and independent errors of two frames add up.
    Where nothing moves (`scale` 0) it is undefined: NaN.
    """
    _same_shape(estimate, truth)
    if before.shape != (len(truth), 1, *truth.shape[2:]):
        raise ValueError(f"before of shape {list(before.shape)}: one frame a clip is needed, as in {list(truth.shape)}")
    if scale <= 0:
        return torch.full(truth.shape[:2], math.nan)
    wrong = torch.cat([before, estimate], dim=1).diff(dim=1) - torch.cat([before, truth], dim=1).diff(dim=1)
    return wrong.square().mean((2, 3, 4)) / scale


def psnr(
    estimate: Float[torch.Tensor, "batch frame channel height width"],
    truth: Float[torch.Tensor, "batch frame channel height width"],
) -> Float[torch.Tensor, "batch frame"]:
    """Peak signal-to-noise ratio in dB, `-10 log10 mean((estimate - truth)^2)`, of pixels in [0, 1].

    Higher is better; capped at 60 dB, which equal frames score (8-bit rounding alone costs 59 dB). A uniform grey
    guess scores about 5 to 12 dB on natural pictures. Misleads as every squared error does: it favours blur, and a
    sharp picture shifted by one pixel scores badly.
    """
    _same_shape(estimate, truth)
    mse = (estimate - truth).square().mean((2, 3, 4))
    return -10 * mse.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(
    estimate: Float[torch.Tensor, "batch frame channel height width"],
    truth: Float[torch.Tensor, "batch frame channel height width"],
) -> Float[torch.Tensor, "batch frame"]:
    """Structural similarity of pixels in [0, 1] (Wang et al. 2004), averaged over channels and positions.

    `(2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2))` with local means, variances and covariance
    under an 11 x 11 Gaussian window (sigma 1.5, no padding), c1 = .01^2, c2 = .03^2. Frames smaller than the window
    take the largest odd window that fits. Range -1 to 1; 1 is equal, unrelated textures lie near 0.
    Misleads: flat regions count as similar whatever they show, so a mostly empty frame scores high; at 8 x 8 pixels
    there are only four windows.
    """
    _same_shape(estimate, truth)
    height, width = truth.shape[-2:]
    size = min(11, height, width)
    size -= 1 - size % 2
    rows, cols = _smoothing(height, size), _smoothing(width, size).T
    x, y = (clip.detach().cpu().double() for clip in (estimate, truth))
    mean_x, mean_y, square_x, square_y, product = (rows @ image @ cols for image in (x, y, x * x, y * y, x * y))
    var_x, var_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    score = score / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return score.mean((2, 3, 4)).float()


def sharpness(
    estimate: Float[torch.Tensor, "batch frame channel height width"],
    truth: Float[torch.Tensor, "batch frame channel height width"],
) -> Float[torch.Tensor, "batch frame"]:
    """How much fine detail a frame has, as a share of the true one's: the ratio of their gradient energies.

    Gradient energy: mean square of the differences between neighbouring pixels, down and across. 1 is as sharp as the
    truth; below is blur, which squared errors reward; above is noise or edges that are not there. A flat frame scores
    0. Misleads: it sees how much detail there is, not whether it is the right one, so it stands beside an error.
    Where the true frame is flat it is undefined: NaN.
    """
    _same_shape(estimate, truth)
    ours, wanted = _gradient_energy(estimate), _gradient_energy(truth)
    return torch.where(wanted > 0, ours / wanted, math.nan)


def _gradient_energy(video: torch.Tensor) -> Float[torch.Tensor, "batch frame"]:
    down, across = video.diff(dim=-2), video.diff(dim=-1)
    return down.square().mean((2, 3, 4)) + across.square().mean((2, 3, 4))


def _smoothing(length: int, size: int) -> torch.Tensor:
    """`[length - size + 1, length]`: a Gaussian window along one axis, without padding. The window is separable, and
    two products of matrices are many times faster on a CPU than one convolution."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    matrix = torch.zeros(length - size + 1, length, dtype=torch.float64)
    for out in range(len(matrix)):
        matrix[out, out : out + size] = weights / weights.sum()
    return matrix


def _same_shape(estimate: torch.Tensor, truth: torch.Tensor) -> None:
    if estimate.shape != truth.shape:
        raise ValueError(f"clips of different shape: {list(estimate.shape)} and {list(truth.shape)}")
