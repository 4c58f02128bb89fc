"""Mask: which keys a query may see, as rules that are asked for some queries at a time.

A mask of a real clip is as large as its pattern, gigabytes, so it is made only where it is small, or where a hook of
the user's wants it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Literal

import torch
from jaxtyping import Bool, Shaped

SMALL = 2**22  # pairs of a mask that is made whole: one kernel call is cheaper than several then
CHUNK_BYTES = 32 * 2**20  # of a mask at a time; kernels want it as numbers, four bytes a pair
LEAST = 128  # queries at a time, where fewer would see alike

ALLOWS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "from": torch.ge,  # labels: a query sees keys up to its own
    "same": torch.eq,  # labels: a query sees keys of its own
    "apart": lambda query, key: ~(query & key),  # flags: these queries do not see these keys
    "own": lambda query, key: (key < 0) | (query == key),  # labels: a key that has one is for queries of that one only
    "given": lambda query, key: query & key,  # every pair, and keys that may be seen at all
}


@dataclass(frozen=True, eq=False)
class Rule:
    """One condition on query and key, by a label or flag of each (see `ALLOWS`). Axes are `[batch group head query
    key]`, of size 1 where it is the same for all."""

    kind: Literal["from", "same", "apart", "own", "given"]
    query: torch.Tensor
    """`[.. query 1]`; of a given one `[.. query key]`."""
    key: torch.Tensor
    """`[.. 1 key]`."""
    where: torch.Tensor | None = None
    """`[.. query 1]`: the queries that it holds for; None: all."""

    def allowed(self, queries: Any) -> Bool[torch.Tensor, "batch group head query key"]:
        """Whether each of some queries may see each key."""
        found = ALLOWS[self.kind](taken(self.query, 3, queries), self.key)
        return found if self.where is None else found | ~taken(self.where, 3, queries)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
        """The same of changed tensors."""
        where = None if self.where is None else change(self.where)
        return replace(self, query=change(self.query), key=change(self.key), where=where)


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys a query may see: those that every rule allows."""

    rules: tuple[Rule, ...]
    block: int = 0
    """Where no query sees beyond its own block of so many tokens, that number; 0 where it may."""
    made: Bool[torch.Tensor, "batch group head query key"] | None = None
    """All of it, where that is kept."""

    # What there is

    @classmethod
    def causal(cls, n_tokens: int, block: int, device: torch.device | None = None) -> Mask:
        """A token sees its own block of so many tokens, and all earlier ones."""
        label = torch.arange(n_tokens, device=device)[None] // block
        mask = replace(cls.by("from", label, label), block=block)
        return replace(mask, made=mask.allowed()) if mask.is_small else mask

    @classmethod
    def by(
        cls,
        kind: Literal["from", "same", "apart", "own"],
        queries: Shaped[torch.Tensor, "batch query"],
        keys: Shaped[torch.Tensor, "batch key"],
    ) -> Mask:
        """By one label or flag a query and one a key; of one clip where it is the same for all."""
        return cls((Rule(kind, queries[:, None, None, :, None], keys[:, None, None, None]),))

    @classmethod
    def given(cls, pairs: Bool[torch.Tensor, "*axes query key"]) -> Mask:
        """Every pair, `[query key]`, or with the axes `[batch group head]` before these."""
        seen = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool, device=pairs.device)
        return cls((Rule("given", pairs[(None,) * (5 - pairs.ndim)], seen),))

    @classmethod
    def hooked(cls, mask: Bool[torch.Tensor, "... query key"]) -> Mask:
        """A mask in the shape of `hook_mask`, whose groups have an axis only where there are several."""
        return cls.given(mask.unsqueeze(1) if mask.ndim == 4 else mask)

    @classmethod
    def anything(cls, n_queries: int, n_keys: int, device: torch.device | None = None) -> Mask:
        """Every query sees every key."""
        queries, keys = (torch.zeros(1, n, dtype=torch.bool, device=device) for n in (n_queries, n_keys))
        return cls.by("apart", queries, keys)

    def __and__(self, other: Mask) -> Mask:
        """What both allow."""
        return Mask((*self.rules, *other.rules), self.block or other.block)

    def only(self, where: Bool[torch.Tensor, "batch group head query 1"]) -> Mask:
        """The same for some queries; others may see all."""
        return Mask(tuple(replace(r, where=where if r.where is None else r.where & where) for r in self.rules))

    # Answers

    @cached_property
    def shape(self) -> torch.Size:
        """`[batch group head query key]`; 1 where it is the same for all."""
        parts = [part for rule in self.rules for part in (rule.query, rule.key, rule.where) if part is not None]
        return torch.broadcast_shapes(*(part.shape for part in parts))

    @property
    def device(self) -> torch.device:
        return self.rules[0].key.device

    @property
    def is_small(self) -> bool:
        """Whether it is cheapest made whole."""
        return self.made is not None or self.shape.numel() <= SMALL

    def allowed(self, queries: Any = slice(None)) -> Bool[torch.Tensor, "batch group head query key"]:
        """Which keys some queries (a slice, or indices within their group) may see; axes of size 1 are the same for
        all."""
        if self.made is not None:
            return taken(self.made, 3, queries)
        return reduce(torch.logical_and, (rule.allowed(queries) for rule in self.rules))

    def whole(self) -> Bool[torch.Tensor, "batch group head query key"]:
        """All of it."""
        return self.allowed().expand(self.shape)

    def spans(self) -> Iterator[tuple[slice, slice, Bool[torch.Tensor, "batch group head query key"] | None]]:
        """Some queries at a time: which, the keys that any of them may see, and which of these each may (None: all)."""
        *batches, n_queries, n_keys = self.shape
        step, alone = max(1, CHUNK_BYTES // (4 * n_keys * torch.Size(batches).numel())), len(self.rules) == 1
        if self.block and alone:
            step = max(self.block, min(step, LEAST) // self.block * self.block)
        for start in range(0, n_queries, step):
            stop = min(start + step, n_queries)
            end = -(-stop // self.block) * self.block if self.block else n_keys
            queries, keys = slice(start, stop), slice(0, min(end, n_keys))
            alike = alone and stop - start <= self.block
            yield queries, keys, None if alike else taken(self.allowed(queries), 4, keys)

    # Parts

    def part(
        self, batch: Any = slice(None), group: Any = slice(None), head: Any = slice(None), query: Any = slice(None)
    ) -> Mask:
        """That of some clips, groups, heads and queries, axes kept."""

        def narrowed(value: torch.Tensor) -> torch.Tensor:
            for axis, chosen in enumerate((batch, group, head, query)):
                value = taken(value, axis, chosen)
            return value

        return Mask(self._each(narrowed).rules, self.block if isinstance(query, slice) and query == slice(None) else 0)

    def to(self, device: Any) -> Mask:
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Mask:
        return Mask(tuple(rule.each(change) for rule in self.rules), self.block)


def taken(value: torch.Tensor, axis: int, chosen: Any) -> torch.Tensor:
    """Some of an axis; all of one that has size 1, which is the same for all."""
    return value if value.shape[axis] == 1 else value[(slice(None),) * axis + (chosen,)]
