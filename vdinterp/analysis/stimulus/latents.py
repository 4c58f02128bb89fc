"""Clips as a pipeline takes them: latents made from the video or given, pixels given or decoded."""

from __future__ import annotations

import torch
from jaxtyping import Float

from vdinterp.data import Clips
from vdinterp.pipeline import VideoDiffusion


def latents_of(
    pipe: VideoDiffusion, clips: Clips, n_frames: int, batch: int = 16
) -> Float[torch.Tensor, "clip frame channel height width"]:
    """Normalised latents of the first `n_frames` frames: the clips' own where they have some, else encoded."""
    if clips.encoded is not None:
        return clips.encoded[:, :n_frames].float()
    with torch.no_grad():
        parts = clips.pixels[:, :n_frames].split(batch)
        return torch.cat([pipe.encode(part).float().cpu() for part in parts])


def video_of(
    pipe: VideoDiffusion, clips: Clips, n_frames: int, batch: int = 16
) -> Float[torch.Tensor, "clip frame channel height width"]:
    """Pixels of the first `n_frames` frames: the clips' own where they have some, else decoded.

    Raises ValueError for latents and a pipeline without VAE.
    """
    if clips.video is not None:
        return clips.video[:, :n_frames]
    if pipe.vae is None:
        raise ValueError(
            f"this needs pixels: the {clips.kind!r} clips are latents and {pipe.model.cfg.model_name} was loaded "
            "without a VAE that decodes them; give clips with a video, or load the model with vae=..."
        )
    assert clips.encoded is not None
    with torch.no_grad():
        parts = clips.encoded[:, :n_frames].split(batch)
        return torch.cat([pipe.decode(part).float().cpu() for part in parts])
