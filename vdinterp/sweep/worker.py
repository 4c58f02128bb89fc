"""Worker: runs trials of a sweep, from the first step and block that they change on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from typing import Any, TypeVar

import torch

from vdinterp.diffusion import RepeatedNoise
from vdinterp.interventions import HookPair
from vdinterp.models import ActivationCache
from vdinterp.models.hooks import Recorder
from vdinterp.models.memory import check_fits
from vdinterp.pipeline.sampling import SamplingPlan, make_plan, run_plan
from vdinterp.sweep.slots import merged
from vdinterp.sweep.start import Start, acts, base_names, needed_names, resume
from vdinterp.sweep.trial import Case, Denoiser, Inputs, Metric, Moment, Trial

T = TypeVar("T")
Values = dict[str, list[float]]  # of every metric, one number a clip


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
    values: Values | None
    error: str = ""
    run: str = ""


class Worker:
    """Runs units of a sweep. Keeps the untouched runs of one case at a time: where the base can be resumed, and what
    trials take from other runs. A unit that does not fit into memory is halved, and so are later ones."""

    def __init__(
        self,
        denoiser: Denoiser,
        cases: Sequence[Case],
        trials: Sequence[Trial],
        metrics: Mapping[str, Metric],
        starts: Sequence[Start],
    ) -> None:
        self.denoiser, self.cases, self.trials, self.metrics = denoiser, cases, trials, metrics
        self.starts = starts
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
            return [Outcome(None, self.judge(x0, runs.moment), run=name) for name, x0 in runs.x0.items()]
        try:
            parts = runs.changed([self.trials[index] for index in unit.trials], unit.start)
        except Exception as error:  # a hook function of the user's may raise anything; the rest goes on
            if _out_of_memory(error):
                raise
            if len(unit.trials) > 1:
                return self._halves(unit)
            return [Outcome(trial, None, f"{type(error).__name__}: {error}") for trial in unit.trials]
        return [self._outcome(index, x0, runs.moment) for index, x0 in zip(unit.trials, parts, strict=True)]

    def _outcome(self, trial: int, x0: torch.Tensor, moment: Moment) -> Outcome:
        try:
            return Outcome(trial, self.judge(x0, moment))
        except Exception as error:  # a metric of the user's may raise anything; the rest goes on
            return Outcome(trial, None, f"{type(error).__name__}: {error}")

    def judge(self, x0: torch.Tensor, moment: Moment) -> Values:
        """Every metric of one x0. Raises ValueError for a metric that gives no number a clip, or NaN."""
        values = {}
        for name, metric in self.metrics.items():
            value = metric(x0, moment)
            if not isinstance(value, torch.Tensor) or value.shape != (moment.case.n_clips,):
                shown = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(f"metric {name!r} gave {shown}; one number a clip is needed, [{moment.case.n_clips}]")
            if not bool(value.isfinite().all()):
                raise ValueError(f"metric {name!r} gave {value.tolist()}, which is not all finite")
            values[name] = value.double().tolist()
        return values

    def _runs(self, index: int) -> _Pass | _Walk:
        if self._held is None or self._held[0] != index:
            self._held = None  # frees the last case's before the next one's are made
            case = self.cases[index]
            kind = _Pass if isinstance(case.runs[case.base], Inputs) else _Walk
            self._held = index, kind(self.denoiser, case, self.trials, self.starts)
        return self._held[1]


class _Runs:
    """The untouched runs of a case, made when first needed."""

    def __init__(self, denoiser: Any, case: Case, trials: Sequence[Trial], starts: Sequence[Start]) -> None:
        self.denoiser, self.case, self.starts = denoiser, case, starts
        self.needed = needed_names(denoiser.model, case, trials)
        self.trials = trials

    @property
    def model(self) -> Any:
        return self.denoiser.model

    @cached_property
    def moment(self) -> Moment:
        return Moment(self.case, self.x0)

    @property
    def x0(self) -> Mapping[str, torch.Tensor]:
        raise AssertionError("subclasses make it")

    def base_names(self, starts: Iterable[Start]) -> list[str]:
        """The base's activations that passes resumed there need."""
        return sorted({name for start in starts for name in base_names(start, self.model).values()})

    def pairs(self, trial: Trial, caches: Mapping[str, ActivationCache]) -> list[HookPair]:
        """The hooks of a trial, its sources filled in; those that only look come last, as in the model itself."""
        pairs = [pair for one in trial.interventions for pair in one.bind(caches).hooks(self.model)]
        return sorted(pairs, key=lambda pair: isinstance(pair[1], Recorder))

    def hooked(self, trials: Sequence[Sequence[HookPair]], run: Callable[[], T]) -> T:
        """`run()` under the hooks of trials. Raises ValueError for a hook that never fires there."""
        fired: set[str] = set()
        pairs = [(name, _noting(function, name, fired)) for name, function in merged(trials, self.case.n_clips)]
        with self.model.hooks(pairs):
            found = run()
            missing = [name for name, _ in pairs if name not in fired]
            if missing:
                raise ValueError(f"{', '.join(missing)} never fired: this run does not compute it")
        return found


class _Pass(_Runs):
    """Single forward passes, resumed at a block."""

    @cached_property
    def _made(self) -> tuple[dict[str, torch.Tensor], dict[str, ActivationCache]]:
        wanted = {name: set(names) for name, names in self.needed.items()}
        wanted[self.case.base] = wanted.get(self.case.base, set()) | set(self.base_names(self.starts))
        bytes_needed = sum(
            self.model.estimate_cache(sorted(names), self.case.n_clips) for names in wanted.values() if names
        )
        check_fits(bytes_needed, self.model.device, "The activations that this sweep keeps", "Use fewer clips a batch.")
        x0, caches = {}, {}
        for name, run in self.case.runs.items():
            assert isinstance(run, Inputs)
            if not wanted.get(name):
                x0[name] = self.denoiser.denoise(**run.repeated(1))
                continue
            with self.model.record(sorted(wanted[name])) as recording:
                x0[name] = self.denoiser.denoise(**run.repeated(1))
            caches[name] = recording[0]
        return x0, caches

    @property
    def x0(self) -> Mapping[str, torch.Tensor]:
        return self._made[0]

    def changed(self, trials: Sequence[Trial], start: Start) -> list[torch.Tensor]:
        """x0 of every trial."""
        _, caches = self._made
        run = self.case.runs[self.case.base]
        assert isinstance(run, Inputs)
        given = resume(start, self.model, caches.get(self.case.base, {}), len(trials), self.case.n_clips)
        pass_ = partial(self.denoiser.denoise, **run.repeated(len(trials)), **given)
        x0 = self.hooked([self.pairs(trial, caches) for trial in trials], pass_)
        return list(x0.split(self.case.n_clips))


class _Walk(_Runs):
    """Whole trajectories, resumed at a step and, within it, at a block."""

    _of_step: tuple[int, ActivationCache] | None = None  # the base's activations at the step that was asked for last

    @cached_property
    def _skipped(self) -> Counter[int]:
        """Block evaluations that trials save by resuming inside a step, by step."""
        skipped: Counter[int] = Counter()
        for start in self.starts:
            skipped[start.step] += start.layer
        return skipped

    @cached_property
    def plans(self) -> dict[str, SamplingPlan]:
        return {name: make_plan(self.denoiser, **run.options) for name, run in self.case.runs.items()}  # type: ignore[union-attr]

    @cached_property
    def _made(self) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]], list[torch.Tensor]]:
        n_steps = len(self.plans[self.case.base].matrix) - 1
        steps = [step for step in range(n_steps) if any(acts(trial, step) for trial in self.trials)]
        width = max(1, self.case.n_clips)
        bytes_needed = len(steps) * sum(
            self.model.estimate_cache(sorted(names), width) for names in self.needed.values() if names
        )
        if names := self.base_names(self.starts):
            bytes_needed += self.model.estimate_cache(names, width)
        check_fits(
            bytes_needed, self.model.device, "The activations of all steps that this sweep keeps",
            "Use fewer clips a batch, or fewer steps at a time.",
        )  # fmt: skip
        x0, caches, states = {}, {}, []
        for name, plan in self.plans.items():
            record = sorted(self.needed.get(name, ())) or None
            kept: list[Any] = []
            for state in run_plan(self.denoiser, replace(plan, record=record)):
                kept.append(state.cache if state.step in steps else None)
                if name == self.case.base:
                    states.append(state.full_latents)
                x0[name] = state.next_latents
            caches[name] = kept
        return x0, caches, states

    @property
    def x0(self) -> Mapping[str, torch.Tensor]:
        return self._made[0]

    def changed(self, trials: Sequence[Trial], start: Start) -> list[torch.Tensor]:
        """The final latents of every trial."""
        _, caches, states = self._made
        n, base = len(trials), self.plans[self.case.base]
        steps = range(start.step, len(base.matrix) - 1)
        plan = _repeated(base, n)
        latents = states[start.step].repeat(n, 1, 1, 1, 1)
        given = None
        if start.layer and self._skipped[start.step] > self.model.cfg.n_layers:  # what making them takes
            given = resume(start, self.model, self._base_at(start.step), n, self.case.n_clips)
        walk = run_plan(self.denoiser, plan, start.step, latents, given)
        with closing(walk):
            for step in steps:
                here = {name: kept[step] for name, kept in caches.items() if kept[step] is not None}
                acting = [self.pairs(trial, here) if acts(trial, step) else [] for trial in trials]
                state = self.hooked(acting, partial(next, walk)) if any(acting) else next(walk)
                latents = state.next_latents
        return list(latents.split(self.case.n_clips))

    def _base_at(self, step: int) -> ActivationCache:
        """The base's activations at a step that passes are resumed from, of all guidance branches."""
        if self._of_step is None or self._of_step[0] != step:
            self._of_step = None
            names = self.base_names(start for start in self.starts if start.step == step)
            plan = replace(self.plans[self.case.base], record=names)
            with closing(run_plan(self.denoiser, plan, step, self._made[2][step])) as walk:
                cache = next(walk).cache
            assert cache is not None
            self._of_step = step, cache
        return self._of_step[1]


def _repeated(plan: SamplingPlan, n: int) -> SamplingPlan:
    """The same run for `n` times its clips, one set after the other."""
    if n == 1:
        return plan
    return replace(
        plan,
        context=plan.context.repeat(n, 1, 1, 1, 1),
        mask=plan.mask.repeat(n, 1),
        frames=plan.frames.repeat(n, 1),
        matrix=plan.matrix.repeat(1, n, 1) if plan.matrix.ndim == 3 else plan.matrix,
        noise=RepeatedNoise(plan.noise, n),
        cond=plan.cond.repeat(n),
    )


def _noting(function: Callable[..., Any], name: str, fired: set[str]) -> Callable[..., Any]:
    @wraps(function)
    def call(activation: torch.Tensor, hook: Any) -> Any:
        fired.add(name)
        return function(activation, hook=hook)

    return call


def _out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the operating system, had no memory left."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
