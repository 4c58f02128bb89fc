"""Clips longer than the model's window: sliding-window rollout and keyframe interpolation.

Both follow the Diffusion Forcing Transformer (Song et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float

from vdinterp.checks.counts import check_count, check_seed
from vdinterp.conditions import Cond, Conditions, as_conditions
from vdinterp.pipeline.checks import check_latents
from vdinterp.pipeline.sampling import SampleResult, SamplingPlan, check_acting, collect, lay_out, make_plan
from vdinterp.progress import bar

if TYPE_CHECKING:
    from vdinterp.pipeline.video_diffusion import VideoDiffusion

MOST_FRAMES = 100_000  # of a rollout


def rollout(
    pipe: VideoDiffusion,
    context: Float[torch.Tensor, "batch frame channel height width"],
    n_frames: int,
    *,
    window: int | None = None,
    overlap: int | None = None,
    cond: Cond = None,
    first_index: int = 0,
    progress: bool = False,
    **options: Any,
) -> SampleResult:
    """Continue `context` to `n_frames` frames, window after window.

    Each window sees the last `overlap` frames, of which those the model generated count as generated history, and
    fills the rest of the window.

    Args:
        n_frames: length of the result, context included.
        window: frames a window; default the length that the model was trained on.
        overlap: context frames of a later window, `1 .. window - 1`; default half a window or the given context,
            whichever is more. `window - 1` generates one frame at a time.
        cond: as of `sample`; one action for each of the `n_frames` frames.
        options: those of `VideoDiffusion.sample` except `mask`, `batch`, `noise` and `keep_states`.

    Raises:
        ValueError, KeyError: anything that does not fit, in any of the windows, before any compute.
    """
    cfg = pipe.model.cfg
    _refuse(options, ("mask", "batch", "noise", "keys", "shown", "keep_states"), "rollout")
    check_latents(context, cfg, "context")
    n_frames, first_index = check_count("n_frames", n_frames, high=MOST_FRAMES), check_seed(first_index, "first_index")
    window = cfg.n_frames if window is None else check_count("window", window, 2)
    n_clips, n_context = context.shape[:2]
    if overlap is None:
        overlap = max(window // 2, min(n_context, window - 1))
    overlap = check_count("overlap", overlap, 1, window - 1, f"the window has {window} frames")
    if n_frames <= n_context:
        raise ValueError(f"n_frames={n_frames} counts the {n_context} context frames: nothing is left to generate")
    cond = as_conditions(cond, cfg)
    cond.check(cfg, n_clips, n_frames)

    windows = []  # (first frame, frames seen, length) of each
    done = n_context
    while done < n_frames:
        seen = min(overlap, done)
        length = min(window, seen + n_frames - done)
        windows.append((done - seen, seen, length))
        done += length - seen

    def window_plan(index: int, history: torch.Tensor) -> SamplingPlan:
        """What one window does; `history` begins with the frames that it sees."""
        start, seen, length = windows[index]
        mask = torch.zeros(length, dtype=torch.long)
        mask[:seen] = torch.where(torch.arange(start, start + seen) < n_context, 1, 2)
        full = torch.cat([history[:, :seen], history.new_zeros(n_clips, length - seen, *history.shape[2:])], dim=1)
        return lay_out(
            pipe,
            full,
            length,
            mask=mask,
            cond=cond.frames(slice(start, start + length)),
            keys=[(first_index + i, index) if index else (first_index + i,) for i in range(n_clips)],
            shown=torch.arange(start, start + length)[None],
            **options,
        )

    clip = context.detach().to(device=pipe.device, dtype=pipe.dtype)
    blank = clip.new_zeros(n_clips, window, *clip.shape[2:])
    alike = {(min(n_context - start, seen), seen, length): i for i, (start, seen, length) in enumerate(windows)}
    plans = {kind: window_plan(index, blank) for kind, index in alike.items()}
    check_acting(pipe, [_shifted(plans[min(n_context - at, seen), seen, n], at) for at, seen, n in windows])
    record: dict[Any, Any] = {}
    for index, (start, seen, _) in enumerate(bar(windows, desc="rollout", show=progress)):
        result = collect(pipe, window_plan(index, clip[:, start:]))
        record.update({(index, step): cache for step, cache in result.record.items()})
        clip = torch.cat([clip, result.latents[:, seen:]], dim=1)
    return SampleResult(clip, record, None, pipe)


def interpolation_plan(known: Sequence[bool], window: int) -> list[list[list[int]]]:
    """Rounds of windows that fill every unknown frame between known first and last frames.

    A gap as wide as the window first gets `window - 2` evenly spaced keyframes; smaller gaps are filled, neighbouring
    ones together while they fit into one window. Each window is a list of frame indices; windows of one round are
    independent.

    Raises:
        ValueError: the first or last frame is not known, or `window` is below 3.
    """
    check_count("window", window, 3, why="between two known frames")
    filled = [bool(k) for k in known]
    if len(filled) < 2 or not (filled[0] and filled[-1]):
        raise ValueError("the first and the last frame must be known to interpolate")
    rounds: list[list[list[int]]] = []
    while not all(filled):
        keys = [i for i, k in enumerate(filled) if k]
        current: list[list[int]] = []
        chunk: list[int] | None = None
        for left, right in pairwise(keys):
            if chunk is not None:
                if len(chunk) + right - left <= window:
                    chunk = chunk + list(range(left + 1, right + 1))
                    continue
                current.append(chunk)
                chunk = None
            if right - left == 1:
                continue
            if right - left >= window - 1:
                current.append(torch.linspace(left, right, window).round().long().tolist())
            else:
                chunk = list(range(left, right + 1))
        if chunk is not None:
            current.append(chunk)
        for frames in current:
            for frame in frames:
                filled[frame] = True
        rounds.append(current)
    return rounds


def interpolate(
    pipe: VideoDiffusion,
    latents: Float[torch.Tensor, "batch frame channel height width"],
    known: Bool[torch.Tensor, "frame"] | Sequence[bool] | None = None,
    *,
    cond: Cond = None,
    first_index: int = 0,
    progress: bool = False,
    **options: Any,
) -> SampleResult:
    """Fill the frames of `latents` that are not `known` (by default all but the first and the last).

    Clips longer than the window are filled from coarse to fine, see `interpolation_plan`; a window shorter than
    the model's is padded with its last keyframe. Generated keyframes count as generated history afterwards. A clip that
    fits into one window may have any mask, an unknown first or last frame included.

    Args:
        latents: `[batch frame channel height width]`; what unknown frames hold is ignored.
        known: `[frame]`, the same for all clips.
        options: those of `VideoDiffusion.sample` except `n_frames`, `mask`, `batch`, `noise`, `pad` and
            `keep_states`.
    """
    cfg = pipe.model.cfg
    _refuse(options, ("n_frames", "mask", "batch", "noise", "keys", "shown", "pad", "keep_states"), "interpolate")
    check_latents(latents, cfg)
    n_clips, n_frames = latents.shape[:2]
    cond = as_conditions(cond, cfg)
    cond.check(cfg, n_clips, n_frames)
    if known is None:
        mask = torch.zeros(n_frames, dtype=torch.bool)
        mask[[0, -1]] = True
    else:
        if not isinstance(known, torch.Tensor | Sequence) or isinstance(known, str | bytes):
            raise ValueError(f"known={known!r}: give True or False for every frame")
        mask = torch.as_tensor(known).cpu()
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("known holds True or False for every frame, not the numbers of the known frames")
        mask = mask.bool()
        if mask.shape != (n_frames,):
            raise ValueError(f"known of shape {list(mask.shape)}: expected [frame] = [{n_frames}]")
    if bool(mask.all()):
        raise ValueError("every frame is known: there is nothing to interpolate")
    first_index = check_seed(first_index, "first_index")
    clip = latents.detach().to(device=pipe.device, dtype=pipe.dtype).clone()
    window = cfg.n_frames
    if not (mask[0] and mask[-1]):
        if n_frames > window:
            raise ValueError(
                f"a clip of {n_frames} frames is filled from keyframes ({cfg.model_name} sees {window} at once): its "
                "first and last frame must be known"
            )
        keys = [(first_index + i,) for i in range(n_clips)]
        plan = make_plan(pipe, clip, n_frames, mask=mask.long(), cond=cond, keys=keys, **options)
        return collect(pipe, plan)

    rounds = interpolation_plan(mask.tolist(), window)

    def round_plan(index: int, state: torch.Tensor) -> SamplingPlan:
        """One round: its windows side by side in the batch, `(chunk 0, clip 0), (chunk 0, clip 1), ...`."""
        padded = [frames + frames[-1:] * (window - len(frames)) for frames in rounds[index]]
        return lay_out(
            pipe,
            torch.cat([clip[:, frames] for frames in padded]),
            window,
            mask=torch.cat([state[frames].expand(n_clips, -1) for frames in padded]),
            cond=Conditions.cat([cond.frames(frames) for frames in padded]),
            keys=[(first_index + i, index, j) for j in range(len(padded)) for i in range(n_clips)],
            shown=torch.tensor([frames + [-1] * (window - len(frames)) for frames in rounds[index]]).repeat_interleave(
                n_clips, 0
            ),
            **options,
        )

    states = [mask.long()]  # before every round: 1 known, 2 generated by an earlier one
    for chunks in rounds:
        states.append(states[-1].clone())
        for frames in chunks:
            states[-1][frames] = torch.where(states[-1][frames] == 0, 2, states[-1][frames])
    check_acting(pipe, [round_plan(index, states[index]) for index in range(len(rounds))])
    record: dict[Any, Any] = {}
    for index, chunks in enumerate(bar(rounds, desc="interpolate", show=progress)):
        result = collect(pipe, round_plan(index, states[index]))
        record.update({(index, step): cache for step, cache in result.record.items()})
        for frames, filled in zip(chunks, result.latents.chunk(len(chunks)), strict=True):
            new = [position for position, frame in enumerate(frames) if states[index][frame] == 0]
            clip[:, [frames[position] for position in new]] = filled[:, new]
    return SampleResult(clip, record, None, pipe)


def _shifted(plan: SamplingPlan, start: int) -> SamplingPlan:
    """The same window elsewhere in the clip."""
    return replace(plan, frames=torch.where(plan.frames < 0, -1, plan.frames - plan.frames[:, :1] + start))


def _refuse(options: dict[str, Any], names: tuple[str, ...], method: str) -> None:
    given = [name for name in names if name in options]
    if given:
        raise ValueError(f"{method} does not take {given}")
