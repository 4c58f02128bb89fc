"""Denoising with a noise level per frame: one step, and the loop over a scheduling matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int

from vdinterp.conditions import NO_CONDITION, Conditions
from vdinterp.diffusion.guidance import Branch, ClassifierGuidance, Guidance, make_branches
from vdinterp.diffusion.noise import NoiseSource
from vdinterp.diffusion.objective import split_prediction
from vdinterp.diffusion.schedule import NoiseSchedule, per_frame


@runtime_checkable
class Network(Protocol):
    """One forward pass of the sampler: prediction in the network's own objective for latents at levels `k`.

    Guidance branches follow one another in the batch: clip `i`
    of branch `j` is entry `j * n_clips + i`.
    """

    def __call__(
        self,
        latents: Float[torch.Tensor, "batch frame channel height width"],
        k: Int[torch.Tensor, "batch frame"],
        cond: Conditions,
        step: int,
    ) -> Float[torch.Tensor, "batch frame channel height width"]: ...


@dataclass(frozen=True)
class SamplerState:
    """One step of a sampler.

    Attributes:
        step: 0 is the noisiest.
        k, next_k: levels `[batch frame]` before and after the step (-1 clean).
        mask: `[batch frame]`: -1 padding, 0 being generated, 1 ground truth, 2 generated and finished.
        latents, next_latents: `[batch frame channel height width]` before and after the step.
        x0: estimate of the clean latents at this step; for clean frames the latents themselves.
        n_branches: forward passes a clip.
    """

    step: int
    k: torch.Tensor
    next_k: torch.Tensor
    mask: torch.Tensor
    latents: torch.Tensor
    next_latents: torch.Tensor
    x0: torch.Tensor
    n_branches: int


def denoise_step(
    schedule: NoiseSchedule,
    pred: Float[torch.Tensor, "batch frame channel height width"],
    x: Float[torch.Tensor, "batch frame channel height width"],
    cur: Int[torch.Tensor, "batch frame"],
    nxt: Int[torch.Tensor, "batch frame"],
    eta: float = 0.0,
    noise: Float[torch.Tensor, "batch frame channel height width"] | None = None,
    score_gradient: Float[torch.Tensor, "batch frame channel height width"] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step from level `cur` to level `nxt`, each frame on its own: `(next latents, x0, eps)`.

    `eta = 0` is DDIM, `eta = 1` DDPM's ancestral step (with `nxt = cur - 1` exactly its posterior). Frames with
    `cur == nxt` come back unchanged. `score_gradient` is added to the score (classifier guidance).

    Raises:
        ValueError: a level out of range or rising, `eta` outside [0, 1], or `eta > 0` without `noise`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1] (0 DDIM, 1 DDPM), got {eta!r}")
    if eta > 0 and noise is None:
        raise ValueError("a step with eta > 0 adds noise: pass noise of the latents' shape")
    for k in (cur, nxt):
        schedule.check_levels(k)
    if bool((nxt > cur).any()):
        raise ValueError("a denoising step cannot raise a frame's noise level")
    clip = schedule.config.clip
    start = cur.clamp(min=0)  # a clean frame is treated as level 0; it does not move anyway
    signal, sigma = schedule.coefficients(start)
    if schedule.config.objective == "eps":
        pred = pred.clamp(-clip, clip)
    x0, eps = split_prediction(schedule.config.objective, pred, x, signal, sigma)
    if score_gradient is not None:
        a, s = per_frame(signal, x), per_frame(sigma, x)
        eps = eps - s * score_gradient
        x0 = torch.where(a > 0, (x - s * eps) / torch.where(a > 0, a, 1.0), x0)  # no signal left: nothing to correct

    signal_next, sigma_next = schedule.coefficients(nxt)
    fresh = torch.zeros_like(sigma_next)
    if eta > 0:  # standard deviation of q(x_nxt | x_cur, x0)
        kept = signal * sigma_next / (signal_next * sigma)
        fresh = eta * sigma_next * (1 - kept**2).clamp(min=0).sqrt()
    direction = (sigma_next**2 - fresh**2).clamp(min=0).sqrt() if eta > 0 else sigma_next
    out = per_frame(signal_next, x) * x0 + per_frame(direction, x) * eps
    if eta > 0 and noise is not None:
        out = out + per_frame(fresh, x) * noise.to(x).clamp(-clip, clip)
    return torch.where((cur == nxt)[..., None, None, None], x, out), x0, eps


def initial_state(
    schedule: NoiseSchedule,
    context: Float[torch.Tensor, "batch frame channel height width"],
    mask: Int[torch.Tensor, "batch frame"],
    noise: NoiseSource,
) -> Float[torch.Tensor, "batch frame channel height width"]:
    """Clamped noise, with the frames whose `mask` is 1 or 2 taken from `context`."""
    clip = schedule.config.clip
    start = noise.initial(tuple(context.shape)).to(context).clamp(-clip, clip)
    return torch.where((mask >= 1)[..., None, None, None], context, start)


def _stack_branches(
    schedule: NoiseSchedule,
    branches: Sequence[Branch],
    x: torch.Tensor,
    cur: torch.Tensor,
    mask: torch.Tensor,
    noise: NoiseSource,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and levels of all branches, one branch after the other."""
    clip = schedule.config.clip
    latents, levels = [], []
    for index, branch in enumerate(branches):
        k = torch.where(mask >= 1, branch.levels, cur)
        renoised = (mask >= 1) & (k >= 0)
        seen = x
        if bool(renoised.any()):
            fresh = noise.history(step, index, tuple(x.shape)).to(x).clamp(-clip, clip)
            seen = torch.where(renoised[..., None, None, None], schedule.add_noise(x, fresh, k), x)
        latents.append(seen)
        levels.append(k)
    if len(branches) == 1:
        return latents[0], levels[0]
    return torch.cat(latents), torch.cat(levels)


def sample_steps(
    network: Network,
    schedule: NoiseSchedule,
    latents: Float[torch.Tensor, "batch frame channel height width"],
    mask: Int[torch.Tensor, "batch frame"],
    matrix: Int[torch.Tensor, "step batch frame"],
    noise: NoiseSource,
    guidances: Sequence[Guidance] = (),
    cond: Conditions = NO_CONDITION,
    eta: float = 0.0,
    first_step: int = 0,
) -> Iterator[SamplerState]:
    """Walk down a scheduling matrix, one `SamplerState` a step.

    At each step every branch of the guidance sees the history at its own level (diffused afresh), the predictions are
    combined, frames being generated take the step, and all other frames are put back as they were. A frame that reached
    -1 counts as generated history (mask 2) from then on.

    Args:
        network: forward pass at levels `k`.
        latents: the first state, see `initial_state`.
        matrix: output of `~vdinterp.diffusion.scheduling_matrix.with_mask`.
        guidances: output of `~vdinterp.diffusion.guidance.as_guidances`.
        first_step: resume here; `latents` are then the state before this step. Draws belong to their step, so what
            follows is what an uninterrupted run does.
    """
    x, mask = latents, mask.clone()
    classifiers = [g for g in guidances if isinstance(g, ClassifierGuidance)]
    for step in range(first_step, len(matrix) - 1):
        cur, nxt = matrix[step], matrix[step + 1]
        mask = torch.where((mask == 0) & (cur == -1), 2, mask)
        branches = make_branches(guidances, mask, len(schedule), has_cond=bool(cond))
        n = len(branches)
        seen, levels = _stack_branches(schedule, branches, x, cur, mask, noise, step)
        steered = cond.repeat(n)
        if any(b.drop_cond for b in branches):
            steered = steered.drop(torch.tensor([b.drop_cond for b in branches]).repeat_interleave(len(x)))
        pred = network(seen, levels, steered, step)
        if branches[0].weight != 1 or n > 1:
            weights = torch.tensor([b.weight for b in branches], dtype=pred.dtype, device=pred.device)
            pred = torch.einsum("b,b...->...", weights, pred.unflatten(0, (n, -1)))
        gradient = None
        if classifiers:
            gradient = torch.stack([g.gradient(x, schedule.level(cur)) for g in classifiers]).sum(0)
        fresh = noise.ancestral(step, tuple(x.shape)) if eta > 0 else None
        moved, x0, _ = denoise_step(schedule, pred, x, cur, nxt, eta, fresh, gradient)
        generating = (mask == 0)[..., None, None, None]
        after = torch.where(generating, moved, x)
        x0 = torch.where((mask >= 1)[..., None, None, None], x, x0)
        yield SamplerState(step, cur, nxt, mask, x, after, x0, n)
        x = after
