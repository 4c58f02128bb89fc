"""Contrast: a clean and a corrupted run that share their noise. What every kind of patching compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float

from vdinterp.analysis.stimulus.noised_clips import NoisedClips
from vdinterp.analysis.stimulus.region import Region
from vdinterp.analysis.stimulus.reliability import Reliability
from vdinterp.checks.counts import check_count
from vdinterp.conditions import Cond
from vdinterp.data import Clips
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.sweep import Case, Inputs, ModelOnly, Trajectory
from vdinterp.words.wording import listing

Direction = Literal["denoising", "noising"]
Levels = float | Sequence[float] | torch.Tensor


def check_direction(direction: Any) -> None:
    """Raise `ValueError` for the name of no direction."""
    if direction not in ("denoising", "noising"):
        raise ValueError(f"unknown direction {direction!r}; choose 'denoising' or 'noising'")


class Contrast:
    """Two runs of the same clips that differ in something: content, action, one frame.

    Args:
        model: a pipeline, so that runs are compared in x0; or a bare model, whose predictions are then compared as they
            are (and whose inputs are taken as already noised).
        clean, corrupted: `Clips`, latents `[batch frame channel height width]`, or `NoisedClips` of both.
        noise_levels: one or several shares in (0, 1], at which the frames after `n_context` are noised (default: all
            but the last are clean); or integers `[frame]` or `[batch frame]`, -1 for clean frames. Left out with
            `NoisedClips`, and with `steps`.
        steps: compare whole trajectories of that many denoising steps instead, generated after `n_context` frames;
            `sampling`: further arguments of `pipe.sample`, such as `guidance`.
        cond, corrupted_cond: actions of either run (default: the clips' own; the clean run's).
        noise: what both runs are noised with; default: drawn by `seed`, for every clip its own.
        region: where metrics look: frames, `{"frames": [..], "rows": [..], "cols": [..]}` (tokens), or a boolean mask
            `[frame height width]` or `[batch frame height width]` of latents. Default: the noised frames.
        batch: clips a forward pass.

    Raises ValueError before any compute when the two runs differ in shape or noise, or do not fit the model.
    """

    def __init__(
        self,
        model: VideoDiffusion | HookedVideoDiT,
        clean: Any,
        corrupted: Any,
        noise_levels: Levels | None = None,
        *,
        steps: int | None = None,
        n_context: int | None = None,
        cond: Cond = None,
        corrupted_cond: Cond = None,
        noise: torch.Tensor | None = None,
        seed: int = 0,
        region: Region | None = None,
        batch: int = 16,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, (VideoDiffusion, HookedVideoDiT)):
            raise ValueError(f"model is {type(model).__name__}; give a pipeline (vd.load(..)) or its .model")
        self.pipe = model if isinstance(model, VideoDiffusion) else None
        self.denoiser: Any = model if self.pipe is not None else ModelOnly(model)  # type: ignore[arg-type]
        self.model: HookedVideoDiT = self.denoiser.model
        if isinstance(clean, NoisedClips) or isinstance(corrupted, NoisedClips):
            check_alike(clean, corrupted)
            if clean.pipe is not model or corrupted.pipe is not model:
                raise ValueError("NoisedClips of another pipeline: give the one that clean and corrupted were made for")
            noise_levels = clean.levels or None
        if (steps is None) == (noise_levels is None):
            raise ValueError("give either noise_levels (single forward passes) or steps (whole trajectories)")
        if not isinstance(clean, NoisedClips):
            shared: dict[str, Any] = {
                "noise_levels": noise_levels,
                "n_context": n_context,
                "noise": noise,
                "region": region,
                "seed": seed,
                "batch": batch,
            }
            clean = self._noised(clean, "clean", cond, shared)
            if isinstance(corrupted, torch.Tensor | Clips) and len(corrupted) != len(clean):
                raise ValueError(
                    f"clean has {len(clean)} clips, corrupted {len(corrupted)}: patching compares runs of the same "
                    "shape"
                )
            given = clean.cond if corrupted_cond is None and not _has_own(corrupted, self.model) else corrupted_cond
            corrupted = self._noised(corrupted, "corrupted", given, shared)
            check_alike(clean, corrupted)
        self.clean: NoisedClips = clean
        self.corrupted: NoisedClips = corrupted
        if steps is not None:
            if self.pipe is None:
                raise ValueError("trajectories need the pipeline, not the bare model: it holds the sampler")
            steps = check_count("steps", steps, high=self.pipe.diffusion.n_levels, why="the model's noise levels")
        self.steps, self.sampling = steps, dict(sampling or {})
        self.seed, self.batch, self.n_context = clean.seed, clean.batch, clean.n_context

    def _noised(self, given: Any, what: str, cond: Cond, shared: Mapping[str, Any]) -> NoisedClips:
        if given is None:
            raise ValueError(f"{what} is None; give clips or latents (some kinds of clips have a twin, clips.corrupt)")
        if not isinstance(given, Clips | torch.Tensor):
            raise ValueError(f"{what} is {type(given).__name__}; give clips, NoisedClips, or latents")
        try:
            return NoisedClips(self.denoiser, given, cond=cond, **shared)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        how = f"{self.steps} steps" if self.steps else ", ".join(f"level {level}" for level in self.levels)
        return (
            f"Contrast({len(self)} pairs of clips of {self.clean.n_frames} frames, {how}, {self.model.cfg.model_name})"
        )

    @property
    def levels(self) -> Mapping[Any, Float[torch.Tensor, "batch frame"]]:
        """Noise levels of every frame, by what they are called."""
        return self.clean.noise_levels

    @property
    def noise(self) -> Float[torch.Tensor, "batch frame channel height width"]:
        """What both runs are noised with."""
        return self.clean.noise

    @property
    def region(self) -> Bool[torch.Tensor, "batch frame 1 height width"]:
        """Where metrics look."""
        return self.clean.region_mask

    @property
    def variance(self) -> float:
        """Mean squared distance of the clean frames to their mean frame: the unit of errors."""
        return max(self.clean.spread, 1e-12)

    @property
    def reliability(self) -> Reliability:
        """Whether the model works on the clean clips."""
        return self.clean.reliability

    def cases(self, direction: Direction = "denoising") -> list[Case]:
        """What a sweep runs. Denoising patches clean activations into the corrupted run, noising the reverse."""
        check_direction(direction)
        base = "corrupted" if direction == "denoising" else "clean"
        return [self._case(clips, level, base) for level in self.levels or [None] for clips in self.clean.batches]

    def inputs(self, clips: slice, level: Any) -> dict[str, Inputs]:
        """Both runs' forward pass for some clips at one noise level."""
        return {name: noised.inputs(level, clips) for name, noised in self._runs.items()}

    @property
    def _runs(self) -> dict[str, NoisedClips]:
        return {"clean": self.clean, "corrupted": self.corrupted}

    def _case(self, clips: slice, level: Any, base: str) -> Case:
        about = {"truth": self.clean.latents[clips], "region": self.region[clips], "variance": self.variance}
        label: dict[str, Any] = {} if level is None else {"level": level}
        runs: dict[str, Any]
        if self.steps is None:
            runs = self.inputs(clips, level)
        else:
            runs = {name: Trajectory(options=self._options(clips, noised)) for name, noised in self._runs.items()}
        return Case(runs=runs, base=base, first_clip=clips.start, label=label, about=about)

    def _options(self, clips: slice, noised: NoisedClips) -> dict[str, Any]:
        latents, n = noised.latents[clips], self.n_context
        given: dict[str, Any] = {"context": latents[:, :n]} if n else {"context": None, "batch": len(latents)}
        if noised.context != list(range(n)):
            given = {"context": latents, "mask": [int(frame in noised.context) for frame in range(noised.n_frames)]}
        options = {
            "n_frames": noised.n_frames,
            "steps": self.steps,
            "noise": self.noise[clips],
            "cond": noised.cond[clips],
        }
        return {**options, **given, **self.sampling}

    @cached_property
    def difference(self) -> str:
        """In what the corrupted run differs from the clean one."""
        parts = []
        changed = {"content": (self.clean.latents != self.corrupted.latents).flatten(2).any(-1)}
        one, other = self.clean.cond, self.corrupted.cond
        if one.actions is not None and other.actions is not None:
            changed["action"] = (one.actions != other.actions).any(-1)
        for what, where in changed.items():
            if frames := where.any(0).nonzero()[:, 0].tolist():
                some = "one or more of " if not bool((where == where[:1]).all()) else ""
                parts.append(f"another {what} in {some}{_frames(frames)}")
        if one.text is not None and other.text is not None and not torch.equal(one.text, other.text):
            parts.append("another text")
        return f"the clean clip with {' and '.join(parts)}" if parts else "the same as the clean clip"


def _has_own(clips: Any, model: HookedVideoDiT) -> bool:
    """Whether clips have conditions that a model takes."""
    cfg = model.cfg
    return isinstance(clips, Clips) and bool(
        (cfg.d_action and clips.action is not None) or (cfg.d_text and clips.text is not None)
    )


def _frames(indices: Sequence[int]) -> str:
    """frame 7; frames 2 to 5; frames 1 and 4."""
    first, last = indices[0], indices[-1]
    if len(indices) == 1:
        return f"frame {first}"
    if list(indices) == list(range(first, last + 1)) and len(indices) > 2:
        return f"frames {first} to {last}"
    return f"frames {listing([str(index) for index in indices])}"


def check_alike(clean: Any, corrupted: Any) -> None:
    """Raise `ValueError` unless two `NoisedClips` are noised alike."""
    if not (isinstance(clean, NoisedClips) and isinstance(corrupted, NoisedClips)):
        raise ValueError("clean and corrupted are both NoisedClips, or neither")
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean is {list(clean.shape)}, corrupted is {list(corrupted.shape)} (batch frame channel height width): "
            "patching compares runs of the same shape"
        )
    for name in ("levels", "context", "seed", "batch"):
        mine, other = getattr(clean, name), getattr(corrupted, name)
        if mine != other:
            raise ValueError(
                f"clean has {name} {mine}, corrupted {other}: both runs share their noise, or differences are not "
                "theirs"
            )
