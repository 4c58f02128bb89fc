"""The figures that a trained digit model is judged by: the error of the last frame, given a clean history."""

from __future__ import annotations

import torch
from jaxtyping import Float

from vdinterp.analysis import NoisedClips
from vdinterp.data import Clips, make_clips
from vdinterp.data.digits import LAGS, mean_frame
from vdinterp.pipeline import VideoDiffusion


@torch.no_grad()
def last_frame_error(
    pipe: VideoDiffusion, clips: Clips, *, level: float = 0.95, seed: int = 0, batch: int = 64
) -> Float[torch.Tensor, "batch 2"]:
    """Squared error of the predicted last frame, and of predicting the mean training image instead; per clip.

    The last frame is noised to `level`, all others are clean; the error is that of the x0 estimate, mean over its
    pixels, in latents ([-1, 1]). The ratio of the two columns' means is the **relative error**:
    0 is perfect, 1 is the best constant guess (so "variance" is that around the mean training image, pixel by pixel,
    over the very frames that are scored). Where the history says nothing a good model lies at 1 minus the little that
    the noisy frame itself gives away at this level; above 1 it guesses wrong contents with confidence.

    Raises ValueError for a level outside (0, 1].
    """
    clean, mean = clips.latents, mean_frame() * 2 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    estimate = NoisedClips(pipe, clean, level, noise=noise, batch=batch).x0(level)[:, 0]
    true = clean[:, -1]
    return torch.stack([(guess - true).square().mean((1, 2, 3)) for guess in (estimate, mean)], dim=1)


def relative_error(errors: Float[torch.Tensor, "batch 2"]) -> float:
    """Ratio of the column means of `last_frame_error`: 0 perfect, 1 the mean image. Misleads on few clips."""
    if not len(errors):
        raise ValueError("no clips to take the error of")
    error, reference = errors.double().mean(0).tolist()
    return error / reference


def digit_figures(pipe: VideoDiffusion, *, seed: int, n: int = 256, level: float = 0.95) -> dict:
    """Relative errors of the last frame on `n` held-out clips of each sort (`last_frame_error` defines them).

    `predictable`: loops, and snippets whose last frame is predictable, together and apart. `not_predictable`: control
    clips, where no frame repeats. `snippet_start`: last frames of snippet clips that start a snippet or occur once:
    the content may be known, its turn is not. `one_off`: one matching context frame, by lag.
    """

    def error(clips: Clips) -> Float[torch.Tensor, "batch 2"]:
        return last_frame_error(pipe, clips, level=level, seed=seed)

    loops = error(make_clips("loop", n, seed))
    drawn = make_clips("snippet", 4 * n, seed)
    known = drawn.labels["predictable"][:, -1]
    inside, starts = error(drawn[known.nonzero()[:n, 0]]), error(drawn[(~known).nonzero()[:n, 0]])
    one_off = {str(lag): relative_error(error(make_clips("one_off", n, seed, lag=lag))) for lag in LAGS}
    return {
        "what": "error of the last frame over that of the mean image, clean history, held-out images",
        "level": level,
        "seed": seed,
        "clips": n,
        "predictable": relative_error(torch.cat([loops, inside])),
        "loop": relative_error(loops),
        "snippet": relative_error(inside),
        "not_predictable": relative_error(error(make_clips("control", n, seed))),
        "snippet_start": relative_error(starts),
        "one_off": one_off,
    }
