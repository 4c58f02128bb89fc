"""Percentile bootstrap over clips."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped


class Interval(NamedTuple):
    """A mean and the ends of its interval, each in the shape of the values without their clip axis."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap_mean(
    values: Shaped[torch.Tensor, "batch *rest"], *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over clips with a percentile interval: clips are drawn with replacement, `n_resamples` times.

    `values` `[batch ...]`, one entry a clip; NaN marks what was not measured and is left out. The clip is the unit:
    frames of one clip are not independent, so they are never drawn apart. The same `seed` and number of clips draw
    the same clips, whatever the values: intervals of several conditions are comparable.

    The interval covers the choice of clips, not of the noise, the model's seed or the reference set. It is too narrow
    for few clips (below about ten); a single one says nothing of others, so its interval is absent (NaN).

    Raises ValueError for no clips, no resamples, or a level outside (0, 1).
    """
    if values.ndim < 1 or not len(values):
        raise ValueError(f"bootstrap needs at least one clip, got values of shape {list(values.shape)}")
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"need n_resamples >= 1 and 0 < level < 1, got {n_resamples=} and {level=}")
    numbers = values.detach().cpu().double().numpy().reshape(len(values), -1)
    known = ~np.isnan(numbers)
    filled = np.where(known, numbers, 0.0)
    rng = np.random.default_rng(seed)
    n_clips = len(numbers)
    draws = rng.multinomial(n_clips, np.full(n_clips, 1 / n_clips), size=n_resamples).astype(float)
    counts = draws @ known
    means = np.divide(draws @ filled, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    total = known.sum(0)
    value = np.divide(filled.sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    measured = total > 1
    if measured.any():
        tails = [(1 - level) / 2, (1 + level) / 2]
        low[measured], high[measured] = np.nanquantile(means[:, measured], tails, axis=0)
    shape = tuple(values.shape[1:])
    return Interval(value.reshape(shape), low.reshape(shape), high.reshape(shape))
