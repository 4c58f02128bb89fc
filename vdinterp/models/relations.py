"""Relations between query and key tokens: who is asked about whom."""

from __future__ import annotations

from collections.abc import Callable
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
    """Which pairs a relation holds for. Raises `ValueError` if it gives anything but booleans."""
    pairs = relation(query, key)
    if not isinstance(pairs, torch.Tensor) or pairs.dtype != torch.bool:
        given = pairs.dtype if isinstance(pairs, torch.Tensor) else type(pairs).__name__
        raise ValueError(f"The relation {name!r} gave {given}; it must give booleans.")
    return pairs


def listed(name: str, pairs: torch.Tensor, n_queries: int, n_keys: int) -> Int[torch.Tensor, " _"]:
    """A relation given as pairs `[n 2]`, as one number a pair: `query * n_keys + key`."""
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"The relation {name!r} is a tensor {list(pairs.shape)}; pairs are [n 2]: query, key.")
    query = token_indices(pairs[:, 0], n_queries, "query token")
    return query * n_keys + token_indices(pairs[:, 1], n_keys, "key token")


def token_indices(tokens: Int[torch.Tensor, " _"], size: int, what: str) -> Int[torch.Tensor, " _"]:
    """Indices of tokens (or frames), negative ones counted from the end. Raises `ValueError` for none, or outside."""
    if not len(tokens):
        raise ValueError(f"No {what} was given.")
    if int(tokens.min()) < -size or int(tokens.max()) >= size:
        raise ValueError(
            f"{what}s {int(tokens.min())}..{int(tokens.max())} lie outside the {size} there are; "
            "grid.index(frame, row, col) gives a token's index."
        )
    return tokens % size
