"""Clips on disk: one safetensors file, a tensor a field, and the kind in its metadata."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vdinterp import store
from vdinterp.data.clips import Clips

FORMAT = "vdinterp clips 1"
NAMES = {"encoded": "latents"}  # fields that have another name in a file
TWIN, LABEL = "corrupt.", "labels."


def save_clips(clips: Clips, path: str | Path) -> Path:
    """Write clips to `path`, whole or not at all."""
    metadata = {"format": FORMAT, "kind": clips.kind, "meta": json.dumps(clips.meta)}
    if clips.corrupt is not None:
        metadata["corrupt kind"] = clips.corrupt.kind
    return store.write_tensors(path, _tensors(clips), metadata)


def load_clips(path: str | Path) -> Clips:
    """Read clips that `save_clips` wrote, or any safetensors file with tensors of the same names.

    Raises FileNotFoundError where there is no file, ValueError for one that holds something else.
    """
    path = Path(path)
    wanted = "give a safetensors file written by Clips.save, or one with a tensor `video` or `latents`"
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; {wanted}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; {wanted}")
    try:
        with safe_open(str(path), "pt") as file:
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); {wanted}") from error
    twin = {name.removeprefix(TWIN): value for name, value in tensors.items() if name.startswith(TWIN)}
    own = {name: value for name, value in tensors.items() if not name.startswith(TWIN)}
    kind = about.get("kind", "file")
    corrupt = _clips(twin, about.get("corrupt kind", kind), None, path) if twin else None
    return replace(_clips(own, kind, corrupt, path), meta=json.loads(about.get("meta", "{}")))


def _tensors(clips: Clips) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for field in fields(clips):
        value = getattr(clips, field.name)
        if isinstance(value, torch.Tensor):
            found[NAMES.get(field.name, field.name)] = value
    found |= {f"{LABEL}{name}": value for name, value in clips.labels.items()}
    if clips.corrupt is not None:
        found |= {f"{TWIN}{name}": value for name, value in _tensors(clips.corrupt).items()}
    # safetensors takes no tensors that share memory, and a twin may share what is equal
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def _clips(tensors: dict[str, torch.Tensor], kind: str, corrupt: Clips | None, path: Path) -> Clips:
    fields_of = {NAMES.get(field.name, field.name): field.name for field in fields(Clips)}
    labels = {name.removeprefix(LABEL): value for name, value in tensors.items() if name.startswith(LABEL)}
    known = set(fields_of) - {"kind", "corrupt", "labels", "meta"}
    unknown = sorted(name for name in tensors if name not in known and not name.startswith(LABEL))
    if unknown or not {"video", "latents"} & set(tensors):
        given = f"unknown tensors {', '.join(unknown)}" if unknown else "neither `video` nor `latents`"
        raise ValueError(
            f"{path} holds {given}: clips are `video` in [0, 1] or `latents`, [batch frame channel height width], with "
            f"{', '.join(sorted(known - {'video', 'latents'}))} or labels.NAME where they are known"
        )
    named = {name: value for name, value in tensors.items() if name in known}
    values: dict[str, Any] = {fields_of[name]: _typed(name, value, path) for name, value in named.items()}
    try:
        return Clips(kind=kind, labels=labels, corrupt=corrupt, **values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _typed(name: str, value: torch.Tensor, path: Path) -> torch.Tensor:
    """Pictures and latents as float32, 8-bit video divided by 255; refuses what is neither."""
    if name in ("video", "latents"):
        if name == "video" and value.dtype == torch.uint8:
            return value.float() / 255
        if not value.is_floating_point():
            or_else = " in [0, 1], or 8-bit (torch.uint8)" if name == "video" else ""
            raise ValueError(f"{path}: {name} is {value.dtype}; give floating point{or_else}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{path}: {name} holds NaN or infinity")
        return value.float()
    return value.float() if name == "action" else value
