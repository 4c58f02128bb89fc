"""The untouched runs of a case: what trials start from, and what they take from others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from typing import Any, TypeVar

import torch

from vdinterp.diffusion import RepeatedNoise
from vdinterp.grid import TokenGrid
from vdinterp.interventions import HookPair, Intervention
from vdinterp.models import ActivationCache
from vdinterp.models.hooks import Recorder
from vdinterp.models.memory import available_memory, check_fits, readable
from vdinterp.pipeline.sampling import SamplingPlan, make_plan, run_plan
from vdinterp.sweep.slots import merged
from vdinterp.sweep.start import Start, acts, base_names, is_computed, kept_starts, nearest, needed_names, resume
from vdinterp.sweep.trial import Case, Inputs, Moment, Trial

log = logging.getLogger("vdinterp")
T = TypeVar("T")
Tried = Sequence[Sequence[Intervention]]  # what each of some trials does
Made = tuple[torch.Tensor, "Mapping[str, torch.Tensor] | None"]  # x0 of a trial, and the activations that are asked for
KEEP_BYTES = 2 * 2**30  # of streams of the base run that are kept to start trials from


@dataclass(eq=False)
class Wanted:
    """What the trials of a sweep will want of a case: `trials`, where they start, activations that metrics look at
    (`names`), and how many bytes of streams may be kept for them."""

    trials: Sequence[Trial]
    starts: Sequence[Start]
    names: Sequence[str] = ()
    keep_bytes: int = KEEP_BYTES
    said: bool = field(default=False)

    def kept(self, starts: Iterable[Start], model: Any, n_clips: int, grid: TokenGrid) -> list[Start]:
        """Where trials can be started from, of all places where some do. Logs, once, if some streams are not kept."""
        every = sorted({start for start in starts if base_names(start, model)})
        n_bytes = min(self.keep_bytes, available_memory(model.device) // 2)
        found = kept_starts(every, model, n_clips, n_bytes, grid)
        if len(found) < len(every) and not self.said:
            self.said = True
            log.info(
                "sweep: %s hold the stream at %d of the %d places where trials start; what lies between is computed "
                "again (keep_bytes= sets how much is kept)",
                readable(n_bytes),
                len(found),
                len(every),
            )
        return found


class _Runs:
    """The untouched runs of a case, made when first needed."""

    def __init__(self, denoiser: Any, case: Case, wanted: Wanted) -> None:
        self.denoiser, self.case, self.wanted = denoiser, case, wanted
        self.needed = needed_names(denoiser.model, case, wanted.trials)

    @property
    def model(self) -> Any:
        return self.denoiser.model

    def moment(self, run: str | None = None) -> Moment:
        """What metrics see beside the x0 of an untouched run, or of a trial without activations."""
        return Moment(self.case, self.x0, None if run is None else self.looked_at(run))

    @property
    def x0(self) -> Mapping[str, torch.Tensor]:
        raise AssertionError("subclasses make it")

    def looked_at(self, run: str) -> Mapping[str, torch.Tensor] | None:
        """The activations of an untouched run that metrics look at."""
        return None

    def base_names(self, starts: Iterable[Start]) -> list[str]:
        """The base's activations that passes resumed there need."""
        return sorted({name for start in starts for name in base_names(start, self.model).values()})

    def pairs(self, interventions: Sequence[Intervention], caches: Mapping[str, ActivationCache]) -> list[HookPair]:
        """The hooks of a trial, its sources filled in; those that only look come last, as in the model itself."""
        pairs = [pair for one in interventions for pair in one.bind(caches).hooks(self.model)]
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


class Passes(_Runs):
    """Single forward passes, resumed at a block."""

    @cached_property
    def _kept(self) -> list[Start]:
        return self.wanted.kept(self.wanted.starts, self.model, self.case.n_clips, self.grid)

    @property
    def grid(self) -> TokenGrid:
        run = self.case.runs[self.case.base]
        assert isinstance(run, Inputs)
        return self.model.grid_of(run.noisy)

    @cached_property
    def _made(self) -> tuple[dict[str, torch.Tensor], dict[str, ActivationCache]]:
        wanted = {name: {*self.needed.get(name, ()), *self.wanted.names} for name in self.case.runs}
        bytes_needed = sum(
            self.model.estimate_cache(sorted(names), self.case.n_clips, grid=self.grid)
            for names in wanted.values()
            if names
        )
        check_fits(bytes_needed, self.model.device, "The activations that this sweep keeps", "Use fewer clips a batch.")
        wanted[self.case.base] |= set(self.base_names(self._kept))
        x0, caches = {}, {}
        for name, run in self.case.runs.items():
            assert isinstance(run, Inputs)
            with self.model.record(sorted(wanted[name])) if wanted[name] else nullcontext() as recording:
                x0[name] = self.denoiser.denoise(*run)
            if recording is not None:
                caches[name] = recording[0]
        return x0, caches

    @property
    def x0(self) -> Mapping[str, torch.Tensor]:
        return self._made[0]

    def looked_at(self, run: str) -> Mapping[str, torch.Tensor] | None:
        return self._made[1][run] if self.wanted.names else None

    def changed(self, trials: Tried, start: Start) -> list[Made]:
        """What every trial gives."""
        _, caches = self._made
        run, n = self.case.runs[self.case.base], len(trials)
        assert isinstance(run, Inputs)
        start = nearest(start, self._kept)
        given = resume(start, self.model, caches.get(self.case.base, {}), n, self.case.n_clips)
        computed = [name for name in self.wanted.names if is_computed(name, start, self.model)]
        with self.model.record(computed) if computed else nullcontext() as recording:
            pass_ = partial(self.denoiser.denoise, *run.repeated(n), **given)
            x0 = self.hooked([self.pairs(trial, caches) for trial in trials], pass_)
        parts = x0.split(self.case.n_clips)
        if not self.wanted.names:
            return [(part, None) for part in parts]
        before, new = caches[self.case.base], {} if recording is None else recording[0].tensors
        known = {name: before[name] for name in self.wanted.names if name not in new}
        own = [{name: value.unflatten(0, (n, -1))[index] for name, value in new.items()} for index in range(n)]
        return [
            (part, ActivationCache({**known, **mine}, before.grid, before.model))
            for part, mine in zip(parts, own, strict=True)
        ]


class Walks(_Runs):
    """Whole trajectories, resumed at a step and, within it, at a block."""

    _of_step: tuple[int, ActivationCache] | None = None  # the base at the step that was asked for last

    @cached_property
    def _skipped(self) -> Counter[int]:
        """Block evaluations that trials save by resuming inside a step, by step."""
        skipped: Counter[int] = Counter()
        for start in self.wanted.starts:
            skipped[start.step] += start.layer
        return skipped

    @cached_property
    def plans(self) -> dict[str, SamplingPlan]:
        return {name: make_plan(self.denoiser, **run.options) for name, run in self.case.runs.items()}  # type: ignore[union-attr]

    @cached_property
    def _made(self) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]], list[torch.Tensor]]:
        n_steps = len(self.plans[self.case.base].matrix) - 1
        taking = [trial.of(self.case) for trial in self.wanted.trials if not callable(trial.interventions)]
        steps = [step for step in range(n_steps) if any(acts(trial, step) for trial in taking)]
        bytes_needed = len(steps) * sum(
            self.model.estimate_cache(sorted(names), max(1, self.case.n_clips), grid=self.plans[self.case.base].grid)
            for names in self.needed.values()
            if names
        )
        check_fits(
            bytes_needed,
            self.model.device,
            "The activations of all steps that this sweep keeps",
            "Use fewer clips a batch, or fewer steps at a time.",
        )
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

    def changed(self, trials: Tried, start: Start) -> list[Made]:
        """The final latents of every trial."""
        _, caches, states = self._made
        n, base = len(trials), self.plans[self.case.base]
        steps = range(start.step, len(base.matrix) - 1)
        plan = _repeated(base, n)
        latents = states[start.step].repeat(n, 1, 1, 1, 1)
        given = None
        if start.layer and self._skipped[start.step] > self.model.cfg.n_layers:  # what making them takes
            start = nearest(start, self._kept(start.step))
            given = resume(start, self.model, self._base_at(start.step), n, self.case.n_clips) if start.layer else None
        walk = run_plan(self.denoiser, plan, start.step, latents, given)
        with closing(walk):
            for step in steps:
                here = {
                    name: kept[step] for name, kept in caches.items() if step < len(kept) and kept[step] is not None
                }
                acting = [self.pairs(trial, here) if acts(trial, step) else [] for trial in trials]
                state = self.hooked(acting, partial(next, walk)) if any(acting) else next(walk)
                latents = state.next_latents
        return [(part, None) for part in latents.split(self.case.n_clips)]

    def _kept(self, step: int) -> list[Start]:
        plan = self.plans[self.case.base]
        levels = next(plan.passes()).noise_levels
        width = self.case.n_clips if levels is None else len(levels)  # clips of all guidance branches
        here = (start for start in self.wanted.starts if start.step == step)
        return self.wanted.kept(here, self.model, width, plan.grid)

    def _base_at(self, step: int) -> ActivationCache:
        """The base's activations at a step that passes are resumed from, of all guidance branches."""
        if self._of_step is None or self._of_step[0] != step:
            self._of_step = None
            plan = replace(self.plans[self.case.base], record=self.base_names(self._kept(step)))
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
