"""FrameMap: which video frames a latent frame is made of. Whoever has labels of video frames asks it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Int

from vdinterp.checks.counts import check_count

Reduce = Literal["last", "any", "mean", "sum"]


class FrameMap:
    """Video frame <-> latent frame of a VAE that makes one latent frame of `time_compression` video frames.

    Causal (Wan, LTX, CogVideoX, Hunyuan): latent 0 is video frame 0 alone, latent i the frames `1 + (i - 1) r .. i r`.
    Otherwise latent i is the block `i r .. (i + 1) r - 1`. A VAE inherits this and sets both attributes; without, a
    latent frame is a video frame.

    >>> wan = FrameMap(4)
    >>> wan.latent_frames(9), wan.n_video(3), wan.video_frames(2)
    (3, 9, range(5, 9))
    """

    time_compression: int = 1
    causal: bool = True

    def __init__(self, time_compression: int = 1, causal: bool = True) -> None:
        self.time_compression, self.causal = check_count("time_compression", time_compression), bool(causal)

    def n_video(self, n_latent: int) -> int:
        """Video frames that `n_latent` latent frames are made of."""
        return (n_latent - 1) * self.time_compression + 1 if self.causal else n_latent * self.time_compression

    def latent_frames(self, n_video: int) -> int:
        """Latent frames of a video of `n_video` frames. ValueError for a number that is not made of whole ones."""
        fewer = max(1, (n_video - self.causal) // self.time_compression + self.causal)
        if n_video < 1 or self.n_video(fewer) != n_video:
            rate = self.time_compression
            near = sorted({self.n_video(count) for count in (fewer, fewer + (n_video > self.n_video(fewer)))})
            raise ValueError(
                f"{n_video} video frames: this VAE makes one latent frame of {rate}"
                f"{' after the first' if self.causal else ''}, so a video has {'1 + ' if self.causal else ''}{rate} i "
                f"frames; the nearest that fit: {' and '.join(map(str, near))}"
            )
        return fewer

    def video_frames(self, latent: int) -> range:
        """The video frames of one latent frame."""
        return range(self.n_video(latent) if latent else 0, self.n_video(latent + 1))

    def latent_of(self, video_frame: Int[torch.Tensor, "*any"]) -> Int[torch.Tensor, "*any"]:
        """The latent frame of video frames; negative ones (no frame) stay -1."""
        rate = self.time_compression
        found = (video_frame + rate - 1) // rate if self.causal else video_frame // rate
        return torch.where(video_frame < 0, -1, found)

    def by_frame(self, values: torch.Tensor, reduce: Reduce = "last") -> torch.Tensor:
        """`[clip video_frame ..]` -> `[clip frame ..]`, what holds of every latent frame.

        `last`: of its last video frame. That is the state in which the next latent frame goes on, what a causal VAE
        has seen all of when it writes the latent, and always a value that was there, as a class must be. `any` of its
        frames (booleans); `mean` over them; `sum` over them, for steps that add up (how far a picture moved).
        """
        check_reduce(reduce)
        n_latent = self.latent_frames(values.shape[1])
        if self.time_compression == 1:
            return values
        parts = [values[:, self.video_frames(latent)] for latent in range(n_latent)]
        if reduce == "last":
            return torch.stack([part[:, -1] for part in parts], 1)
        if reduce == "any":
            return torch.stack([part.bool().any(1) for part in parts], 1)
        if reduce == "sum":
            return torch.stack([part.sum(1) for part in parts], 1).to(values.dtype)
        return torch.stack([part.float().mean(1) for part in parts], 1)


def check_reduce(reduce: str) -> None:
    """Raise `ValueError` for no way to make one value of several."""
    if reduce not in get_args(Reduce):
        raise ValueError(f"unknown reduce {reduce!r}; choose one of {', '.join(get_args(Reduce))}")
