"""Clips longer than the model's window: sliding-window rollout and keyframe interpolation.

Both follow the Diffusion Forcing Transformer (Song et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float

from vdinterp.pipeline.checks import check_cond, check_latents
from vdinterp.pipeline.sampling import SampleResult, collect, make_plan
from vdinterp.progress import bar

if TYPE_CHECKING:
    from vdinterp.pipeline.video_diffusion import VideoDiffusion


def rollout(
    pipe: VideoDiffusion,
    context: Float[torch.Tensor, "batch frame channel height width"],
    n_frames: int,
    *,
    window: int | None = None,
    overlap: int | None = None,
    cond: Float[torch.Tensor, "batch _ d_action"] | None = None,
    first_index: int = 0,
    progress: bool = False,
    **options: Any,
) -> SampleResult:
    """Continue `context` to `n_frames` frames, window after window.

    Each window sees the last `overlap` frames, of which those the model generated count as generated history, and
    fills the rest of the window.

    Args:
        n_frames: length of the result, context included.
        window: frames a window, at most `model.cfg.n_frames` (the default).
        overlap: context frames of a later window, `1 .. window - 1`; default half a window or the given context,
            whichever is more. `window - 1` generates one frame at a time.
        cond: one action for each of the `n_frames` frames.
        options: those of `VideoDiffusion.sample` except `mask`, `batch`, `noise` and `keep_states`.
    """
    cfg = pipe.model.cfg
    _refuse(options, ("mask", "batch", "noise", "keys", "keep_states"), "rollout")
    check_latents(context, cfg, "context")
    window = cfg.n_frames if window is None else window
    if not 2 <= window <= cfg.n_frames:
        raise ValueError(f"window must be in [2, {cfg.n_frames}], got {window!r}")
    n_clips, n_context = context.shape[:2]
    if overlap is None:
        overlap = max(window // 2, min(n_context, window - 1))
    if not 1 <= overlap < window:
        raise ValueError(f"overlap must be in [1, {window - 1}] (the window has {window} frames), got {overlap!r}")
    if n_frames <= n_context:
        raise ValueError(f"n_frames={n_frames} counts the {n_context} context frames: nothing is left to generate")
    check_cond(cond, cfg, n_clips, n_frames, n_frames)

    windows = []  # (first frame, length) of each
    done = n_context
    while done < n_frames:
        seen = min(overlap, done)
        length = min(window, seen + n_frames - done)
        windows.append((done - seen, seen, length))
        done += length - seen

    clip = context.detach().to(device=pipe.device, dtype=pipe.dtype)
    record: dict[Any, Any] = {}
    for index, (start, seen, length) in enumerate(bar(windows, desc="rollout", show=progress)):
        mask = torch.zeros(length, dtype=torch.long)
        mask[:seen] = torch.where(torch.arange(start, start + seen) < n_context, 1, 2)
        full = torch.cat([clip[:, start:], clip.new_zeros(n_clips, length - seen, *clip.shape[2:])], dim=1)
        plan = make_plan(
            pipe,
            full,
            length,
            mask=mask,
            cond=None if cond is None else cond[:, start : start + length],
            keys=[(first_index + i, index) if index else (first_index + i,) for i in range(n_clips)],
            **options,
        )
        result = collect(pipe, plan)
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
    if window < 3:
        raise ValueError(f"interpolation needs a window of at least 3 frames, got {window}")
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
    cond: Float[torch.Tensor, "batch frame d_action"] | None = None,
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
    _refuse(options, ("n_frames", "mask", "batch", "noise", "keys", "pad", "keep_states"), "interpolate")
    check_latents(latents, cfg)
    n_clips, n_frames = latents.shape[:2]
    check_cond(cond, cfg, n_clips, n_frames, n_frames)
    if known is None:
        mask = torch.zeros(n_frames, dtype=torch.bool)
        mask[[0, -1]] = True
    else:
        mask = torch.as_tensor(known).bool().cpu()
        if mask.shape != (n_frames,):
            raise ValueError(f"known of shape {list(mask.shape)}: expected [frame] = [{n_frames}]")
    if bool(mask.all()):
        raise ValueError("every frame is known: there is nothing to interpolate")
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

    state = mask.long()  # 1 known, 2 generated by an earlier round
    record: dict[Any, Any] = {}
    rounds = interpolation_plan(mask.tolist(), window)
    for index, chunks in enumerate(bar(rounds, desc="interpolate", show=progress)):
        padded = [frames + frames[-1:] * (window - len(frames)) for frames in chunks]
        # rows: (chunk 0, clip 0), (chunk 0, clip 1), ... (chunk 1, clip 0), ...
        plan = make_plan(
            pipe,
            torch.cat([clip[:, frames] for frames in padded]),
            window,
            mask=torch.cat([state[frames].expand(n_clips, -1) for frames in padded]),
            cond=None if cond is None else torch.cat([cond[:, frames] for frames in padded]),
            keys=[(first_index + i, index, j) for j in range(len(padded)) for i in range(n_clips)],
            **options,
        )
        result = collect(pipe, plan)
        record.update({(index, step): cache for step, cache in result.record.items()})
        for frames, filled in zip(chunks, result.latents.chunk(len(chunks)), strict=True):
            new = [position for position, frame in enumerate(frames) if state[frame] == 0]
            clip[:, [frames[position] for position in new]] = filled[:, new]
        for frames in chunks:
            state[frames] = torch.where(state[frames] == 0, 2, state[frames])
    return SampleResult(clip, record, None, pipe)


def _refuse(options: dict[str, Any], names: tuple[str, ...], method: str) -> None:
    given = [name for name in names if name in options]
    if given:
        raise ValueError(f"{method} does not take {given}")
