"""Checkpoint files to plain state dicts, without unpickling code."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a `.safetensors`, `.pt`, `.pth` or Lightning `.ckpt` file.

    Raises `FileNotFoundError` when it is not there, `ValueError` when it is truncated, holds no tensors, or would
    need unpickling of arbitrary objects (re-save its `state_dict` as safetensors then).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no checkpoint torch.load raises almost anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds objects besides tensors, and unpickling them could run code. Save its state_dict alone: "
                "safetensors.torch.save_file(checkpoint['state_dict'], 'weights.safetensors')."
            ) from error
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is no complete checkpoint (truncated, or another kind of file): {reason}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict of tensors; expected one, or a Lightning checkpoint around one.")
    return content
