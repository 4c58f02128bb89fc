"""Conditions as trials of a sweep: what they share with the untouched run of the same clips is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vdinterp.interventions import Intervention
from vdinterp.store import fingerprint, key_of
from vdinterp.studies.conditions import Condition
from vdinterp.sweep import Case, Trajectory, Trial
from vdinterp.sweep.outcomes import Outcome, Outcomes, Unit
from vdinterp.sweep.work import Work
from vdinterp.words.wording import plural

if TYPE_CHECKING:
    from vdinterp.studies.bench import Bench

INTACT_RUN = "intact"


@dataclass(frozen=True, eq=False)
class Moment:
    """Where interventions are about to be applied: which clips (a slice of the bench's) and, outside sampling, which
    noise level their target frames have."""

    bench: Bench
    clips: slice
    level: float | None = None


class Trials:
    """Conditions of one protocol that change the same run, beside all runs of that protocol that nothing changes."""

    def __init__(self, bench: Bench, protocol: str, steps: int, conditions: Sequence[Condition]) -> None:
        self.bench, self.protocol = bench, protocol
        self.changing = [one for one in conditions if one.interventions]
        self.base, others = run_name(bench, steps), [run_name(bench, one.steps) for one in conditions]
        runs = dict.fromkeys([INTACT_RUN, self.base, *others])
        numbers = {run_name(bench, one.steps): one.steps or bench.steps for one in conditions} | {self.base: steps}
        self.cases = [
            Case(runs=made, base=self.base, first_clip=clips.start, about={"clips": clips, "level": level})
            for level, clips, made in _runs(bench, protocol, {name: numbers.get(name, bench.steps) for name in runs})
        ]
        trials = [
            Trial(
                interventions=partial(_made, bench, one.interventions)
                if callable(one.interventions)
                else tuple(one.interventions),
                label={"condition": one.label},
            )
            for one in self.changing
        ]
        self.known = Measured(bench, self)
        self.work = Work(bench.pipe, self.cases, trials, Scored(bench, protocol))

    def do(self, desc: str, progress: bool) -> None:
        """Run what is not recorded."""
        self.work.do(self.known, desc=desc, trials_per_pass=1, progress=progress)

    def values(self, condition: Condition) -> list[Mapping[str, Any]]:
        """What was recorded of a condition, one a case."""
        here = [index for index, one in enumerate(self.changing) if one is condition]
        which = here[0] if here else run_name(self.bench, condition.steps)
        found = [self.known.find(case, which) for case in range(len(self.cases))]
        return [one.values for one in found if one is not None and one.values is not None]


class Measured(Outcomes):
    """What conditions gave, in the ledger of a bench. One that fails is an error, and is not recorded."""

    def __init__(self, bench: Bench, trials: Trials) -> None:
        super().__init__(bench.ledger)
        self._trials = trials
        self._changing = [fingerprint(condition) for condition in trials.changing]

    def key(self, case: int, which: int | str) -> str:
        clips, level = (self._trials.cases[case].about[name] for name in ("clips", "level"))
        what = which if isinstance(which, str) else [self._changing[which]]
        return key_of(self._trials.protocol, what, level, clips.start, clips.stop)

    def add(self, unit: Unit, outcomes: Iterable[Outcome]) -> None:
        outcomes = list(outcomes)
        for one in outcomes:
            if one.values is None and one.trial is not None:
                raise ValueError(f"{self._trials.changing[one.trial].label}: {one.error}")
        super().add(unit, outcomes)


class Scored:
    """What a study keeps of an x0: every score of every target frame, and what was generated."""

    def __init__(self, bench: Bench, protocol: str) -> None:
        self.bench, self.protocol = bench, protocol
        self._intact: tuple[Case, torch.Tensor | None] | None = None  # of the case at hand, decoded

    def __call__(self, x0: torch.Tensor, moment: Any) -> dict[str, torch.Tensor]:
        target, intact = (part[:, self.bench.n_context :].float().cpu() for part in (x0, moment.x0[INTACT_RUN]))
        if self._intact is None or self._intact[0] is not moment.case:
            self._intact = moment.case, self.bench.pixels(intact, moment.case.about["clips"])
        scores = self.bench.scores(target, moment.case.about["clips"], intact, self._intact[1])
        return {**scores, "latents": target} if self.protocol == "sample" else scores


def run_name(bench: Bench, steps: int | None) -> str:
    """Of a run that nothing changes."""
    return INTACT_RUN if steps in (None, bench.steps) else plural(steps or 0, "step")


def _runs(
    bench: Bench, protocol: str, steps: Mapping[str, int]
) -> Iterable[tuple[float | None, slice, dict[str, Any]]]:
    """Level, clips and runs of every case. `steps`: of the runs, by name."""
    if protocol == "denoise":
        for level in bench.levels:
            for clips in bench.batches:
                yield level, clips, {INTACT_RUN: bench.stimulus.inputs(level, clips)}
        return
    for clips in bench.batches:
        options = {
            "context": bench.truth[clips, : bench.n_context],
            "n_frames": bench.n_frames,
            "noise": bench.noise[clips],
            "cond": bench.stimulus.cond[clips],
        }
        yield None, clips, {name: Trajectory(options={**options, "steps": number}) for name, number in steps.items()}


def _made(bench: Bench, interventions: Any, case: Case) -> Sequence[Intervention]:
    return interventions(Moment(bench, case.about["clips"], case.about["level"]))
