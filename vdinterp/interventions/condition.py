"""What the network is told about its clips: how noisy frames are, which action led to them, and the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vdinterp.interventions.base import HookPair, Intervention
from vdinterp.interventions.levels import check_share
from vdinterp.interventions.places import Frames, Pass, alike, check_places, frames_of
from vdinterp.interventions.site import Computed
from vdinterp.interventions.stored import repeated
from vdinterp.site import COND, NOISE_EMBED, Site


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


OWN = "own"  # what the call is given


@dataclass(frozen=True)
class SetCondition(Intervention):
    """Tell the network another action, or another text, than it is given, as `model(..., cond=..)` would.

    `action`: `[d_action]` for every frame, `[frame d_action]` or `[batch frame d_action]`; None for no action.
    `frames`: only these (None: all). `text`: `[key d_text]` or `[batch key d_text]`, as many tokens as the text of the
    call, whose mask stays; None for no text. It is of whole clips, so `frames` and `noise_levels` are for actions
    alone. "own": as the call says. Clips without a condition in a call that has some stay without (dropped, as the
    unconditional branch of guidance). What the network is told of the noise level stays.
    """

    action: torch.Tensor | str | None = OWN
    frames: Frames | None = None
    text: torch.Tensor | str | None = OWN

    def __post_init__(self) -> None:
        super().__post_init__()
        check_places("frames", self.frames)
        _check_told("action", self.action, 1, "[d_action], [frame d_action], [batch frame d_action]")
        _check_told("text", self.text, 2, "[key d_text], [batch key d_text]")
        if _is_own(self.action) and _is_own(self.text):
            raise ValueError("SetCondition changes nothing: give action=.., text=.. or both")
        if not _is_own(self.text) and (self.frames is not None or self.noise_levels is not None):
            raise ValueError("text is of whole clips; frames= and noise_levels= are for SetCondition(action=..) alone")

    def check_clips(self, passes: Sequence[Pass]) -> None:
        super().check_clips(passes)
        if isinstance(self.action, torch.Tensor) and self.action.ndim > 1:
            check_length("action", self.action.shape[-2], passes)

    def hooks(self, model: Any) -> list[HookPair]:
        pairs = [] if _is_own(self.action) else self._of_action(model)
        return pairs if _is_own(self.text) else pairs + self._of_text(model)

    def _of_action(self, model: Any) -> list[HookPair]:
        cfg, action, embed = model.cfg, self.action, model.action_embed
        if embed is None:
            raise ValueError(f"SetCondition: {cfg.model_name} takes no actions.")
        assert not isinstance(action, str)
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

    def _of_text(self, model: Any) -> list[HookPair]:
        cfg, text = model.cfg, self.text
        if not cfg.d_text:
            raise ValueError(f"SetCondition: {cfg.model_name} takes no text")
        assert not isinstance(text, str)
        if text is not None and text.shape[-1] != cfg.d_text:
            raise ValueError(f"text {list(text.shape)}: {cfg.model_name} takes text of width {cfg.d_text}")
        layers = [layer for layer, block in enumerate(cfg.blocks) if block.cross_attn is not None]
        pairs: list[HookPair] = []
        for layer in layers:
            attention = model.sublayer(layer, "cross_attn")
            for which, part in enumerate("kv"):
                told = _read(attention, which, text, cfg.d_text)
                pairs += Computed(Site(layer, "cross_attn", part), told, steps=self.steps).hooks(model)
        return pairs


def _read(attention: Any, which: int, text: torch.Tensor | None, d_text: int) -> Callable[..., torch.Tensor]:
    """The keys (0) or values (1) that a cross-attention makes of a text, None: of none."""

    def of(given: torch.Tensor) -> torch.Tensor:
        return attention.kv(given).chunk(2, -1)[which].unflatten(-1, (attention.n_heads, attention.d_head))

    def told(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        nothing = of(activation.new_zeros(1, 1, d_text)).expand_as(activation)
        if text is None:
            return nothing
        given = text if text.ndim == 3 else text[None]
        n_clips, n_tokens = activation.shape[:2]
        if given.shape[1] != n_tokens or n_clips % len(given):
            raise ValueError(
                f"text is given for {len(given)} clips of {given.shape[1]} tokens; this call has {n_clips} clips of "
                f"{n_tokens}"
            )
        bare = (activation == nothing).flatten(1).all(-1)
        made = of(repeated(given, n_clips).to(activation))
        return torch.where((bare & ~bare.all()).view(-1, 1, 1, 1), activation, made)

    return told


def _is_own(given: Any) -> bool:
    return isinstance(given, str) and given == OWN


def _check_told(name: str, given: Any, least: int, wanted: str) -> None:
    """Raise `ValueError` unless it is "own", None, or a finite tensor of `least` to three axes."""
    if given is None or _is_own(given):
        return
    if not isinstance(given, torch.Tensor) or not least <= given.ndim <= 3 or not given.numel():
        shown = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise ValueError(f"{name} is {shown}: give {wanted} or None.")
    if given.is_complex():
        raise ValueError(f"{name} is {given.dtype}: give real numbers")
    if not given.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity.")


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
