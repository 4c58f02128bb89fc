"""LatentClips: clips at the rate of a model's latents, with what is known of each latent frame."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int

from vdinterp.analysis.stimulus.fit import check_fit, conditions_for, frames_seen
from vdinterp.analysis.stimulus.latents import latents_of, pictures_of, video_of, visible
from vdinterp.checks.counts import check_count
from vdinterp.conditions import Cond
from vdinterp.data import Clips
from vdinterp.data.clips import say_cut
from vdinterp.pipeline import VideoDiffusion
from vdinterp.sweep import ModelOnly
from vdinterp.vae.frames import Reduce


class LatentClips:
    """Clips of which a model sees `n_frames` latent frames, and their labels, actions and pictures at that rate.

    Args: see `NoisedClips`, which adds noise to them.
    """

    def __init__(
        self,
        pipe: VideoDiffusion | ModelOnly,
        clips: Clips | Float[torch.Tensor, "clip frame channel height width"],
        *,
        n_frames: int | None = None,
        cond: Cond = None,
        batch: int = 16,
    ) -> None:
        self.clips = _as_clips(pipe, clips)
        self.pipe: VideoDiffusion = pipe  # type: ignore[assignment]  # a bare model only where nothing is noised
        self.size = check_fit(pipe, self.clips)
        self.n_frames, self.batch = frames_seen(pipe, self.clips, n_frames), check_count("batch", batch)
        say_cut(self._lengths[0], self.n_frames, self.model.cfg.model_name)
        self.cond = conditions_for(pipe, self.clips, cond, self.n_frames)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def model(self) -> Any:
        return self.pipe.model

    @property
    def grid(self) -> Any:
        """How the tokens of these clips lie."""
        return self.model.grid(self.n_frames, *self.size[1:])

    @property
    def has_actions(self) -> bool:
        """Whether the model takes actions and the clips have them."""
        return self.cond.actions is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latents: (clip, frame, channel, height, width)."""
        return (len(self), self.n_frames, *self.size)

    @property
    def batches(self) -> list[slice]:
        starts = range(0, len(self), self.batch)
        return [slice(start, min(start + self.batch, len(self))) for start in starts]

    @cached_property
    def _lengths(self) -> tuple[int, int]:
        """Latent frames and video frames of the clips as they were given."""
        frames, clips = self.pipe.frame_map, self.clips
        if clips.encoded is not None:
            return clips.encoded.shape[1], frames.n_video(clips.encoded.shape[1])
        n_video = clips.pixels.shape[1]
        return int(frames.latent_of(torch.tensor(n_video - 1))) + 1, n_video

    def by_frame(self, values: torch.Tensor, reduce: Reduce = "last") -> torch.Tensor:
        """What holds of every latent frame, `[clip frame ..]`: of values of video frames, or of latent frames already.

        `reduce` as of `vdinterp.vae.FrameMap.by_frame`: by default a latent frame has the value of its last video
        frame. ValueError for other lengths.
        """
        n_latent, n_video = self._lengths
        frames = self.pipe.frame_map
        if isinstance(values, torch.Tensor) and values.ndim > 1 and len(values) == len(self):
            if values.shape[1] in (self.n_frames, n_latent):
                return values[:, : self.n_frames]
            if values.shape[1] in (n_video, frames.n_video(self.n_frames)):
                return frames.by_frame(values[:, : frames.n_video(self.n_frames)], reduce)
        shape = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        video = f", or [{len(self)} {n_video} ..] of video frames" if n_video != n_latent else ""
        raise ValueError(f"values {shape}: give [clip frame ..] = [{len(self)} {self.n_frames} ..]{video}")

    def labels(self, name: str, reduce: Reduce = "last") -> torch.Tensor:
        """One of the clips' own labels: `[clip]`, or `[clip frame ..]` of latent frames (see `by_frame`)."""
        if name not in self.clips.labels:
            known = ", ".join(self.clips.labels) or "none"
            raise ValueError(f"{self.clips.kind!r} clips have no label {name!r}; they have {known}")
        values = self.clips.labels[name]
        return values if values.ndim == 1 else self.by_frame(values, reduce)

    def frame_of(self, video_frames: Int[torch.Tensor, "*any"]) -> Int[torch.Tensor, "*any"]:
        """The latent frame of video frames that labels name (`match`); negative ones stay -1."""
        return self.pipe.frame_map.latent_of(video_frames)

    @cached_property
    def framed(self) -> Clips:
        """The clips at latent rate: labels and actions of latent frames, and one picture a frame, where there are
        pixels."""
        at_rate = {self.n_frames, *self._lengths}
        labels = {
            name: self.by_frame(value) if value.ndim > 1 and value.shape[1] in at_rate else value
            for name, value in self.clips.labels.items()
        }
        has_video = self.clips.video is not None and self.clips.video.shape[1] == self._lengths[1]
        return Clips(
            kind=self.clips.kind,
            labels=labels,
            action=self.cond.actions,
            meta=self.clips.meta,
            video=self.by_frame(self.clips.pixels) if has_video else None,
            encoded=None if has_video else self.latents,
        )

    @cached_property
    def latents(self) -> Float[torch.Tensor, "clip frame channel height width"]:
        """Normalised latents of the clips."""
        return latents_of(self.pipe, self.clips, self.n_frames, self.batch)

    @cached_property
    def video(self) -> Float[torch.Tensor, "clip video_frame channel height width"]:
        """Pixels of the clips, decoded where the clips are latents. ValueError where there is no VAE to do so."""
        return video_of(self.pipe, self.clips, self.n_frames, self.batch)

    @cached_property
    def pictures(self) -> Float[torch.Tensor, "clip frame channel height width"]:
        """One picture a frame: the last video frame of each latent frame, or, without pixels, the latent in grey."""
        if self.framed.video is not None:
            return visible(self.framed.video)
        return torch.cat([pictures_of(self.pipe, part) for part in self.latents.split(self.batch)])


def _as_clips(pipe: Any, clips: Any) -> Clips:
    if not isinstance(pipe, VideoDiffusion | ModelOnly) or not isinstance(clips, Clips | torch.Tensor):
        raise ValueError(
            "NoisedClips takes a pipeline and clips or latents (vd.load(..), vd.data.make_clips(..)), got "
            f"{type(pipe).__name__} and {type(clips).__name__}"
        )
    if isinstance(clips, Clips):
        return clips
    if clips.ndim != 5 or not clips.is_floating_point() or not len(clips):
        cfg = pipe.model.cfg
        wanted = f"[clip, frame, {cfg.in_channels}, {cfg.height}, {cfg.width}]"
        raise ValueError(f"clips are {clips.dtype} {list(clips.shape)}; give clips, NoisedClips, or latents {wanted}")
    return Clips(kind="latents", encoded=clips.detach())
