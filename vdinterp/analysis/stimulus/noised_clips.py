"""NoisedClips: clips as a model sees them at some noise levels. The stimulus that every analysis takes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Float

from vdinterp.analysis.stimulus.fit import check_levels, frames_given
from vdinterp.analysis.stimulus.latent_clips import LatentClips
from vdinterp.analysis.stimulus.region import Region, mask_of
from vdinterp.analysis.stimulus.reliability import Reliability, round_trip
from vdinterp.checks.counts import check_seed
from vdinterp.conditions import Cond, missing
from vdinterp.data import Clips
from vdinterp.diffusion import SeededNoise
from vdinterp.interventions import Intervention
from vdinterp.models import ActivationCache, AttentionPattern, HookedVideoDiT
from vdinterp.models.hooks import Names
from vdinterp.pipeline import VideoDiffusion
from vdinterp.progress import bar
from vdinterp.sweep import Inputs, ModelOnly
from vdinterp.words.wording import plural


class NoisedClips(LatentClips):
    """Clips whose context frames are clean and whose other frames, the target, are at one noise level.

    Everything is at latent rate: frames, context, labels, actions and region are of latent frames, several video frames
    each where the VAE compresses time.

    >>> noised = NoisedClips(pipe, clips, noise_levels=(0.3, 0.6, 0.9))
    >>> vd.analysis.frame_mass(noised).plot()

    Args:
        pipe: the model. `clips`: a video, which its VAE encodes, or latents, of which `Clips(encoded=..)` or a tensor
            `[clip frame channel height width]`; a model without VAE takes latents.
        noise_levels: shares of noise in (0, 1], one or several, each measured apart; or a tensor of them, `[frame]` or
            `[clip frame]`, 0 for clean frames (for patching); None where only whole trajectories are run.
        n_frames: how many frames of the clips; default as many as the model sees.
        n_context: clean frames at the start; default all but the last. 0 noises every frame.
        context: instead, which frames are clean: a list, or a mask `[frame]`.
        cond: what steers the model; default the clips' own actions and text (without, it runs without, and a warning is
            logged once).
        noise: what target frames are noised with, of the latents' shape; default drawn by `seed`, for every clip its
            own, the same at every level and under every intervention.
        region: where errors are measured, see `Contrast`; default the target frames.
        batch: clips a forward pass.

    Raises ValueError before any compute when clips, model and settings do not fit together.
    """

    def __init__(
        self,
        pipe: VideoDiffusion | ModelOnly,
        clips: Clips | Float[torch.Tensor, "clip frame channel height width"],
        noise_levels: float | Sequence[float] | Float[torch.Tensor, "*clip frame"] | None = (0.9,),
        *,
        n_frames: int | None = None,
        n_context: int | None = None,
        context: Sequence[int] | Bool[torch.Tensor, " frame"] | None = None,
        cond: Cond = None,
        noise: torch.Tensor | None = None,
        region: Region | None = None,
        seed: int = 0,
        batch: int = 16,
        **old: Any,
    ) -> None:
        for name in old:
            raise TypeError(
                f"{name}=: NoisedClips takes noise_levels, n_context, context, cond, region, seed and batch"
            )
        super().__init__(pipe, clips, n_frames=n_frames, cond=cond, batch=batch)
        self.context = frames_given(self.n_frames, n_context, context)
        self.seed = check_seed(seed)
        if noise is not None and tuple(noise.shape) != self.shape:
            raise ValueError(f"noise is {list(noise.shape)}; it is as the latents are, {list(self.shape)}")
        self._noise = noise
        self.noise_levels = self._levels(noise_levels)
        self.levels: tuple[Any, ...] = tuple(self.noise_levels)
        self.region = region
        self.region_mask = mask_of(region, self.shape, self.grid, self.model.cfg.patch_size[1:], self._noised)

    def __repr__(self) -> str:
        levels = ", ".join(f"{level:g}" if isinstance(level, float) else "levels of their own" for level in self.levels)
        return (
            f"NoisedClips({len(self)} {self.clips.kind} clips of {self.n_frames} frames, {self.n_context} of "
            f"them clean, the others at {levels or 'every step'}, for {self.model.cfg.model_name})"
        )

    # Which frames

    @property
    def n_context(self) -> int:
        """How many frames are clean."""
        return len(self.context)

    @cached_property
    def target(self) -> list[int]:
        """The noised frames."""
        return [frame for frame in range(self.n_frames) if frame not in self.context]

    @property
    def target_tokens(self) -> Bool[torch.Tensor, "pos"]:
        return torch.isin(self.grid.frame_of(), torch.tensor(self.target))

    # What is measured

    @cached_property
    def noise(self) -> Float[torch.Tensor, "clip frame channel height width"]:
        """What every frame is noised with."""
        if self._noise is not None:
            return self._noise
        return SeededNoise(self.seed, [(index,) for index in range(len(self))]).initial(self.latents.shape)

    @cached_property
    def variance(self) -> float:
        """Mean squared distance of all frames to their mean frame: the unit of changes and errors of x0."""
        if not self.spread > 0:
            raise ValueError(
                f"{self!r}: every frame is the same, so errors have no unit; give clips that show something"
            )
        return self.spread

    @cached_property
    def spread(self) -> float:
        """`variance`, which may be 0 here."""
        return float((self.latents - self.latents.mean((0, 1))).square().mean())

    @cached_property
    def reliability(self) -> Reliability:
        """Whether the model works on these clips, by its errors on the first few of them; one pass a noise level. Not
        asked of a bare model, of whole trajectories, and of levels that differ from frame to frame."""
        name, few = self.model.cfg.model_name, self.batches[0]
        if isinstance(self.pipe, ModelOnly) or not self.levels or "given" in self.levels:
            return Reliability(model=name)
        latents = self.latents[few]
        errors, still = {}, None
        if self.spread > 0:  # else errors have no unit
            for level in self.levels:
                with torch.no_grad():
                    x0 = self.pipe.denoise(*self.inputs(level, few))[:, self.target].float().cpu()
                errors[f"noise level {level:g}"] = float(self._distance(x0, latents[:, self.target], few).mean())
            before = [max((at for at in self.context if at < frame), default=-1) for frame in self.target]
            if min(before) >= 0:
                still = float(self._distance(latents[:, before], latents[:, self.target], few).mean())
        has_video = self.framed.video is not None and self.pipe.vae is not None
        return Reliability(
            model=name,
            errors=errors,
            still=still,
            round_trip=round_trip(self.pipe, self.video[few], latents) if has_video else None,
            without=missing(self.cond, self.model.cfg),
        )

    @cached_property
    def _weights(self) -> str:
        return weights_id(self.model)

    def meta(self, **more: Any) -> dict[str, Any]:
        """How numbers measured on these clips were made, and a `caution` where the model fails on them."""
        return {
            "model": self.model.cfg.model_name,
            **checkpoint(self.pipe),
            "weights": self._weights,
            "clips": f"{plural(len(self), 'clip')} of kind {self.clips.kind}",
            "frames": self.n_frames,
            "context frames": self.n_context if self.context == list(range(self.n_context)) else self.context,
            "levels": list(self.levels),
            "seed": self.seed,
            **self.reliability.meta(),
            **more,
        }

    # Forward passes

    def inputs(self, level: Any, clips: slice | torch.Tensor = slice(None)) -> Inputs:
        """`(noisy, noise_levels, cond)`: plain tensors, as `pipe.denoise` takes them.

        >>> x0 = pipe.denoise(*noised.inputs(0.9))

        Raises ValueError for a level that is none of `levels`.
        """
        if level not in self.noise_levels:
            raise ValueError(f"level {level} is none of {self.levels}")
        noisy, noise_levels = self.latents[clips], self.noise_levels[level][clips]
        if not isinstance(self.pipe, ModelOnly):  # which takes what is noised already
            noisy = self.pipe.add_noise(noisy, noise_levels, self.noise[clips])
        return Inputs(noisy, noise_levels, self.cond[clips])

    def _passes(self, level: float) -> Iterable[slice]:
        return bar(self.batches, desc=f"noise level {level:g}", unit="batch", leave=False)

    @torch.no_grad()
    def cache(self, level: float, names: Names | None = None, clips: slice = slice(None)) -> ActivationCache:
        """The activations of all clips, or of some, in one pass; `names` as of `run_with_cache`."""
        noisy, noise_levels, cond = self.inputs(level, clips)
        timestep = self.pipe.timestep(noise_levels.to(self.pipe.device))
        noisy = noisy.to(device=self.pipe.device, dtype=self.pipe.dtype)
        return self.model.run_with_cache(noisy, timestep, cond, names=names)[1]

    def caches(self, level: float, names: Names | None) -> Iterator[ActivationCache]:
        """The activations of one batch of clips after the other."""
        return (self.cache(level, names, clips) for clips in self._passes(level))

    def stacked(self, level: float, name: Any) -> Float[torch.Tensor, "clip *axes"]:
        """One activation of all clips, by hook name or alias (`("z", 3)`)."""
        return torch.cat([cache[name] for cache in self.caches(level, [name])])

    def means(self, level: float, names: Names = ("z",)) -> dict[str, Float[torch.Tensor, "1 1 *axes"]]:
        """Mean of activations over clips, frames and positions, by hook name: for mean ablation."""
        total: dict[str, torch.Tensor] = {}
        for cache in self.caches(level, names):
            for name in cache:
                value = cache[name].float()
                total[name] = total.get(name, 0.0) + value.mean(1, keepdim=True).sum(0, keepdim=True)
        return {name: value / len(self) for name, value in total.items()}

    def patterns(self, level: float) -> Iterator[list[AttentionPattern]]:
        """The self-attention pattern of every layer, for one batch of clips after the other."""
        for cache in self.caches(level, ["rot_q", "rot_k"]):
            yield [cache["pattern", layer] for layer in range(self.model.cfg.n_layers)]

    def uniform_pattern(self, layer: int) -> AttentionPattern:
        """Uniform attention over what the layer's own mask allows, of one clip and head: any statistic's chance."""
        attention = self.model.sublayer(layer)
        nothing = torch.zeros(1, self.grid.n_tokens, 1, attention.d_head, device=self.pipe.device)
        return attention.pattern(nothing, nothing, self.grid)

    @torch.no_grad()
    def x0(self, level: float, *interventions: Intervention) -> Float[torch.Tensor, "clip frame channel height width"]:
        """The estimate of the clean target frames."""
        with self.model.intervene(*interventions):
            made = [self.pipe.denoise(*self.inputs(level, clips)) for clips in self._passes(level)]
        return torch.cat([part[:, self.target].float().cpu() for part in made])

    def x0_error(self, level: float, *interventions: Intervention) -> Float[torch.Tensor, " clip"]:
        """Squared error of that estimate in the region, over the variance: 0 perfect, about 1 what the mean frame gets.

        Raises ValueError where the model predicts NaN or infinity.
        """
        return self._distance(self._finite(level, *interventions), self.latents[:, self.target])

    def x0_change(self, level: float, *interventions: Intervention) -> Float[torch.Tensor, " clip"]:
        """How far interventions move that estimate: squared distance to the untouched one over the variance."""
        if level not in self._intact:
            self._intact[level] = self._finite(level)
        return self._distance(self._finite(level, *interventions), self._intact[level])

    def for_model(self, pipe: VideoDiffusion) -> NoisedClips:
        """The same latents and noise for another model of the same shape."""
        _ = self.latents, self.noise  # computed once, for both
        twin = copy.copy(self)
        twin.pipe = pipe
        for name in ("reliability", "_weights", "_intact"):
            twin.__dict__.pop(name, None)
        return twin

    @cached_property
    def _intact(self) -> dict[float, torch.Tensor]:
        return {}

    def _finite(self, level: float, *interventions: Intervention) -> torch.Tensor:
        x0 = self.x0(level, *interventions)
        if not bool(x0.isfinite().all()):
            clip = int((~x0.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"{self.model.cfg.model_name} predicts NaN or infinity at noise level {level:g}, first for clip {clip}:"
                " its error is no number"
            )
        return x0

    def _distance(
        self, one: torch.Tensor, other: torch.Tensor, clips: slice = slice(None)
    ) -> Float[torch.Tensor, " clip"]:
        square = (one - other).square()
        if self.region is None:
            return square.mean((1, 2, 3, 4)) / self.variance
        mask = self.region_mask[clips][:, self.target].expand_as(square)
        return (square * mask).sum((1, 2, 3, 4)) / mask.sum((1, 2, 3, 4)) / self.variance

    # Noise levels

    def _levels(self, given: Any) -> dict[Any, Float[torch.Tensor, "clip frame"]]:
        """Noise levels of every frame, by what they are called."""
        shape = self.shape[:2]
        if given is None:
            return {}
        if isinstance(given, torch.Tensor):
            if tuple(given.shape) not in (shape, shape[1:]):
                raise ValueError(f"noise_levels {list(given.shape)}: a level for every frame is needed, {list(shape)}")
            self.model.timestep(given)  # refuses what is no share
            levels = given.float().expand(shape)
            self.context = (levels == 0).all(0).nonzero()[:, 0].tolist()
            return {"given": levels}
        if isinstance(given, float):
            given = (given,)
        if isinstance(self.pipe, ModelOnly):
            raise ValueError("noise is added by the pipeline; a bare model takes a tensor with a level for every frame")
        check_levels(given, self.pipe)
        noised = torch.isin(torch.arange(self.n_frames), torch.tensor(self.target))
        return {float(level): (noised * float(level)).expand(shape) for level in given}

    @property
    def _noised(self) -> Bool[torch.Tensor, "clip frame"]:
        """Frames that a run has to find; of a bare model all that it predicts."""
        if isinstance(self.pipe, ModelOnly):
            return torch.ones(len(self), self.n_frames, dtype=torch.bool)
        if self.levels:
            return torch.stack([levels > 0 for levels in self.noise_levels.values()]).any(0)
        return torch.isin(torch.arange(self.n_frames), torch.tensor(self.target)).expand(len(self), -1)


Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def on_noised_clips(analysis: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """An analysis whose first argument is `noised`; given anything else it raises `ValueError` before it starts."""

    @functools.wraps(analysis)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        if args or "noised" in kwargs:
            check_noised(args[0] if args else kwargs["noised"])
        return analysis(*args, **kwargs)

    return checked


def check_noised(noised: Any) -> None:
    """Raise `ValueError` for anything but NoisedClips whose target is at one noise level at a time."""
    wanted = "vd.NoisedClips(pipe, clips, noise_levels=(0.3, 0.9))"
    if not isinstance(noised, NoisedClips):
        raise ValueError(f"noised is {type(noised).__name__}; give {wanted}")
    if not noised.levels or "given" in noised.levels:
        raise ValueError(
            f"noised has {'levels of its own for every frame' if noised.levels else 'no noise levels'}: "
            f"this takes one at a time, {wanted}"
        )


def checkpoint(pipe: VideoDiffusion) -> dict[str, Any]:
    """Which checkpoint along training it is, for a model that was loaded from a folder."""
    if "checkpoint" not in pipe.meta:
        return {}
    return {"checkpoint": "last" if pipe.meta["checkpoint"] is None else pipe.meta["checkpoint"]}


def weights_id(model: HookedVideoDiT) -> str:
    """The first 12 digits of the model's identity: says which network it was, whatever its name."""
    return model.identity[:12]
