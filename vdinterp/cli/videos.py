"""Clips of a video file, as a model takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vdinterp.data import Clips
    from vdinterp.pipeline import VideoDiffusion

CLIPS_OF_A_FILE, PAIRS_OF_A_FILE = 8, 256


def clips_for(pipe: VideoDiffusion, video: Path, n: int | None, stride: int) -> Clips:
    """Clips of a file in the size, colours and length that the model was made for."""
    found = _read(pipe, video, n or CLIPS_OF_A_FILE, pipe.model.cfg.n_frames, stride)
    if n is not None and len(found) < n:
        click.echo(f"{video} is long enough for {len(found)} of {n} clips", err=True)
    return found


def pairs_for(pipe: VideoDiffusion, video: Path, stride: int) -> Clips:
    """Pairs of consecutive frames of a file, which the stimuli of a search are made of."""
    return _read(pipe, video, PAIRS_OF_A_FILE, 2, stride)


def _read(pipe: VideoDiffusion, video: Path, n: int, n_frames: int, stride: int) -> Clips:
    import torch

    from vdinterp.data import read_clips

    cfg = pipe.model.cfg
    frame = pipe.decode(torch.zeros(1, 1, cfg.in_channels, cfg.height, cfg.width))
    channels, height, width = frame.shape[2:]
    return read_clips(video, n, n_frames, (height, width), stride=stride, channels=channels)
