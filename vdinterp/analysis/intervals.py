"""Interval of a mean over clips: bootstrap of many, Student's t of few."""

from __future__ import annotations

import functools
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped

FEW = 30  # clips below which resampling is too narrow: percentiles of 8 normal values miss 12 % of the time, not 5 %


class Interval(NamedTuple):
    """A mean and the ends of its interval, each in the shape of the values without their clip axis."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap_mean(
    values: Shaped[torch.Tensor, "batch *rest"], *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over clips with its interval: from 30 clips on percentiles of the means of `n_resamples` draws of the clips
    with replacement; of fewer Student's t, `mean +- t(n - 1) * standard deviation / sqrt(n)`; of one clip none (NaN).

    `values` `[batch ...]`, one entry a clip; NaN marks what was not measured and is left out, and what is left counts
    as the number of clips. The clip is the unit: frames of one clip are not independent, so they are never drawn apart.
    The same `seed` and number of clips draw the same clips, whatever the values: intervals of several conditions are
    comparable, and those of a difference keep its pairs.

    The interval covers the choice of clips, not of the noise, the model's seed or the reference set. Misleads: where a
    few clips are much larger than the others, its upper end is missed too often (of 8 exponential values 8 % of the
    time instead of 2.5 %, of 28 still 7 %).

    Raises ValueError for no clips, no resamples, or a level outside (0, 1).
    """
    if values.ndim < 1 or not len(values):
        raise ValueError(f"bootstrap needs at least one clip, got values of shape {list(values.shape)}")
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"need n_resamples >= 1 and 0 < level < 1, got {n_resamples=} and {level=}")
    numbers = values.detach().cpu().double().numpy().reshape(len(values), -1)
    known = ~np.isnan(numbers)
    filled = np.where(known, numbers, 0.0)
    total = known.sum(0)
    value = np.divide(filled.sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    few, many = (total > 1) & (total < FEW), total >= FEW
    if few.any():
        spread = np.square(np.where(known, filled - value, 0.0)[:, few]).sum(0)
        half = np.array([student(level, int(n) - 1) for n in total[few]])
        half *= np.sqrt(spread / (total[few] - 1) / total[few])
        low[few], high[few] = value[few] - half, value[few] + half
    if many.any():
        draws = resamples(len(numbers), n_resamples, seed)
        counts = draws @ known[:, many]
        means = np.divide(draws @ filled[:, many], counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        low[many], high[many] = np.nanquantile(means, tails(len(numbers), level), axis=0)
    shape = tuple(values.shape[1:])
    return Interval(value.reshape(shape), low.reshape(shape), high.reshape(shape))


def resamples(n_clips: int, n_resamples: int, seed: int) -> np.ndarray:
    """`[resample clip]`: how often each clip is drawn."""
    equal = np.full(n_clips, 1 / n_clips)
    return np.random.default_rng(seed).multinomial(n_clips, equal, size=n_resamples).astype(float)


def tails(n_clips: int, level: float = 0.95) -> list[float]:
    """The quantiles of resampled scores between which an interval lies; below 30 clips further out (as far as Student's
    interval of a mean lies), for scores that are no means. NaN for one clip, of which there is no interval."""
    if n_clips < 2:
        return [np.nan, np.nan]
    outside = (1 - level) / 2
    if n_clips < FEW:
        widened = student(level, n_clips - 1) * np.sqrt(n_clips / (n_clips - 1))
        outside = NormalDist().cdf(-widened)
    return [outside, 1 - outside]


@functools.cache
def student(level: float, freedom: int) -> float:
    """Half width of Student's interval, in standard errors. With t = sqrt(freedom) tan(x) the density in x goes as
    cos(x) ** (freedom - 1)."""
    x = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(x) ** (freedom - 1)
    inside = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(level * inside[-1], inside, x)))
