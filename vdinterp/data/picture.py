"""One decoded frame as a player shows it: turned, square pixels, its own colours brought to sRGB, no transparency."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from vdinterp.data.cropping import Cropping

WHOLE = Cropping()
UNSTATED = 2  # of a matrix, a transfer or primaries
HD_WIDTH, SD_HEIGHT = 1280, 576  # players take BT.709 for what is larger and states no matrix, BT.601 for the rest
PQ, HLG = 16, 18  # transfer functions of high dynamic range
BT2020, P3 = 9, (11, 12)  # primaries wider than those of sRGB
WHITE = 203.0  # cd/m2 of a white page in high dynamic range (ITU-R BT.2408)
KNEE = 0.8  # what is brighter is compressed into the rest
TO_SRGB = {  # linear light, row by row
    BT2020: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),
    **dict.fromkeys(P3, np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])),
}


def shown(frame: Any, pixel_aspect: Any, hidden: Cropping = WHOLE) -> np.ndarray:
    """`[height width 3]` uint8 of an `av.VideoFrame`. `pixel_aspect`: width over height of one stored pixel; `hidden`:
    stored pixels at the sides that are not shown."""
    width, height = frame.width, frame.height
    if pixel_aspect and pixel_aspect > 1:
        width = round(width * float(pixel_aspect))
    elif pixel_aspect:
        height = round(height / float(pixel_aspect))
    bright = frame.color_trc in (PQ, HLG)
    wide = frame.color_primaries in TO_SRGB
    transparent = any(component.is_alpha for component in frame.format.components)
    format = "rgb48le" if bright or wide else "rgba" if transparent else "rgb24"
    options: dict[str, Any] = {}
    high_definition = frame.width >= HD_WIDTH or frame.height > SD_HEIGHT
    if frame.colorspace == UNSTATED and high_definition and not frame.format.is_rgb:
        from av.video.reformatter import Colorspace

        options["src_colorspace"] = Colorspace.ITU709
    pixels = frame.reformat(width=width, height=height, format=format, **options).to_ndarray()
    if format == "rgba":  # over black, as most players have it
        pixels = (pixels[..., :3].astype(np.float32) * (pixels[..., 3:] / np.float32(255))).round().astype(np.uint8)
    elif format == "rgb48le":
        pixels = _standard(pixels.astype(np.float32) / 65535, frame.color_trc, TO_SRGB.get(frame.color_primaries))
    across, down = width / frame.width, height / frame.height
    left, right = (round(side * across) for side in (hidden.left, frame.width - hidden.right))
    top, bottom = (round(side * down) for side in (hidden.top, frame.height - hidden.bottom))
    return np.ascontiguousarray(_turned(pixels[top:bottom, left:right], frame))


def _turned(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Turned and mirrored as the display matrix of the container says."""
    matrix = next((np.frombuffer(bytes(item), "<i4") for item in frame.side_data if _is(item, "DISPLAYMATRIX")), None)
    if matrix is None or len(matrix) < 9:
        return pixels
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    if across < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if down < 0 else pixels


def warn_of(frame: Any, name: str) -> None:
    """Say what a frame is besides a picture, and what a player would make of it that is not made here."""
    for kind, what in (("STEREO3D", "stereo: a frame holds both eyes"), ("SPHERICAL", "spherical: it is not unrolled")):
        if any(_is(item, kind) for item in frame.side_data):
            warnings.warn(f"{name} is {what}", stacklevel=4)
    if frame.interlaced_frame:
        warnings.warn(f"{name} is interlaced: each frame shows two moments, line by line", stacklevel=4)


def _is(item: Any, kind: str) -> bool:
    return getattr(item.type, "name", "") == kind


def _standard(coded: np.ndarray, transfer: int, matrix: np.ndarray | None) -> np.ndarray:
    """Wide or bright colours `[.. 3]` in [0, 1] as sRGB uint8."""
    if transfer == PQ:  # SMPTE ST 2084
        root = np.power(coded, 1 / 78.84375)
        light = (
            10000
            / WHITE
            * np.power(np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root), 1 / 0.1593017578125)
        )
    elif transfer == HLG:  # ITU-R BT.2100, for a display of 1000 cd/m2
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
        luminance = scene @ np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
        light = 1000 / WHITE * scene * np.power(np.maximum(luminance, 1e-6), 0.2)[..., None]
    else:
        light = np.power(coded, 2.2)
    if matrix is not None:
        light = np.maximum(light @ matrix.T, 0)
    if transfer in (PQ, HLG):
        peak = np.maximum(light.max(-1, keepdims=True), 1e-6)
        rolled = KNEE + (1 - KNEE) * (1 - np.exp(-(peak - KNEE) / (1 - KNEE)))
        light = light * np.where(peak > KNEE, rolled / peak, 1)
    light = np.clip(light, 0, 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(np.maximum(light, 1e-9), 1 / 2.4) - 0.055)
    return (srgb * 255).round().astype(np.uint8)
