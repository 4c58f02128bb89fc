"""Key tables: which reference tensors make up each of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

# our key -> the reference keys whose tensors, laid one below the other, are it
KeyTable = Mapping[str, tuple[str, ...]]


def check_fit(wanted: Mapping[str, torch.Size], table: KeyTable, given: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` saying what is off: keys missing or left over, tensors (of `given`) of another shape."""
    read = {key for keys in table.values() for key in keys}
    missing = sorted((read - given.keys()) | (wanted.keys() - table.keys()))
    shapes = [_misfit(keys, given, wanted[target]) for target, keys in table.items() if target in wanted]
    off = {
        "missing": missing,
        "unknown": sorted(given.keys() - read),
        "of another shape": [said for said in shapes if said],
    }
    if any(off.values()):
        said = "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in off.items() if names)
        raise ValueError(f"{what} does not fit its configuration: {said}. Is it of another architecture?")


def _misfit(keys: Sequence[str], given: Mapping[str, Any], shape: torch.Size) -> str:
    """What tensors that make up one of this shape are instead; empty if they are, or if one is none."""
    parts = [given[key].shape for key in keys if isinstance(given.get(key), torch.Tensor)]
    if len(parts) < len(keys):
        return ""
    # Fused parts lie below one another: all but the first axis must agree, and that one adds up.
    fused = [torch.Size([sum(part[0] for part in parts), *parts[0][1:]])] if all(parts) else []
    if (len(parts) == 1 and parts == [shape]) or (fused == [shape] and all(part[1:] == shape[1:] for part in parts)):
        return ""
    return " + ".join(f"{k} {list(part)}" for k, part in zip(keys, parts, strict=True)) + f" instead of {list(shape)}"


def some(names: Sequence[str], n: int = 4) -> str:
    """The first of many names."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def linear(target: str, *sources: str, bias: bool = True) -> dict[str, tuple[str, ...]]:
    """Table rows of one linear layer: weight and, unless there is none, bias."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{target}.{kind}": tuple(f"{source}.{kind}" for source in sources) for kind in kinds}


def head_width(d_model: int, n_heads: int) -> int:
    """Channels of one head. `ValueError` where the model's do not divide among its heads."""
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(f"hidden_size {d_model} does not divide into num_heads {n_heads}")
    return d_model // n_heads


def mlp_width(d_model: int, ratio: float) -> int:
    """Neurons of an MLP. `ValueError` for a ratio that no network has."""
    if not 0 < ratio <= 1_000:
        raise ValueError(f"mlp_ratio is {ratio}; a number above 0, at most 1000 is wanted")
    return int(d_model * ratio)
