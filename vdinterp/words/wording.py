"""Numbers, intervals and lists in sentences and cells: one way to write each, for summaries, figures and reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

DIGITS, DECIMALS = 3, 4


def number(value: SupportsFloat, digits: int = DIGITS, decimals: int = DECIMALS) -> str:
    """A number as a reader wants it: so many significant digits, at most so many decimals, never an exponent.

    What is above 0 but too small for the decimals is written as a bound, `<0.0001`. Not a number is a dash.
    """
    value = float(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if value.is_integer():
        return f"{int(value):,}"  # no minus before a zero
    if size < 0.5 * 10**-decimals:
        return f"<{10**-decimals:.{decimals}f}" if value > 0 else "≈0"
    places = min(decimals, max(0, digits - 1 - math.floor(math.log10(size))))
    shown = f"{value:,.{places}f}"
    return shown if float(shown.replace(",", "")) else shown.lstrip("-")


def has_interval(low: SupportsFloat, high: SupportsFloat) -> bool:
    """Whether there is one: a single clip says nothing of how other clips would come out."""
    return not (math.isnan(float(low)) or math.isnan(float(high)))


def interval(low: SupportsFloat, high: SupportsFloat) -> str:
    """`[low, high]`, or nothing where there is none."""
    return f"[{number(low)}, {number(high)}]" if has_interval(low, high) else ""


def with_interval(value: SupportsFloat, low: SupportsFloat, high: SupportsFloat) -> str:
    """`value [low, high]`; the value alone where there is no interval."""
    return " ".join(part for part in (number(value), interval(low, high)) if part)


def plural(n: int, noun: str) -> str:
    """`1 step`, `2 steps`; nouns that take a plain s (or es)."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}"


def listing(parts: Sequence[str]) -> str:
    """a, b and c."""
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


FAILS = "fails on these clips"


def fails(meta: Mapping[str, Any]) -> bool:
    """Whether the untouched model does, so that nothing follows from changing it (`analysis.stimulus.reliability`)."""
    return bool(meta.get(FAILS))


def caution(meta: Mapping[str, Any]) -> str:
    """What has to be read before anything else in a summary, as its first paragraph; empty where nothing has to.

    `meta["caution"]` is made by `vdinterp.analysis.stimulus.reliability`.
    """
    text = meta.get("caution", "")
    return f"{text}\n\n" if text else ""
