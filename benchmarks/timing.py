"""Rows timed side by side: every row in every round, in an order that changes from round to round.

A busy machine then slows all rows alike; the ratios are what to read.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vdinterp import store


def interleaved(rows: Mapping[str, Callable[[], object]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every row in every round, rows in a fresh random order each time."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    order = list(rows)
    for turn in range(warmup + rounds):
        random.Random(turn).shuffle(order)
        for name in order:
            start = time.perf_counter()
            rows[name]()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], base: str, over: str) -> list[dict[str, Any]]:
    """Print medians and ratios to the row `base` (called `over` in the heading), and return them as a table."""
    print(f"{'':36}{'median':>10}{over:>9}{'fastest':>11}{over:>9}   ratio within a round, quartiles")
    table = []
    for name, seconds in times.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds, times[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        median, fastest = statistics.median(seconds), min(seconds)
        over_median, over_fastest = median / statistics.median(times[base]), fastest / min(times[base])
        table.append(
            {
                "row": name,
                "median_s": median,
                "over_base": over_median,
                "fastest_s": fastest,
                "fastest_over_base": over_fastest,
                "ratio_quartiles": [low, middle, high],
                "seconds": seconds,
            }
        )
        times_of = f"{median * 1e3:8.1f}ms{over_median:9.3f}{fastest * 1e3:9.1f}ms{over_fastest:9.3f}"
        print(f"{name:36}{times_of}   {low:.3f} {middle:.3f} {high:.3f}")
    return table


def write(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The table and how it was made, as JSON."""
    store.write(out, json.dumps({**about, "rows": rows}, indent=1))
    print(f"\nwritten to {out}")
