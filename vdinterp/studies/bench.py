"""Bench: one model, one set of clips, one noise; measures conditions on them and remembers what it has measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float

from vdinterp import store
from vdinterp.analysis import deviation, motion_error, psnr, sharpness, ssim, x0_error
from vdinterp.analysis.stimulus.fit import frames_seen
from vdinterp.analysis.stimulus.latents import say_no_pixels
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, checkpoint, weights_id
from vdinterp.analysis.stimulus.reliability import Reliability, round_trip
from vdinterp.checks.counts import check_count
from vdinterp.conditions import NO_CONDITION, missing
from vdinterp.data import Clips
from vdinterp.pipeline import VideoDiffusion
from vdinterp.results import Result
from vdinterp.store import Ledger, key_of
from vdinterp.studies.clips import judged
from vdinterp.studies.conditions import INTACT, Condition
from vdinterp.studies.references import References
from vdinterp.studies.trials import Trials
from vdinterp.words.wording import plural

IN_LATENTS = ("x0 error", "motion error")
IN_PIXELS: dict[str, Any] = {"sharpness": sharpness, "PSNR": psnr, "SSIM": ssim}
METRICS = (*IN_LATENTS, *IN_PIXELS)
REFERENCES = ("truth", "intact")


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
        n_context: clean frames given. `steps`: denoising steps of an intact sample. `noise_levels`: shares in (0, 1]
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
        noise_levels: Sequence[float] = (0.6, 0.9),
        seed: int = 0,
        batch: int = 16,
        ledger: Ledger | None = None,
    ) -> None:
        if n_context < 1:
            raise ValueError(f"n_context={n_context}: a study continues clips, so n_context >= 1 is needed")
        shared: Any = {"n_context": n_context, "batch": batch}
        self.stimulus = NoisedClips(pipe, clips, noise_levels, seed=seed, **shared)
        self.n_frames = self.stimulus.n_frames
        if frames_seen(pipe, reference) < self.n_frames:
            raise ValueError(f"reference clips have {reference.n_frames} frames, the clips {self.n_frames}: too few")
        without = None if self.stimulus.cond else NO_CONDITION
        self.others = NoisedClips(
            pipe, reference, noise_levels, n_frames=self.n_frames, seed=seed + 1, cond=without, **shared
        )
        if self.others.size != self.stimulus.size:
            sizes = ["x".join(map(str, one.size)) for one in (self.others, self.stimulus)]
            raise ValueError(f"reference clips are {sizes[0]} latents, the clips {sizes[1]}: give some of one size")
        self.steps = check_count("steps", steps, high=pipe.diffusion.n_levels, why="the model's noise levels")
        self.pipe, self.clips, self.reference = pipe, clips, reference
        self.n_context, self.seed, self.batch, self.levels = n_context, seed, batch, self.stimulus.levels
        self.ledger = Ledger(None) if ledger is None else ledger
        self.references = References(self)
        self.about: dict[str, Any] = {}

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
        (intact,) = self._measured([INTACT])
        scores = intact.scores["x0 error", "truth"]
        distance = x0_error(still, self.truth[:, n:], self.variance).double()
        return Reliability(
            model=self.pipe.model.cfg.model_name,
            errors={plural(self.steps, "denoising step"): float(scores.nanmean(1).nanmean())},
            still=float(distance.masked_fill(~self.judged, torch.nan).nanmean(1).nanmean()),
            round_trip=None if self.clips.video is None else round_trip(self.pipe, self.stimulus.video, self.truth),
            without=missing(self.stimulus.cond, self.pipe.model.cfg),
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
        """Every condition on every clip, with a progress bar; what is in the ledger is not computed again.

        What is done to the model are trials of a sweep, one a pass: they begin where they change something, and their
        numbers are bitwise those of whole runs.
        """
        if self.pipe.vae is None:
            say_no_pixels(self.pipe.model.cfg.model_name)
        return self._measured(conditions, desc, progress=True)

    def _measured(
        self, conditions: Sequence[Condition], desc: str = "study", progress: bool = False
    ) -> list[Measurement]:
        groups: dict[tuple[str, int], list[Condition]] = {}
        for one in conditions:
            groups.setdefault(self._group(one), []).extend([] if one.protocol == "given" else [one])
        trials = {key: Trials(self, *key, group) for key, group in groups.items()}  # all checked before any is run
        for (protocol, _), group in trials.items():
            group.do(f"{desc}, {protocol}", progress)
        parts = [
            self._given(one, trials[self._group(one)])
            if one.protocol == "given"
            else trials[self._group(one)].values(one)
            for one in conditions
        ]
        return [self._measurement(one, part) for one, part in zip(conditions, parts, strict=True)]

    def _group(self, condition: Condition) -> tuple[str, int]:
        """Protocol and steps of the run that a condition changes, or is made or compared beside."""
        protocol = "denoise" if condition.protocol == "denoise" else "sample"
        return protocol, condition.steps if condition.steps and condition.interventions else self.steps

    def _given(self, condition: Condition, sampled: Trials) -> list[Mapping[str, torch.Tensor]]:
        """Scores of latents that come from no model."""

        def compute(clips: slice, intact: torch.Tensor) -> Mapping[str, torch.Tensor]:
            assert condition.latents is not None
            target = condition.latents(self, clips)[:, self.n_context :].float().cpu()
            return {**self.scores(target, clips, intact, self.pixels(intact, clips)), "latents": target}

        return [
            self.ledger.get(
                key_of("given", condition, clips.start, clips.stop), partial(compute, clips, values["latents"])
            )
            for clips, values in zip(self.batches, sampled.values(INTACT), strict=True)
        ]

    def _measurement(self, condition: Condition, parts: Sequence[Mapping[str, torch.Tensor]]) -> Measurement:
        """`parts`: one a batch, noise level by noise level; scores are means over the levels."""
        n = len(self.batches)
        levels = [parts[first : first + n] for first in range(0, len(parts), n)]
        scores = {
            (metric, reference): torch.stack(
                [torch.cat([part[f"{metric}/{reference}"] for part in level]) for level in levels]
            )
            .mean(0)
            .double()
            for metric in self.metrics
            for reference in REFERENCES
        }
        latents = torch.cat([part["latents"] for part in parts]) if "latents" in parts[0] else None
        return Measurement(condition, scores, latents)

    def result(self, name: str, compute: Callable[[], Result]) -> Result:
        """A whole result, recorded in a folder of its own called `name`, or `compute()`."""
        if self.ledger.folder is None:
            return compute()
        folder = self.ledger.folder / name
        if not store.find(folder, "result.json").is_file():
            compute().save(folder)
        return Result.load(folder)

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

    @property
    def has_cond(self) -> bool:
        """Whether the model takes actions and the clips have them."""
        return self.stimulus.has_actions

    def pixels(self, target: torch.Tensor, clips: slice) -> torch.Tensor | None:
        """The video frames of target frames `[batch video_frame ..]`; None without a VAE. One that compresses time
        decodes them behind their context."""
        if self.pipe.vae is None:
            return None
        if self.pipe.frame_map.time_compression == 1:
            return self.decode(target)
        return self.decode(torch.cat([self.truth[clips, : self.n_context], target], 1))[:, self._first :]

    @property
    def _first(self) -> int:
        """The first video frame of the target."""
        return self.pipe.frame_map.n_video(self.n_context)

    def scores(
        self, target: torch.Tensor, clips: slice, intact: torch.Tensor, intact_video: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Every metric against the truth and against the intact model, NaN on frames that cannot be judged; those of
        pixels as means over the video frames of a frame."""
        n, rate = self.n_context, self.pipe.frame_map.time_compression
        truth, before = self.truth[clips], self.truth[clips, n - 1 : n]
        video = self.pixels(target, clips)
        shown = None if video is None else self.stimulus.video[clips, self._first :]
        scores = {}
        for name, latents, pixels in (("truth", truth[:, n:], shown), ("intact", intact, intact_video)):
            scores[f"x0 error/{name}"] = x0_error(target, latents, self.variance)
            scores[f"motion error/{name}"] = motion_error(target, latents, before, self.motion_scale)
            for metric, measure in IN_PIXELS.items() if video is not None else ():
                scores[f"{metric}/{name}"] = measure(video, pixels).unflatten(1, (-1, rate)).mean(-1)
        unknown = ~self.judged[clips]
        return {name: score.masked_fill(unknown, torch.nan) for name, score in scores.items()}
