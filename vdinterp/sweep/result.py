"""What a sweep measured: a table of numbers a clip, and the same as arrays over the trials' labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp.results import Result
from vdinterp.sweep.outcomes import Outcomes
from vdinterp.sweep.trial import Case, Trial

Axes = Sequence[str] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepResult(Result):
    """What a sweep measured.

    `table`, one row a trial, case, metric and clip: the labels of case and trial, then `metric clip value`. `clip`
    counts over the whole stimulus, from each case's `first_clip` on. `runs`: the same of the untouched runs, with a
    column `run`. `failures`: trials that gave no number, with the reason. `missing`: how many trials are not recorded
    yet (other shards).
    """

    title = "Sweep"
    table: pd.DataFrame
    runs: pd.DataFrame
    failures: pd.DataFrame
    missing: int = 0

    def per_clip(
        self, over: Axes = ("layer", "head"), base: str | None = None, metric: str | None = None
    ) -> Float[torch.Tensor, "clip *over"]:
        """The values of every clip along some labels; NaN where there is none.

        >>> found.per_clip(over=("layer", "head"), base="clean")  # how far each head's patch moves each clip

        `over`: labels of trials or cases, whose entries come in the order of the table, or a mapping to the entries
        that are wanted. Over labels that are not named, values are averaged (noise levels, for example). `base`: a
        run's name; values are then rises over that run, of the same case and clip. `metric`: needed where there are
        several. Raises `KeyError` for a label, run or metric that is not there.
        """
        metric = self._metric(metric)
        table: Any = self._of("metric", metric, self.table)
        for name in over:
            if name not in table:
                raise KeyError(f"over={tuple(over)}: the labels of this sweep are {', '.join(self._labels)}")
        values = table["value"].to_numpy(dtype=float)
        if base is not None:
            values = values - self._base(table, base, metric)
        axes = dict(over) if isinstance(over, Mapping) else {name: self._entries(name) for name in over}
        shape = (1 + int(self.runs["clip"].max()), *map(len, axes.values()))
        places = [table["clip"].to_numpy(dtype=int)]
        for name, entries in axes.items():
            index = {entry: at for at, entry in enumerate(entries)}
            places.append(np.array([index.get(entry, -1) for entry in table[name]], dtype=int))
        wanted = np.all([place >= 0 for place in places], axis=0)
        at = tuple(place[wanted] for place in places)
        sums, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, at, values[wanted])
        np.add.at(counts, at, 1)
        return torch.from_numpy(np.divide(sums, counts, out=np.full(shape, np.nan), where=counts > 0))

    def untouched(self, run: str = "base", metric: str | None = None) -> Float[torch.Tensor, " clip"]:
        """The values of an untouched run, clip by clip (means over cases of the same clips)."""
        rows: Any = self._of("run", run, self._of("metric", self._metric(metric), self.runs))
        return torch.from_numpy(rows.groupby("clip")["value"].mean().to_numpy(dtype=float, copy=True))

    def check_whole(self) -> None:
        """Raise `ValueError` if a trial failed or is not recorded yet."""
        if self.missing or len(self.failures):
            why = "; ".join(self.failures["error"].unique()) if len(self.failures) else "none"
            raise ValueError(
                f"{self.missing} trials are not recorded (run once more without shard=), {len(self.failures)} failed: "
                f"{why}"
            )

    def _metric(self, asked: str | None) -> str:
        names = list(dict.fromkeys([*self.table["metric"], *self.runs["metric"]]))
        if asked is None and len(names) > 1:
            raise KeyError(f"this sweep has several metrics; say which: {', '.join(names)}")
        return names[0] if asked is None else asked

    @property
    def _labels(self) -> list[str]:
        return [name for name in self.table if name not in ("metric", "clip", "value")]

    def _entries(self, name: str) -> list[Any]:
        """Of a label, in the order of the table; those of failed trials come last."""
        failures: Any = self.failures
        return list(dict.fromkeys([*self.table[name].dropna(), *failures.get(name, [])]))

    def _base(self, table: Any, base: str, metric: str) -> np.ndarray:
        """The value of the untouched run behind every row."""
        runs: Any = self._of("run", base, self._of("metric", metric, self.runs))
        on = [name for name in runs if name not in ("run", "metric", "value")]  # the case's labels, and the clip
        return table[on].merge(runs[[*on, "value"]], on=on, how="left")["value"].to_numpy(dtype=float)

    @staticmethod
    def _of(column: str, value: str, frame: Any) -> Any:
        if len(frame) and value not in set(frame[column]):
            raise KeyError(f"no {column} is called {value!r}; there are {', '.join(dict.fromkeys(frame[column]))}")
        return frame[frame[column] == value]


def tabulate(outcomes: Outcomes, cases: Sequence[Case], trials: Sequence[Trial]) -> SweepResult:
    """What is known of a sweep. Raises `ValueError` if every trial failed."""
    rows, runs, failures, missing = [], [], [], 0
    for index, case in enumerate(cases):
        for name in case.runs:
            found = outcomes.find(index, name)
            runs += _rows({**case.label, "run": name}, case, found.values if found is not None and found.values else {})
        for which, trial in enumerate(trials):
            found, label = outcomes.find(index, which), {**case.label, **trial.label}
            if found is None:
                missing += 1
            elif found.values is None:
                failures.append({**label, "trial": trial.name, "error": found.error})
            else:
                rows += _rows(label, case, found.values)
    if not rows and failures:
        raise ValueError(f"every trial failed; the first, {failures[0]['trial']}: {failures[0]['error']}")
    labels = list(dict.fromkeys(name for case in cases for name in case.label))
    labels += [name for name in dict.fromkeys(name for trial in trials for name in trial.label) if name not in labels]
    measured = ["metric", "clip", "value"]
    return SweepResult(
        table=pd.DataFrame(rows, columns=[*labels, *measured]),
        runs=pd.DataFrame(runs, columns=[*dict.fromkeys(n for case in cases for n in case.label), "run", *measured]),
        failures=pd.DataFrame(failures, columns=[*labels, "trial", "error"]),
        missing=missing,
    )


def _rows(label: Mapping[str, Any], case: Case, values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {**label, "metric": metric, "clip": case.first_clip + clip, "value": value}
        for metric, per_clip in values.items()
        for clip, value in enumerate(per_clip)
    ]
