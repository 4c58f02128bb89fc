"""Scheduling matrices: which noise level every frame has before each step of a sampler.

A matrix is `[step frame]`, one row per state: `row 0` pure noise, the last row clean, one step between two rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Int

from vdinterp.checks.counts import check_count
from vdinterp.diffusion.schedule import levels

MATRICES = ("full_sequence", "autoregressive", "pyramid", "trapezoid")


def _staggered(offsets: torch.Tensor, steps: int, n_levels: int) -> torch.Tensor:
    """Frame `t` starts `offsets[t]` rows late; everyone takes the same `steps` levels."""
    rows = torch.arange(steps + int(offsets.max()) + 1)
    return levels(steps, n_levels)[(steps + offsets[None, :] - rows[:, None]).clamp(0, steps)]


def full_sequence(n_frames: int, steps: int, n_levels: int) -> Int[torch.Tensor, "step frame"]:
    """All frames are denoised together: `steps + 1` rows."""
    return _staggered(torch.zeros(_frames(n_frames), dtype=torch.long), steps, n_levels)


def pyramid(n_frames: int, steps: int, n_levels: int, uncertainty: float = 1.0) -> Int[torch.Tensor, "step frame"]:
    """Frame `t` lags `int(t * uncertainty)` steps behind the first: the far future stays uncertain for longer
    (Chen et al. 2024, https://arxiv.org/abs/2407.01392). `uncertainty` >= 0, in steps per frame."""
    return _staggered(_lag(torch.arange(_frames(n_frames)), uncertainty), steps, n_levels)


def autoregressive(n_frames: int, steps: int, n_levels: int) -> Int[torch.Tensor, "step frame"]:
    """One frame after the other: `pyramid` with `uncertainty = steps`."""
    return pyramid(n_frames, steps, n_levels, uncertainty=float(steps))


def trapezoid(n_frames: int, steps: int, n_levels: int, uncertainty: float = 1.0) -> Int[torch.Tensor, "step frame"]:
    """A pyramid from both ends, for clips whose first and last frames are known: the middle is denoised last."""
    t = torch.arange(_frames(n_frames))
    return _staggered(_lag(torch.minimum(t, n_frames - 1 - t), uncertainty), steps, n_levels)


def _frames(n_frames: int) -> int:
    return check_count("n_frames", n_frames)


def _lag(distance: torch.Tensor, uncertainty: float) -> torch.Tensor:
    if not uncertainty >= 0:
        raise ValueError(f"uncertainty must be a number of steps per frame, at least 0, got {uncertainty!r}")
    return torch.tensor([int(int(t) * uncertainty) for t in distance])


def make_matrix(
    kind: str, n_frames: int, steps: int, n_levels: int, uncertainty: float = 1.0
) -> Int[torch.Tensor, "step frame"]:
    """The matrix called `kind` (one of `MATRICES`); `uncertainty` is read by pyramid and trapezoid only.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    if kind == "full_sequence":
        return full_sequence(n_frames, steps, n_levels)
    if kind == "autoregressive":
        return autoregressive(n_frames, steps, n_levels)
    if kind == "pyramid":
        return pyramid(n_frames, steps, n_levels, uncertainty)
    if kind == "trapezoid":
        return trapezoid(n_frames, steps, n_levels, uncertainty)
    raise ValueError(
        f"unknown scheduling matrix {kind!r}; choose one of {list(MATRICES)} or give a tensor [step frame]"
    )


def with_mask(
    matrix: Int[torch.Tensor, "step frame"], mask: Int[torch.Tensor, "batch frame"], n_levels: int
) -> Int[torch.Tensor, "_ batch frame"]:
    """Fit a matrix to what is known of each clip.

    Context frames (`mask` 1 ground truth, 2 generated) are clean in every row, padding frames (-1) pure noise, frames
    to generate (0) follow the matrix. Rows equal to their successor are dropped: no step would happen between them.

    Raises:
        ValueError: shapes differ, a level is out of range, or a frame's level rises from one row to the next.
    """
    if matrix.ndim != 2 or mask.ndim != 2 or matrix.shape[1] != mask.shape[1]:
        raise ValueError(
            f"a matrix [step frame] and a mask [batch frame] of the same number of frames are needed, got "
            f"{tuple(matrix.shape)} and {tuple(mask.shape)}"
        )
    if bool(((mask < -1) | (mask > 2)).any()):
        raise ValueError("mask values are -1 (padding), 0 (generate), 1 (ground truth), 2 (generated history)")
    if matrix.is_floating_point() or int(matrix.min()) < -1 or int(matrix.max()) >= n_levels:
        raise ValueError(f"a scheduling matrix holds integer noise levels in [-1, {n_levels - 1}]")
    if bool((matrix[1:] > matrix[:-1]).any()):
        raise ValueError("noise levels must not rise from one row of the scheduling matrix to the next")
    rows = matrix[:, None, :].to(mask.device).expand(-1, mask.shape[0], -1)
    rows = torch.where(mask[None] >= 1, -1, torch.where(mask[None] == -1, n_levels - 1, rows))
    moves = (rows[1:] != rows[:-1]).flatten(1).any(1)
    return rows[torch.cat([moves, moves.new_ones(1)])]
