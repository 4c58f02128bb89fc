"""Running a sweep: trials on cases, judged by metrics; resumed where it was stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from vdinterp.checks.counts import check_count
from vdinterp.checks.signatures import check_signature
from vdinterp.interventions import Pass
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline.sampling import make_plan
from vdinterp.progress import bar
from vdinterp.results import Result
from vdinterp.sweep.ledger import Shard, SweepLedger
from vdinterp.sweep.start import Start, start_of, touched
from vdinterp.sweep.trial import Case, Denoiser, Inputs, Metric, ModelOnly, Trial
from vdinterp.sweep.worker import Outcome, Unit, Worker

log = logging.getLogger("vdinterp")
ENGINES = ("inline", "ray")
GAIN = 1.15  # a larger batch has to be this much faster a trial to be chosen
PENDING_A_CANDIDATE = 8  # calibrating with a batch is worth it if there is this many times as much to do


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepResult(Result):
    """What a sweep measured.

    `table`, one row a trial, case, metric and clip: the labels of case and trial, then `metric clip value`. `clip`
    counts within the case. `runs`: the same of the untouched runs, with a column `run`. `failures`: trials that gave
    no number, with the reason. `missing`: how many trials are not recorded yet (other shards).
    """

    title = "Sweep"
    table: pd.DataFrame
    runs: pd.DataFrame
    failures: pd.DataFrame
    missing: int = 0


def run(
    model: Denoiser | HookedVideoDiT,
    cases: Sequence[Case],
    trials: Sequence[Trial],
    metrics: Mapping[str, Metric],
    *,
    engine: Literal["inline", "ray"] = "inline",
    trials_per_pass: int | Literal["auto"] = "auto",
    out: str | Path | None = None,
    shard: Shard = (1, 1),
    resume: bool = True,
    progress: bool = True,
    workers: int | None = None,
    address: str | None = None,
) -> SweepResult:
    """Try every trial on every case.

    A trial's forward pass resumes at the first block that it changes, a trajectory at the first step and block; the
    stream before that is the untouched run's. With `trials_per_pass=1` all values are bitwise those of a loop that
    runs every trial from the start; several trials in one pass agree to rounding (1e-6).

    Args:
        model: a pipeline; or a bare model, whose predictions are then judged in place of x0.
        metrics: by name, functions `(x0, moment) -> [batch]`, one finite number a clip. What fails is listed in
            `failures`, the rest goes on.
        engine: "inline", in this process; "ray", on `workers` actors that hold the model (extra `ray`), on the cluster
            at `address` if given. The model runs on the device(s) it is on; Ray actors take one GPU each if there are.
        trials_per_pass: how many share a forward pass; "auto" times a few and remembers what it chose.
        out: folder of the ledger: what is recorded there is not computed again. None: in memory only.
        shard: `(i, n)`: only the i-th of n parts of the trials (1-based), for array jobs with one `out`. A later run
            without a shard reads them all.
        resume: False forgets the ledger.

    Raises:
        ValueError, KeyError: anything that does not fit, before any compute; a ledger of another model.
        MemoryError: the activations that trials take from other runs would not fit.
        OSError: the ledger cannot be written.
    """
    denoiser: Denoiser = ModelOnly(model) if isinstance(model, HookedVideoDiT) else model
    check(cases, trials, metrics, engine, trials_per_pass, shard, workers)
    hooks = [touched(denoiser.model, trial) for trial in trials]  # checks them, too
    _check_acting(denoiser, cases, trials)
    starts = [start_of(denoiser.model, *each, cases[0]) for each in zip(trials, hooks, strict=True)]
    ledger = SweepLedger(out, denoiser, cases, trials, metrics, shard=shard, resume=resume)
    mine = [index for index in range(len(trials)) if index % shard[1] == shard[0] - 1]
    grouping = _Grouping(denoiser.model, cases, trials, starts, hooks, mine)

    worker = Worker(denoiser, cases, trials, metrics, starts)
    if ledger.batch is None or trials_per_pass != "auto":
        n_pending = sum(ledger.find(case, index) is None for case in range(len(cases)) for index in mine)
        automatic = trials_per_pass == "auto"
        chosen = _calibrate(worker, grouping, n_pending) if automatic else int(trials_per_pass)
        if chosen != ledger.batch and n_pending:
            ledger.choose_batch(chosen)
    units = list(grouping.units(ledger.batch or 1, ledger))
    left, whole = (sum(map(grouping.cost, some)) for some in (units, grouping.units(ledger.batch or 1)))
    with bar(total=whole, initial=whole - left, desc="sweep", unit="block", smoothing=0.05, show=progress) as shown:
        if found := sum(ledger.find(case, index) is not None for case in range(len(cases)) for index in mine):
            said = f"{found} of {len(cases) * len(mine)} found in {out}"
            log.info("sweep: %s", said)
            shown.set_postfix_str(said)

        def record(unit: Unit, outcomes: list[Outcome]) -> None:
            ledger.add(unit, outcomes)
            for outcome in outcomes:
                if outcome.values is None and outcome.trial is not None:
                    log.warning("%s gave no number: %s", trials[outcome.trial].name, outcome.error)
            shown.update(grouping.cost(unit))

        if engine == "ray":
            from vdinterp.sweep.ray_engine import run_on_ray

            run_on_ray(worker, units, record, workers=workers, address=address)
        else:
            for unit in units:
                record(unit, worker.run(unit))
    return _tabulate(ledger, cases, trials)


def check(
    cases: Sequence[Case],
    trials: Sequence[Trial],
    metrics: Mapping[str, Metric],
    engine: str,
    at_once: Any,
    shard: Any,
    workers: Any = None,
) -> None:
    """Raise `ValueError` unless there is something to do and these settings exist."""
    if not cases or not trials or not metrics:
        raise ValueError(f"{len(cases)} cases, {len(trials)} trials, {len(metrics)} metrics: at least one of each")
    if len({type(case.runs[case.base]) for case in cases}) > 1:
        raise ValueError("the cases of a sweep are all single passes or all trajectories")
    for trial in trials:
        if not trial.interventions:
            raise ValueError(f"{trial.name}: a trial needs at least one intervention")
    for name, metric in metrics.items():
        if not callable(metric):
            raise ValueError(f"metric {name!r} is {metric!r}; give a function (x0, moment) -> one number a clip")
        check_signature(metric, f"metric {name!r} is a function (x0, moment) -> one number a clip", "x0", "moment")
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if at_once != "auto":
        check_count("trials_per_pass", at_once, why="or 'auto'")
    if workers is not None:
        check_count("workers", workers, high=100_000)
    whole = isinstance(shard, tuple) and len(shard) == 2 and all(type(part) is int for part in shard)
    if not whole or not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard={shard!r}: (i, n) with 1 <= i <= n, for the i-th of n parts")


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
        for one in trial.interventions:
            try:
                one.check_acts(denoiser.model, passes)
                one.check_clips(passes)
            except ValueError as error:
                raise ValueError(f"{trial.name}: {error}") from error


class _Grouping:
    """Which trials run together: those of a case that start alike and set the same hooks."""

    def __init__(
        self,
        model: HookedVideoDiT,
        cases: Sequence[Case],
        trials: Sequence[Trial],
        starts: Sequence[Start],
        hooks: Sequence[Sequence[str]],
        mine: Sequence[int],
    ) -> None:
        self.model, self.cases, self.trials = model, cases, trials
        self.groups: dict[tuple[Any, ...], list[int]] = {}
        for index in mine:
            # a mask has no batch axis of its own, so trials that set one run alone
            alone = index if any(model.hook_dict[name].broadcasts for name in hooks[index]) else -1
            self.groups.setdefault((starts[index], tuple(hooks[index]), alone), []).append(index)
        self.order = sorted(self.groups, key=lambda key: (key[0], self.groups[key][0]))

    def units(self, batch: int, ledger: SweepLedger | None = None) -> Iterator[Unit]:
        """All there is to do, without what `ledger` holds, in an order in which little is computed twice."""

        def is_left(case: int, which: int | str) -> bool:
            return ledger is None or ledger.find(case, which) is None

        for case in range(len(self.cases)):
            if any(is_left(case, run) for run in self.cases[case].runs):
                yield Unit(case)
            for key in self.order:
                group = self.groups[key]
                for first in range(0, len(group), batch):
                    left = tuple(i for i in group[first : first + batch] if is_left(case, i))
                    if left:
                        yield Unit(case, key[0], left)

    def cost(self, unit: Unit) -> int:
        """Block evaluations."""
        case, n_layers = self.cases[unit.case], self.model.cfg.n_layers
        single = isinstance(case.runs[case.base], Inputs)
        steps = 1 if single else int(case.runs[case.base].options.get("steps", 50))  # type: ignore[union-attr]
        if unit.start is None:
            return len(case.runs) * steps * n_layers
        return len(unit.trials) * (max(1, steps - unit.start.step) * n_layers - unit.start.layer)


def _calibrate(worker: Worker, grouping: _Grouping, n_pending: int) -> int:
    """The number of trials a pass at which a trial takes least time, found by trying."""
    # of the largest groups the one that starts last, where trying costs least
    key = max(grouping.groups, key=lambda key: (len(grouping.groups[key]), key[0]))
    start, largest = key[0], grouping.groups[key]
    best, least = 1, float("inf")
    if len(largest) < 4 or n_pending < 4 * PENDING_A_CANDIDATE:
        return best
    for size in (1, 4, 16, 64) if worker.denoiser.model.device.type == "cuda" else (1, 4):
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


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _tabulate(ledger: SweepLedger, cases: Sequence[Case], trials: Sequence[Trial]) -> SweepResult:
    rows, runs, failures, missing = [], [], [], 0
    for index, case in enumerate(cases):
        for name in case.runs:
            found = ledger.find(index, name)
            runs += _rows({**case.label, "run": name}, (found or {}).get("values") or {})
        for which, trial in enumerate(trials):
            found, label = ledger.find(index, which), {**case.label, **trial.label}
            if found is None:
                missing += 1
            elif "error" in found:
                failures.append({**label, "trial": trial.name, "error": found["error"]})
            else:
                rows += _rows(label, found["values"])
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


def _rows(label: Mapping[str, Any], values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {**label, "metric": metric, "clip": clip, "value": value}
        for metric, per_clip in values.items()
        for clip, value in enumerate(per_clip)
    ]
