"""Numbers as users give them: how many clips, frames, steps, workers; seeds; indices of heads and frames; shares.

One rule for all of them: a boolean, a float, a text or NaN is no count, and neither is a number so large that nobody
meant it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

MOST = 1_000_000  # of anything that is counted, unless its owner says less
SEEDS = 2**63 - 1


def check_count(what: str, value: Any, low: int = 1, high: int = MOST, why: str = "") -> int:
    """`value` as an integer. Raises `ValueError` unless it is a whole number in `low .. high`; `why` says what sets
    these bounds."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise ValueError(f"{what} must be a whole number in {low}..{high}{why and f' ({why})'}, got {_shown(value)}")
    return int(value)


def check_seed(value: Any, what: str = "seed") -> int:
    """`value` as an integer. Raises `ValueError` unless it is a whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= SEEDS:
        raise ValueError(f"{what} must be a non-negative integer, got {_shown(value)}")
    return int(value)


def check_between(what: str, value: Any, low: float | int, high: float | int, why: str = "") -> float:
    """`value` as a float. Raises `ValueError` unless it is a number in `low .. high`; `why` says what they are."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise ValueError(f"{what} must be a number in [{low:g}, {high:g}]{why and f' ({why})'}, got {_shown(value)}")
    return float(value)


def check_indices(what: str, chosen: Any, low: int | None = None) -> None:
    """Raise `ValueError` unless `chosen` is None or a collection of whole numbers (from `low` on) that is not empty.

    None: all. An empty one would do nothing, and booleans are no indices: a mask names its places.
    """
    if chosen is None:
        return
    if not isinstance(chosen, Collection) or isinstance(chosen, (str, bytes, bytearray, Mapping)) or not len(chosen):
        raise ValueError(f"{what}={_shown(chosen)}: give a list of one or more numbers, or None for all")
    if len(chosen) > MOST:
        raise ValueError(f"{what} holds {len(chosen):,} numbers; at most {MOST:,} are taken")
    if str(getattr(chosen, "dtype", "")) in ("bool", "torch.bool") or any(type(item) is bool for item in chosen):
        raise ValueError(
            f"{what}={_shown(chosen)}: booleans are no indices; of a mask give torch.nonzero(mask)[:, 0].tolist()"
        )
    ends = (chosen[0], chosen[-1]) if isinstance(chosen, range) else chosen
    for item in ends:
        if not isinstance(item, Integral) or (low is not None and int(item) < low):
            wanted = "whole numbers" if low is None else f"whole numbers from {low} on"
            hint = "; of a tensor give tensor.tolist()" if hasattr(item, "tolist") else ""
            raise ValueError(f"{what} {_shown(item)}: {wanted} are wanted{hint}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
