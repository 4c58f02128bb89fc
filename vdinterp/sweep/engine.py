"""Running a sweep: trials on cases, judged by metrics; resumed where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vdinterp.checks.counts import check_count
from vdinterp.checks.signatures import check_signature
from vdinterp.models import HookedVideoDiT
from vdinterp.store import Ledger
from vdinterp.sweep.outcomes import Outcomes, Recorded
from vdinterp.sweep.result import SweepResult, tabulate
from vdinterp.sweep.trial import Case, Denoiser, Metric, ModelOnly, Trial
from vdinterp.sweep.untouched import KEEP_BYTES
from vdinterp.sweep.work import Work
from vdinterp.sweep.worker import Metrics

ENGINES = ("inline", "ray")


def run(
    model: Denoiser | HookedVideoDiT,
    cases: Sequence[Case],
    trials: Sequence[Trial],
    metrics: Mapping[str, Metric],
    *,
    engine: Literal["inline", "ray"] = "inline",
    trials_per_pass: int | Literal["auto"] = "auto",
    out: str | Path | None = None,
    shard: tuple[int, int] = (1, 1),
    resume: bool = True,
    progress: bool = True,
    workers: int | None = None,
    address: str | None = None,
    keep_bytes: int = KEEP_BYTES,
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
        keep_bytes: of the base run's streams that are kept to start trials from (default 2 GiB). Where they would take
            more, some are kept and the blocks between are run again, which changes no number and is logged once.

    Raises:
        ValueError, KeyError: anything that does not fit, before any compute; a ledger of another model.
        MemoryError: the activations that trials take from other runs would not fit.
        OSError: the ledger cannot be written.
    """
    denoiser: Denoiser = ModelOnly(model) if isinstance(model, HookedVideoDiT) else model
    check(cases, trials, metrics, engine, trials_per_pass, shard, workers)
    check_count("keep_bytes", keep_bytes, 0, high=2**60)
    mine = [index for index in range(len(trials)) if index % shard[1] == shard[0] - 1]
    asked = dict.fromkeys(name for one in metrics.values() for name in getattr(one, "names", ()))
    names = denoiser.model.resolve_names(list(asked)) if asked else []
    work = Work(denoiser, cases, trials, Metrics(metrics), names=names, mine=mine, keep_bytes=keep_bytes)
    known = Outcomes(Ledger(None))
    if out is not None:
        known = Recorded(out, denoiser, cases, trials, metrics, shard=shard, resume=resume)
    work.do(known, engine=engine, trials_per_pass=trials_per_pass, progress=progress, workers=workers, address=address)
    return tabulate(known, cases, trials)


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
