"""Checkpoint files to plain state dicts, without unpickling code."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

logger = logging.getLogger(__name__)

BUFFERS = (".freqs", ".phases")  # stored beside the parameters, but not averaged with them


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a `.safetensors`, `.pt`, `.pth` or Lightning `.ckpt` file.

    Of a Lightning checkpoint that holds averaged weights beside the raw ones (`optimizer_states[0]["ema"]`, as the
    Diffusion Forcing Transformer's do), the averaged ones, as the reference itself samples with; the log says so.

    Raises `FileNotFoundError` when it is not there, `ValueError` when it is truncated, holds no tensors, or would
    need unpickling of arbitrary objects (re-save its `state_dict` as safetensors then).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}.")
    _check_kind(path)
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
        raise ValueError(
            f"{path} is no complete checkpoint (truncated, or another kind of file): {_reason(error)}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors; expected one, or a Lightning checkpoint around one.")
    return state if state is content else _averaged(content, state, path)


def _check_kind(path: Path) -> None:
    """Raise `ValueError` for files that go with checkpoints, or hold them in another form."""
    if path.suffix == ".json":
        what = "the index of a checkpoint in several files" if path.name.endswith(".index.json") else "a JSON file"
        raise ValueError(f"{path} is {what}, not the weights; give a single .safetensors, .pt, .pth or .ckpt file")
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            raise ValueError(
                f"{path} is a GGUF file, whose weights are quantised; give the .safetensors or .pt checkpoint that it "
                "was made from"
            )


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if "weights_only" in text or "Weights only" in text:  # torch's advice is to let the file run code
        return "torch cannot read it as tensors"
    return text.splitlines()[0][:160] if text else type(error).__name__


def _averaged(content: dict[str, Any], state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The state dict with the averaged weights in place of the raw ones, where the checkpoint has any.

    They are a list in the order of the parameters of `diffusion_model`; names come from the raw weights.
    """
    states = content.get("optimizer_states")
    average = states[0].get("ema") if isinstance(states, list) and states and isinstance(states[0], dict) else None
    if average is None:
        return state
    average = list(average.values()) if isinstance(average, dict) else average
    names = [key for key in state if key.startswith("diffusion_model.") and not key.endswith(BUFFERS)]
    shapes = [list(getattr(tensor, "shape", ())) for tensor in average] if isinstance(average, list | tuple) else []
    if shapes != [list(state[key].shape) for key in names]:
        raise ValueError(
            f"{path} holds averaged weights (optimizer_states[0]['ema'], {len(shapes)} tensors) that do not line up "
            f"with its {len(names)} parameters, so which belongs where is not known; save those you mean as safetensors"
        )
    logger.info("%s: the averaged weights (EMA) are taken, not the raw ones of the last training step", path.name)
    return {**state, **dict(zip(names, average, strict=True))}
