"""Checkpoint files to tensors by name, read one at a time and without unpickling code."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

BUFFERS = (".freqs", ".phases")  # stored beside the parameters, but not averaged with them


class Tensors(Mapping[str, Any]):
    """Tensors by name, each read when it is asked for and to be used before the next one.

    `outline` has their shapes and dtypes (on the meta device), and reads none.
    """

    def __init__(self, outline: Mapping[str, Any], read: Callable[[str], Any]) -> None:
        self.outline, self._read = dict(outline), read

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Tensors:
        """Those of a dictionary; what is no tensor stands in the `outline` as it is."""
        if isinstance(state, Tensors):
            return state
        outline = {key: part.to("meta") if isinstance(part, torch.Tensor) else part for key, part in state.items()}
        return cls(outline, state.__getitem__)

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """Those that `names` has, by their new names: `{new: old}`."""
        return Tensors({new: self.outline[old] for new, old in names.items()}, lambda new: self[names[new]])

    def __getitem__(self, key: str) -> Any:
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        return key in self.outline

    def __iter__(self) -> Iterator[str]:
        return iter(self.outline)

    def __len__(self) -> int:
        return len(self.outline)


def read_checkpoint(path: str | Path) -> Tensors:
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
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    mapped = zipfile.is_zipfile(path)  # what torch has written since 1.6; only that can be read a tensor at a time
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    found = Tensors.of(state if state is content else _averaged(content, state, path))
    return Tensors(found.outline, _letting_go(found)) if mapped else found


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file. `ValueError` if it is truncated or none."""
    with _opened(path) as content:
        outline = {key: content.get_tensor(key).to("meta") for key in content.keys()}  # noqa: SIM118

    def read(key: str) -> torch.Tensor:
        with _opened(path) as content:  # opened anew: what was read through one opening stays in memory until it ends
            return content.get_tensor(key)

    return Tensors(outline, read)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as content:
            yield content
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); copy or download it again") from error


def _letting_go(mapped: Tensors) -> Callable[[str], torch.Tensor]:
    """Reads tensors of a file that is mapped into memory, and gives the memory of each back when the next is asked for.

    Who looks at an earlier one again reads it from the file again.
    """
    last: list[torch.UntypedStorage] = []

    def read(key: str) -> torch.Tensor:
        while last and os.name == "posix":
            start, page = last[-1].data_ptr(), mmap.PAGESIZE
            first, end = -(-start // page) * page, (start + last.pop().nbytes()) // page * page
            if end > first:
                advise = ctypes.CDLL(None).madvise
                advise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)
        tensor = mapped[key]
        last.append(tensor.untyped_storage())
        return tensor

    return read


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
