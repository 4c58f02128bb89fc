"""QueryKeys: the queries and keys of one attention, where they lie, and their probabilities chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int

from vdinterp.grid import TokenGrid
from vdinterp.mask import Mask
from vdinterp.models.memory import check_fits, readable
from vdinterp.models.relations import Tokens, token_indices

if TYPE_CHECKING:
    from typing_extensions import Self

NO_KEY = "a query is left without any key. To switch attention off, ablate hook_out."
CHUNK_BYTES = 128 * 2**20  # probabilities held at a time
KERNEL_WIDTH = 16  # the fused CPU kernel wants q, k and v equally wide, and is fastest at multiples of this


def at_a_time(row_bytes: int) -> int:
    """How many rows of so many bytes are held at a time."""
    return max(1, CHUNK_BYTES // row_bytes)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask | None, scale: float) -> torch.Tensor:
    """Fused attention of `[batch*group head query d_head]` with values of any width, under a mask that is never made
    whole where it is large. Raises ValueError for a mask that leaves a query without any key, where that is looked at.
    """
    if mask is None:
        return fused(q, k, v, None, scale)
    if mask.is_small:
        return fused(q, k, v, folded(mask.allowed(), len(q)), scale)
    found = v.new_empty(*q.shape[:-1], v.shape[-1])  # at once: pieces kept one by one would break the memory up
    for queries, keys, allowed in mask.spans():
        if allowed is not None and not bool(allowed.any(-1).all()):
            raise ValueError(NO_KEY)
        own = None if allowed is None else folded(allowed, len(q))
        found[..., queries, :] = fused(q[..., queries, :], k[..., keys, :], v[..., keys, :], own, scale)
    return found


def folded(allowed: Bool[torch.Tensor, "batch group head query key"], n: int) -> Bool[torch.Tensor, "_ head query key"]:
    """A mask with batch and groups in one axis, of size 1 or `n`."""
    batch, group = allowed.shape[:2]
    if batch * group not in (1, n):  # the same for all clips, or all groups
        allowed = allowed.expand(n // group if batch == 1 else batch, n // batch if group == 1 else group, -1, -1, -1)
    return allowed.flatten(0, 1)


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Fused attention for values of any width: all three are padded to one that the kernel likes."""
    if v.shape[-1] == q.shape[-1]:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    width = -max(q.shape[-1], v.shape[-1]) // KERNEL_WIDTH * -KERNEL_WIDTH
    q, k, padded = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, padded, attn_mask=mask, scale=scale)[..., : v.shape[-1]]


def narrowed(step: Any, size: int) -> tuple[slice | torch.Tensor, Any]:
    """One axis' index as what is kept of the axis, and the same index of that. IndexError for what lies outside."""
    if isinstance(step, slice):
        return step, slice(None)
    index = torch.as_tensor(step)
    if index.dtype == torch.bool:
        if index.shape != (size,):
            raise IndexError(f"a mask of {list(index.shape)} for an axis of {size}")
        index = index.nonzero()[:, 0]
    if index.is_floating_point() or bool(((index < -size) | (index >= size)).any()):
        raise IndexError(f"index {step!r} for an axis of {size}")
    kept = (index % size).flatten()
    return kept, torch.arange(len(kept)).view(index.shape) if index.ndim else 0


@dataclass(frozen=True, eq=False)
class QueryKeys:
    """What `AttentionPattern` is made of; its arguments are described there."""

    q: Float[torch.Tensor, "batch _ head _ d_head"]
    k: Float[torch.Tensor, "batch _ head _ d_head"]
    scale: float
    mask: Mask | None
    grid: TokenGrid
    axis: Literal["3d", "space", "time"] = "3d"
    cross: bool = False
    has_batch_dim: bool = True  # of what is indexed and materialised; answers always have it

    def __repr__(self) -> str:
        batch, groups, heads, queries, _ = self.q.shape
        kind = "cross-attention" if self.cross else self.axis
        return (
            f"AttentionPattern({kind}: {batch} clips, {heads} heads, {groups} x {queries} queries, "
            f"{self.k.shape[-2]} keys each, grid {self.grid.shape}; dense it would be {readable(self.dense_bytes)})"
        )

    # Sizes

    @property
    def n_heads(self) -> int:
        return self.q.shape[2]

    @property
    def n_queries(self) -> int:
        """Query tokens of a clip."""
        return self.q.shape[1] * self.q.shape[3]

    @property
    def n_text(self) -> int:
        """Text tokens that follow the clip's among queries and keys alike (joint attention)."""
        return self.n_queries - self.grid.n_tokens

    @property
    def n_keys(self) -> int:
        """Key tokens of a clip, or of the text."""
        return self.k.shape[-2] if self.cross else self.n_queries

    @property
    def dense_bytes(self) -> int:
        """What `materialize` would take, in float32."""
        return self.q.shape[:-1].numel() * self.k.shape[-2] * 4

    def estimate(self) -> dict[str, int]:
        """What answers cost: `flops` of one pass over the pattern, `chunk_bytes` of probabilities held at a time,
        `row_bytes` of one query's row (all clips and heads), `dense_bytes` of the whole that only `materialize` makes.

        An answer that would take more than half of the free memory raises MemoryError, with the byte count, before
        it starts.
        """
        rows = self.q.shape[:-1].numel()
        least = self.k.shape[-2] * 4 * self.q.shape[:3].numel()
        return {
            "flops": 2 * rows * self.k.shape[-2] * self.q.shape[-1],
            "chunk_bytes": max(least, min(CHUNK_BYTES, self.dense_bytes)),
            "row_bytes": self._bytes(self.n_keys),
            "dense_bytes": self.dense_bytes,
        }

    def _bytes(self, per_head: int) -> int:
        """float32 bytes of so many numbers a head and clip."""
        return 4 * len(self.q) * self.n_heads * per_head

    def _check(self, per_head: int, what: str, hint: str) -> None:
        check_fits(self._bytes(per_head), self.q.device, what, hint)

    def heads(self, heads: Sequence[int]) -> Self:
        """The same pattern, of some heads only."""
        return self._part(head=token_indices(heads, self.n_heads, "head", self.q.device))

    def clips(self, which: slice) -> Self:
        """The same pattern, of some clips only."""
        return self._part(which)

    def _part(
        self, batch: Any = slice(None), group: Any = slice(None), head: Any = slice(None), query: Any = slice(None)
    ) -> Self:
        """Some clips, groups, heads and queries, axes kept: of some groups or queries good for probabilities only, not
        for places."""
        mask = None if self.mask is None else self.mask.part(batch, group, head, query)
        q = self.q[batch][:, group][:, :, head][:, :, :, query]
        return replace(self, q=q, k=self.k[batch][:, group][:, :, head], mask=mask)

    def uniform(self) -> Self:
        """Attention that is the same over all keys the mask allows: what any statistic of it says is chance."""
        return replace(self, q=torch.zeros_like(self.q))

    # Tokens and groups

    @property
    def query_tokens(self) -> Int[torch.Tensor, "group query"]:
        """Token index of every query."""
        tokens = torch.arange(self.n_queries, device=self.q.device)
        if self.axis == "time" and not self.cross:
            return tokens.view(self.grid.n_frames, -1).t()
        return tokens.view(self.q.shape[1], -1)

    @property
    def key_tokens(self) -> Int[torch.Tensor, "group key"]:
        """Token index of every key."""
        return torch.arange(self.n_keys, device=self.q.device)[None] if self.cross else self.query_tokens

    def _by_token(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`[batch group head within ...]` to `[batch head token ...]`."""
        x = x.movedim(2, 1).flatten(2, 3)
        return x if self.axis != "time" or self.cross else x[:, :, tokens.flatten().argsort()]

    def _tokens(self, given: Sequence[int] | torch.Tensor, size: int, what: str) -> Int[torch.Tensor, " _"]:
        return token_indices(given, size, what, self.q.device)

    def _keys(self) -> Tokens:
        if not self.cross:
            return self._places(self.key_tokens)
        outside = torch.full((1, 1), -1, device=self.q.device)
        return Tokens(self.key_tokens, outside, outside, outside)

    def _places(self, tokens: torch.Tensor) -> Tokens:
        cell = tokens % self.grid.tokens_per_frame
        places = tokens // self.grid.tokens_per_frame, cell // self.grid.n_cols, cell % self.grid.n_cols
        return Tokens(tokens, *(torch.where(tokens < self.grid.n_tokens, place, -1) for place in places))

    def _key_groups(self) -> torch.Tensor:
        return self.key_tokens.expand(self.q.shape[1], -1)

    def _asked(
        self, frame_of_query: torch.Tensor, frames: Sequence[int] | torch.Tensor | None
    ) -> Bool[torch.Tensor, "group query"]:
        """The queries of some frames; None: all of them."""
        if frames is None:
            return torch.ones_like(frame_of_query, dtype=torch.bool)
        return torch.isin(frame_of_query, token_indices(frames, self.grid.n_frames, "frame", self.q.device))

    # One chunk of queries at a time

    def _probabilities(self, within: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and their log-normaliser, `[batch group head query key]` and `[.. query]`, of some queries."""
        logits = (self.q[..., within, :].float() * self.scale) @ self.k.float().transpose(-1, -2)
        if self.mask is not None:
            logits = logits.masked_fill_(~self.mask.allowed(within), -torch.inf)
        normaliser = logits.logsumexp(-1)
        return logits.sub_(normaliser.unsqueeze(-1)).exp_(), normaliser

    def chunks(self) -> Iterator[tuple[slice, Float[torch.Tensor, "batch group head query key"]]]:
        """The pattern in pieces that fit into memory: which queries (within their group), and their probabilities.

        Every reduction here is a sum over these; write your own with them. Each piece is yours to change.
        """
        rows = at_a_time(4 * self.q.shape[:3].numel() * self.k.shape[-2])
        for start in range(0, self.q.shape[3], rows):
            within = slice(start, min(start + rows, self.q.shape[3]))
            yield within, self._probabilities(within)[0]
