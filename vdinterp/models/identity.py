"""Which weights a model holds: marks that are cheap to compare, and one hash of all content, made once.

The hash is equal for equal weights, however they came here (a file, another file, training) and wherever they lie. A
tensor is hashed when it is first asked about and again only if it was edited since: asking before each of many runs
costs one pass over the weights, and nothing is hashed that nobody asks about.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from vdinterp.models.spread import offloaded

_KNOWN = WeakIdKeyDictionary()  # tensor -> (its state when it was hashed, the hash)
_OURS = ("vdinterp", "torch")
CLOSE = 1e-5  # relative: what is further apart is of other weights
SAMPLES = 4  # values of each parameter that are compared, about
BLOCK = 2**24  # values that are hashed at a time


def marks(model: nn.Module) -> Float[torch.Tensor, " _"]:
    """What tells these weights from others: the norm and a few values of every parameter that stays in memory."""
    held = dict(model.named_parameters())
    if any(each.is_meta for each in held.values()):
        for name in offloaded(model).keys() & held.keys():  # there or not, as hooks have it
            del held[name]
    held = [each.detach() for each in held.values() if not each.is_meta and each.numel()]
    if not held:
        return torch.zeros(0)
    held = [each if each.is_floating_point() else each.float() for each in held]
    norms = [torch.linalg.vector_norm(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in held]
    few = [each.flatten()[:: max(1, each.numel() // SAMPLES)] for each in held]
    return torch.cat([part.flatten().to(held[0].device, torch.float32) for part in (*norms, *few)])  # may be spread


def same_weights(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two `marks` are of the same weights, wherever they were and whatever their device rounds."""
    return one.shape == other.shape and torch.allclose(one.cpu(), other.cpu(), rtol=CLOSE, atol=1e-12, equal_nan=True)


def identity(model: Any) -> str:
    """SHA-256 of a module's parameters and buffers (names, types, shapes, values) and of the layers that others put in
    place of its own (their classes and settings). 64 hexadecimal digits.

    Raises `ValueError` for weights that are nowhere: on the meta device, with no place that they were offloaded to.
    """
    whole = hashlib.sha256()
    elsewhere = offloaded(model)
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if name in elsewhere:
            value = elsewhere[name]()
        elif isinstance(value, torch.Tensor) and value.is_meta:
            raise ValueError(f"{name} is on the meta device and holds no values: load weights into it first")
        whole.update(f"{name}\x1f{_digest(value)}\x1e".encode())
    for name, layer in model.named_modules():
        if type(layer).__module__.partition(".")[0] not in _OURS:
            settings = {key: part for key, part in sorted(vars(layer).items()) if key != "training" and _plain(part)}
            whole.update(f"{name}\x1f{type(layer).__qualname__}\x1f{settings}\x1e".encode())
    return whole.hexdigest()


def _digest(value: Any) -> str:
    if not isinstance(value, torch.Tensor):  # what a module keeps besides tensors
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
    flat = value.detach().contiguous().flatten()
    version = 0 if value.is_inference() else value._version
    state = value.data_ptr(), version, _sums(flat, len(value) if value.ndim else 1)
    known = _KNOWN.get(value)
    if known is None or known[0] != state:
        made = hashlib.sha256(f"{value.dtype}{list(value.shape)}".encode())
        for block in flat.split(BLOCK):  # what lies on another device is not brought here as a whole
            made.update(block.cpu().view(torch.uint8).numpy().data)
        known = _KNOWN[value] = state, made.hexdigest()
    return known[1]


def _sums(flat: torch.Tensor, n_rows: int) -> bytes:
    """The sums of a tensor's bits over rows and over columns: an edit past torch's count of them (`.data`) shows."""
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32}.get(flat.itemsize, torch.int64))
    rows = bits.view(max(1, n_rows), -1) if bits.numel() else bits.view(1, 0)
    return torch.cat([rows.sum(0), rows.sum(1)]).cpu().numpy().tobytes()


def _plain(value: Any) -> bool:
    """Whether a setting reads the same in every process."""
    if isinstance(value, dict):
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)
