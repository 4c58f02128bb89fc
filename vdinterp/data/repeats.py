"""Repeats: clips whose last frame can be foretold only from what followed last time. Stimuli of an induction search.

All are made of frames of a pool, so that they look like what a model was trained on, in an order it never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from vdinterp.checks.counts import check_count, check_seed

DESIGNS = ("one-off", "loop", "cell loops", "translated", "velocity", "occlusion", "splice", "long cue")
MEANING = {
    "one-off": "A B once, at a random lag, among frames that differ; then A again, and B is asked for",
    "loop": "random frames in a cycle of random length",
    "cell loops": "a cycle of its own length and phase in every cell of the picture",
    "translated": "as one-off, but the second A and B are moved to another place",
    "velocity": "a picture moves in random steps; then another one makes the same steps",
    "occlusion": "as one-off, but all frames between are covered by one flat surface",
    "splice": "two consecutive frames of a clip, frames of other clips, then the first again",
    "long cue": "as one-off, but the frames before A come back as well, up to three with A",
}
# What each twin lacks: the same clip, the same last frame, with one thing taken away.
TWINS = {
    "none": "no repeat: what came back is replaced by other frames",
    "no content": "the frame that followed is replaced by another",
    "no match": "the frame before it is replaced by another, so nothing says where to look",
    "no cue": "the last frame before the end is replaced by another, so nothing says what to look for (of loops and "
    "long cues: the last frames, up to three)",
    "reversed": "the earlier pair (of a long cue: all that comes back) comes in reversed order",
    "shuffled": "of loops: the same frames, in random order",
}
ROOM = 7  # frames of a clip from which on every one-off has room for a distractor of equal texture
Frames = list[torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Repeats:
    """Clips of one design; the last frame is what a model is asked for.

    `video`: in [0, 1]. `twins`: by name (see `TWINS`), the same clips without what makes the last frame foretellable.
    `successor`: the earlier frames that hold what comes next (`[clip frame]`; for `cell loops` `[clip frame cell]`).
    `foils`: by name, one frame a clip that a head might look at for another reason. `lag`: from the last frame back to
    the nearest successor (of `cell loops`: of the first cell). `cue`: how many frames before the last come back (of
    loops: how many the twin without a cue lacks).
    """

    design: str
    video: Float[torch.Tensor, "clip frame channel height width"]
    twins: dict[str, Float[torch.Tensor, "clip frame channel height width"]]
    successor: Bool[torch.Tensor, "clip frame ..."]
    foils: dict[str, Int[torch.Tensor, " clip"]] = field(default_factory=dict)
    lag: Int[torch.Tensor, " clip"]
    cue: int = 1

    def __len__(self) -> int:
        return len(self.video)

    def __repr__(self) -> str:
        return f"Repeats({self.design!r}, video {list(self.video.shape)}, twins {', '.join(self.twins)})"


def lags_of(n_frames: int) -> list[int]:
    """Lags that a one-off takes in clips of that length: at least two, and where there is room A is neither the first
    frame nor close to the end."""
    first = max(2, n_frames // 4)
    last = max(min(5 * n_frames // 8, n_frames - 4), min(n_frames - 2, first + 1))
    return list(range(first, last + 1))


def cue_of(n_frames: int) -> int:
    """Frames of a long cue in clips of that length: three, or two, that leave at least two lags; 1 where none does."""
    return next((cue for cue in (3, 2) if len(_long_lags(n_frames, cue)) > 1), 1)


def _long_lags(n_frames: int, cue: int) -> list[int]:
    return [lag for lag in lags_of(n_frames) if cue < lag < n_frames - cue]


def make_repeats(
    design: str,
    pool: Float[torch.Tensor, "clip frame channel height width"],
    n: int,
    *,
    n_frames: int,
    cells: tuple[int, int] = (1, 1),
    seed: int = 0,
) -> Repeats:
    """`n` clips of `n_frames` frames each, and their twins.

    `pool`: clips whose frames are used, one frame of a clip (two for `splice`); their order in time matters to `splice`
    only. `cells`: rows and columns of the picture that can repeat on their own. Clip i depends on `(seed, i)`, its lag
    on i alone, so that all lags occur equally often.

    Raises ValueError for a design that does not exist, or a pool, length or grid of cells that does not fit it.
    """
    if design not in DESIGNS:
        raise ValueError(f"unknown design {design!r}; there are {', '.join(DESIGNS)}")
    n, seed = check_count("n", n), check_seed(seed)
    n_frames = check_count("n_frames", n_frames, 5, why="fewer are too few for a repeat at several lags")
    if not isinstance(cells, (tuple, list)) or len(cells) != 2:
        raise ValueError(f"cells is (rows, columns), got {cells!r}")
    for size in cells:
        check_count("cells", size)
    if pool.ndim != 5 or len(pool) < 2 * n_frames + 4:
        raise ValueError(
            f"the pool has shape {list(pool.shape)}; [clip frame channel height width] with at least "
            f"{2 * n_frames + 4} clips is needed, so that all frames of a clip differ"
        )
    if len(pool[:, 0].flatten(1).unique(dim=0)) < 2 * n_frames + 4:
        raise ValueError(
            f"the pool's clips begin with fewer than {2 * n_frames + 4} different frames: clips need as many"
        )
    if design == "splice" and pool.shape[1] < 2:
        raise ValueError("splice takes two consecutive frames of a clip; the pool's clips have one frame each")
    if design == "long cue" and cue_of(n_frames) == 1:
        raise ValueError(f"{n_frames} frames are too few for a long cue at several lags; at least 8 are needed")
    height, width = pool.shape[-2:]
    if height % cells[0] or width % cells[1]:
        raise ValueError(f"frames of {height} x {width} do not divide into {cells[0]} x {cells[1]} cells")
    make = _MAKERS[design]
    parts = []
    for index in range(n):
        rng = np.random.default_rng([DESIGNS.index(design), seed, index])
        draw = _fresh(rng, pool)
        parts.append(make(_Clip(rng, draw, index, n_frames, cells)))
    stacked = {name: torch.stack([part.twins[name] for part in parts]) for name in parts[0].twins}
    return Repeats(
        design=design,
        video=torch.stack([part.video for part in parts]),
        twins=stacked,
        successor=torch.stack([part.successor for part in parts]),
        foils={name: torch.tensor([part.foils[name] for part in parts]) for name in parts[0].foils},
        lag=torch.tensor([part.lag for part in parts]),
        cue=cue_of(n_frames) if design in ("long cue", "loop") else 1,
    )


@dataclass(frozen=True)
class _Clip:
    """What one clip is made from. `draw` gives consecutive frames of a clip of the pool, another one every time."""

    rng: np.random.Generator
    draw: Callable[[int], Frames]
    index: int
    n_frames: int
    cells: tuple[int, int]

    def frame(self) -> torch.Tensor:
        return self.draw(1)[0]

    @property
    def lag(self) -> int:
        lags = lags_of(self.n_frames)
        return lags[self.index % len(lags)]


@dataclass(frozen=True)
class _Made:
    video: torch.Tensor
    twins: dict[str, torch.Tensor]
    successor: torch.Tensor
    lag: int
    foils: dict[str, int] = field(default_factory=dict)


def _fresh(rng: np.random.Generator, pool: torch.Tensor) -> Callable[[int], Frames]:
    order: Iterator[int] = iter(rng.permutation(len(pool)).tolist())

    def draw(n: int) -> Frames:
        clip = pool[next(order)]
        start = int(rng.integers(len(clip) - n + 1))
        return list(clip[start : start + n])

    return draw


# One-off repeats


def _one_off(clip: _Clip) -> _Made:
    return _pair(clip, [clip.frame(), clip.frame()])


def _splice(clip: _Clip) -> _Made:
    return _pair(clip, clip.draw(2))


def _occlusion(clip: _Clip) -> _Made:
    pair = [clip.frame(), clip.frame()]
    flat = torch.full_like(pair[0], float(pair[0].mean()))
    return _pair(clip, pair, between=flat)


def _translated(clip: _Clip) -> _Made:
    pair = [clip.frame(), clip.frame()]
    rows, cols = clip.cells
    steps = [(r, c) for r in range(rows) for c in range(cols) if r or c]
    if not steps:
        raise ValueError("translated needs a picture of several cells to move in; cells is (1, 1)")
    row, col = steps[int(clip.rng.integers(len(steps)))]
    height, width = pair[0].shape[-2:]
    shift = (row * height // rows, col * width // cols)
    return _pair(clip, pair, again=[torch.roll(frame, shift, (-2, -1)) for frame in pair])


def _long_cue(clip: _Clip) -> _Made:
    lags = _long_lags(clip.n_frames, cue_of(clip.n_frames))
    lag = lags[clip.index % len(lags)]
    return _pair(clip, [clip.frame() for _ in range(cue_of(clip.n_frames) + 1)], lag=lag)


def _pair(
    clip: _Clip, pair: Frames, again: Frames | None = None, between: torch.Tensor | None = None, lag: int | None = None
) -> _Made:
    """A B somewhere, other frames (or `between`) around, and at the end A B again (or as `again` shows them). Before A
    there may be more that comes back."""
    cue, last = len(pair) - 1, clip.n_frames - 1
    lag = clip.lag if lag is None else lag
    at = last - lag  # of B
    frames = [clip.frame() for _ in range(clip.n_frames)]
    if between is not None:
        frames[at + 1 : last - 1] = [between] * (last - 2 - at)
    frames[at - cue : at + 1] = pair
    frames[last - cue :] = pair if again is None else again
    foils = {"first frame": 0, "before the match": max(0, at - 2), "the match itself": at - 1, "frame before": last - 1}
    free = [f for f in range(1, last - cue) if not at - cue - 1 <= f <= at]
    if between is None and clip.n_frames >= ROOM:
        foils["same texture"] = int(clip.rng.choice(free))
        frames[foils["same texture"]] = pair[-1].flip(-2, -1)
    ones, two, others = ([clip.frame() for _ in range(n)] for n in (cue, 1, cue))
    match = dict(zip(range(at - cue, at), ones, strict=True))
    changes: dict[str, dict[int, torch.Tensor]] = {
        "none": {**match, at: two[0]},
        "no content": {at: two[0]},
        "no match": match,
        "no cue": dict(zip(range(last - cue, last), others, strict=True)),
        "reversed": dict(zip(range(at - cue, at + 1), reversed(pair), strict=True)),
    }
    twins = {
        name: torch.stack([change.get(f, frame) for f, frame in enumerate(frames)]) for name, change in changes.items()
    }
    successor = torch.arange(clip.n_frames) == at
    return _Made(torch.stack(frames), twins, successor, lag, foils)


# Loops


def _periods(n_frames: int, most: int) -> list[int]:
    return list(range(2, min(most, (n_frames - 1) // 2) + 1))


def _loop(clip: _Clip) -> _Made:
    periods = _periods(clip.n_frames, 7)
    period = periods[clip.index % len(periods)]
    cycle = [clip.frame() for _ in range(period)]
    frames = [cycle[f % period] for f in range(clip.n_frames)]
    fresh = [clip.frame() for _ in range(clip.n_frames - 2)]
    time = torch.arange(clip.n_frames)
    successor = (time % period == (clip.n_frames - 1) % period) & (time < clip.n_frames - 1)
    shuffled = [*(frames[f] for f in _disorder(clip, period)), *frames[-2:]]
    twins = {"none": torch.stack([*fresh, *frames[-2:]]), "shuffled": torch.stack(shuffled)}
    cue = cue_of(clip.n_frames)
    twins["no cue"] = torch.stack([*frames[: -cue - 1], *(clip.frame() for _ in range(cue)), frames[-1]])
    return _Made(torch.stack(frames), twins, successor, period)


def _disorder(clip: _Clip, period: int) -> list[int]:
    """An order of the frames before the last two in which the last step occurs nowhere (or least often)."""
    best: tuple[int, list[int]] = (clip.n_frames, [])
    last = ((clip.n_frames - 2) % period, (clip.n_frames - 1) % period)
    for _ in range(100):
        order = clip.rng.permutation(clip.n_frames - 2).tolist()
        states = [f % period for f in order] + [last[0]]
        times = sum(step == last for step in pairwise(states))
        best = min(best, (times, order))
        if not times:
            break
    return best[1]


def _cell_loops(clip: _Clip) -> _Made:
    rows, cols = clip.cells
    periods, frames = _periods(clip.n_frames, 5), [clip.frame() for _ in range(clip.n_frames)]
    own = clip.rng.choice(periods, size=rows * cols)
    phase = clip.rng.integers(0, own)
    time = np.arange(clip.n_frames)[:, None]
    which = (time + phase) % own  # frame cell: what a cell shows is one of its first `period` pictures
    video = _mosaic(frames, which, clip.cells)
    none = torch.stack([*[clip.frame() for _ in range(clip.n_frames - 2)], *video[-2:]])
    successor = torch.from_numpy((which == which[-1]) & (time < clip.n_frames - 1))
    return _Made(video, {"none": none}, successor, int(own[0]))


def _mosaic(frames: Frames, which: np.ndarray, cells: tuple[int, int]) -> torch.Tensor:
    """A clip whose every cell shows, at every time, that of one of the frames."""
    stacked = torch.stack(frames)
    channels, height, width = stacked.shape[1:]
    parts = stacked.reshape(len(stacked), channels, cells[0], height // cells[0], cells[1], width // cells[1])
    parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # frame cell channel row col
    chosen = parts[torch.from_numpy(which), torch.arange(which.shape[1])]
    chosen = chosen.unflatten(1, cells).permute(0, 3, 1, 4, 2, 5)
    return chosen.reshape(len(which), channels, height, width)


# Motion


def _velocity(clip: _Clip) -> _Made:
    """The steps of a picture, and the same steps of another one that begins `lag` frames later."""
    lag, n_frames = clip.lag, clip.n_frames
    length = min(lag, n_frames - lag)
    first, second, other = clip.frame(), clip.frame(), clip.frame()
    unit = max(1, first.shape[-1] // 8)
    steps, foreign = (clip.rng.integers(-3, 4, size=(length, 2)) * unit for _ in range(2))
    frames = [clip.frame() for _ in range(n_frames)]
    frames[n_frames - lag - length : n_frames - lag] = _moved(first, steps)
    frames[n_frames - length :] = _moved(second, steps)
    none = list(frames)
    none[n_frames - lag - length : n_frames - lag] = _moved(other, foreign)
    successor = torch.arange(n_frames) == n_frames - 1 - lag
    return _Made(torch.stack(frames), {"none": torch.stack(none)}, successor, lag)


def _moved(picture: torch.Tensor, steps: np.ndarray) -> Frames:
    return [torch.roll(picture, (int(row), int(col)), (-2, -1)) for row, col in steps.cumsum(0)]


_MAKERS: dict[str, Callable[[_Clip], _Made]] = {
    "one-off": _one_off,
    "loop": _loop,
    "cell loops": _cell_loops,
    "translated": _translated,
    "velocity": _velocity,
    "occlusion": _occlusion,
    "splice": _splice,
    "long cue": _long_cue,
}
