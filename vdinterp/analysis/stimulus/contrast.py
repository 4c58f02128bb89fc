"""Contrast: a clean and a corrupted run that share their noise. What every kind of patching compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float

from vdinterp.analysis.stimulus.latents import latents_of
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, check_levels
from vdinterp.analysis.stimulus.reliability import Reliability
from vdinterp.checks.counts import check_count, check_indices, check_seed
from vdinterp.data import Clips
from vdinterp.data.clips import say_cut
from vdinterp.diffusion import SeededNoise
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.sweep import Case, Inputs, ModelOnly, Trajectory
from vdinterp.words.wording import listing

Direction = Literal["denoising", "noising"]
Region = Sequence[int] | Mapping[str, Sequence[int]] | torch.Tensor
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
            but the last are clean); or a tensor of them, `[frame]` or `[batch frame]`, 0 for clean frames. Left out
            with `NoisedClips`, and with `steps`.
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
        cond: torch.Tensor | None = None,
        corrupted_cond: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        seed: int = 0,
        region: Region | None = None,
        batch: int = 16,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, (VideoDiffusion, HookedVideoDiT)):
            raise ValueError(f"model is {type(model).__name__}; give a pipeline (vd.load(..)) or its .model")
        if isinstance(clean, NoisedClips) or isinstance(corrupted, NoisedClips):
            check_alike(clean, corrupted)
            noise_levels, n_context, noise = clean.levels, clean.n_context, clean.noise
            clean, corrupted = clean.clips, corrupted.clips
        self.pipe = model if isinstance(model, VideoDiffusion) else None
        self.denoiser: Any = model if self.pipe is not None else ModelOnly(model)  # type: ignore[arg-type]
        self.model: HookedVideoDiT = self.denoiser.model
        self.clean, own = self._latents(clean, "clean")
        self.corrupted, others = self._latents(corrupted, "corrupted")
        if self.clean.shape != self.corrupted.shape:
            raise ValueError(
                f"clean is {list(self.clean.shape)}, corrupted is {list(self.corrupted.shape)} (batch frame channel "
                "height width): patching compares runs of the same shape"
            )
        n_frames = self.clean.shape[1]  # clips longer than the model's are cut, and their actions with them
        self.cond = own if cond is None else cond[:, :n_frames]
        given = others if corrupted_cond is None else corrupted_cond[:, :n_frames]
        self.corrupted_cond = self.cond if given is None else given
        for name, action in (("cond", self.cond), ("corrupted_cond", self.corrupted_cond)):
            self._check_cond(action, name)
        if noise is not None and noise.shape != self.clean.shape:
            raise ValueError(f"noise {list(noise.shape)}: both runs share it, so it is {list(self.clean.shape)}")
        batch, seed = check_count("batch", batch), check_seed(seed)
        if (steps is None) == (noise_levels is None):
            raise ValueError("give either noise_levels (single forward passes) or steps (whole trajectories)")
        if steps is not None and self.pipe is None:
            raise ValueError("trajectories need the pipeline, not the bare model: it holds the sampler")
        if steps is not None and self.pipe is not None:
            steps = check_count("steps", steps, high=self.pipe.diffusion.n_levels, why="the model's noise levels")
        self.steps, self.seed, self.batch, self.sampling = steps, seed, batch, dict(sampling or {})
        self._noise = noise
        given_frames = n_frames - 1 if n_context is None else n_context
        self.n_context = check_count("n_context", given_frames, 0, n_frames - 1, f"of {n_frames} frames")
        self.levels = self._levels(noise_levels) if noise_levels is not None else {}
        self.region = self._region(region)

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        how = f"{self.steps} steps" if self.steps else ", ".join(f"level {level}" for level in self.levels)
        return (
            f"Contrast({len(self)} pairs of clips of {self.clean.shape[1]} frames, {how}, {self.model.cfg.model_name})"
        )

    def cases(self, direction: Direction = "denoising") -> list[Case]:
        """What a sweep runs. Denoising patches clean activations into the corrupted run, noising the reverse."""
        check_direction(direction)
        base = "corrupted" if direction == "denoising" else "clean"
        starts = range(0, len(self), self.batch)
        return [
            self._case(slice(start, start + self.batch), level, base)
            for level in self.levels or [None]
            for start in starts
        ]

    def inputs(self, clips: slice, level: Any) -> dict[str, Inputs]:
        """Both runs' forward pass for some clips at one noise level."""
        noise_levels = self.levels[level][clips]
        runs = {}
        for name, latents, cond in (
            ("clean", self.clean, self.cond),
            ("corrupted", self.corrupted, self.corrupted_cond),
        ):
            noisy = latents[clips]
            if self.pipe is not None:
                noisy = self.pipe.add_noise(noisy, noise_levels, self.noise[clips])
            runs[name] = Inputs(noisy, noise_levels, None if cond is None else cond[clips])
        return runs

    def _case(self, clips: slice, level: Any, base: str) -> Case:
        about = {"truth": self.clean[clips], "region": self.region[clips], "variance": self.variance}
        label: dict[str, Any] = {} if level is None else {"level": level}
        runs: dict[str, Any]
        if self.steps is None:
            runs = self.inputs(clips, level)
        else:
            runs = {
                name: Trajectory(options=self._options(clips, latents, cond))
                for name, latents, cond in (
                    ("clean", self.clean, self.cond),
                    ("corrupted", self.corrupted, self.corrupted_cond),
                )
            }
        return Case(runs=runs, base=base, first_clip=clips.start, label=label, about=about)

    def _options(self, clips: slice, latents: torch.Tensor, cond: torch.Tensor | None) -> dict[str, Any]:
        options = {
            "n_frames": latents.shape[1], "steps": self.steps, "noise": self.noise[clips],
            "context": latents[clips, : self.n_context] if self.n_context else None,
            **({} if self.n_context else {"batch": len(latents[clips])}),
            **({} if cond is None else {"cond": cond[clips]}),
            **self.sampling,
        }  # fmt: skip
        return options

    @cached_property
    def noise(self) -> Float[torch.Tensor, "batch frame channel height width"]:
        """What both runs are noised with."""
        if self._noise is not None:
            return self._noise
        return SeededNoise(self.seed, [(index,) for index in range(len(self))]).initial(self.clean.shape)

    @cached_property
    def variance(self) -> float:
        """Mean squared distance of the clean frames to their mean frame: the unit of errors."""
        return max(float((self.clean - self.clean.mean((0, 1))).square().mean()), 1e-12)

    @property
    def difference(self) -> str:
        """In what the corrupted run differs from the clean one."""
        parts = []
        changed = {"content": (self.clean != self.corrupted).flatten(2).any(-1)}
        if self.cond is not None and self.corrupted_cond is not None:
            changed["action"] = (self.cond != self.corrupted_cond).any(-1)
        for what, where in changed.items():
            if frames := where.any(0).nonzero()[:, 0].tolist():
                some = "one or more of " if not bool((where == where[:1]).all()) else ""
                parts.append(f"another {what} in {some}{_frames(frames)}")
        return f"the clean clip with {' and '.join(parts)}" if parts else "the same as the clean clip"

    @cached_property
    def reliability(self) -> Reliability:
        """Whether the model works on the clean clips, by its x0 error on the first batch; one pass a noise level. Not
        asked of a bare model, of whole trajectories, and of levels that differ from frame to frame."""
        few, n = slice(0, self.batch), self.n_context
        name = self.model.cfg.model_name
        if self.pipe is None or self.steps is not None or "given" in self.levels:
            return Reliability(model=name)
        truth, errors = self.clean[few, n:], {}
        for level in self.levels:
            with torch.no_grad():
                x0 = self.pipe.denoise(*self.inputs(few, level)["clean"])[:, n:].float().cpu()
            errors[f"noise level {level:g}"] = float((x0 - truth).square().mean()) / self.variance
        still = float((self.clean[few, n - 1 : n] - truth).square().mean()) / self.variance if n else None
        return Reliability(
            model=name, errors=errors, still=still,
            without_actions=self.model.cfg.d_action > 0 and self.cond is None,
        )  # fmt: skip

    def _latents(self, given: Any, what: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents, and the actions of clips that have them."""
        if given is None:
            raise ValueError(f"{what} is None; give clips or latents (some kinds of clips have a twin, clips.corrupt)")
        cond = None
        if isinstance(given, Clips):
            if self.pipe is None:
                raise ValueError(f"{what} are clips: pass the pipeline, which turns them into latents, not its model")
            if self.model.cfg.d_action and given.action is not None:
                cond = given.action[:, : self.model.cfg.n_frames]
            say_cut(given.n_frames, min(given.n_frames, self.model.cfg.n_frames), self.model.cfg.model_name)
            given = latents_of(self.pipe, given, self.model.cfg.n_frames)
        cfg = self.model.cfg
        wanted = f"[batch, up to {cfg.n_frames} frames, {cfg.in_channels}, {cfg.height}, {cfg.width}]"
        float_tensor = isinstance(given, torch.Tensor) and given.is_floating_point()
        if not float_tensor or given.ndim != 5 or not len(given):
            shown = f"{given.dtype} {list(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
            raise ValueError(f"{what} is {shown}; give clips, NoisedClips, or latents {wanted}")
        if tuple(given.shape[2:]) != (cfg.in_channels, cfg.height, cfg.width) or given.shape[1] > cfg.n_frames:
            raise ValueError(f"{what} latents {list(given.shape)} do not fit {cfg.model_name}: it takes {wanted}")
        return given.detach(), cond

    def _check_cond(self, action: torch.Tensor | None, name: str) -> None:
        wanted = (*self.clean.shape[:2], self.model.cfg.d_action)
        if action is not None and (not self.model.cfg.d_action or tuple(action.shape) != wanted):
            raise ValueError(
                f"{name} {list(action.shape)}: {self.model.cfg.model_name} takes "
                + (f"one action a frame, {list(wanted)}" if self.model.cfg.d_action else "no actions")
            )

    def _levels(self, given: Any) -> dict[Any, Float[torch.Tensor, "batch frame"]]:
        """Noise levels of every frame, by what they are called."""
        shape = tuple(self.clean.shape[:2])
        if isinstance(given, float):
            given = (given,)
        if isinstance(given, torch.Tensor):
            if tuple(given.shape) not in (shape, shape[1:]):
                raise ValueError(f"noise_levels {list(given.shape)}: a level for every frame is needed, {list(shape)}")
            self.model.timestep(given)
            return {"given": given.float().expand(shape)}
        if not isinstance(given, Sequence) or isinstance(given, str | bytes):
            raise ValueError(
                f"noise_levels={given!r}: give a share in (0, 1], several, or a tensor with a level for every frame"
            )
        if self.pipe is None:
            raise ValueError("noise is added by the pipeline; a bare model takes a tensor with a level for every frame")
        check_levels(given, self.pipe)
        return {level: (torch.arange(shape[1]) >= self.n_context).expand(shape) * level for level in given}

    def _region(self, region: Region | None) -> Bool[torch.Tensor, "batch frame 1 height width"]:
        batch, frames, _, height, width = self.clean.shape
        if isinstance(region, torch.Tensor):
            if tuple(region.shape) not in ((frames, height, width), (batch, frames, height, width)):
                raise ValueError(
                    f"region {list(region.shape)}: a mask is [frame height width], {[frames, height, width]}"
                )
            if region.dtype != torch.bool:
                raise ValueError(f"region is {region.dtype}: a mask is boolean, True where metrics look")
            mask = region.expand(batch, frames, height, width)
        else:
            mask = torch.ones(batch, frames, height, width, dtype=torch.bool)
            if region is None:
                mask = mask & self._noised[:, :, None, None]
            else:
                where = dict(region) if isinstance(region, Mapping) else {"frames": region}
                mask = mask & self._box(where)
        if not mask.flatten(1).any(1).all():
            raise ValueError("region is empty for some clip: metrics would have nothing to look at")
        return mask.unsqueeze(2)

    @property
    def _noised(self) -> Bool[torch.Tensor, "batch frame"]:
        """Frames that a run has to find: noised at any level, or generated."""
        if self.steps is None:
            noised = torch.stack([levels > 0 for levels in self.levels.values()]).any(0)
            return noised if self.pipe is not None else torch.ones_like(noised)
        return (torch.arange(self.clean.shape[1]) >= self.n_context).expand(len(self), -1)

    def _box(self, where: Mapping[str, Sequence[int]]) -> Bool[torch.Tensor, "frame height width"]:
        unknown = set(where) - {"frames", "rows", "cols"}
        if unknown:
            raise ValueError(f"region has {', '.join(sorted(unknown))}; its parts are frames, rows and cols")
        for name, chosen in where.items():
            check_indices(f"region {name}", chosen)
        grid = self.model.grid(self.clean.shape[1])
        chosen = torch.zeros(grid.n_tokens, dtype=torch.bool)
        chosen[grid.tokens(*(None if where.get(n) is None else list(where[n]) for n in ("frames", "rows", "cols")))] = (
            True
        )
        _, patch_h, patch_w = self.model.cfg.patch_size
        return chosen.view(grid.shape).repeat_interleave(patch_h, 1).repeat_interleave(patch_w, 2)


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
    if clean.latents.shape != corrupted.latents.shape:
        raise ValueError(
            f"clean is {list(clean.latents.shape)}, corrupted is {list(corrupted.latents.shape)}: patching compares "
            "runs of the same shape"
        )
    for name in ("levels", "n_context", "seed"):
        mine, other = getattr(clean, name), getattr(corrupted, name)
        if mine != other:
            raise ValueError(
                f"clean has {name} {mine}, corrupted {other}: both runs share their noise, or differences are not "
                "theirs"
            )
