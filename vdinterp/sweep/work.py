"""The work of a sweep: trials that start alike run together, from where they start, unless they are known already."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from vdinterp.interventions import Pass
from vdinterp.pipeline.sampling import make_plan
from vdinterp.progress import bar
from vdinterp.sweep.outcomes import Outcome, Outcomes, Unit
from vdinterp.sweep.start import Start, start_of, touched
from vdinterp.sweep.trial import Case, Denoiser, Inputs, ModelOnly, Trial
from vdinterp.sweep.untouched import KEEP_BYTES, Wanted
from vdinterp.sweep.worker import Judge, Worker

log = logging.getLogger("vdinterp")
GAIN = 1.15  # a larger batch has to be this much faster a trial to be chosen
PENDING_A_CANDIDATE = 8  # calibrating with a batch is worth it if there is this many times as much to do


class Work:
    """All trials (or `mine`, some by index) on all cases, judged. `names`: activations that the judge looks at. Raises
    `ValueError` for interventions that do not fit the model or act in no case."""

    def __init__(
        self,
        denoiser: Denoiser,
        cases: Sequence[Case],
        trials: Sequence[Trial],
        judge: Judge,
        *,
        names: Sequence[str] = (),
        mine: Sequence[int] | None = None,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.denoiser, self.cases, self.trials, self.judge = denoiser, cases, trials, judge
        self.names, self.keep_bytes = names, keep_bytes
        self.mine = range(len(trials)) if mine is None else mine
        self._places = {
            index: self._place(trial.interventions, cases[0])
            for index, trial in enumerate(trials)
            if not callable(trial.interventions)
        }
        _check_acting(denoiser, cases, [trial for trial in trials if not callable(trial.interventions)])

    def do(
        self,
        known: Outcomes,
        *,
        desc: str = "sweep",
        engine: str = "inline",
        trials_per_pass: Any = "auto",
        progress: bool = True,
        workers: int | None = None,
        address: str | None = None,
    ) -> None:
        """Run what is not known yet, and record it."""
        for index in self.mine:
            if index not in self._places:  # made for the clips of a case
                left = (case for at, case in enumerate(self.cases) if known.find(at, index) is None)
                if (case := next(left, None)) is not None:
                    self._places[index] = self._place(self.trials[index].of(case), case)
        starts = [start for start, _ in self._places.values()]
        worker = Worker(self.denoiser, self.cases, self.judge, Wanted(self.trials, starts, self.names, self.keep_bytes))
        batch = self._batch(worker, known, trials_per_pass)
        units = list(self._units(batch, known))
        left, whole = (sum(map(self._cost, some)) for some in (units, self._units(batch)))
        with bar(total=whole, initial=whole - left, desc=desc, unit="block", smoothing=0.05, show=progress) as shown:
            n_found = sum(known.knows(case, index) for case in range(len(self.cases)) for index in self.mine)
            if n_found:
                said = f"{n_found} of {len(self.cases) * len(self.mine)} found in {known.ledger.folder or 'memory'}"
                log.info("%s: %s", desc, said)
                shown.set_postfix_str(said)

            def record(unit: Unit, outcomes: list[Outcome]) -> None:
                known.add(unit, outcomes)
                for outcome in outcomes:
                    if outcome.values is None and outcome.trial is not None:
                        log.warning("%s gave no number: %s", self.trials[outcome.trial].name, outcome.error)
                shown.update(self._cost(unit))

            if engine == "ray":
                from vdinterp.sweep.ray_engine import run_on_ray

                run_on_ray(worker, units, record, workers=workers, address=address)
            else:
                for unit in units:
                    record(unit, worker.run(unit))

    def _place(self, interventions: Any, case: Case) -> tuple[Start, tuple[str, ...]]:
        """Where they start, and the hooks that they set."""
        hooks = touched(self.denoiser.model, interventions)  # checks them, too
        return start_of(self.denoiser.model, interventions, hooks, case), tuple(hooks)

    @cached_property
    def _groups(self) -> list[tuple[Start, list[int]]]:
        """Which trials run together: those of a case that start alike and set the same hooks."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        hook_dict = self.denoiser.model.hook_dict
        for index in self.mine:
            if index in self._places:
                start, hooks = self._places[index]
                # a mask has no batch axis of its own, so trials that set one run alone
                alone = index if any(hook_dict[name].broadcasts for name in hooks) else -1
                groups.setdefault((start, hooks, alone), []).append(index)
        return [(key[0], groups[key]) for key in sorted(groups, key=lambda key: (key[0], groups[key][0]))]

    def _units(self, batch: int, known: Outcomes | None = None) -> Iterator[Unit]:
        """All there is to do, without what is known, in an order in which little is computed twice."""

        def is_left(case: int, which: int | str) -> bool:
            return known is None or known.find(case, which) is None

        for case in range(len(self.cases)):
            if any(is_left(case, run) for run in self.cases[case].runs):
                yield Unit(case)
            for start, group in self._groups:
                for first in range(0, len(group), batch):
                    left = tuple(i for i in group[first : first + batch] if is_left(case, i))
                    if left:
                        yield Unit(case, start, left)

    def _cost(self, unit: Unit) -> int:
        """Block evaluations."""
        case, n_layers = self.cases[unit.case], self.denoiser.model.cfg.n_layers
        if unit.start is None:
            return n_layers * sum(map(_steps, case.runs.values()))
        steps = _steps(case.runs[case.base])
        return len(unit.trials) * (max(1, steps - unit.start.step) * n_layers - unit.start.layer)

    def _batch(self, worker: Worker, known: Outcomes, asked: Any) -> int:
        """How many trials share a pass: as asked, as it was, or found by trying."""
        if known.batch is None or asked != "auto":
            pending = sum(not known.knows(case, i) for case in range(len(self.cases)) for i in self.mine)
            chosen = self._calibrate(worker, pending) if asked == "auto" else int(asked)
            if chosen != known.batch and pending:
                known.ledger.say(batch=chosen)
            return chosen
        return known.batch

    def _calibrate(self, worker: Worker, n_pending: int) -> int:
        """The number of trials a pass at which a trial takes least time."""
        best, least = 1, float("inf")
        # of the largest groups the one that starts last, where trying costs least
        start, largest = max(self._groups, key=lambda group: (len(group[1]), group[0]), default=(Start(0, 0), []))
        if len(largest) < 4 or n_pending < 4 * PENDING_A_CANDIDATE:
            return best
        for size in (1, 4, 16, 64) if self.denoiser.model.device.type == "cuda" else (1, 4):
            if size > len(largest) or n_pending < PENDING_A_CANDIDATE * size:
                break
            unit = Unit(0, start, tuple(largest[:size]))
            if size == 1:
                worker.run(unit)  # makes what the case needs, and warms up
            seconds = min(_seconds(lambda unit=unit: worker.run(unit)) for _ in range(2)) / size
            if seconds * GAIN > least:
                break
            best, least = size, seconds
        return best


def _steps(run: Any) -> int:
    return 1 if isinstance(run, Inputs) else int(run.options.get("steps", 50))


def _check_acting(denoiser: Denoiser, cases: Sequence[Case], trials: Sequence[Trial]) -> None:
    """Raise `ValueError` for trajectories that cannot be walked, and if an intervention acts in none of the cases
    or does not fit their clips."""
    passes: list[Pass] = []
    for case in cases:
        base = case.runs[case.base]
        if isinstance(base, Inputs):
            levels = None if isinstance(denoiser, ModelOnly) else base.noise_levels
            passes.append(Pass(None, levels, denoiser.model.grid_of(base.noisy)))
        else:
            passes += make_plan(denoiser, **base.options).passes()  # type: ignore[arg-type]
    for trial in trials:
        for one in trial.interventions:  # type: ignore[union-attr]
            try:
                one.check_clips(passes)
                one.check_acts(denoiser.model, passes)
            except ValueError as error:
                raise ValueError(f"{trial.name}: {error}") from error


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
