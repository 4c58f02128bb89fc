"""Noise levels that an intervention is limited to: some shares, or all between two."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float

from vdinterp.checks.counts import check_between

CLOSE = 4e-7  # float32 rounds shares by less, and no two levels of a model are nearer


@dataclass(frozen=True)
class Between:
    """All noise levels from `low` to `high`, shares in [0, 1], both included.

    >>> vd.Ablate("z", noise_levels=vd.Between(0.5, 1.0))
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for value in (self.low, self.high):
            check_share("noise_levels", value)
        if self.low > self.high:
            raise ValueError(
                f"noise_levels between {self.low} and {self.high}: there are none; give the lower one first"
            )

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


NoiseLevels = Collection[float | int] | Between


def check_share(name: str, value: Any) -> None:
    """Raise `ValueError` unless this is a share of noise."""
    whole = isinstance(value, Real) and not isinstance(value, bool) and (float(value) > 1 or float(value) == -1)
    check_between(
        name,
        value,
        0,
        1,
        "shares of noise, 0 clean" + ("; level k of a model with K levels is (k + 1) / K" if whole else ""),
    )


def check_noise_levels(given: Any) -> None:
    """Raise `ValueError` unless this is None, `Between` two shares, or a collection of shares that is not empty."""
    if given is None or isinstance(given, Between):
        return
    if not isinstance(given, Collection) or isinstance(given, (str, bytes)) or not len(given):
        raise ValueError(f"noise_levels={given!r:.80}: give a list of one or more shares, or vd.Between(low, high)")
    for value in (given[0], given[-1]) if isinstance(given, range) else given:
        check_share("noise_levels", value)


def among(levels: Float[torch.Tensor, "batch frame"], wanted: NoiseLevels) -> Bool[torch.Tensor, "batch frame"]:
    """Which of the noise levels are wanted."""
    if isinstance(wanted, Between):
        return (levels > wanted.low - CLOSE) & (levels < wanted.high + CLOSE)
    shares = torch.tensor([float(share) for share in wanted], device=levels.device)
    return ((levels.unsqueeze(-1) - shares).abs() < CLOSE).any(-1)
