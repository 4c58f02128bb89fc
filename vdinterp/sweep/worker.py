"""Worker: runs trials of a sweep, from the first step and block that they change on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vdinterp.sweep.outcomes import Outcome, Unit
from vdinterp.sweep.start import start_of, touched
from vdinterp.sweep.trial import Case, Inputs, Metric, Moment, Values
from vdinterp.sweep.untouched import Passes, Walks, Wanted

Judge = Callable[[torch.Tensor, Moment], Values]


@dataclass(frozen=True)
class Metrics:
    """What a sweep keeps of every x0: one number a clip of each metric, as lists by its name."""

    functions: Mapping[str, Metric]

    def __call__(self, x0: torch.Tensor, moment: Moment) -> Values:
        """Raises ValueError for a metric that gives no number a clip, or NaN."""
        values = {}
        for name, metric in self.functions.items():
            value = metric(x0, moment)
            if not isinstance(value, torch.Tensor) or value.shape != (moment.case.n_clips,):
                shown = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(f"metric {name!r} gave {shown}; one number a clip is needed, [{moment.case.n_clips}]")
            if not bool(value.isfinite().all()):
                raise ValueError(f"metric {name!r} gave {value.tolist()}, which is not all finite")
            values[name] = value.double().tolist()
        return values


class Worker:
    """Runs units of a sweep. Keeps the untouched runs of one case at a time: where the base can be resumed, and what
    trials take from other runs. A unit that does not fit into memory is halved, and so are later ones."""

    def __init__(self, denoiser: Any, cases: Sequence[Case], judge: Judge, wanted: Wanted) -> None:
        self.denoiser, self.cases, self.judge, self.wanted = denoiser, cases, judge, wanted
        self._limit = math.inf
        self._held: tuple[int, Any] | None = None

    def run(self, unit: Unit) -> list[Outcome]:
        """One outcome a trial. What fails is an outcome, too; only memory that runs out for a single trial raises."""
        if len(unit.trials) > self._limit:
            return self._halves(unit)
        try:
            return self._run(unit)
        except Exception as error:
            if not _out_of_memory(error) or len(unit.trials) < 2:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._limit = max(1, len(unit.trials) // 2)
        return self._halves(unit)

    def _halves(self, unit: Unit) -> list[Outcome]:
        middle = len(unit.trials) // 2
        parts = (unit.trials[:middle], unit.trials[middle:])
        return [outcome for part in parts for outcome in self.run(Unit(unit.case, unit.start, part))]

    @torch.no_grad()
    def _run(self, unit: Unit) -> list[Outcome]:
        runs = self._runs(unit.case)
        if unit.start is None:
            return [Outcome(None, self.judge(x0, runs.moment(name)), run=name) for name, x0 in runs.x0.items()]
        try:
            made = runs.changed([self._interventions(index, unit) for index in unit.trials], unit.start)
        except Exception as error:  # a hook function of the user's may raise anything; the rest goes on
            if _out_of_memory(error):
                raise
            if len(unit.trials) > 1:
                return self._halves(unit)
            return [Outcome(trial, None, f"{type(error).__name__}: {error}") for trial in unit.trials]
        return [
            self._outcome(index, x0, Moment(runs.case, runs.x0, cache))
            for index, (x0, cache) in zip(unit.trials, made, strict=True)
        ]

    def _interventions(self, index: int, unit: Unit) -> Any:
        """What a trial does to the clips of its case. Raises ValueError where that begins before the unit does."""
        trial, case = self.wanted.trials[index], self.cases[unit.case]
        found = trial.of(case)
        if callable(trial.interventions):
            model = self.denoiser.model
            begins = start_of(model, found, touched(model, found), case)
            if unit.start is not None and begins < unit.start:
                raise ValueError(f"{trial.name} begins at {begins} on some clips and at {unit.start} on others")
        return found

    def _outcome(self, trial: int, x0: torch.Tensor, moment: Moment) -> Outcome:
        try:
            return Outcome(trial, self.judge(x0, moment))
        except Exception as error:  # a metric of the user's may raise anything; the rest goes on
            return Outcome(trial, None, f"{type(error).__name__}: {error}")

    def _runs(self, index: int) -> Passes | Walks:
        if self._held is None or self._held[0] != index:
            self._held = None  # frees the last case's before the next one's are made
            case = self.cases[index]
            kind = Passes if isinstance(case.runs[case.base], Inputs) else Walks
            self._held = index, kind(self.denoiser, case, self.wanted)
        return self._held[1]


def _out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the operating system, had no memory left."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
