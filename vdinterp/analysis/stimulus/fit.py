"""Whether clips, noise levels and a model fit together, found out before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch

from vdinterp.checks.counts import check_count, check_indices
from vdinterp.conditions import Conditions, as_conditions
from vdinterp.data import Clips
from vdinterp.models.checks import check_sizes
from vdinterp.sweep import ModelOnly


def check_levels(levels: Any, pipe: Any = None) -> None:
    """Raise `ValueError` unless there are noise levels, in (0, 1], each once; none that is clean to the model."""
    if isinstance(levels, Real):
        check_levels((levels,), pipe)  # if it is none, that is what to say
        raise ValueError(f"noise_levels is {levels!r}; give a list or tuple, for example ({levels!r},)")
    if not isinstance(levels, Sequence):
        raise ValueError(f"noise_levels is {levels!r}; give a list or tuple of shares, for example (0.3, 0.9)")
    if any(isinstance(level, bool) or not isinstance(level, Real) for level in levels):
        raise ValueError(f"levels are noise levels, numbers in (0, 1]; got {tuple(levels)}")
    if not levels or not all(0 < level <= 1 for level in levels) or len(set(levels)) < len(levels):
        whole = any(isinstance(level, int) and level > 1 for level in levels)
        hint = "; of a model with K levels, level k is the share (k + 1) / K" if whole else ""
        raise ValueError(f"levels are noise levels in (0, 1], at least one, each once; got {tuple(levels)}{hint}")
    if pipe is not None and (clean := [level for level in levels if int(pipe.schedule.k(level)) < 0]):
        raise ValueError(
            f"noise level {clean[0]:g} is clean to {pipe.model.cfg.model_name}, of {len(pipe.schedule)} levels"
        )


def frames_seen(pipe: Any, clips: Clips, n_frames: int | None = None) -> int:
    """How many latent frames of clips are used: those that they have, at most as many as the model was trained on; or
    `n_frames` of those that they have.

    Raises ValueError for a video whose frames make no whole latent ones, and says which numbers do.
    """
    most, frames = pipe.model.cfg.n_frames, pipe.frame_map
    if n_frames is not None:
        there = clips.encoded.shape[1] if clips.encoded is not None else _whole(frames, clips.pixels.shape[1])
        return check_count("n_frames", n_frames, 1, there, "as many as there are")
    if clips.encoded is not None:
        return min(clips.encoded.shape[1], most)
    n_video = clips.pixels.shape[1]
    return most if n_video >= frames.n_video(most) else frames.latent_frames(n_video)


def _whole(frames: Any, n_video: int) -> int:
    """How many latent frames so many video frames make, those left over aside."""
    there = int(frames.latent_of(torch.tensor(n_video - 1))) + 1
    return there if frames.n_video(there) <= n_video else there - 1


def check_fit(pipe: Any, clips: Clips, what: str = "clips") -> tuple[int, int, int]:
    """Channels, height and width of the latents of clips. Raises `ValueError` unless a model takes such. Encodes one
    frame to see."""
    if isinstance(pipe, ModelOnly) and clips.encoded is None:
        raise ValueError(f"{what} are a video: pass the pipeline, which turns it into latents, not its model")
    if not len(clips):
        raise ValueError(f"{what} hold no clip")
    latents = clips.encoded
    if latents is None:
        latents = _latents(pipe, clips.pixels, what)
    check_sizes(pipe.model.cfg, latents, what if clips.encoded is None else f"{what}: latents")
    if not latents.is_floating_point():
        raise ValueError(f"{what} are latents of {latents.dtype}; give floating point")
    _, _, channels, height, width = latents.shape
    return channels, height, width


def _latents(pipe: Any, video: torch.Tensor, what: str) -> torch.Tensor:
    """The first latent frame of a video."""
    if pipe.vae is None:
        raise ValueError(
            f"{what} are videos, but this pipeline has no VAE: load the model with vae=..., or give latents that were "
            "made with it (Clips(kind=.., encoded=latents))"
        )
    with torch.no_grad():
        try:
            return pipe.encode(video[:1, : pipe.frame_map.n_video(1)])
        except ValueError as error:
            name = pipe.model.cfg.model_name
            raise ValueError(f"{what} of shape {list(video.shape)} do not fit {name}: {error}") from error


def conditions_for(pipe: Any, clips: Clips, cond: Any, n_frames: int, what: str = "clips") -> Conditions:
    """What steers the model on these clips: what is given, else what the clips have and the model takes.

    Actions of video frames become those of latent frames: side by side where the model's are as wide. Raises ValueError
    for what does not fit.
    """
    cfg = pipe.model.cfg
    if cond is None:
        has_text = bool(cfg.d_text) and clips.text is not None
        own = Conditions(
            actions=clips.action if cfg.d_action else None,
            text=clips.text if has_text else None,
            text_mask=clips.text_mask if has_text else None,
        )
        cond = own if own else None  # of which it is said that the model runs without
    cond = as_conditions(cond, cfg)
    if cond.actions is not None and cfg.d_action:
        cond = replace(cond, actions=_actions(pipe, clips, cond.actions, n_frames, what))
    cond.check(cfg, len(clips), n_frames)
    return cond


def _actions(pipe: Any, clips: Clips, actions: torch.Tensor, n_frames: int, what: str) -> torch.Tensor:
    cfg, frames = pipe.model.cfg, pipe.frame_map
    rate = frames.time_compression
    if rate == 1 or clips.video is None or actions.shape[1] != clips.video.shape[1]:
        return actions[:, :n_frames]
    if actions.shape[-1] * rate != cfg.d_action:
        raise ValueError(
            f"{what} have one action a video frame, {list(actions.shape)}, and {cfg.model_name} takes one of width "
            f"{cfg.d_action} for {rate} of them: give one a latent frame, or such that {rate} side by side are one"
        )
    actions = actions[:, : frames.n_video(n_frames)]
    first = actions.new_zeros(len(actions), rate - 1, actions.shape[-1])
    return torch.cat([first, actions] if frames.causal else [actions], 1).unflatten(1, (n_frames, rate)).flatten(2)


def frames_given(n_frames: int, n_context: Any = None, context: Any = None) -> list[int]:
    """Which frames are clean: the first `n_context` (default: all but the last), or those that `context` lists or
    marks. Raises ValueError for both, for frames that there are not, and where nothing is left to find."""
    if context is None:
        n_context = n_frames - 1 if n_context is None else check_count("n_context", n_context, 0)
        if n_context >= n_frames:
            raise ValueError(
                f"n_context={n_context} of {n_frames} frames are given, and none is left to find: at least "
                f"{n_context + 1} are needed (a model sees its own number at most, in latent frames)"
            )
        return list(range(n_context))
    if n_context is not None:
        raise ValueError("give n_context, how many frames are clean, or context, which ones; not both")
    if isinstance(context, torch.Tensor) and context.dtype == torch.bool:
        if tuple(context.shape) != (n_frames,):
            raise ValueError(f"context is a mask {list(context.shape)}; give [frame] = [{n_frames}]")
        context = context.nonzero()[:, 0].tolist()
    check_indices("context", context, -n_frames)
    if max(context) >= n_frames:
        raise ValueError(f"context names frame {max(context)}: there are {n_frames} frames")
    frames = sorted({int(frame) % n_frames for frame in context})
    if len(frames) == n_frames:
        raise ValueError(f"context is all {n_frames} frames: none is left to find")
    return frames
