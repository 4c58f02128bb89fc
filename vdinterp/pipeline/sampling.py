"""Sampling with a hooked model: what to do is planned and checked first, then run one step at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int

from vdinterp.checks.counts import check_between, check_count, check_seed
from vdinterp.conditions import Conditions, as_conditions
from vdinterp.diffusion import (
    GivenNoise,
    Guidance,
    NoiseSchedule,
    NoiseSource,
    SeededNoise,
    as_guidances,
    initial_state,
    make_branches,
    make_matrix,
    sample_steps,
    with_mask,
)
from vdinterp.gradient_state import keep_grad_mode
from vdinterp.grid import TokenGrid
from vdinterp.interventions import Intervention, Pass, check_interventions, hooks_of
from vdinterp.models import ActivationCache
from vdinterp.pipeline.checks import (
    check_latents,
    check_mask,
    check_steps_used,
)
from vdinterp.pipeline.options import SamplingOptions

if TYPE_CHECKING:
    from vdinterp.pipeline.video_diffusion import VideoDiffusion

MOST_CLIPS = 65_536  # generated at once


@dataclass(frozen=True, eq=False)
class StepState:
    """One denoising step.

    Attributes:
        step: 0 is the noisiest.
        noise_levels, next_levels: `[batch frame]` shares of noise before and after the step (0 clean).
        latents, next_latents: `[batch frame channel height width]` before and after the step.
        x0: estimate of the clean latents at this step (clean frames: the latents themselves).
        cache: activations of this step, if `record` was given. With guidance its batch axis holds all branches: clip
            `i` of branch `j` is entry `j * n_clips + i`. A padded clip shows its padding frames here.
        n_branches: forward passes a clip.
        full_latents: `latents` with the padding frames of a short clip.
    """

    step: int
    noise_levels: torch.Tensor
    next_levels: torch.Tensor
    latents: torch.Tensor
    next_latents: torch.Tensor
    x0: torch.Tensor
    cache: ActivationCache | None
    n_branches: int
    full_latents: torch.Tensor = field(repr=False)

    def __repr__(self) -> str:
        cache = "no cache" if self.cache is None else repr(self.cache)
        return f"StepState(step {self.step}, latents {list(self.latents.shape)}, {cache})"


@dataclass(frozen=True, eq=False)
class SampleResult:
    """A generated clip.

    Attributes:
        latents: `[batch frame channel height width]`, context included.
        record: activations by step, or by `(window, step)` where a clip took several windows; empty without
            `record`.
        states: `[step batch frame channel height width]`: the state before every step and the final one, with
            `keep_states`; otherwise None.
    """

    latents: torch.Tensor
    record: dict[Any, ActivationCache]
    states: torch.Tensor | None
    pipe: VideoDiffusion = field(repr=False)

    def __repr__(self) -> str:
        recorded = f", recorded at {len(self.record)} steps" if self.record else ""
        return f"SampleResult(latents {list(self.latents.shape)}{recorded})"

    def _repr_html_(self) -> str | None:
        """The first clips, playing; None without a VAE, so that the text is shown."""
        from vdinterp.plotting.moving import ACROSS
        from vdinterp.plotting.playing import playing_html

        if self.pipe.vae is None:
            return None
        with torch.no_grad():
            return playing_html(self.pipe.decode(self.latents[:ACROSS]), repr(self))

    @property
    def video(self) -> torch.Tensor:
        """The latents decoded: `[batch frame channel height width]` in [0, 1]."""
        with torch.no_grad():
            return self.pipe.decode(self.latents)


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """Everything one run of the sampler needs, checked. `n_frames` excludes padding."""

    grid: TokenGrid
    """How the tokens lie, padding included."""
    frames: torch.Tensor
    """`[batch frame]`: which frame of the user's clip each one is, -1 padding."""
    context: torch.Tensor
    mask: torch.Tensor
    matrix: torch.Tensor
    """Levels `k` `[step batch frame]`."""
    noise: NoiseSource
    schedule: NoiseSchedule
    n_frames: int
    guidances: tuple[Guidance, ...]
    cond: Conditions
    eta: float
    interventions: tuple[Intervention, ...]
    at_steps: frozenset[int] | None
    record: Any

    def passes(self) -> Iterator[Pass]:
        """Every step at which interventions are applied, with the noise levels that the network sees: of all guidance
        branches, one after the other."""
        for step, rows in enumerate(self.matrix[:-1]):
            if self.at_steps is None or step in self.at_steps:
                mask = torch.where((self.mask == 0) & (rows == -1), 2, self.mask)
                branches = make_branches(self.guidances, mask, len(self.schedule), has_cond=bool(self.cond))
                k = torch.cat([torch.where(mask >= 1, branch.levels, rows) for branch in branches])
                yield Pass(step, self.schedule.level(k), self.grid, self.frames)


def make_plan(pipe: VideoDiffusion, context: Any, n_frames: int | None = None, **options: Any) -> SamplingPlan:
    """Check every argument of `VideoDiffusion.sample` and lay out the run; no forward pass happens here."""
    plan = lay_out(pipe, context, n_frames, **options)
    check_acting(pipe, [plan])
    return plan


def check_acting(pipe: VideoDiffusion, plans: Sequence[SamplingPlan]) -> None:
    """Raise `ValueError` if one of the interventions does not fit the clip that these runs, which share their options,
    show together, or acts in no step of them."""
    for intervention in plans[0].interventions:
        intervention.check_clips([Pass(None, None, plan.grid, plan.frames) for plan in plans])
        intervention.check_acts(pipe.model, (one for plan in plans for one in plan.passes()))


def lay_out(
    pipe: VideoDiffusion,
    context: Float[torch.Tensor, "batch frame channel height width"] | None,
    n_frames: int | None = None,
    *,
    keys: Sequence[tuple[int, ...]] | None = None,
    shown: Int[torch.Tensor, "_ frame"] | None = None,
    **options: Any,
) -> SamplingPlan:
    """`make_plan` without the question whether every intervention acts, which several windows answer together.

    `keys`: what the noise of each clip is drawn by; `shown`: which frames of the user's clip these are.
    """
    given = SamplingOptions(**options)
    cfg, device, dtype = pipe.model.cfg, pipe.device, pipe.dtype
    n_levels = pipe.diffusion.n_levels
    steps = check_count("steps", given.steps, high=n_levels, why="the model's noise levels")
    seed, first_index = check_seed(given.seed), check_seed(given.first_index, "first_index")
    noise, mask, batch, pad = given.noise, given.mask, given.batch, given.pad
    frames = cfg.n_frames if n_frames is None else check_count("n_frames", n_frames)
    if isinstance(noise, torch.Tensor):
        check_latents(noise, cfg, "noise")
    if context is None:
        batch = 1 if batch is None else check_count("batch", batch, high=MOST_CLIPS)
        if mask is not None:
            raise ValueError("a mask says which context frames are known: pass context with it")
        known = torch.zeros(batch, frames, dtype=torch.long)
        size = noise.shape[-2:] if isinstance(noise, torch.Tensor) else (cfg.height, cfg.width)
        full = torch.zeros(batch, frames, cfg.in_channels, *size, dtype=dtype)
    else:
        check_latents(context, cfg, "context")
        if batch not in (None, context.shape[0]):
            raise ValueError(f"batch={batch}, but the context holds {context.shape[0]} clips")
        batch = context.shape[0]
        context = context.detach().to(device=device, dtype=dtype)
        if mask is not None:
            if context.shape[1] != frames:
                raise ValueError(f"with a mask the context must have all {frames} frames, got {context.shape[1]}")
            known, full = check_mask(mask, batch, frames), context
        else:
            n_context = context.shape[1]
            if n_context >= frames:
                raise ValueError(
                    f"the context has {n_context} frames and n_frames={frames} counts them: nothing is left to "
                    f"generate; pass context[:, :k] with k < {frames}, or a mask"
                )
            known = torch.zeros(batch, frames, dtype=torch.long)
            known[:, :n_context] = 1
            full = torch.cat([context, context.new_zeros(batch, frames - n_context, *context.shape[2:])], dim=1)
    if not bool((known == 0).any()):
        raise ValueError("the mask leaves no frame to generate; frames to generate are 0")

    if pad is None:  # a bidirectional model was trained on clips of one length, the rest being noise
        pad = not any(spec.causal_block for spec in cfg.period)
    horizon = max(frames, cfg.n_frames) if pad else frames
    padding = horizon - frames
    shown = torch.arange(frames).expand(batch, -1) if shown is None else shown.expand(batch, -1)
    if padding:
        shown = torch.cat([shown, shown.new_full((batch, padding), -1)], dim=1)
        known = torch.cat([known, known.new_full((batch, padding), -1)], dim=1)
        full = torch.cat([full, full.new_zeros(batch, padding, *full.shape[2:])], dim=1)

    cond = as_conditions(given.cond, cfg)
    cond.check(cfg, batch, frames, horizon)
    if cond.actions is not None:  # the last one goes on through the padding
        cond = cond.frames(torch.arange(horizon).clamp(max=cond.actions.shape[1] - 1))
    cond = cond.to(device, dtype)

    uncertainty = check_between("uncertainty", given.uncertainty, 0, n_levels, "steps per frame")
    matrix = given.matrix
    if isinstance(matrix, str):
        rows = make_matrix(matrix, frames, steps, n_levels, uncertainty)
    else:
        if not isinstance(matrix, torch.Tensor | Sequence):
            raise ValueError(f"matrix={matrix!r}: give the name of a scheduling matrix, or noise levels [step frame]")
        rows = pipe.schedule.k(matrix, "the noise levels of a scheduling matrix")
        if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != frames:
            raise ValueError(f"a scheduling matrix is [step frame] with {frames} frames, got {list(rows.shape)}")
        if bool((rows[0] != n_levels - 1).any()) or bool((rows[-1] != -1).any()):
            raise ValueError("a scheduling matrix starts at pure noise (1) and ends clean (0)")
    if padding:
        rows = torch.cat([rows, rows.new_full((rows.shape[0], padding), n_levels - 1)], dim=1)
    known = known.to(device)
    rows = with_mask(rows, known, n_levels)
    eta = check_between("eta", given.eta, 0, 1, "0 DDIM, 1 DDPM")

    guidances = as_guidances(given.guidance, has_cond=bool(cond))
    make_branches(guidances, known, n_levels, has_cond=bool(cond))  # raises for history frames that do not exist
    interventions = check_interventions(given.interventions)
    for intervention in interventions:
        intervention.hooks(pipe.model)
        check_steps_used(intervention.steps, len(rows) - 1, f"{type(intervention).__name__}(steps=...)")
    if given.record is not None:
        pipe.model.resolve_names(given.record)
    source: NoiseSource = SeededNoise(seed, keys or [(first_index + i,) for i in range(batch)])
    if isinstance(noise, torch.Tensor):
        if noise.shape[0] != batch or noise.shape[1] not in (frames, horizon) or noise.shape[2:] != full.shape[2:]:
            raise ValueError(
                f"noise of shape {list(noise.shape)}: expected {batch} clips of {frames} frames of "
                f"{'x'.join(map(str, full.shape[2:]))}"
            )
        source = GivenNoise(noise.detach(), source)
    elif noise is not None:
        if not all(hasattr(noise, name) for name in ("initial", "history", "ancestral")):
            raise ValueError(f"noise must be a tensor or a NoiseSource, got {type(noise).__name__}")
        source = noise
    return SamplingPlan(
        grid=pipe.model.grid_of(full),
        frames=shown,
        context=full.to(device),
        mask=known,
        matrix=rows,
        noise=source,
        schedule=pipe.schedule,
        n_frames=frames,
        guidances=guidances,
        cond=cond,
        eta=eta,
        interventions=interventions,
        at_steps=check_steps_used(given.at_steps, len(rows) - 1),
        record=given.record,
    )


def run_plan(
    pipe: VideoDiffusion,
    plan: SamplingPlan,
    first_step: int = 0,
    latents: torch.Tensor | None = None,
    resume: Mapping[str, Any] | None = None,
) -> Generator[StepState, None, None]:
    """Run a plan step by step. Only the current step's activations are alive, unless the caller keeps them.

    `first_step` with `latents`, a state's `full_latents` before that step, continues a run; `resume`
    (`start_at_layer`, `resid_pre`, `known`, of all branches) continues inside that step's forward pass.
    """
    model, schedule, n_clips = pipe.model, pipe.schedule, len(plan.frames)
    caches: list[ActivationCache] = []

    def network(
        latents: torch.Tensor,
        k: torch.Tensor,
        cond: Conditions,
        step: int,
    ) -> torch.Tensor:
        active = plan.interventions if plan.at_steps is None or step in plan.at_steps else ()
        recorded = nullcontext() if plan.record is None else model.record(plan.record)
        inside = resume if resume is not None and step == first_step else {}
        with (
            keep_grad_mode(),
            torch.no_grad(),
            model.hook_ctx(step=step, noise_levels=schedule.level(k), frames=plan.frames.repeat(len(k) // n_clips, 1)),
            model.hooks(hooks_of(active, model)),
            recorded as recording,
        ):
            pred = model(latents, schedule.timestep(k), cond=cond, **inside)
        if recording is not None:
            caches.append(recording[step])
        return pred

    start = initial_state(schedule, plan.context, plan.mask, plan.noise) if latents is None else latents
    states = sample_steps(
        network,
        schedule,
        start,
        plan.mask,
        plan.matrix,
        plan.noise,
        plan.guidances,
        plan.cond,
        plan.eta,
        first_step,
    )
    n = plan.n_frames
    for state in states:
        yield StepState(
            step=state.step,
            noise_levels=schedule.level(state.k[:, :n]),
            next_levels=schedule.level(state.next_k[:, :n]),
            latents=state.latents[:, :n],
            next_latents=state.next_latents[:, :n],
            x0=state.x0[:, :n],
            cache=caches.pop() if caches else None,
            n_branches=state.n_branches,
            full_latents=state.latents,
        )


def collect(pipe: VideoDiffusion, plan: SamplingPlan, keep_states: bool = False) -> SampleResult:
    """Run a plan to its end."""
    record: dict[Any, ActivationCache] = {}
    states: list[torch.Tensor] = []
    latents = plan.context[:, : plan.n_frames]
    for state in run_plan(pipe, plan):
        if state.cache is not None:
            record[state.step] = state.cache
        if keep_states:
            states.append(state.latents)
        latents = state.next_latents
    if keep_states:
        states.append(latents)
    return SampleResult(latents, record, torch.stack(states) if keep_states else None, pipe)
