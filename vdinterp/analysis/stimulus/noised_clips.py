"""NoisedClips: clips as a model sees them at some noise levels. What every statistic of attention is measured on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from numbers import Real
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Float

from vdinterp.analysis.stimulus.latents import latents_of, video_of
from vdinterp.analysis.stimulus.reliability import Reliability, round_trip
from vdinterp.checks.counts import check_count, check_seed
from vdinterp.data import Clips
from vdinterp.data.clips import say_cut
from vdinterp.diffusion import SeededNoise
from vdinterp.interventions import Intervention
from vdinterp.models import ActivationCache, AttentionPattern, HookedVideoDiT
from vdinterp.models.hooks import Names
from vdinterp.pipeline import VideoDiffusion
from vdinterp.progress import bar
from vdinterp.store import fingerprint
from vdinterp.sweep import Inputs
from vdinterp.words.wording import plural

log = logging.getLogger("vdinterp")


class NoisedClips:
    """Clips whose first `n_context` frames are clean and whose other frames, the target, are at one noise level.

    >>> noised = NoisedClips(pipe, clips, noise_levels=(0.3, 0.6, 0.9))
    >>> vd.analysis.frame_mass(noised).plot()

    Args:
        pipe: the model. `clips`: with actions where the model takes them (else it runs without, and a warning is
            logged once).
        noise_levels: shares of noise in (0, 1], each measured apart.
        n_context: clean frames; default all but the last. 0 noises every frame.
        seed: of the noise; a clip has the same noise at every level and under every intervention.
        batch: clips a forward pass.

    Raises ValueError before any compute when clips, model and settings do not fit together.
    """

    def __init__(
        self,
        pipe: VideoDiffusion,
        clips: Clips,
        *,
        noise_levels: Sequence[float] = (0.9,),
        n_context: int | None = None,
        seed: int = 0,
        batch: int = 16,
        **old: Any,
    ) -> None:
        for name in old:
            raise TypeError(f"{name}=: NoisedClips takes noise_levels, n_context, seed and batch")
        if not isinstance(pipe, VideoDiffusion) or not isinstance(clips, Clips):
            raise ValueError(
                "NoisedClips takes a pipeline and clips (vd.load(..), vd.data.make_clips(..)), got "
                f"{type(pipe).__name__} and {type(clips).__name__}"
            )
        self.n_frames = min(clips.n_frames, pipe.model.cfg.n_frames)
        if n_context is not None:
            check_count("n_context", n_context, 0)
        self.n_context = self.n_frames - 1 if n_context is None else n_context
        check_fit(pipe, clips, self.n_context)
        say_cut(clips.n_frames, self.n_frames, pipe.model.cfg.model_name)
        check_levels(noise_levels, pipe)
        check_count("batch", batch)
        check_seed(seed)
        self.pipe, self.clips, self.seed, self.batch = pipe, clips, seed, batch
        self.levels = tuple(float(level) for level in noise_levels)
        if clips.n_frames > self.n_frames:
            log.info(
                "of %d frames of the clips the first %d are used, as many as %s takes",
                clips.n_frames, self.n_frames, self.model.cfg.model_name,
            )  # fmt: skip
        if self.model.cfg.d_action and clips.action is None:
            _warn_without_actions(self.model.cfg.model_name)

    def __repr__(self) -> str:
        return (
            f"NoisedClips({len(self.clips)} {self.clips.kind} clips of {self.n_frames} frames, {self.n_context} of "
            f"them clean, the others at {', '.join(f'{level:g}' for level in self.levels)}, "
            f"for {self.pipe.model.cfg.model_name})"
        )

    @property
    def model(self) -> Any:
        return self.pipe.model

    @property
    def grid(self) -> Any:
        """How the tokens of these clips lie."""
        return self.model.grid(self.n_frames)

    @property
    def has_actions(self) -> bool:
        """Whether the model takes actions and the clips have them."""
        return self.model.cfg.d_action > 0 and self.clips.action is not None

    @property
    def target(self) -> list[int]:
        """The noised frames."""
        return list(range(self.n_context, self.n_frames))

    @property
    def target_tokens(self) -> Bool[torch.Tensor, "pos"]:
        return self.grid.frame_of() >= self.n_context

    @cached_property
    def latents(self) -> Float[torch.Tensor, "clip frame channel height width"]:
        """Normalised latents of the clips."""
        return latents_of(self.pipe, self.clips, self.n_frames, self.batch)

    @cached_property
    def video(self) -> Float[torch.Tensor, "clip frame channel height width"]:
        """Pixels of the clips, decoded where the clips are latents. ValueError where there is no VAE to do so."""
        return video_of(self.pipe, self.clips, self.n_frames, self.batch)

    @cached_property
    def noise(self) -> Float[torch.Tensor, "clip frame channel height width"]:
        return SeededNoise(self.seed, [(index,) for index in range(len(self.clips))]).initial(self.latents.shape)

    @cached_property
    def variance(self) -> float:
        """Mean squared distance of all frames to their mean frame: the unit of changes and errors of x0."""
        found = float((self.latents - self.latents.mean((0, 1))).square().mean())
        if not found > 0:
            raise ValueError(
                f"{self!r}: every frame is the same, so errors have no unit; give clips that show something"
            )
        return found

    @cached_property
    def reliability(self) -> Reliability:
        """Whether the model works on these clips, by its errors on the first few of them; one pass a noise level."""
        few = self.batches[0]
        latents, n = self.latents[few], self.n_context
        try:
            unit = self.variance
        except ValueError:  # clips that all look the same: errors have no unit
            unit = 0.0
        errors, still = {}, None
        if unit:
            for level in self.levels:
                with torch.no_grad():
                    x0 = self.pipe.denoise(*self.inputs(level, few))[:, n:].float().cpu()
                errors[f"noise level {level:g}"] = float(self._distance(x0, latents[:, n:]).mean())
            still = float(self._distance(latents[:, n - 1 : n], latents[:, n:]).mean()) if n else None
        video = self.clips.video
        return Reliability(
            model=self.model.cfg.model_name,
            errors=errors,
            still=still,
            round_trip=round_trip(self.pipe, None if video is None else video[few, : self.n_frames], latents),
            without_actions=self.model.cfg.d_action > 0 and not self.has_actions,
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
            "clips": f"{plural(len(self.clips), 'clip')} of kind {self.clips.kind}",
            "frames": self.n_frames,
            "context frames": self.n_context,
            "levels": list(self.levels),
            "seed": self.seed,
            **self.reliability.meta(),
            **more,
        }

    # Forward passes

    def inputs(self, level: float, clips: slice | torch.Tensor = slice(None)) -> Inputs:
        """`(noisy, noise_levels, cond)`: plain tensors, as `pipe.denoise` takes them; `cond` None without actions.

        >>> x0 = pipe.denoise(*noised.inputs(0.9))

        Raises ValueError for a level that is none of `levels`.
        """
        if level not in self.levels:
            raise ValueError(f"level {level} is none of {self.levels}")
        latents = self.latents[clips]
        noise_levels = torch.zeros(latents.shape[:2])
        noise_levels[:, self.n_context :] = level
        action = self.clips.action if self.has_actions else None
        return Inputs(
            self.pipe.add_noise(latents, noise_levels, self.noise[clips]), noise_levels,
            None if action is None else action[clips, : self.n_frames],
        )  # fmt: skip

    @property
    def batches(self) -> list[slice]:
        starts = range(0, len(self.clips), self.batch)
        return [slice(start, min(start + self.batch, len(self.clips))) for start in starts]

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

    def patterns(self, level: float) -> Iterator[list[AttentionPattern]]:
        """The self-attention pattern of every layer, for one batch of clips after the other."""
        for cache in self.caches(level, ["rot_q", "rot_k"]):
            yield [cache["pattern", layer] for layer in range(self.model.cfg.n_layers)]

    def uniform_pattern(self, layer: int) -> AttentionPattern:
        """Uniform attention over what the layer's own mask allows, of one clip and head: any statistic's chance."""
        attention = self.model.sublayer(layer)
        nothing = torch.zeros(1, self.grid.n_tokens, 1, attention.d_head, device=self.pipe.device)
        return attention.pattern(nothing, nothing, self.grid)

    def mean_outputs(self, level: float) -> dict[str, Float[torch.Tensor, "1 1 head d_head"]]:
        """Mean of every layer's `hook_z` over clips, frames and positions, by hook name: for mean ablation."""
        total: dict[str, torch.Tensor] = {}
        for cache in self.caches(level, ["z"]):
            for name in cache:
                z = cache[name].float()
                total[name] = total.get(name, 0.0) + z.mean(1, keepdim=True).sum(0, keepdim=True)
        return {name: value / len(self.clips) for name, value in total.items()}

    @torch.no_grad()
    def x0(self, level: float, *interventions: Intervention) -> Float[torch.Tensor, "clip frame channel height width"]:
        """The estimate of the clean target frames."""
        with self.model.intervene(*interventions):
            made = [self.pipe.denoise(*self.inputs(level, clips)) for clips in self._passes(level)]
        return torch.cat([part[:, self.n_context :].float().cpu() for part in made])

    def x0_error(self, level: float, *interventions: Intervention) -> Float[torch.Tensor, " clip"]:
        """Squared error of that estimate over the variance: 0 perfect, about 1 what the mean frame gets."""
        return self._distance(self.x0(level, *interventions), self.latents[:, self.n_context :])

    def x0_change(self, level: float, *interventions: Intervention) -> Float[torch.Tensor, " clip"]:
        """How far interventions move that estimate: squared distance to the untouched one over the variance."""
        if level not in self._intact:
            self._intact[level] = self.x0(level)
        return self._distance(self.x0(level, *interventions), self._intact[level])

    @cached_property
    def _intact(self) -> dict[float, torch.Tensor]:
        return {}

    def _distance(self, one: torch.Tensor, other: torch.Tensor) -> Float[torch.Tensor, " clip"]:
        return (one - other).square().mean((1, 2, 3, 4)) / self.variance


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
    """Raise `ValueError` for anything but NoisedClips."""
    if not isinstance(noised, NoisedClips):
        raise ValueError(
            f"noised is {type(noised).__name__}; give vd.NoisedClips(pipe, clips, noise_levels=(0.3, 0.9))"
        )


def checkpoint(pipe: VideoDiffusion) -> dict[str, Any]:
    """Which checkpoint along training it is, for a model that was loaded from a folder."""
    if "checkpoint" not in pipe.meta:
        return {}
    return {"checkpoint": "last" if pipe.meta["checkpoint"] is None else pipe.meta["checkpoint"]}


def weights_id(model: HookedVideoDiT) -> str:
    """The first 12 digits of the content hash of the model's weights: says which network it was, whatever its name."""
    return fingerprint(model.state_dict())[:12]


@functools.cache
def _warn_without_actions(model_name: str) -> None:
    log.warning("%s takes actions and these clips have none: it runs without", model_name)


def check_levels(levels: Sequence[float], pipe: VideoDiffusion | None = None) -> None:
    """Raise `ValueError` unless there are noise levels, in (0, 1], each once; none that is clean to the model."""
    if not isinstance(levels, Sequence):
        raise ValueError(f"levels is {levels!r}; give a list or tuple of noise levels, for example ({levels!r},)")
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


def check_fit(pipe: VideoDiffusion, clips: Clips, n_context: int, what: str = "clips") -> None:
    """Raise `ValueError` unless the model can denoise the clips after `n_context` frames. Encodes one frame to see."""
    cfg = pipe.model.cfg
    if cfg.d_text:
        raise ValueError(
            f"{cfg.model_name} takes text, and {what} have none: statistics on clips are for models without"
        )
    n_frames = min(clips.n_frames, cfg.n_frames)
    if n_context < 0 or n_frames <= n_context:
        raise ValueError(
            f"{what} have {clips.n_frames} frames (used: {n_frames}, as {cfg.model_name} sees at most {cfg.n_frames}); "
            f"n_context={n_context} of them are given: at least {max(n_context, 0) + 1} are needed, and n_context >= 0"
        )
    size = (cfg.in_channels, cfg.height, cfg.width)
    if clips.encoded is None:
        _check_video(pipe, clips.pixels, size, what)
    elif tuple(clips.encoded.shape[2:]) != size:
        raise ValueError(
            f"{what} are latents of {list(clips.encoded.shape[2:])} (channel height width); {cfg.model_name} takes "
            f"{list(size)}"
        )
    if cfg.d_action and clips.action is not None and clips.action.shape[-1] != cfg.d_action:
        raise ValueError(
            f"{what} have actions of width {clips.action.shape[-1]}, {cfg.model_name} takes {cfg.d_action}"
        )


def _check_video(pipe: VideoDiffusion, video: torch.Tensor, size: tuple[int, int, int], what: str) -> None:
    cfg = pipe.model.cfg
    if pipe.vae is None:
        raise ValueError(
            f"{what} are videos, but this pipeline has no VAE: load the model with vae=..., or give latents that were "
            "made with it (Clips(kind=.., encoded=latents))"
        )
    with torch.no_grad():
        try:
            latents = pipe.encode(video[:1, :1])
        except ValueError as error:
            raise ValueError(f"{what} of shape {list(video.shape)} do not fit {cfg.model_name}: {error}") from error
        if tuple(latents.shape[2:]) != size:
            wanted = list(pipe.decode(torch.zeros(1, 1, *size)).shape[2:])
            raise ValueError(
                f"{what} have frames of {list(video.shape[2:])} (channel height width); {cfg.model_name} takes {wanted}"
            )
