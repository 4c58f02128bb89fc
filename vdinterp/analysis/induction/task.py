"""Task: repeats as a model sees them, and what it predicts and attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float

from vdinterp.analysis.stimulus.latent_clips import LatentClips
from vdinterp.analysis.stimulus.latents import pictures_of
from vdinterp.analysis.stimulus.noised_clips import NoisedClips
from vdinterp.conditions import NO_CONDITION
from vdinterp.data import Clips, make_clips, sample_clips
from vdinterp.data.clips import DIGIT_KINDS, OBJECT_KINDS
from vdinterp.data.digits import SPLITS, digit_images
from vdinterp.data.repeats import Repeats
from vdinterp.data.textures import make_textures
from vdinterp.pipeline import VideoDiffusion
from vdinterp.store import Ledger, key_of

POOL = 256  # pictures of a pool that is made, not found


@dataclass(frozen=True, eq=False)
class Look:
    """One kind of clips at one noise level.

    `error` `[clip]`: of x0 of the last frame, over the variance; `apart` `[clip frame]`: the same distance of it to
    every clean frame. `last`, `cue` `[layer clip head frame]`: attention of
    the last frame, and of the one before, as shares of what goes to clean frames other than itself. `mass`: of the last
    frame's attention, how much that is. `previous` `[layer clip head]`: mean attention of clean frames to the frame
    before.
    """

    error: torch.Tensor
    apart: torch.Tensor
    last: torch.Tensor
    cue: torch.Tensor
    mass: torch.Tensor
    previous: torch.Tensor


class Task:
    """All frames clean but the last, at some noise levels; twins of the clips have the same last frame and noise."""

    def __init__(
        self,
        pipe: VideoDiffusion,
        repeats: Repeats,
        levels: Sequence[float],
        seed: int = 0,
        batch: int = 16,
        looks: Ledger | None = None,
        encoded: bool = False,
    ) -> None:
        self.pipe, self.repeats, self.levels, self.seed, self.batch = pipe, repeats, tuple(levels), seed, batch
        self.looks, self.encoded = Ledger(None) if looks is None else looks, encoded
        self._noised: dict[str | None, NoisedClips] = {}
        self._looks: dict[Any, Look] = {}

    @property
    def n_frames(self) -> int:
        return self.repeats.video.shape[1]

    @property
    def design(self) -> str:
        return self.repeats.design

    def noised(self, twin: str | None = None) -> NoisedClips:
        if twin not in self._noised:
            self._noised[twin] = NoisedClips(
                self.pipe,
                self.clips(twin),
                noise_levels=self.levels,
                cond=NO_CONDITION,  # made stimuli have none, and the result says so
                seed=self.seed,
                batch=self.batch,
            )
        return self._noised[twin]

    def clips(self, twin: str | None = None) -> Clips:
        """The repeats, or their twins: videos, or latents where the frames of the pool are."""
        frames = self.repeats.video if twin is None else self.repeats.twins[twin]
        kind = f"{self.design} repeats" + (f", {twin}" if twin else "")
        return Clips(kind=kind, encoded=frames) if self.encoded else Clips(kind=kind, video=frames)

    def pictures(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames of these clips `[frame channel height width]` as they are shown."""
        return pictures_of(self.pipe, frames[None])[0] if self.encoded else frames

    @cached_property
    def truth(self) -> Float[torch.Tensor, "clip channel height width"]:
        """The last frame."""
        return self.noised().latents[:, -1]

    @property
    def variance(self) -> float:
        return self.noised().variance

    def look(self, level: float, twin: str | None = None) -> Look:
        """What the model does with the clips (or a twin); recorded, so that a search that goes on looks once."""
        if (level, twin) not in self._looks:
            key = key_of(self.noised(twin).latents, level, self.seed)
            self._looks[level, twin] = Look(**self.looks.get(key, lambda: vars(self._look(level, twin))))
        return self._looks[level, twin]

    @torch.no_grad()
    def _look(self, level: float, twin: str | None) -> Look:
        noised, layers, parts = self.noised(twin), self.pipe.model.cfg.n_layers, []
        for clips in noised.batches:
            with self.pipe.model.record(["frame_mass"]) as recording:
                x0 = self.pipe.denoise(*noised.inputs(level, clips))[:, -1].float().cpu()
            if not bool(x0.isfinite().all()):
                raise ValueError(
                    f"{self.pipe.model.cfg.model_name} predicts NaN or infinity at noise level {level:g} on "
                    f"{self.design} clips {clips.start} to {clips.stop - 1}: there is nothing to search for"
                )
            cache = next(iter(recording.values()))
            error = (x0 - self.truth[clips]).square().mean((1, 2, 3)) / self.variance
            apart = (x0[:, None] - noised.latents[clips, :-1]).square().mean((2, 3, 4)) / self.variance
            mass = torch.stack([cache["frame_mass", layer] for layer in range(layers)]).cpu()
            parts.append((error, apart, mass))
        error, apart = (torch.cat([part[i] for part in parts]) for i in range(2))
        mass = torch.cat([part[2] for part in parts], 1)
        diagonal = mass.diagonal(-1, -2, -1)  # of frame t on t - 1
        return Look(
            error=error,
            apart=apart,
            last=shares(mass[..., -1, :-1]),
            cue=shares(mass[..., -2, :-2]),
            mass=mass[..., -1, :-1].sum(-1),
            previous=diagonal[..., :-1].mean(-1),
        )

    def on_successor(self, look: Look, shift: int = 0) -> Float[torch.Tensor, "layer clip head"]:
        """Share of the last frame's attention to clean frames that goes to what comes next (or `shift` frames on)."""
        return (look.last * self.successor.roll(shift, 1)[None, :, None, :-1]).sum(-1)

    @property
    def chance(self) -> Float[torch.Tensor, " clip"]:
        """What uniform attention over clean frames has on the successor."""
        return self.successor[:, :-1].float().mean(1)

    @property
    def successor(self) -> Bool[torch.Tensor, "clip frame"]:
        """Which frame holds what comes next. Raises ValueError where that is another one for every cell."""
        if self.repeats.successor.ndim == 3:
            raise ValueError(
                f"in {self.design} clips what comes next is in another frame for every cell: no share of one"
            )
        return self.repeats.successor


def shares(mass: torch.Tensor) -> torch.Tensor:
    """Masses over their sum; all 0 where there is none (spatial attention sees no other frame)."""
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 1e-12, mass / total.clamp(min=1e-12), 0.0)


def pool_of(pipe: VideoDiffusion, clips: Clips | torch.Tensor | None) -> Float[torch.Tensor, "clip frame _ _ _"]:
    """Videos whose frames the stimuli are made of: the given ones, or what the model was trained on; as latents where
    these are the frames (`of_latents`).

    Raises ValueError when it does not say what that is.
    """
    if of_latents(pipe, clips):
        return LatentClips(pipe, Clips(kind="pool", video=_own_pool(pipe)) if clips is None else clips).latents
    return _own_pool(pipe) if clips is None else clips.pixels if isinstance(clips, Clips) else _videos(clips)


def of_latents(pipe: VideoDiffusion, clips: Clips | torch.Tensor | None) -> bool:
    """Whether the frames of which stimuli are made are latents: where that is all that there is, and where a frame that
    the model sees is several of a video, so that one of them cannot come back by itself."""
    given = isinstance(clips, Clips) and clips.video is None
    return given or pipe.vae is None or pipe.frame_map.time_compression > 1


def _videos(clips: Any) -> torch.Tensor:
    if not isinstance(clips, torch.Tensor) or clips.ndim != 5:
        shown = list(clips.shape) if isinstance(clips, torch.Tensor) else type(clips).__name__
        raise ValueError(f"clips is {shown}; give Clips, or videos [clip frame channel height width] in [0, 1]")
    return clips


def _own_pool(pipe: VideoDiffusion) -> torch.Tensor:
    kind = pipe.clip_kind
    if kind == "texture":
        return make_textures(POOL, pipe.model.cfg.height)[:, None]
    if kind in DIGIT_KINDS:
        held_out = SPLITS["held_out"]
        return digit_images()[held_out.start : held_out.stop, None]
    if kind == "crafter":
        return sample_clips("crafter").pixels
    if kind in OBJECT_KINDS:
        return make_clips(kind, POOL).pixels
    raise ValueError(
        f"{pipe.model.cfg.model_name} does not say what clips it was made for: give clips=, videos whose frames the "
        "stimuli are made of, or set pipe.meta['clips'] to a kind of clips"
    )


def cells_of(pipe: VideoDiffusion, pool: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the token grid, where a frame of the pool divides so."""
    rows, cols = pipe.model.cfg.n_rows, pipe.model.cfg.n_cols
    height, width = pool.shape[-2:]
    return (rows, cols) if height % rows == 0 and width % cols == 0 else (1, 1)
