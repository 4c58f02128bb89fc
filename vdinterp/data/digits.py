"""Clips whose frames are handwritten digits: sequences with exactly known repetition and nothing else to go by.

The images are the 1,797 of the UCI "Optical Recognition of Handwritten Digits" test set (E. Alpaydin and C. Kaynak,
CC BY 4.0), as scikit-learn distributes them: 8 x 8 pixels, 17 grey values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.numpy import load

from vdinterp import store
from vdinterp.checks.counts import check_between, check_count, check_seed
from vdinterp.data.clips import DIGIT_KINDS, Clips

SPLITS = {"train": range(1437), "held_out": range(1437, 1797)}  # the last fifth; images come grouped by writer
LABELS = ("state_id", "match", "predictable", "lag", "period")
"""What is known of these clips. `state_id` which image a frame shows (equal id, equal frame). `match` the most recent
earlier frame with the same content after the same predecessor, -1 if none: what induction copies. `lag` the distance to
it, 0 if none. `predictable` whether the frame follows from the ones before it. `period` that of a loop `[batch]`, 0 for
the other kinds."""
PERIODS = range(2, 8)
LAGS = range(4, 11)
SNIPPETS, SNIPPET_LENGTHS, FILLER = (2, 3), (2, 3, 4), 0.15
FRESH = 13  # images a clip may need beyond one a frame: those of its snippets, and one for the twin
Setting = int | float | None  # of one kind: period, lag or filler; None is the default


def write_digits_asset(path: str | Path) -> None:
    """Write scikit-learn's `load_digits` as safetensors: how the package's own file was made."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    tensors = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}
    store.write_tensors(path, tensors, {"source": "UCI optdigits via scikit-learn, CC BY 4.0"})


@cache
def _asset() -> dict[str, np.ndarray]:
    return load((files("vdinterp") / "assets" / "digits.safetensors").read_bytes())


def digit_images() -> Float[torch.Tensor, "image channel height width"]:
    """All 1,797 images, `[1797 1 8 8]` in [0, 1]; `state_id` of a digit clip indexes this."""
    return torch.from_numpy(_asset()["images"][:, None].astype(np.float32) / 16)


def digit_labels() -> Int[torch.Tensor, " image"]:
    """Which digit each image shows, 0-9."""
    return torch.from_numpy(_asset()["labels"].astype(np.int64))


def mean_frame(split: str = "train") -> Float[torch.Tensor, "channel height width"]:
    """The mean image of a split: the best constant prediction, whose error the error scores are divided by."""
    return digit_images()[_split(split).start : _split(split).stop].mean(0)


def _split(split: str) -> range:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return SPLITS[split]


def _loop(
    rng: np.random.Generator, images: np.ndarray, n_frames: int, period: Setting
) -> tuple[np.ndarray, np.ndarray, int]:
    period = int(period or rng.choice(PERIODS))
    ids = images[np.arange(n_frames) % period]
    # the first repeat comes as a surprise: its predecessor has not been seen before with a successor
    return ids, np.arange(n_frames) > period, period


def _snippet(
    rng: np.random.Generator, images: np.ndarray, n_frames: int, filler: Setting
) -> tuple[np.ndarray, np.ndarray, int]:
    filler, fresh = FILLER if filler is None else filler, iter(images)
    snippets = [[next(fresh) for _ in range(rng.choice(SNIPPET_LENGTHS))] for _ in range(rng.choice(SNIPPETS))]
    ids, predictable, seen = [], [], set()
    while len(ids) < n_frames:
        if rng.random() < filler:
            ids, predictable = [*ids, next(fresh)], [*predictable, False]
        else:
            which = int(rng.integers(len(snippets)))
            ids += snippets[which]
            predictable += [False] + [which in seen] * (len(snippets[which]) - 1)
            seen.add(which)
    return np.array(ids[:n_frames]), np.array(predictable[:n_frames]), 0


def _one_off(
    rng: np.random.Generator, images: np.ndarray, n_frames: int, lag: Setting
) -> tuple[np.ndarray, np.ndarray, int]:
    lag = int(lag or rng.choice([lag for lag in LAGS if lag <= n_frames - 2]))
    ids = images[:n_frames].copy()
    ids[-2:] = ids[n_frames - 2 - lag : n_frames - lag]
    return ids, np.arange(n_frames) == n_frames - 1, 0


def _control(
    rng: np.random.Generator, images: np.ndarray, n_frames: int, _: Setting
) -> tuple[np.ndarray, np.ndarray, int]:
    return images[:n_frames].copy(), np.zeros(n_frames, dtype=bool), 0


_Maker = Callable[[np.random.Generator, np.ndarray, int, Setting], tuple[np.ndarray, np.ndarray, int]]
_MAKERS: dict[str, _Maker] = {"loop": _loop, "snippet": _snippet, "one_off": _one_off, "control": _control}


def find_matches(ids: np.ndarray) -> np.ndarray:
    """For each frame the most recent earlier frame with the same content and the same predecessor, -1 if none."""
    match = np.full(len(ids), -1)
    last_seen: dict[tuple[int, int], int] = {}
    for frame in range(1, len(ids)):
        pair = (int(ids[frame - 1]), int(ids[frame]))
        match[frame] = last_seen.get(pair, -1)
        last_seen[pair] = frame
    return match


def _clip(kind: str, seed: int, index: int, images: range, n_frames: int, setting: Setting) -> dict[str, np.ndarray]:
    """One clip and its twin as arrays of image ids; depends on (kind, seed, index) and the options only."""
    rng = np.random.default_rng([DIGIT_KINDS.index(kind), seed, index])
    order = rng.choice(np.arange(images.start, images.stop), size=n_frames + FRESH, replace=False)
    ids, predictable, period = _MAKERS[kind](rng, order, n_frames, setting)
    match = find_matches(ids)
    # the twin shows an image from nowhere in the frame that the last frame repeats, else in a random context frame
    changed = match[-1] if match[-1] >= 0 else int(rng.integers(n_frames - 1))
    twin = ids.copy()
    twin[changed] = next(image for image in order[::-1] if image not in ids)
    twin_match = find_matches(twin)
    frame = np.arange(n_frames)
    clean = {"state_id": ids, "match": match, "predictable": predictable}
    clean["lag"] = np.where(match < 0, 0, frame - match)
    corrupt = {"state_id": twin, "match": twin_match, "predictable": predictable & (twin_match >= 0)}
    corrupt["lag"] = np.where(twin_match < 0, 0, frame - twin_match)
    both = clean | {f"twin.{name}": value for name, value in corrupt.items()}
    return both | {"period": np.array(period), "changed": np.array(changed)}


def make_digit_clips(
    kind: str,
    n: int,
    seed: int = 0,
    *,
    n_frames: int = 16,
    split: str = "held_out",
    period: int | None = None,
    lag: int | None = None,
    filler: float | None = None,
    start: int = 0,
) -> Clips:
    """Clips `start .. start + n - 1` of a seed, `[n n_frames 1 8 8]`; every clip draws its own images.

    - `loop`: a cycle of 2-7 images (`period` fixes it); predictable from frame `period + 1` on.
    - `snippet`: 2-3 snippets of 2-4 images, again and again in random order, with images that occur once between them
      (a share `filler` of the draws, .15 unless given). Inside a snippet that was seen before a frame is predictable,
      at its start it is not, even where it happens to repeat (`match` tells).
    - `one_off`: `A B` once, then `A` again as the last but one frame; the last is `B`, 4-10 frames (`lag` fixes it)
      after its only other occurrence. All other images are distinct. Only the last frame is predictable.
    - `control`: all images distinct, nothing predictable.

    `split`: "train" are the images that the bundled models were trained on, "held_out" the others. The twin replaces
    the frame that the last frame repeats (`match[-1]`; where there is none, a random context frame) by an image that
    occurs nowhere else; its `predictable` keeps the frames that still have a match.

    Raises ValueError for a kind, split, period, lag, filler or length that does not exist or fit.
    """
    if kind not in DIGIT_KINDS:
        raise ValueError(f"unknown kind of digit clips {kind!r}; known: {', '.join(DIGIT_KINDS)}")
    n, seed, start = check_count("n", n), check_seed(seed), check_seed(start, "start")
    images = _split(split)
    n_frames = check_count("n_frames", n_frames, 6, len(images) - FRESH, "every image occurs once at most")
    for name, value, owner in (("period", period, "loop"), ("lag", lag, "one_off"), ("filler", filler, "snippet")):
        if value is not None and kind != owner:
            raise ValueError(f"{name} is for kind {owner!r}; got {name}={value!r} for {kind!r}")
        if value is not None and name != "filler":
            check_count(name, value, 2, n_frames - 2)
    if filler is not None and check_between("filler", filler, 0, 1) == 1:
        raise ValueError("filler=1 leaves no room for snippets: give a share below 1")
    setting = next((value for value in (period, lag, filler) if value is not None), None)
    parts = [_clip(kind, seed, start + i, images, n_frames, setting) for i in range(n)]
    arrays = {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]}
    frames = digit_images()

    def clips(prefix: str, **more: object) -> Clips:
        labels = {name: arrays[name if name == "period" else prefix + name] for name in LABELS}
        return Clips(kind=kind, video=frames[labels["state_id"]], labels=labels, **more)  # type: ignore[arg-type]

    return clips("", corrupt=clips("twin."), corrupt_frame=arrays["changed"])
