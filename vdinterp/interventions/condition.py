"""What the network is told about its frames: how noisy they are, and which action led to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vdinterp.interventions.base import HookPair, Intervention
from vdinterp.interventions.levels import check_share
from vdinterp.interventions.places import Frames, Pass, alike, check_places, frames_of
from vdinterp.interventions.site import Computed
from vdinterp.interventions.stored import repeated
from vdinterp.site import COND, NOISE_EMBED


@dataclass(frozen=True)
class SetNoiseLevel(Intervention):
    """Tell the network another noise level than the frames have; the latents stay what they are.

    `level`: a share of noise in [0, 1], or a tensor of them `[frame]` or `[batch frame]`. `frames`: only these (None:
    all). `noise_levels` are those that the frames have.
    """

    level: float | int | torch.Tensor
    frames: Frames | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_places("frames", self.frames)
        if not isinstance(self.level, torch.Tensor):
            check_share("level", self.level)
        elif self.level.ndim > 2 or not self.level.numel():
            raise ValueError(f"level {list(self.level.shape)}: give one, [frame] or [batch frame]")

    def check_clips(self, passes: Sequence[Pass]) -> None:
        super().check_clips(passes)
        if isinstance(self.level, torch.Tensor) and self.level.ndim:
            check_length("level", self.level.shape[-1], passes)

    def hooks(self, model: Any) -> list[HookPair]:
        timestep = model.timestep(self.level, "level")

        def told(embedded: torch.Tensor, hook: Any) -> torch.Tensor:
            level = timestep.to(embedded.device)
            if level.ndim:
                level = for_clips("level", level if level.ndim == 2 else level[None], embedded, hook)
            return model.noise_embed(level.expand(embedded.shape[:2]))

        return Computed(NOISE_EMBED, told, frames=self.frames, **self.when).hooks(model)


@dataclass(frozen=True)
class SetCondition(Intervention):
    """Tell the network another action than the one it is given, as `model(..., cond=action)` would.

    `action`: `[d_action]` for every frame, `[frame d_action]` or `[batch frame d_action]`; None for no action.
    `frames`: only these (None: all). Clips without an action in a call that has some stay without (dropped, as the
    unconditional branch of guidance). What the network is told of the noise level stays, a `SetNoiseLevel` included.
    """

    action: torch.Tensor | None
    frames: Frames | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_places("frames", self.frames)
        action = self.action
        if action is None:
            return
        if not isinstance(action, torch.Tensor) or not 1 <= action.ndim <= 3 or not action.numel():
            shown = list(action.shape) if isinstance(action, torch.Tensor) else type(action).__name__
            raise ValueError(f"action is {shown}: give [d_action], [frame d_action], [batch frame d_action] or None.")
        if action.is_complex():
            raise ValueError(f"action is {action.dtype}: give real numbers")
        if not action.isfinite().all():
            raise ValueError("action holds NaN or infinity.")

    def check_clips(self, passes: Sequence[Pass]) -> None:
        super().check_clips(passes)
        if self.action is not None and self.action.ndim > 1:
            check_length("action", self.action.shape[-2], passes)

    def hooks(self, model: Any) -> list[HookPair]:
        cfg, action, embed = model.cfg, self.action, model.action_embed
        if embed is None:
            raise ValueError(f"SetCondition: {cfg.model_name} takes no actions.")
        if action is not None and action.shape[-1] != cfg.d_action:
            raise ValueError(f"action {list(action.shape)}: {cfg.model_name} takes actions of width {cfg.d_action}.")
        noted: dict[str, torch.Tensor] = {}

        def note(embedded: torch.Tensor, hook: Any) -> None:
            noted["noise"] = embedded

        def told(condition: torch.Tensor, hook: Any) -> torch.Tensor:
            noise = noted["noise"]
            if action is None:
                return noise
            given = action.reshape(*[1] * (3 - action.ndim), *action.shape)
            if action.ndim == 1:
                given = given.expand(-1, int(frames_of(hook, noise.shape[1]).max()) + 1, -1)
            bare = (condition == noise).flatten(1).all(-1)
            return noise + embed(for_clips("action", given, noise, hook).to(noise), bare & ~bare.all())

        part = Computed(COND, told, frames=self.frames, **self.when)
        return [(NOISE_EMBED, model.recorder(note)), *part.hooks(model)]


def check_length(field: str, n_given: int, passes: Sequence[Pass]) -> None:
    """Raise `ValueError` if one of `field` is missing for a frame of the clips that these passes show."""
    shown = [alike(one.frames, one.grid.n_frames) for one in passes if one.grid is not None]
    longest = max((int(frames.max()) + 1 for frames in shown), default=0)
    if n_given < longest:
        raise ValueError(f"{field} is given for {n_given} frames; this clip has {longest}")


def for_clips(field: str, given: torch.Tensor, like: torch.Tensor, hook: Any) -> torch.Tensor:
    """What is given `[batch frame ...]` of the user's clip, for the clips and frames of `like`: its clips repeated, its
    frames those that this call shows (padding: the last one)."""
    n_clips, n_frames = like.shape[:2]
    frames = frames_of(hook, n_frames)
    longest = int(frames.max()) + 1
    if given.shape[1] < longest or n_clips % len(given):
        raise ValueError(
            f"{field} is given for {len(given)} clips of {given.shape[1]} frames; this call has {n_clips} clips of "
            f"{longest}"
        )
    frames = torch.where(frames < 0, longest - 1, frames).expand(n_clips, -1).to(given.device)
    return repeated(given, n_clips)[torch.arange(n_clips, device=given.device)[:, None], frames]
