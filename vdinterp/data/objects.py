"""Clips of discs that move in straight lines, with everything about them known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vdinterp.checks.counts import check_count, check_seed
from vdinterp.data.clips import OBJECT_KINDS, Clips

BACKGROUND = (0.08, 0.08, 0.10)
COLOURS = ((0.95, 0.35, 0.25), (0.30, 0.70, 0.95), (0.98, 0.85, 0.30), (0.45, 0.85, 0.45))
OCCLUDER_COLOUR = (0.55, 0.55, 0.60)
SIZES, MOST_FRAMES = (16, 4096), 10_000
LABELS = ("position", "velocity", "depth_order", "visible_fraction", "predictable")
"""What is known of these clips; the axis after frame runs over objects. `position` centre (row, col) in pixels, pixel
centres at integers. `velocity` displacement to the next frame, (row, col). `depth_order` 0 is nearest.
`visible_fraction` share of the object's pixels that nothing nearer covers. `predictable`: see `make_object_clips`."""
RADII, SPEEDS = (2.5, 4.5), (0.8, 2.0)  # pixels, pixels a frame; drawn uniformly


def reflect(free: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Fold the coordinates of free straight motion into `[low, high]`: an elastic bounce at each wall."""
    span = high - low
    return low + span - np.abs((free - low) % (2 * span) - span)


def _paint(
    masks: list[np.ndarray], colours: Sequence[Sequence[float]], depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One frame `[3 height width]` and the visible fraction of each object; every mask has at least one pixel."""
    frame = np.broadcast_to(np.array(BACKGROUND, dtype=np.float32)[:, None, None], (3, *masks[0].shape)).copy()
    taken = np.zeros(masks[0].shape, dtype=bool)
    visible = np.zeros(len(masks), dtype=np.float32)
    for which in np.argsort(depth):  # nearest first: what it covers nobody else may paint
        seen = masks[which] & ~taken
        frame[:, seen] = np.array(colours[which], dtype=np.float32)[:, None]
        visible[which] = seen.sum() / masks[which].sum()
        taken |= masks[which]
    return frame, visible


def _disc(centre: np.ndarray, radius: float, size: tuple[int, int]) -> np.ndarray:
    row, col = np.mgrid[: size[0], : size[1]]
    return (row - centre[0]) ** 2 + (col - centre[1]) ** 2 <= radius**2


def _bar(centre: np.ndarray, width: float, size: tuple[int, int]) -> np.ndarray:
    col = np.arange(size[1])
    return np.broadcast_to(np.abs(col - centre[1]) <= width / 2, size)


def _clip(
    kind: str, seed: int, index: int, n_frames: int, size: tuple[int, int], n_objects: int
) -> dict[str, np.ndarray]:
    """One clip and its twin; depends on (kind, seed, index) and the options only."""
    rng = np.random.default_rng([OBJECT_KINDS.index(kind), seed, index])
    radius = rng.uniform(*RADII, size=n_objects)
    angle = rng.uniform(0, 2 * np.pi, size=n_objects)
    start = np.array([rng.uniform(r, np.array(size) - 1 - r) for r in radius])
    speed = rng.uniform(*SPEEDS, size=n_objects)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    if kind == "occlusion":
        # across the whole picture and behind the bar in the middle of it, from either side
        side = rng.choice([-1, 1], size=n_objects)
        margin = radius + 1
        start[:, 1] = np.where(side > 0, margin, size[1] - 1 - margin)
        speed = np.stack([np.zeros(n_objects), side * (size[1] - 1 - 2 * margin) / (n_frames - 1)], axis=1)
    time = np.arange(n_frames + 1)[:, None, None]
    free = start + time * speed
    high = np.array(size) - 1 - radius[:, None]
    position = np.stack([reflect(free[..., axis], radius, high[:, axis]) for axis in (0, 1)], axis=-1)
    depth = np.arange(n_objects)
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:n_objects]]
    width = float(rng.uniform(0.2, 0.35) * size[1])
    middle = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2])
    if kind == "occlusion":
        position = np.concatenate([position, np.broadcast_to(middle, (n_frames + 1, 1, 2))], axis=1)
        depth, colours = np.array([*(depth + 1), 0]), [*colours, OCCLUDER_COLOUR]

    def render(position: np.ndarray) -> dict[str, np.ndarray]:
        video, visible = [], []
        for centres in position:
            masks = [_disc(centres[i], radius[i], size) for i in range(n_objects)]
            masks += [_bar(middle, width, size)] if kind == "occlusion" else []
            frame, fraction = _paint(masks, colours, depth)
            video, visible = [*video, frame], [*visible, fraction]
        return {
            "video": np.stack(video),
            "visible_fraction": np.stack(visible),
            "position": position.astype(np.float32),
        }

    # the twin: in one frame object 0 is where it cannot be, half the picture away
    changed = int(rng.integers(n_frames // 2, n_frames))
    twin = position[:n_frames].copy()
    shift = rng.uniform(0.35, 0.65, size=2) * (high[0] - radius[0])
    twin[changed, 0] = radius[0] + (twin[changed, 0] - radius[0] + shift) % (high[0] - radius[0])
    clean, corrupt = render(position[:n_frames]), render(twin)
    last = (position[n_frames] - position[n_frames - 1])[None]
    clean["velocity"] = np.diff(position, axis=0).astype(np.float32)
    corrupt["velocity"] = np.concatenate([np.diff(twin, axis=0), last]).astype(np.float32)
    both = clean | {f"twin.{name}": value for name, value in corrupt.items()}
    order = np.broadcast_to(depth, (n_frames, len(depth))).copy()
    return both | {"depth_order": order, "changed": np.array(changed)}


def make_object_clips(
    kind: str,
    n: int,
    seed: int = 0,
    *,
    n_frames: int = 16,
    size: tuple[int, int] = (32, 32),
    n_objects: int | None = None,
    start: int = 0,
) -> Clips:
    """Clips `start .. start + n - 1` of a seed, `[n n_frames 3 height width]`, hard-edged discs on a plain background.

    - `bounce`: `n_objects` (2) discs that reflect at the walls and pass through one another, the nearer one in front.
    - `occlusion`: `n_objects` (1) discs cross the picture behind an upright bar, which is the last object.

    A pixel belongs to a disc when its centre lies within the radius of the disc's centre, so position, depth order and
    visible fraction are exact. `predictable`: frames from the third on, whose motion two earlier frames fix. In the
    twin object 0 is displaced by about half the picture in one frame of the second half; `position` and `velocity`
    say so.

    Raises ValueError for an unknown kind, or sizes and counts that do not fit.
    """
    if kind not in OBJECT_KINDS:
        raise ValueError(f"unknown kind of object clips {kind!r}; known: {', '.join(OBJECT_KINDS)}")
    n, seed, start = check_count("n", n), check_seed(seed), check_seed(start, "start")
    n_frames = check_count("n_frames", n_frames, 4, MOST_FRAMES)
    n_objects = {"bounce": 2, "occlusion": 1}[kind] if n_objects is None else n_objects
    n_objects = check_count("n_objects", n_objects, 1, len(COLOURS))
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size is (height, width) in pixels, got {size!r}")
    for pixels in size:
        check_count("size", pixels, *SIZES, "pixels")
    parts = [_clip(kind, seed, start + i, n_frames, (size[0], size[1]), n_objects) for i in range(n)]
    arrays = {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]}
    predictable = (torch.arange(n_frames) >= 2).expand(n, -1).clone()

    def clips(prefix: str, predictable: torch.Tensor, **more: object) -> Clips:
        labels = {name: arrays[prefix + name] for name in ("position", "velocity", "visible_fraction")}
        labels |= {"depth_order": arrays["depth_order"], "predictable": predictable}
        return Clips(kind=kind, video=arrays[f"{prefix}video"], labels=labels, **more)  # type: ignore[arg-type]

    unforeseen = predictable & (torch.arange(n_frames) != arrays["changed"][:, None])
    return clips("", predictable, corrupt=clips("twin.", unforeseen), corrupt_frame=arrays["changed"])
