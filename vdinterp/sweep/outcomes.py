"""What trials gave, as a ledger knows it: by the content of model, inputs, interventions and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdinterp.store import Ledger, code_of, fingerprint, key_of
from vdinterp.sweep.start import Start
from vdinterp.sweep.trial import Case, Denoiser, Metric, Trial

CODE = (
    "interventions",
    "site.py",
    "sweep",
    "models",
    "diffusion",
    "pipeline/sampling.py",
    "pipeline/video_diffusion.py",
)
FAILED = "failed"  # the key of what went wrong, a text; of a metric of that name there are numbers


@dataclass(frozen=True)
class Unit:
    """Trials of one case that start alike and run together; without any, the untouched runs themselves."""

    case: int
    start: Start | None = None
    trials: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Of a trial (of the run called `run` where `trial` is None): its values, or what went wrong."""

    trial: int | None
    values: Mapping[str, Any] | None
    error: str = ""
    run: str = ""


class Outcomes:
    """The outcomes of a sweep. Those of one unit are recorded together, or not at all."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def key(self, case: int, which: int | str) -> str:
        """Of a trial, or of an untouched run, by its name."""
        return f"{case}/{which!r}"

    @property
    def batch(self) -> int | None:
        """How many trials run together, so that a sweep that goes on groups them alike."""
        return self.ledger.said.get("batch")

    def knows(self, case: int, which: int | str) -> bool:
        return self.key(case, which) in self.ledger

    def find(self, case: int, which: int | str) -> Outcome | None:
        """What a trial gave, or an untouched run, by its name; None if not known."""
        found = self.ledger.find(self.key(case, which))
        if found is None:
            return None
        run, trial = (which, None) if isinstance(which, str) else ("", which)
        failed = found.get(FAILED)
        return Outcome(trial, None, failed, run) if isinstance(failed, str) else Outcome(trial, found, run=run)

    def add(self, unit: Unit, outcomes: Iterable[Outcome]) -> None:
        """Record what a unit gave."""
        self.ledger.add(
            {
                self.key(unit.case, one.run if one.trial is None else one.trial): (
                    {FAILED: one.error} if one.values is None else one.values
                )
                for one in outcomes
            }
        )


class Recorded(Outcomes):
    """Outcomes on disk: their keys are of what they depend on, and their ledger is of one model."""

    def __init__(
        self,
        folder: str | Path,
        denoiser: Denoiser,
        cases: Sequence[Case],
        trials: Sequence[Trial],
        metrics: Mapping[str, Metric],
        *,
        shard: tuple[int, int] = (1, 1),
        resume: bool = True,
    ) -> None:
        asked = fingerprint(dict(metrics))
        self._cases = [fingerprint([case, asked]) for case in cases]
        self._trials = [fingerprint(trial.interventions) for trial in trials]
        writer = "" if shard == (1, 1) else f"{shard[0]}-of-{shard[1]}"
        super().__init__(Ledger(folder, about(denoiser, *CODE), writer=writer, resume=resume))

    def key(self, case: int, which: int | str) -> str:
        return key_of(self._cases[case], which if isinstance(which, str) else [self._trials[which]])


def about(denoiser: Denoiser, *code: str) -> dict[str, str]:
    """What all numbers depend on besides inputs and what is done to the model: weights, and this library's own code."""
    return {
        "model": f"{denoiser.model.cfg.model_name} {denoiser.identity[:16]}",
        "version of vdinterp": fingerprint(code_of(*code))[:16],
    }
