"""AttentionPattern: what an attention pattern says, exactly, without the N x N matrix.

A pattern of a real clip is gigabytes a head, so it is never kept: queries and keys are, and every question is answered
from them, in chunks of queries or by one fused attention call. Logits, softmax and sums are float32 whatever the
model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from vdinterp.grid import TokenGrid
from vdinterp.models.memory import check_fits
from vdinterp.models.query_keys import QueryKeys, at_a_time, attended, narrowed
from vdinterp.models.relations import Relation, Tokens, listed, related

Partition = Int[torch.Tensor, " _"] | Literal["frame"]


def count_parts(partition: Partition, grid: TokenGrid) -> int:
    """How many parts a partition has. Raises `ValueError` for the name of none."""
    if isinstance(partition, torch.Tensor) and partition.numel() and not partition.is_floating_point():
        return int(partition.max()) + 1
    if partition != "frame":
        raise ValueError(f"Unknown partition {partition!r}: give 'frame', or one integer label a key.")
    return grid.n_frames


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPattern(QueryKeys):
    """The pattern of one attention, as queries and keys.

    Args:
        q: `[batch group head query d_head]`, `k`: `[batch group head key d_head]`: what is multiplied. A group is what
            attends within itself: the whole clip (`axis="3d"`), a frame (`"space"`) or a place over time (`"time"`).
        scale: what dot products are multiplied by.
        mask: which keys a query may see; None when it may see all.
        grid: how the clip's tokens lie.
        axis: what is attended over. `cross`: the keys are text tokens.

    In joint attention over a clip and its text, the text tokens follow the clip's in `q` and `k` (`axis="3d"`): they
    are the tokens from `grid.n_tokens` on, lie in no frame, and are a part of their own beside the frames.

    Queries and keys are always given and returned as token indices of the clip (text tokens: of the text), whatever the
    axis; what attention of that axis never sees has probability 0.
    """

    def rows(self, queries: Sequence[int] | torch.Tensor) -> Float[torch.Tensor, "batch head query key"]:
        """Probabilities of some queries (token indices) over all tokens of the clip, or of the text; rows sum to 1.

        Takes `len(queries) * n_keys` numbers a head. Raises ValueError for tokens outside the clip.
        """
        tokens = self._tokens(queries, self.n_queries, "query token")
        self._check(len(tokens) * self.n_keys, f"{len(tokens)} rows", "Ask for fewer queries, or for fewer heads().")
        found = self.q.new_zeros(len(self.q), self.n_heads, len(tokens), self.n_keys, dtype=torch.float32)
        for group, (own, keys) in enumerate(zip(self.query_tokens, self._key_groups(), strict=True)):
            at = (tokens[:, None] == own).nonzero()  # place in the list, place in the group
            if not len(at):
                continue
            q = self.q[:, group, :, at[:, 1]].float() * self.scale
            logits = q @ self.k[:, group].float().transpose(-1, -2)
            if self.mask is not None:
                allowed = self.mask.part(group=slice(group, group + 1), query=at[:, 1]).allowed()
                logits = logits.masked_fill(~allowed[:, 0], -torch.inf)
            found[:, :, at[:, :1], keys] = logits.softmax(-1)
        return found

    def columns(self, keys: Sequence[int] | torch.Tensor) -> Float[torch.Tensor, "batch head query key"]:
        """Probabilities that every query token of the clip gives some keys (token indices); the other way to `rows`.

        One fused attention call whose values are one-hot over the keys. Takes `n_queries * len(keys)` numbers a head.
        """
        wanted = self._tokens(keys, self.n_keys, "key token")
        self._check(2 * len(wanted) * self.n_queries, f"{len(wanted)} columns", "Ask for fewer keys, or heads().")
        one_hot = F.one_hot(wanted, self.n_keys).t().float()
        return self.weighted(one_hot.expand(len(self.q), -1, -1))

    def pairs(
        self, queries: Sequence[int] | torch.Tensor, keys: Sequence[int] | torch.Tensor
    ) -> Float[torch.Tensor, "batch head _"]:
        """The probability of single pairs: that `queries[i]` gives `keys[i]`."""
        asked = self._tokens(queries, self.n_queries, "query token")
        wanted = self._tokens(keys, self.n_keys, "key token")
        if len(asked) != len(wanted):
            raise ValueError(f"{len(asked)} queries and {len(wanted)} keys: give one key for each query.")
        unique, place = asked.unique(return_inverse=True)
        found = self.q.new_empty(len(self.q), self.n_heads, len(asked), dtype=torch.float32)
        step = at_a_time(self._bytes(self.n_keys))
        for start in range(0, len(unique), step):
            rows = self.rows(unique[start : start + step])
            inside = ((place >= start) & (place < start + step)).nonzero()[:, 0]
            found[:, :, inside] = rows[:, :, place[inside] - start, wanted[inside]]
        return found

    def mass(self, partition: Partition = "frame") -> Float[torch.Tensor, "batch head query _"]:
        """The mass that every query gives to each part of the keys; sums to 1 over the parts.

        `partition`: a label 0, 1, .. for every key token, or "frame". One fused attention call: `softmax(q k) @ onehot`
        is the mass. Under uniform attention a part gets its share of the keys.
        """
        columns = self.one_hot(partition)
        n_parts = columns.shape[-1]
        self._check(2 * n_parts * self.n_queries, f"The mass on {n_parts} parts", "Use a coarser partition.")
        return self._weighted(columns.expand(len(self.q), self.q.shape[1], -1, -1).unsqueeze(2))

    def weighted(
        self, values: Float[torch.Tensor, "batch key *head _"], relation: Relation | None = None
    ) -> Float[torch.Tensor, "batch head query _"]:
        """Attention-weighted sum of any values of the keys: of the clip's, or each head's own `[batch key head _]`.

        With `hook_v` this is `hook_z`; with an indicator of some keys, the mass on them. `relation` sums over related
        keys only (see `head_scores`), so sums over relations that make up a whole add up to the whole.
        """
        if values.shape[:2] != (len(self.q), self.n_keys) or values.ndim not in (3, 4):
            raise ValueError(
                f"values {list(values.shape)}: [batch key _] or [batch key head _] is needed, with {len(self.q)} clips "
                f"and {self.n_keys} keys."
            )
        width = values.shape[-1]
        self._check(2 * width * self.n_queries, f"Sums of {width} numbers a key", "Give narrower values.")
        grouped = values[:, self._key_groups()]  # batch group key (head) width
        grouped = grouped.unsqueeze(2) if values.ndim == 3 else grouped.transpose(2, 3)
        if relation is None:
            return self._weighted(grouped)
        keys, queries, found = self._keys(), self._places(self.query_tokens), []
        for within, part in self.chunks():
            at = Tokens(*(field[:, within, None] for field in queries))
            pairs = related("given", relation, at, Tokens(*(field[:, None, :] for field in keys)))
            found.append(part.mul_(pairs.unsqueeze(1)) @ grouped.float())
        return self._by_token(torch.cat(found, -2), self.query_tokens)

    def _weighted(self, values: Float[torch.Tensor, "batch group _ key _"]) -> torch.Tensor:
        """One fused attention call: probabilities times values, float32."""
        values = values.float().expand(-1, -1, self.n_heads, -1, -1).flatten(0, 1)
        q, k = self.q.float().flatten(0, 1), self.k.float().flatten(0, 1)
        found = attended(q, k, values, self.mask, self.scale).unflatten(0, self.q.shape[:2])
        return self._by_token(found, self.query_tokens)

    def one_hot(self, partition: Partition = "frame") -> Float[torch.Tensor, "group _ _"]:
        """A column for each part of the keys: attention over these values is the mass on the parts."""
        if isinstance(partition, str):
            n_parts = count_parts(partition, self.grid)
            if self.cross:
                raise ValueError("Text tokens lie in no frame: give one integer label a text token.")
            labels = self._keys().frame
            if self.n_text:
                labels, n_parts = torch.where(labels < 0, n_parts, labels), n_parts + 1
        else:
            partition = torch.as_tensor(partition)
            if partition.shape != (self.n_keys,) or partition.is_floating_point() or int(partition.min()) < 0:
                raise ValueError(
                    f"A partition is one integer label from 0 a key, [{self.n_keys}]; got {partition.dtype} "
                    f"{list(partition.shape)}."
                )
            labels, n_parts = partition.to(self.q.device).long()[self.key_tokens], count_parts(partition, self.grid)
        return F.one_hot(labels.expand(self.q.shape[1], -1), n_parts).float()

    def by_query(
        self, values: Float[torch.Tensor, "batch group head query ..."]
    ) -> Float[torch.Tensor, "batch head _ ..."]:
        """What was computed for every query of every group, in the order of the clip's tokens."""
        return self._by_token(values, self.query_tokens)

    def frame_mass(self, mass: torch.Tensor | None = None) -> Float[torch.Tensor, "batch head frame _"]:
        """Mean mass that the tokens of a frame (rows) give to each frame (columns); rows sum to 1. The text of joint
        attention is a last column.

        `mass`: that of every query on every frame, `[batch group head query frame]`, where it is known already.
        """
        by_token = self.mass("frame") if mass is None else self.by_query(mass)
        return by_token[:, :, : self.grid.n_tokens].unflatten(2, (self.grid.n_frames, -1)).mean(3)

    def received(self) -> Float[torch.Tensor, "batch head key"]:
        """What a key gets from all queries that could see it, in units of what it would get if all attention were
        uniform: 1 for every key then, and large for an attention sink; 0 for a key that nobody may see."""
        got = self.k.new_zeros(self.k.shape[:-1], dtype=torch.float32)
        expected = torch.zeros((), device=self.q.device)
        for within, part in self.chunks():
            got += part.sum(-2)
            allowed = part.new_ones(1, part.shape[-1]) if self.mask is None else self.mask.allowed(within).float()
            share = (allowed / allowed.sum(-1, keepdim=True)).sum(-2)
            expected = expected + share * (part.shape[-2] / allowed.shape[-2])
        return self._by_token(torch.where(expected > 0, got / expected, 0.0), self.key_tokens)

    def entropy(self) -> Float[torch.Tensor, "batch head query"]:
        """Entropy of every row in nats: 0 for a single key, `log(number of keys it may see)` for uniform attention."""
        parts = [torch.special.entr(part).sum(-1) for _, part in self.chunks()]
        return self._by_token(torch.cat(parts, -1), self.query_tokens)

    def top_keys(
        self, k: int = 5
    ) -> tuple[Float[torch.Tensor, "batch head query _"], Int[torch.Tensor, "batch head query _"]]:
        """The `k` largest probabilities of every row and the keys (token indices) that have them, largest first."""
        if not 1 <= k <= self.k.shape[-2]:
            raise ValueError(f"k={k}: a query sees {self.k.shape[-2]} keys, so 1..{self.k.shape[-2]}.")
        self._check(3 * k * self.n_queries, f"The {k} top keys of every query", "Ask for fewer, or take rows(queries).")
        found = [part.topk(k, -1) for _, part in self.chunks()]
        values = torch.cat([part.values for part in found], -2)
        within = torch.cat([part.indices for part in found], -2)
        groups = torch.arange(self.q.shape[1], device=self.q.device).view(1, -1, 1, 1, 1)
        keys = self._key_groups()[groups, within]
        return self._by_token(values, self.query_tokens), self._by_token(keys, self.query_tokens)

    def displacement_kernel(
        self, radius: tuple[int, int, int] | None = None, frames: Sequence[int] | torch.Tensor | None = None
    ) -> Float[torch.Tensor, "batch head frame row col"]:
        """Mean probability by displacement (key minus query): `[2T-1, 2H-1, 2W-1]`, 0 displacement in the middle.

        The mean is over the queries for which that key exists, so a head that always looks one frame back at the same
        place has 1 there; uniform attention has one over the keys a query may see, and a displacement that no pair has
        (or that the attention's axis never sees) has 0. `radius` (frames, rows, cols) keeps only displacements up to
        that; `frames` takes only the queries of these frames.
        Misleads at the rim: large displacements average over few queries.
        """
        if self.cross:
            raise ValueError("Text tokens have no place in the video: there is no displacement to them.")
        shape = self.grid.shape
        if radius is not None and (len(radius) != 3 or min(radius) < 0):
            raise ValueError(f"radius {radius}: three numbers from 0 are needed (frames, rows, cols).")
        reach = [n - 1 if radius is None else min(radius[axis], n - 1) for axis, n in enumerate(shape)]
        sizes = [2 * r + 1 for r in reach]
        n_bins = sizes[0] * sizes[1] * sizes[2]
        self._check(2 * n_bins, "The kernel", "Give a radius (frames, rows, cols).")
        total = self.q.new_zeros(n_bins + 1, len(self.q) * self.n_heads, dtype=torch.float32)
        count = self.q.new_zeros(len(total), dtype=torch.float32)
        keys, queries = self._keys(), self._places(self.query_tokens)
        asked = self._asked(queries.frame, frames) & (queries.frame >= 0)
        for within, part in self.chunks():
            for group in asked[:, within].any(1).nonzero()[:, 0].tolist():
                steps = [
                    getattr(keys, axis)[group, None, :] - getattr(queries, axis)[group, within, None]
                    for axis in ("frame", "row", "col")
                ]
                inside = torch.stack([step.abs() <= r for step, r in zip(steps, reach, strict=True)]).all(0)
                inside &= asked[group, within, None] & (keys.frame[group] >= 0)
                index = ((steps[0] + reach[0]) * sizes[1] + steps[1] + reach[1]) * sizes[2] + steps[2] + reach[2]
                index = torch.where(inside, index, n_bins).flatten()  # the last bin takes what lies outside
                total.index_add_(0, index, part[:, group].flatten(0, 1).flatten(1).t())
                count += torch.bincount(index, minlength=len(total))
        mean = total[:-1] / count[:-1, None].clamp(min=1)
        return mean.t().reshape(len(self.q), self.n_heads, *sizes)

    def head_scores(
        self,
        relations: Mapping[str, Relation | Int[torch.Tensor, "_ 2"]],
        frames: Sequence[int] | torch.Tensor | None = None,
    ) -> dict[str, Float[torch.Tensor, "batch head"]]:
        """Mean mass on related keys, for each named relation: in [0, 1], averaged over the queries that have any.

        A relation is a function `(query, key) -> bool` of two `Tokens` whose fields broadcast to `[query key]`, for
        example `lambda q, k: (k.frame == q.frame - 1) & (k.row == q.row) & (k.col == q.col)`; or a list of (query, key)
        token pairs `[n 2]`. `frames` takes only the queries of these frames. `uniform().head_scores(relations)` is
        chance.
        """
        if not relations:
            raise ValueError("No relation was given.")
        total = {name: self.q.new_zeros(len(self.q), self.n_heads, dtype=torch.float32) for name in relations}
        count = dict.fromkeys(relations, 0)
        keys, queries = self._keys(), self._places(self.query_tokens)
        asked = self._asked(queries.frame, frames)
        codes = {
            name: listed(name, relation.to(self.q.device), self.n_queries, self.n_keys)
            for name, relation in relations.items()
            if isinstance(relation, torch.Tensor)
        }
        for within, part in self.chunks():
            if not asked[:, within].any():
                continue
            at = Tokens(*(field[:, within, None] for field in queries))
            to = Tokens(*(field[:, None, :] for field in keys))
            for name, relation in relations.items():
                if name in codes:
                    pairs = torch.isin(at.token * self.n_keys + to.token, codes[name])
                else:
                    pairs = related(name, relation, at, to)
                pairs = pairs.expand(*part.shape[1:2], *part.shape[3:]) & asked[:, within, None]
                total[name] += torch.einsum("bghqk,gqk->bh", part, pairs.float())
                count[name] += int(pairs.any(-1).sum())
        for name, n in count.items():
            if not n:
                raise ValueError(f"The relation {name!r} relates no query to any key that this attention sees.")
        return {name: total[name] / count[name] for name in relations}

    @property
    def shape(self) -> torch.Size:
        """That of `hook_pattern`, which indexing and `materialize` give: `[batch head query key]`, or with the groups
        `[batch group head query key]` where attention is over space or time."""
        batch, groups, heads, queries, _ = self.q.shape
        grouped = () if self.axis == "3d" or self.cross else (groups,)
        whole = (batch, *grouped, heads, queries, self.k.shape[-2])
        return torch.Size(whole if self.has_batch_dim else whole[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Float[torch.Tensor, "..."]:
        """What `materialize()[index]` gives (float32), computing only the clips, heads and queries that are asked for:
        `pattern[clip, head]` is one head's `[query key]`.

        Raises IndexError as tensors do, and MemoryError with the byte count where what is asked for would take more
        than half of the free memory.
        """
        asked, shape = index if isinstance(index, tuple) else (index,), self.shape
        given = sum(step is not None and step is not Ellipsis for step in asked)
        if given > len(shape):
            raise IndexError(f"{given} indices for a pattern of {len(shape)} axes, {list(shape)}")
        if not any(step is Ellipsis for step in asked):
            asked = (*asked, Ellipsis)
        place = next(at for at, step in enumerate(asked) if step is Ellipsis)
        asked = (*asked[:place], *[slice(None)] * (len(shape) - given), *asked[place + 1 :])
        narrow: list[torch.Tensor | slice] = []
        rest: list[Any] = []  # the same index, of what is left
        for step in asked:
            if step is None or len(narrow) == len(shape) - 1:  # of the keys all are needed
                rest.append(step)
                continue
            kept, left = narrowed(step, shape[len(narrow)])
            narrow.append(kept)
            rest.append(left)
        batch, *groups, heads, queries = narrow if self.has_batch_dim else (slice(None), *narrow)
        small = self._part(batch, groups[0] if groups else slice(None), heads, queries)
        return small.materialize()[tuple(rest)]

    def materialize(self, force: bool = False) -> Float[torch.Tensor, "*group head query key"]:
        """The whole pattern, in the shape of `hook_pattern` (float32).

        Raises MemoryError with the byte count when it would take more than half of the free memory, unless `force`.
        """
        if not force:
            hint = "rows, mass, pairs, entropy, top_keys and displacement_kernel need no such matrix"
            check_fits(self.dense_bytes, self.q.device, "The pattern", f"{hint}; materialize(force=True) tries anyway.")
        dense = torch.cat([part for _, part in self.chunks()], -2)
        dense = dense.squeeze(1) if self.axis == "3d" or self.cross else dense
        return dense if self.has_batch_dim else dense.squeeze(0)
