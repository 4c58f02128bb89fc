"""Bench: one model, one set of clips, one noise; measures conditions on them and remembers what it has measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from vdinterp.analysis import deviation, motion_error, psnr, sharpness, ssim, x0_error
from vdinterp.analysis.stimulus.fit import frames_seen
from vdinterp.analysis.stimulus.latents import say_no_pixels
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, checkpoint, weights_id
from vdinterp.analysis.stimulus.reliability import Reliability, round_trip
from vdinterp.checks.counts import check_count
from vdinterp.conditions import NO_CONDITION
from vdinterp.data import Clips
from vdinterp.interventions import Intervention, check_interventions, hooks_of
from vdinterp.pipeline import VideoDiffusion
from vdinterp.pipeline.sampling import make_plan
from vdinterp.studies.clips import judged
from vdinterp.studies.conditions import INTACT, INTACT_DENOISE, Condition
from vdinterp.studies.ledger import Ledger, Tensors
from vdinterp.studies.references import References
from vdinterp.words.wording import plural

log = logging.getLogger("vdinterp")

IN_LATENTS = ("x0 error", "motion error")
IN_PIXELS: dict[str, Any] = {"sharpness": sharpness, "PSNR": psnr, "SSIM": ssim}
METRICS = (*IN_LATENTS, *IN_PIXELS)
REFERENCES = ("truth", "intact")


@dataclass(frozen=True, eq=False)
class Moment:
    """Where interventions are about to be applied: which clips (a slice of the bench's) and, outside sampling, which
    noise level their target frames have."""

    bench: Bench
    clips: slice
    level: float | None = None


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a condition did. `scores[metric, reference]` `[batch frame]` over target frames, NaN where a frame cannot be
    judged; `latents` of the target frames `[batch frame channel height width]` (None for protocol "denoise")."""

    condition: Condition
    scores: Mapping[tuple[str, str], Float[torch.Tensor, "batch frame"]]
    latents: torch.Tensor | None = field(default=None, repr=False)


class Bench:
    """Everything that the conditions of a study share.

    Args:
        pipe: the model. `clips`: what it is judged on. `reference`: other clips, over which means are taken.
        n_context: clean frames given. `steps`: denoising steps of an intact sample. `levels`: noise levels in (0, 1]
            of protocol "denoise".
        seed: of the noise; clip `i` has the same noise under every condition.
        batch: clips a forward pass.
        ledger: where measurements are remembered (default: in memory).

    Raises ValueError before any compute when clips, model and settings do not fit together.
    """

    def __init__(
        self,
        pipe: VideoDiffusion,
        clips: Clips,
        reference: Clips,
        *,
        n_context: int,
        steps: int = 8,
        levels: Sequence[float] = (0.6, 0.9),
        seed: int = 0,
        batch: int = 16,
        ledger: Ledger | None = None,
    ) -> None:
        if n_context < 1:
            raise ValueError(f"n_context={n_context}: a study continues clips, so n_context >= 1 is needed")
        shared: Any = {"n_context": n_context, "batch": batch}
        self.stimulus = NoisedClips(pipe, clips, levels, seed=seed, **shared)
        self.n_frames = self.stimulus.n_frames
        if frames_seen(pipe, reference) < self.n_frames:
            raise ValueError(f"reference clips have {reference.n_frames} frames, the clips {self.n_frames}: too few")
        without = None if self.stimulus.cond else NO_CONDITION
        self.others = NoisedClips(
            pipe, reference, levels, n_frames=self.n_frames, seed=seed + 1, cond=without, **shared
        )
        self.steps = check_count("steps", steps, high=pipe.diffusion.n_levels, why="the model's noise levels")
        self.pipe, self.clips, self.reference = pipe, clips, reference
        self.n_context, self.seed, self.batch, self.levels = n_context, seed, batch, self.stimulus.levels
        self.ledger = Ledger(None, {}) if ledger is None else ledger
        self.references = References(self)
        self._intact_video: dict[tuple[str, int], list[torch.Tensor | None]] = {}
        self.about: dict[str, Any] = {}
        self._bar: tqdm | None = None

    # What is judged

    @property
    def truth(self) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Normalised latents of the clips, all frames."""
        return self.stimulus.latents

    @property
    def noise(self) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Standard normal noise of every clip, the same for all conditions; a function of (seed, index of the clip)."""
        return self.stimulus.noise

    @cached_property
    def judged(self) -> Bool[torch.Tensor, "batch frame"]:
        """Which target frames follow from the context."""
        return judged(self.stimulus, self.n_context)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured: of a model without VAE nothing in pixels."""
        return METRICS if self.pipe.vae is not None else IN_LATENTS

    @cached_property
    def mean_frame(self) -> Float[torch.Tensor, "channel height width"]:
        """The best constant guess: mean over the reference clips (or these clips, if they are of another kind)."""
        same = self.reference.kind == self.clips.kind
        return (self.others.latents if same else self.truth).mean((0, 1))

    @cached_property
    def variance(self) -> float:
        """Mean squared distance of the judged frames to the mean frame; the unit of x0 errors."""
        return float(deviation(self.truth[:, self.n_context :], self.mean_frame)[self.judged].double().mean())

    @cached_property
    def motion_scale(self) -> float:
        """Mean square of the true frame differences; the unit of motion errors."""
        moves = self.truth.diff(dim=1)[:, self.n_context - 1 :].square().mean((2, 3, 4))
        return float(moves[self.judged].double().mean())

    @cached_property
    def reliability(self) -> Reliability:
        """Whether the model works on these clips: the intact sample against guesses that need no model."""
        n = self.n_context
        still = self.truth[:, n - 1 : n].expand_as(self.truth)[:, n:]
        scores = self._measure(INTACT).scores["x0 error", "truth"]
        distance = x0_error(still, self.truth[:, n:], self.variance).double()
        return Reliability(
            model=self.pipe.model.cfg.model_name,
            errors={plural(self.steps, "denoising step"): float(scores.nanmean(1).nanmean())},
            still=float(distance.masked_fill(~self.judged, torch.nan).nanmean(1).nanmean()),
            round_trip=None if self.clips.video is None else round_trip(self.pipe, self.stimulus.video, self.truth),
            without_actions=self.pipe.model.cfg.d_action > 0 and not self.has_cond,
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to pixels in [0, 1], on the CPU."""
        with torch.no_grad():
            return torch.cat([self.pipe.decode(part).float().cpu() for part in latents.split(self.batch)])

    @property
    def batches(self) -> list[slice]:
        return self.stimulus.batches

    # Measuring

    def measure(self, conditions: Sequence[Condition], desc: str = "study") -> list[Measurement]:
        """Every condition on every clip, with a progress bar; what is in the ledger is not computed again."""
        if self.pipe.vae is None:
            say_no_pixels(self.pipe.model.cfg.model_name)
        for condition in conditions:
            self._check_acting(condition)
        total = sum(self._cost(condition) for condition in conditions) * len(self.batches)
        done = sum(
            self._cost(condition)
            for condition in conditions
            for batch in self.batches
            if self._key(condition, batch) in self.ledger
        )
        if done:
            log.info("%s: %d of %d passes found in %s", desc, done, total, self.ledger.folder or "memory")
        with tqdm(total=total, initial=done, desc=desc, unit="pass", smoothing=0.05) as self._bar:
            found = [self._measure(condition) for condition in conditions]
        self._bar = None
        return found

    def _check_acting(self, condition: Condition) -> None:
        """Raise ValueError for interventions that act in no step, or at none of the noise levels, of a condition; those
        that are made for the clips at hand are seen when they are made."""
        given, cfg = condition.interventions, self.pipe.model.cfg
        if callable(given) or not given:
            return
        levels = torch.stack([levels[0] for levels in self.stimulus.noise_levels.values()])
        try:
            if condition.protocol == "sample":
                context = torch.zeros(1, self.n_context, cfg.in_channels, cfg.height, cfg.width)
                steps, cond = condition.steps or self.steps, self.stimulus.cond[:1]
                make_plan(self.pipe, context, self.n_frames, steps=steps, interventions=given, cond=cond)
            elif condition.protocol == "denoise":
                for one in check_interventions(given):
                    one.check_acts(self.pipe.model, [(None, levels)])
        except ValueError as error:
            raise ValueError(f"{condition.label}: {error}") from error

    def _is_intact(self, condition: Condition) -> bool:
        steps = condition.steps in (None, self.steps)
        return not condition.interventions and steps and condition.protocol != "given"

    def settings(self) -> dict[str, Any]:
        """How the numbers were made, for the `meta` of a result."""
        cfg = self.pipe.model.cfg
        return {
            "model": cfg.model_name,
            **checkpoint(self.pipe),
            "weights": weights_id(self.pipe.model),
            "clips": f"{plural(len(self.clips), 'clip')} of kind {self.clips.kind}",
            "frames": self.n_frames,
            "context frames": self.n_context,
            "steps": self.steps,
            "levels": list(self.levels),
            "seed": self.seed,
            "variance": self.variance,
            "motion scale": self.motion_scale,
            "judged frames": int(self.judged.sum()),
            **self.reliability.meta(),
            **self.about,
        }

    def _cost(self, condition: Condition) -> int:
        """Forward passes a batch."""
        if condition.steps == self.steps and self._is_intact(condition):
            return 0  # the intact sample itself
        return {"sample": condition.steps or self.steps, "denoise": len(self.levels), "given": 0}[condition.protocol]

    def _measure(self, condition: Condition) -> Measurement:
        if self._bar is not None:
            self._bar.set_postfix_str(condition.label[:40], refresh=False)
        parts = [self._batch(condition, batch) for batch in self.batches]
        scores = {
            (metric, reference): torch.cat([part[f"{metric}/{reference}"] for part in parts]).double()
            for metric in self.metrics
            for reference in REFERENCES
        }
        latents = torch.cat([part["latents"] for part in parts]) if "latents" in parts[0] else None
        return Measurement(condition, scores, latents)

    def _batch(self, condition: Condition, clips: slice) -> Tensors:
        """Scores (and generated latents) of one condition on one batch of clips, from the ledger if they are there."""
        key = self._key(condition, clips)
        known = key in self.ledger  # counted before the start
        found = self.ledger.get(key, lambda: self._compute(condition, clips))
        if self._bar is not None and not known:
            self._bar.update(self._cost(condition))
        return found

    @staticmethod
    def _key(condition: Condition, clips: slice) -> tuple[Any, ...]:
        return ("measurement", condition, clips.start, clips.stop)

    def _compute(self, condition: Condition, clips: slice) -> Tensors:
        protocol = "denoise" if condition.protocol == "denoise" else "sample"
        intact = self._intact(protocol, clips)
        made = intact if self._is_intact(condition) else self._make(condition, clips)
        if (protocol, clips.start) not in self._intact_video:
            self._intact_video[protocol, clips.start] = [self._pixels(latents, clips) for latents in intact]
        pictures = self._intact_video[protocol, clips.start]
        scores = [self._scores(*one, clips) for one in zip(made, intact, pictures, strict=True)]
        out = {name: torch.stack([score[name] for score in scores]).mean(0) for name in scores[0]}
        return out if condition.protocol == "denoise" else {**out, "latents": made[0]}

    def _intact(self, protocol: str, clips: slice) -> list[torch.Tensor]:
        """What the untouched model makes of these clips; computed once."""
        condition = INTACT_DENOISE if protocol == "denoise" else INTACT
        made = self.ledger.get(
            ("intact", protocol, clips.start, clips.stop),
            lambda: {str(index): latents for index, latents in enumerate(self._make(condition, clips))},
        )
        return [made[str(index)] for index in range(len(made))]

    def _make(self, condition: Condition, clips: slice) -> list[torch.Tensor]:
        """Target latents `[batch frame channel height width]`: one generated clip, or one x0 estimate a noise level."""
        if condition.protocol == "denoise":
            made = [self._denoise(condition, clips, level) for level in self.levels]
        elif condition.protocol == "sample":
            made = [self._sample(condition, clips)]
        else:
            assert condition.latents is not None
            made = [condition.latents(self, clips)]
        return [latents[:, self.n_context :].float().cpu() for latents in made]

    def _sample(self, condition: Condition, clips: slice) -> torch.Tensor:
        return self.pipe.sample(
            self.truth[clips, : self.n_context],
            self.n_frames,
            steps=condition.steps or self.steps,
            noise=self.noise[clips],
            interventions=self._interventions(condition, Moment(self, clips)),
            cond=self.stimulus.cond[clips],
        ).latents

    @torch.no_grad()
    def _denoise(self, condition: Condition, clips: slice, level: float) -> torch.Tensor:
        interventions = self._interventions(condition, Moment(self, clips, level))
        with self.pipe.model.hooks(hooks_of(interventions, self.pipe.model)):
            return self.pipe.denoise(*self.stimulus.inputs(level, clips))

    @staticmethod
    def _interventions(condition: Condition, moment: Moment) -> Sequence[Intervention]:
        given = condition.interventions
        return given(moment) if callable(given) else given

    @property
    def has_cond(self) -> bool:
        """Whether the model takes actions and the clips have them."""
        return self.stimulus.has_actions

    def _pixels(self, target: torch.Tensor, clips: slice) -> torch.Tensor | None:
        """The video frames of target frames `[batch video_frame ..]`; None without a VAE. One that compresses time
        decodes them behind their context."""
        frames = self.pipe.frame_map
        if self.pipe.vae is None:
            return None
        if frames.time_compression == 1:
            return self.decode(target)
        return self.decode(torch.cat([self.truth[clips, : self.n_context], target], 1))[:, self._first :]

    @property
    def _first(self) -> int:
        """The first video frame of the target."""
        return self.pipe.frame_map.n_video(self.n_context)

    def _scores(
        self, target: torch.Tensor, intact: torch.Tensor, intact_video: torch.Tensor | None, clips: slice
    ) -> Tensors:
        """Every metric against the truth and against the intact model, NaN on frames that cannot be judged; those of
        pixels as means over the video frames of a frame."""
        n, rate = self.n_context, self.pipe.frame_map.time_compression
        truth, before = self.truth[clips], self.truth[clips, n - 1 : n]
        video = self._pixels(target, clips)
        shown = None if video is None else self.stimulus.video[clips, self._first :]
        scores = {}
        for name, latents, pixels in (("truth", truth[:, n:], shown), ("intact", intact, intact_video)):
            scores[f"x0 error/{name}"] = x0_error(target, latents, self.variance)
            scores[f"motion error/{name}"] = motion_error(target, latents, before, self.motion_scale)
            for metric, measure in IN_PIXELS.items() if video is not None else ():
                scores[f"{metric}/{name}"] = measure(video, pixels).unflatten(1, (-1, rate)).mean(-1)
        unknown = ~self.judged[clips]
        return {name: score.masked_fill(unknown, torch.nan) for name, score in scores.items()}
