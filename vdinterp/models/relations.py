"""Relations between query and key tokens: who is asked about whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int


class Tokens(NamedTuple):
    """Where tokens lie, for relations: tensors that broadcast to `[query key]`. Text tokens have frame -1."""

    token: torch.Tensor
    frame: torch.Tensor
    row: torch.Tensor
    col: torch.Tensor


Relation = Callable[[Tokens, Tokens], torch.Tensor]


def related(name: str, relation: Any, query: Tokens, key: Tokens) -> Bool[torch.Tensor, "..."]:
    """Which pairs a relation holds for. Raises `ValueError` if it is no function, or gives anything but booleans."""
    if not callable(relation):
        raise ValueError(
            f"The relation {name!r} is {type(relation).__name__}; give a function (query, key) -> bool, or a tensor of "
            "pairs [n 2]."
        )
    pairs = relation(query, key)
    if not isinstance(pairs, torch.Tensor) or pairs.dtype != torch.bool:
        given = pairs.dtype if isinstance(pairs, torch.Tensor) else type(pairs).__name__
        raise ValueError(f"The relation {name!r} gave {given}; it must give booleans.")
    if pairs.ndim > 3:
        raise ValueError(
            f"The relation {name!r} gave {list(pairs.shape)}; it is the same for every clip and head, so what it gives "
            "must broadcast to [group query key]."
        )
    return pairs


def listed(name: str, pairs: torch.Tensor, n_queries: int, n_keys: int) -> Int[torch.Tensor, " _"]:
    """A relation given as pairs `[n 2]`, as one number a pair: `query * n_keys + key`."""
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"The relation {name!r} is a tensor {list(pairs.shape)}; pairs are [n 2]: query, key.")
    query = token_indices(pairs[:, 0], n_queries, "query token")
    return query * n_keys + token_indices(pairs[:, 1], n_keys, "key token")


def token_indices(
    given: Sequence[int] | torch.Tensor, size: int, what: str, device: torch.device | None = None
) -> Int[torch.Tensor, " _"]:
    """Indices of tokens (or frames), negative ones counted from the end; or a boolean for each of them.

    Raises `ValueError` for none, for those outside, and for what is neither whole numbers nor a boolean each.
    """
    found = torch.as_tensor(given, device=device)
    if found.dtype == torch.bool and found.shape != (size,):
        raise ValueError(f"A boolean choice of {what}s needs one value each, [{size}]; got {list(found.shape)}.")
    found = found.nonzero()[:, 0] if found.dtype == torch.bool else found.flatten()
    if not len(found):
        raise ValueError(f"No {what} was given.")
    if found.is_floating_point():
        raise ValueError(f"{what}s are whole numbers (or a boolean each), got {found.dtype}.")
    if int(found.min()) < -size or int(found.max()) >= size:
        raise ValueError(
            f"{what}s {int(found.min())}..{int(found.max())} lie outside the {size} there are: 0..{size - 1}, or "
            "negative from the end."
        )
    return found.long() % size
