"""Crops: patches of frames, each enlarged beside the frame that it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import UInt8

from vdinterp.plotting._filmstrip import enlarge, enlargement, strip_figure

BOX = (255, 0, 220)  # stands out from any game or photograph
LARGEST_PAIR = 200  # shown pixels of a patch and its frame side by side
BETWEEN = 2  # pixels of the canvas between a patch and its frame


def patch_strip(
    frames: UInt8[np.ndarray, "picture height width 3"],
    rows: Mapping[str, Sequence[tuple[int, int, int]]],
    *,
    grid: tuple[int, int],
    title: str,
) -> go.Figure:
    """One row of patches a label, best first: the patch enlarged, then its frame with the patch in a box.

    `rows` maps a label to its patches (index into `frames`, row, column) of the `grid` (rows, columns); shorter rows
    end blank. Raises ValueError where there is nothing to show, or a patch lies outside.
    """
    n_shown = max((len(patches) for patches in rows.values()), default=0)
    if not n_shown:
        raise ValueError("no patch to show")
    _, height, width, _ = frames.shape
    cell = (height // grid[0], width // grid[1])
    factor = enlargement(2 * n_shown, height, width)
    pictures = []
    for name, patches in rows.items():
        for picture, row, col in patches:
            if not (0 <= picture < len(frames) and 0 <= row < grid[0] and 0 <= col < grid[1]):
                raise ValueError(
                    f"{name!r}: patch {(picture, row, col)}; {len(frames)} frames of {grid} patches are here"
                )
        drawn = [beside(frames[picture], (row, col), cell, factor) for picture, row, col in patches]
        shape = beside(frames[0], (0, 0), cell, factor).shape
        blank = np.full(shape, 255, np.uint8)
        pictures.append(np.stack([*drawn, *[blank] * (n_shown - len(drawn))]))
    ranks = [str(rank + 1) for rank in range(n_shown)]
    words = {"title": title, "frame_labels": ranks, "x_title": "patches, most active first"}
    return strip_figure(pictures, list(rows), **words, largest=LARGEST_PAIR)


def beside(
    frame: UInt8[np.ndarray, "height width 3"], place: tuple[int, int], cell: tuple[int, int], factor: int
) -> UInt8[np.ndarray, "tall wide 3"]:
    """A patch, as high as its frame, and the frame with a box around the patch."""
    top, left = place[0] * cell[0], place[1] * cell[1]
    large = enlarge(frame[None], factor)[0]
    height = len(large)
    up = max(1, height // cell[0])
    crop = enlarge(frame[None, top : top + cell[0], left : left + cell[1]], up)[0][:height]
    boxed(large, top * factor, left * factor, (cell[0] * factor, cell[1] * factor))
    canvas = np.full((height, crop.shape[1] + BETWEEN + large.shape[1], 3), 255, np.uint8)
    canvas[: len(crop), : crop.shape[1]] = crop
    canvas[:, crop.shape[1] + BETWEEN :] = large
    return canvas


def boxed(picture: np.ndarray, top: int, left: int, size: tuple[int, int]) -> None:
    """Draw a box around a part of a picture, in place; it stays inside the picture."""
    thick = max(1, min(size) // 6)
    y0, x0 = max(0, top - thick), max(0, left - thick)
    y1, x1 = min(picture.shape[0], top + size[0] + thick), min(picture.shape[1], left + size[1] + thick)
    picture[y0 : y0 + thick, x0:x1] = picture[y1 - thick : y1, x0:x1] = BOX
    picture[y0:y1, x0 : x0 + thick] = picture[y0:y1, x1 - thick : x1] = BOX
