"""The neuron browser: one page with every neuron's numbers, and the frames of its patches as shared pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vdinterp.analysis.neurons.effects import Neuron
from vdinterp.analysis.neurons.result import level_name
from vdinterp.plotting.page import offline_page

if TYPE_CHECKING:
    from vdinterp.analysis.neurons.result import NeuronResult

FOLDER = Path(__file__).parent
PER_ROW = 8  # frames side by side in a sheet, and rows of them
JPEG_QUALITY = 85
EFFECTS = (
    "effect",
    "low",
    "high",
    "control",
    "control_high",
    "label_effect",
    "label_low",
    "label_high",
    "label_control",
    "label_n_clips",
)


def render(result: NeuronResult, neurons: Sequence[Neuron], max_bytes: int) -> str:
    """The page of some neurons, with as many of their patches as fit; ValueError if not even the best ones do."""
    if not neurons:
        raise ValueError("no neuron was chosen; leave neurons=None for all")
    places = np.array([result.index(layer, neuron) for layer, neuron in dict.fromkeys(neurons)])
    data = _numbers(result, places)
    picture = result.picture.numpy()[tuple(places.T)]  # [neuron rank]
    in_order = picture.T.flatten()
    _, first = np.unique(in_order, return_index=True)
    wanted = [at for at in in_order[np.sort(first)].tolist() if at >= 0]
    least = len(set(picture[:, 0]) - {-1})  # frames of the best patches, which come first
    _add_patches(result, places, data, wanted)
    size = len(_page(result, data).encode())
    shown: list[int] = []
    for start in range(0, len(wanted), PER_ROW**2):
        frames = wanted[start : start + PER_ROW**2]
        sheet = base64.b64encode(sheet_of(result.frames[frames].numpy(), PER_ROW)).decode()
        if size + len(sheet) > max_bytes:
            break
        size += len(sheet) + 4
        data["sheets"].append(sheet)
        shown += frames
    if size > max_bytes or len(shown) < least:
        raise ValueError(
            f"The page would take more than {max_bytes:,} bytes: choose fewer neurons=, for example "
            "result.most_selective(5), or allow more with max_bytes="
        )
    _add_patches(result, places, data, shown)
    return _page(result, data)


def sheet_of(pictures: UInt8[np.ndarray, "picture height width 3"], per_row: int, exact: bool = False) -> bytes:
    """All pictures in rows, as PNG, or as JPEG if that is smaller (photographs) and need not be `exact`."""
    n, height, width, _ = pictures.shape
    sheet = np.zeros((-(-n // per_row) * height, per_row * width, 3), np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // per_row * height, index % per_row * width
        sheet[top : top + height, left : left + width] = picture
    kinds: list[tuple[str, dict[str, Any]]] = [("PNG", {"optimize": True})]
    if not exact:
        kinds.append(("JPEG", {"quality": JPEG_QUALITY}))
    written = []
    for kind, options in kinds:
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, kind, **options)
        written.append(buffer.getvalue())
    return min(written, key=len)


def _numbers(result: NeuronResult, places: np.ndarray) -> dict[str, Any]:
    """Everything but the patches: what there is to list, to draw, and what neurons write."""
    at = tuple(places.T)
    width = result.activations.shape[1]
    table = result.table.iloc[places[:, 0] * width + places[:, 1]]
    columns = ["layer", "neuron", "mean", "std", "active", "top"]
    neurons = {name: _short(table[name].to_numpy()) for name in columns}
    if result.label_names:
        number = {name: index for index, name in enumerate(result.label_names)}
        neurons["label"] = [number.get(name, -1) for name in table["label"]]
    writes, sizes = _writes(result, places)
    per_row = int(np.ceil(np.sqrt(len(writes))))
    effects: dict[str, list[Any]] = {}
    for row in () if result.effects is None else result.effects.to_dict("records"):
        values = _short(np.array([row.get(name, np.nan) for name in EFFECTS]))
        effects.setdefault(f"{row['layer']}.{row['neuron']}", []).append([f"{row['level']:g}", *values])
    return {
        "info": {
            "levels": [level_name(level) for level in result.levels],
            "labels": result.label_names,
            "shares": _short(np.array(result.label_shares)),
            "layers": result.layers,
            "grid": result.grid,
            "size": result.frames.shape[1:3],
            "sheet": PER_ROW,
            "n_patches": result.activations.shape[2],
            "write": {"size": writes.shape[1:3], "sheet": per_row, "levels": writes.shape[0] // len(places)},
        },
        "neurons": neurons,
        "by_level": _short(result.by_level.numpy()[at]),
        "by_label": _short(result.by_label.numpy()[at]),
        "selectivity": _short(result.selectivity.numpy()[at], 2),
        "control": _short(result.control.numpy()[at], 2),
        "effects": effects,
        "writes": base64.b64encode(sheet_of(writes, per_row, exact=True)).decode(),
        "write_sizes": _short(sizes),
        "sheets": [],
    }


def _writes(result: NeuronResult, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each neuron's largest activation changes in the pixels of its patch, all levels of a neuron one after the
    other: as pictures scaled to the largest change, grey for none; and that change [neuron level]."""
    at = tuple(places.T)
    change = np.einsum("nschw,chwpij->nsijp", result.writes.numpy()[at], result.pixel_map.numpy())
    change = change * np.abs(result.activations.numpy()[at][:, 0])[:, None, None, None, None]
    sizes = np.abs(change).max((2, 3, 4))
    unit = np.where(sizes > 0, sizes, 1)[:, :, None, None, None]
    pictures = np.rint(127.5 + 127.5 * change / unit).astype(np.uint8).reshape(-1, *change.shape[2:])
    return np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures, sizes


def _add_patches(result: NeuronResult, places: np.ndarray, data: dict[str, Any], frames: Sequence[int]) -> None:
    """Put in the patches that lie in these frames, and where the frames are from."""
    slot = {at: index for index, at in enumerate(frames)}
    data["patches"] = _patches(result, places, slot)
    data["frames"] = _sources(result, places, slot)
    data["info"]["left_out"] = len(places) * result.activations.shape[2] - sum(map(len, data["patches"]))


def _patches(result: NeuronResult, places: np.ndarray, slot: dict[int, int]) -> list[list[Any]]:
    """Of every neuron the patches that are shown: frame, patch within it, activation, level, label."""
    number = {round(level, 6): index for index, level in enumerate(result.levels)}
    found = []
    for at in map(tuple, places):
        rows = zip(
            result.picture[at].tolist(),
            result.patches[at].tolist(),
            _short(result.activations[at].numpy()),
            result.patch_levels[at].tolist(),
            result.patch_labels[at].tolist(),
            strict=True,
        )
        found.append(
            [
                [slot[picture], row * result.grid[2] + col, activation, number[round(level, 6)], label]
                for picture, (_, _, row, col), activation, level, label in rows
                if picture in slot
            ]
        )
    return found


def _sources(result: NeuronResult, places: np.ndarray, slot: dict[int, int]) -> list[list[int]]:
    """Clip and frame of every frame that is shown."""
    at = tuple(places.T)
    pictures, where = result.picture.numpy()[at].flatten(), result.patches.numpy()[at].reshape(-1, 4)
    found = {slot[picture]: where[i, :2].tolist() for i, picture in enumerate(pictures.tolist()) if picture in slot}
    return [found[index] for index in range(len(slot))]


def _short(values: np.ndarray, decimals: int | None = None) -> list[Any]:
    """Numbers with three significant digits, or some decimals, as JSON has them: None for NaN."""
    if values.ndim > 1:
        return [_short(row, decimals) for row in values]
    if values.dtype.kind in "iu":
        return values.tolist()
    written = [f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}" for value in values]
    numbers = [None if text == "nan" else float(text) for text in written]
    return [int(number) if number is not None and number == int(number) else number for number in numbers]


def _page(result: NeuronResult, data: dict[str, Any]) -> str:
    meta = result.meta
    about = [
        f"{len(data['neurons']['layer'])} of {len(result.table)} neurons of {meta.get('model', 'a model')}",
        str(meta.get("clips", "")),
        f"noise levels {', '.join(level_name(level) for level in result.levels)}",
        f"vdinterp {version('vdinterp')}",
    ]
    shown = " &middot; ".join(html.escape(part) for part in about if part)
    body = f'<header>\n<h1>MLP neurons</h1><p>{shown}</p></header>\n<main id="browser"></main>'
    return offline_page(
        title="MLP neurons",
        style=_text("browser.css"),
        body=body,
        data_id="browser-data",
        data=data,
        script=_text("browser.js"),
    )


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
