"""Clips as a pipeline takes them: latents made from a video or given; pixels given or decoded; a picture a frame."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from jaxtyping import Float

from vdinterp.data import Clips
from vdinterp.pipeline import VideoDiffusion

log = logging.getLogger("vdinterp")


def latents_of(
    pipe: Any, clips: Clips, n_frames: int, batch: int = 16
) -> Float[torch.Tensor, "clip frame channel height width"]:
    """Normalised latents of the first `n_frames` latent frames: the clips' own where they have some, else encoded.

    Raises ValueError for a VAE that makes another number of frames than it says.
    """
    if clips.encoded is not None:
        return clips.encoded[:, :n_frames].detach().float()
    n_video = pipe.frame_map.n_video(n_frames)
    with torch.no_grad():
        latents = torch.cat([pipe.encode(part).float().cpu() for part in clips.pixels[:, :n_video].split(batch)])
    if latents.shape[1] != n_frames:
        raise ValueError(
            f"{type(pipe.vae).__name__} makes {latents.shape[1]} latent frames of {n_video} video frames, {n_frames} "
            "were expected: a VAE that compresses time says so, by inheriting vdinterp.vae.FrameMap"
        )
    return latents


def video_of(
    pipe: VideoDiffusion, clips: Clips, n_frames: int, batch: int = 16
) -> Float[torch.Tensor, "clip video_frame channel height width"]:
    """Pixels of the first `n_frames` latent frames: the clips' own where they have some, else decoded.

    Raises ValueError for latents and a pipeline without VAE.
    """
    if clips.video is not None:
        return clips.video[:, : pipe.frame_map.n_video(n_frames)]
    if pipe.vae is None:
        raise ValueError(
            f"this needs pixels: the {clips.kind!r} clips are latents and {pipe.model.cfg.model_name} was loaded "
            "without a VAE that decodes them; give clips with a video, or load the model with vae=..."
        )
    assert clips.encoded is not None
    with torch.no_grad():
        parts = clips.encoded[:, :n_frames].split(batch)
        return torch.cat([pipe.decode(part).float().cpu() for part in parts])


@torch.no_grad()
def pictures_of(
    pipe: VideoDiffusion, latents: Float[torch.Tensor, "batch frame channel height width"]
) -> Float[torch.Tensor, "batch frame _ _ _"]:
    """One picture a latent frame, on the CPU: the last video frame that it is decoded to. Without a VAE the latents
    themselves in grey, the sum over channels within three standard deviations, which is said once."""
    if pipe.vae is not None:
        return visible(pipe.frame_map.by_frame(pipe.decode(latents).float().cpu()))
    say_no_pixels(pipe.model.cfg.model_name)
    return (0.5 + latents.float().cpu().sum(2, keepdim=True) / (6 * latents.shape[2] ** 0.5)).clamp(0, 1)


def visible(
    video: Float[torch.Tensor, "batch frame channel height width"],
) -> Float[torch.Tensor, "batch frame _ height width"]:
    """As it is where it makes a picture (grey or red, green, blue), else the mean over its channels in grey."""
    return video if video.shape[2] in (1, 3) else video.mean(2, keepdim=True)


@functools.cache
def say_no_pixels(model_name: str) -> None:
    log.warning("%s has no VAE: pictures show its latents in grey, and nothing is measured in pixels", model_name)
