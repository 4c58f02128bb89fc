"""Behaviour: does the model foretell what comes back, and what does it need for that?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from vdinterp.analysis.induction.task import Task
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.data.repeats import MEANING
from vdinterp.results import rows_of

WORTH = 0.1  # a gain of at least this share of the error without it is one
COVERED = 2 / 3  # of the lags (or periods) at which there has to be a gain
MANY_LAGS = 5
PAIRS = ("one-off", "long cue")  # kinds of repeats in which a pair comes back once, by length of the cue
# Kinds that are twins of others: kind -> (whose, which twin is the repeat, which are its own twins, what it is).
TURNED = {
    "reversed": ("one-off", "reversed", ("none", "no match"), "as one-off, but the earlier pair is B A"),
    "loop without cue": ("loop", "no cue", ("none",), "as loop, but the last frames before the end are others"),
}
KINDS = MEANING | {name: about[3] for name, about in TURNED.items()}


def behaviour_table(tasks: Mapping[str, Task]) -> pd.DataFrame:
    """Gains of every design, twin, noise level and lag (and over all lags, `lag` 0).

    `gain = error of the twin - error of the repeat`, the x0 error of the last frame over the variance; `low`, `high`: a
    95 % interval over clips. `error`, `twin_error`: of either. `found`: the gain is above 0 for sure, and at least a
    tenth of the twin's error. Chance: 0. "reversed" and "loop without cue" take twins of one-offs and loops for
    repeats; the latter only at periods longer than what was taken away, so that no cue of that length is left.
    """
    rows: list[dict[str, Any]] = []
    for design, task in tasks.items():
        lags = sorted(set(task.repeats.lag.tolist()))
        for level in task.levels:
            for twin in task.repeats.twins:
                rows += _gains(task, design, level, None, twin, lags)
            for name, (whose, repeat, twins, _) in TURNED.items():
                if whose == design:
                    longer = [lag for lag in lags if lag > task.repeats.cue] if design == "loop" else lags
                    for twin in twins:
                        rows += _gains(task, name, level, repeat, twin, longer)
    return pd.DataFrame(rows)


def _gains(task: Task, name: str, level: float, repeat: str | None, twin: str, lags: list[int]) -> list[dict[str, Any]]:
    """Over all of the lags, and at each."""
    error, other = task.look(level, repeat).error, task.look(level, twin).error
    rows = []
    for lag in [0, *lags] if lags else []:
        chosen = torch.isin(task.repeats.lag, torch.tensor([lag] if lag else lags))
        value, low, high = (float(x) for x in bootstrap_mean((other - error)[chosen]))
        without = float(other[chosen].mean())
        rows.append(
            {
                "design": name,
                "level": level,
                "twin": twin,
                "lag": lag,
                "gain": value,
                "low": low,
                "high": high,
                "error": float(error[chosen].mean()),
                "twin_error": without,
                "found": bool(low > 0 and value >= WORTH * without),
                "n_clips": int(chosen.sum()),
            }
        )
    return rows


def position_table(one_off: Task, loop: Task) -> pd.DataFrame:
    """Does the model write the frame so many before, whatever it shows?

    One row a noise level and `distance`, on clips where nothing came back, on one-offs at other lags, and on loops that
    have another frame there than the one asked for. `nearness = 1 - d / mean d of the other clean frames`, with d the
    squared distance of x0 of the last frame to the frame there; the least of the three kinds of clips; `low`, `high`:
    its 95 % interval over clips. 1 for a copy, chance 0, as for a mean of all frames. `saved`: the error that it saves
    where that frame is the answer, over the variance. Misleads: a frame that is always the most alike (the one before,
    of a slow video) is near without being copied.
    """
    rows = []
    for level in one_off.levels:
        for distance in range(1, one_off.n_frames):
            other, loops = one_off.repeats.lag != distance, distance % loop.repeats.lag != 0
            kinds = [
                (one_off.look(level, "none").apart, other),
                (one_off.look(level).apart, other),
                (loop.look(level).apart, loops),
            ]
            found = [_nearness(apart[chosen], distance) for apart, chosen in kinds if bool(chosen.any())]
            rows.append({"level": level, "distance": distance, **min(found, key=lambda one: one["nearness"])})
    return pd.DataFrame(rows)


def _nearness(apart: torch.Tensor, distance: int) -> dict[str, float]:
    """Of `[clip frame]` distances to the clean frames."""
    there = apart[:, apart.shape[1] - distance]
    others = (apart.sum(1) - there) / (apart.shape[1] - 1)
    value, low, high = (float(x) for x in bootstrap_mean((others - there) / others.mean()))
    return {"nearness": value, "low": low, "high": high, "saved": float((others - there).mean())}


@dataclass(frozen=True)
class Pairs:
    """What pairs that came back once gain at one noise level.

    `coverage`: by twin, the share of lags at which taking that away costs something (`pooled`, of fewer than five lags:
    whether it does on all clips together, 0 or 1). `matching`, `order`: the gain over "no match" and over "reversed",
    in units of that over "none"; `gains` by twin.
    """

    design: str
    gains: Mapping[str, float]
    coverage: Mapping[str, float]
    pooled: bool

    @property
    def gain(self) -> float:
        return self.gains["none"]

    @property
    def matching(self) -> float:
        return self.gains["no match"] / max(self.gain, 1e-9)

    @property
    def order(self) -> float:
        return self.gains["reversed"] / max(self.gain, 1e-9)

    def at(self, twin: str) -> str:
        """Where taking a twin's thing away costs something, in words."""
        if self.pooled:
            return "over all lags together" if self.coverage[twin] else "not over all lags together"
        return f"at {100 * self.coverage[twin]:.0f} % of the lags"

    @property
    def is_induction(self) -> bool:
        """The last frame is foretold at most lags, only if the frame before matches, and in that order."""
        return self.coverage["none"] >= COVERED and self.coverage["no match"] >= COVERED and self.order >= 0.5

    @property
    def matches_both_ways(self) -> bool:
        return self.coverage["no match"] >= COVERED and self.order < 0.5

    @property
    def is_duplicate(self) -> bool:
        """What comes back is used at most lags, whatever came before it."""
        return self.coverage["no content"] >= COVERED and self.coverage["no match"] < COVERED and self.matching < 0.5


@dataclass(frozen=True)
class Behaviour:
    """What the gains at one noise level say.

    `one_off`, `long_cue` (None: not shown): of pairs that came back once. `turned`: the gain of a reversed pair over
    the lesser of "none" and "no match", and the share of lags that have one over both. `loops`: the gain of loops, and
    the share of periods at which losing the repeat, and losing its order, cost something; `uncued`: the share of
    periods at which a loop helps whose last frames are others (NaN: no period is long enough). `distance`, `nearness`,
    `saved`: the frame that is surely copied whatever it shows, of at least two before, if there is one. `gains`:
    whether anything that came back helps.
    """

    level: float
    one_off: Pairs
    long_cue: Pairs | None
    turned: tuple[float, float]
    loops: tuple[float, float]
    uncued: float
    distance: int | None
    nearness: float
    saved: float
    gains: bool

    @property
    def induction(self) -> Pairs | None:
        """Pairs that are foretold as if by induction: the shortest cue with which they are."""
        return next((one for one in (self.one_off, self.long_cue) if one is not None and one.is_induction), None)

    @property
    def is_reversal(self) -> bool:
        """What preceded is foretold at most lags, and more than what followed."""
        return self.turned[1] >= COVERED and self.turned[0] > 2 * max(0.0, self.one_off.gain)

    @property
    def loops_only(self) -> bool:
        """Loops are foretold, and pairs that came once after the frame before are not."""
        return self.loops[1] >= COVERED and self.one_off.coverage["no match"] < COVERED

    @property
    def is_periodic(self) -> bool:
        """And no longer cue helps, and loops are foretold without any cue."""
        fails = self.long_cue is not None and self.long_cue.coverage["no match"] < COVERED
        return self.loops_only and fails and self.uncued >= COVERED


def behaviours(table: pd.DataFrame, positions: pd.DataFrame, at_least: float) -> list[Behaviour]:
    """One for each noise level, noisiest first. `at_least`: nearness from which a frame counts as copied."""
    found = []
    for level in sorted(table["level"].unique(), reverse=True):
        here = rows_of(table, level=level)
        one_off, long_cue = (_pairs(here, design) for design in PAIRS)
        assert one_off is not None
        turned, loops, uncued = (rows_of(here, design=name) for name in ("reversed", "loop", "loop without cue"))
        order: Any = loops[loops["twin"].isin(["none", "shuffled"])]
        near: Any = rows_of(positions, level=level)
        near = near[(near["low"] >= at_least) & (near["distance"] > 1)].sort_values("nearness", ascending=False)
        back: Any = here[(here["lag"] == 0) & here["twin"].isin(["none", "no content"])]
        found.append(
            Behaviour(
                level=float(level),
                one_off=one_off,
                long_cue=long_cue,
                turned=(float(turned[turned["lag"] == 0]["gain"].min()), _share(turned)),
                loops=(float(rows_of(loops, lag=0, twin="none")["gain"].iloc[0]), _share(order)),
                uncued=_uncued(uncued, loops),
                distance=int(near["distance"].iloc[0]) if len(near) else None,
                nearness=float(near["nearness"].iloc[0]) if len(near) else 0.0,
                saved=float(near["saved"].iloc[0]) if len(near) else 0.0,
                gains=bool(back["found"].any()),
            )
        )
    return found


def _pairs(here: pd.DataFrame, design: str) -> Pairs | None:
    rows = rows_of(here, design=design)
    if not len(rows):
        return None
    total, lags = rows[rows["lag"] == 0], rows[rows["lag"] > 0]
    pooled = lags["lag"].nunique() < MANY_LAGS  # the share of few lags jumps; there all clips together decide
    covered = (total if pooled else lags).groupby("twin")["found"].mean()
    gains = dict(zip(total["twin"], total["gain"], strict=True))
    return Pairs(design, gains, {str(twin): float(value) for twin, value in covered.items()}, pooled)


def _uncued(uncued: pd.DataFrame, loops: pd.DataFrame) -> float:
    """The share of periods at which loops help without their cue; 0 where that is less than a third of what they help
    with it: a mean of all frames is helped by copies being there."""
    if not len(uncued):
        return float("nan")
    without, with_it = (float(rows_of(rows, lag=0, twin="none")["gain"].iloc[0]) for rows in (uncued, loops))
    return _share(uncued) if without >= with_it / 3 else 0.0


def _share(rows: pd.DataFrame) -> float:
    """Of the lags (fewer than five: of all clips together, 0 or 1) at which every twin's loss costs something."""
    lags: Any = rows[rows["lag"] > 0]
    chosen: Any = rows[rows["lag"] == 0] if lags["lag"].nunique() < MANY_LAGS else lags
    return float(chosen.groupby("lag")["found"].all().mean())
