"""How frames and probabilities are packed for the explorer's front end."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

LARGEST_PNG = 150_000  # bytes; pixel art stays below and exact, photographs become JPEG


def quantised(
    values: Float[np.ndarray, "*_ key"], levels: int
) -> tuple[UInt8[np.ndarray, "*_ key"], Float32[np.ndarray, "*_"]]:
    """Probabilities as whole numbers 0 .. `levels`, and the maximum of each row, which the highest level stands for.

    A probability is `level * maximum / levels`, to half a step (`maximum / levels / 2`).
    """
    maxima = values.max(-1, keepdims=True).astype(np.float32)
    unit = np.where(maxima > 0, maxima, 1)
    return np.rint(values / unit * levels).astype(np.uint8), maxima[..., 0]


def frame_sheet(pixels: UInt8[np.ndarray, "frame height width 3"]) -> tuple[bytes, int]:
    """One picture (PNG, or JPEG when that would be large) of all frames in rows, and how many stand in a row."""
    n_frames, height, width, _ = pixels.shape
    per_row = int(np.ceil(np.sqrt(n_frames)))
    sheet = np.zeros((-(-n_frames // per_row) * height, per_row * width, 3), np.uint8)
    for index, frame in enumerate(pixels):
        top, left = index // per_row * height, index % per_row * width
        sheet[top : top + height, left : left + width] = frame
    drawn = _written(sheet, "PNG", optimize=True)
    if len(drawn) > LARGEST_PNG:
        drawn = _written(sheet, "JPEG", quality=88)
    return drawn, per_row


def _written(image: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()
