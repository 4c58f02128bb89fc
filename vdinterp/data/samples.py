"""Held-out clips that come with the package, so that studies run on real frames at once."""

from __future__ import annotations

from pathlib import Path

import torch

from vdinterp.checks.counts import check_count
from vdinterp.data.clips import KINDS, Clips, make_clips

CLIPS = Path(__file__).parent.parent / "assets" / "clips"


def sample_clips(kind: str = "crafter", n: int | None = None, n_frames: int | None = None) -> Clips:
    """The first `n` held-out clips of a kind, cut to their first `n_frames` frames, with ground truth.

    `crafter`: 192 clips of 12 frames from worlds that no bundled model was trained on; the game itself is not needed.
    A model that sees fewer (`tiny-crafter`: 8) is given the first ones, which is logged; `n_frames=8` cuts them here.
    The other kinds can be made anywhere and are (`make_clips` with seed 2024, 64 clips unless `n` says otherwise).
    ValueError for an unknown kind, or for more clips or frames than there are.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of clips {kind!r}; there are {', '.join(KINDS)}")
    if kind != "crafter":
        options = {} if n_frames is None else {"n_frames": n_frames}
        return make_clips(kind, 64 if n is None else n, seed=2024, **options)
    from vdinterp.data.crafter import Trajectories, as_clips

    played = Trajectories.load(CLIPS / "crafter.safetensors")
    most, longest = played.actions.shape
    n, n_frames = most if n is None else n, longest if n_frames is None else n_frames
    n = check_count("n", n, 1, most, f"there are {most} sample clips; make_clips('crafter', n) makes more")
    n_frames = check_count("n_frames", n_frames, 1, longest, "make_clips makes longer ones")
    return as_clips(played, torch.arange(n), torch.zeros(n, dtype=torch.long), n_frames)
