"""The options that say which clips a command looks at, and what becomes of them for a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vdinterp.data import Clips
    from vdinterp.pipeline import VideoDiffusion

CLIPS_OF_A_FILE, PAIRS_OF_A_FILE = 8, 256


class ClipsFile(click.ParamType):
    """A path; a bare number is what the option meant before, so it is told where numbers go now."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if str(value).isdigit() and not Path(value).exists():
            self.fail(f"{value} is a number, and this takes a file of clips; how many is --n-clips {value}", param, ctx)
        return Path(value)


@dataclass(frozen=True)
class Given:
    """What was asked for on the command line: a video, a file of clips, or neither (then the model's own kind)."""

    video: Path | None = None
    stride: int = 1
    fps: float | None = None
    file: Path | None = None
    n: int | None = None

    def clips(self, pipe: VideoDiffusion, n: int | None = None) -> Clips | None:
        """Clips of the files that were named, at most `n`; None where the model's own held-out clips are to be taken.

        Raises ValueError for two sources, and for none where the model does not say what its clips are.
        """
        from vdinterp.studies.clips import kind_of

        if not self.named:
            if kind_of(pipe) is None:
                raise ValueError(self._nothing_for(pipe))
            return None
        found = self._clips_of_video(pipe, n, pipe.model.cfg.n_frames) if self.file is None else self._stored(n)
        if n is not None and len(found) < n:
            source = f"{self.video} is long enough for" if self.file is None else f"{self.file} holds"
            click.echo(f"{source} {len(found)} of {n} clips", err=True)
        return found

    def held_out(self, pipe: VideoDiffusion, seed: int) -> Clips:
        """The clips that were named, or `n` held-out ones."""
        import vdinterp as vd

        assert self.n is not None
        found = self.clips(pipe, self.n)
        return vd.studies.held_out_clips(pipe, self.n, seed) if found is None else found

    def halves(self, pipe: VideoDiffusion, seed: int) -> tuple[Clips, Clips]:
        """Clips to judge on and others to train on: `n` of each, or every second clip of the files that were named."""
        import vdinterp as vd

        assert self.n is not None
        found = self.clips(pipe, 2 * self.n)
        if found is None:
            evaluation, reference = (
                vd.studies.held_out_clips(pipe, self.n, seed, part=part) for part in ("evaluation", "reference")
            )
            return evaluation, reference
        if len(found) < 2:
            raise ValueError(f"{self.source} gives one clip: it takes two, one to judge on and another to train on")
        return found[::2], found[1::2]

    def pairs(self, pipe: VideoDiffusion, seed: int) -> tuple[Clips, Clips]:
        """Clean and corrupted clips: see `vdinterp.studies.pairs_of`."""
        import vdinterp as vd

        assert self.n is not None
        return vd.studies.pairs_of(pipe, self.n, seed, self.clips(pipe, self.n))

    def pool(self, pipe: VideoDiffusion) -> Clips | None:
        """Videos whose frames the stimuli of a search are made of: of a video file, pairs of consecutive frames."""
        if not self.named:
            if pipe.clip_kind is None:
                raise ValueError(self._nothing_for(pipe))
            return None
        return self._clips_of_video(pipe, PAIRS_OF_A_FILE, 2) if self.file is None else self._stored(None)

    @property
    def named(self) -> bool:
        """Whether there is a file to take clips from."""
        if self.video is not None and self.file is not None:
            raise ValueError("--video and --clips are two sources of clips; give one of them")
        return self.video is not None or self.file is not None

    @property
    def source(self) -> Path | None:
        return self.video if self.file is None else self.file

    def _stored(self, n: int | None) -> Clips:
        from vdinterp.data import Clips

        assert self.file is not None
        return Clips.load(self.file)[:n]

    def _clips_of_video(self, pipe: VideoDiffusion, n: int | None, n_frames: int) -> Clips:
        """Clips of a video in the size and colours that the model was made for."""
        import torch

        from vdinterp.data import read_clips

        assert self.video is not None
        cfg = pipe.model.cfg
        if pipe.vae is None:
            raise ValueError(
                f"{cfg.model_name} was loaded without a VAE, so it takes no video; give --clips FILE with `latents`"
            )
        frame = pipe.decode(torch.zeros(1, 1, cfg.in_channels, cfg.height, cfg.width))
        channels, height, width = frame.shape[2:]
        return read_clips(
            self.video,
            n or CLIPS_OF_A_FILE,
            pipe.frame_map.n_video(n_frames),
            (height, width),
            self.stride,
            channels,
            self.fps,
        )

    @staticmethod
    def _nothing_for(pipe: VideoDiffusion) -> str:
        return (
            f"{pipe.model.cfg.model_name} does not say what clips it was made for; give --video FILE (mp4, webm, gif) "
            "or --clips FILE (safetensors with `video` or `latents`, as vdinterp.data.Clips.save writes)"
        )


def takes_clips(
    n: int | None = None,
    *,
    least: int = 1,
    count: bool = True,
    what: str = "How many clips.",
    spelt: tuple[str, ...] = ("-n", "--n-clips"),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options for clips, handed to the command as one `given: Given`. `n`: how many unless told otherwise."""
    options = [
        click.option("--video", type=click.Path(path_type=Path), help="A video (mp4, webm, gif) to take clips from."),
        click.option(
            "--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Every Nth frame of the video."
        ),
        click.option("--fps", type=float, help="Frames a second to read the video at.  [default: its own]"),
        click.option("--clips", type=ClipsFile(), help="Stored clips or latents (Clips.save) to take instead."),
    ]
    if count:
        kind = click.IntRange(min=least)
        options.append(click.option(*spelt, "n_clips", type=kind, default=n, show_default=n is not None, help=what))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_given(
            video: Path | None,
            stride: int,
            fps: float | None,
            clips: Path | None,
            n_clips: int | None = None,
            **rest: Any,
        ) -> None:
            command(given=Given(video, stride, fps, clips, n_clips), **rest)

        return functools.reduce(lambda made, option: option(made), reversed(options), with_given)

    return decorate
