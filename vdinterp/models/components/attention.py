"""Self-attention over space, time or both, and cross-attention to text.

The N x N tensors exist only when somebody hooks them; otherwise attention is one fused kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import nn

from vdinterp.grid import TokenGrid
from vdinterp.mask import Mask
from vdinterp.models.components.given import Given
from vdinterp.models.components.projections import HeadProjections
from vdinterp.models.components.rope import rotate
from vdinterp.models.components.statistics import (
    STATISTICS,
    add_statistics,
    ridden,
    riding_columns,
    wanted_statistics,
)
from vdinterp.models.config import Axis, Rope, Sublayer, VideoDiTConfig
from vdinterp.models.hooks import HookPoint
from vdinterp.models.memory import check_fits
from vdinterp.models.pattern import AttentionPattern, Partition
from vdinterp.models.query_keys import NO_KEY, attended, folded

# Tokens are grouped before attention: whole clip, one frame at a time, or one place over time.
FOLD = {
    "3d": "batch pos head d_head -> batch head pos d_head",
    "space": "batch (frame pos) head d_head -> (batch frame) head pos d_head",
    "time": "batch (frame pos) head d_head -> (batch pos) head frame d_head",
}
UNFOLD = {
    "3d": "batch head pos d_head -> batch pos head d_head",
    "space": "(batch frame) head pos d_head -> batch (frame pos) head d_head",
    "time": "(batch pos) head frame d_head -> batch (frame pos) head d_head",
}
PATTERN_DIMS = {
    "3d": "batch head query key",
    "space": "batch frame head query key",
    "time": "batch row*col head query key",
}


class Attention(HeadProjections):
    """Multi-head attention; `cross` takes its keys and values from text tokens and uses no rotation."""

    def __init__(
        self, cfg: VideoDiTConfig, spec: Sublayer, axis: Axis = "3d", causal_block: int = 0, cross: bool = False
    ) -> None:
        super().__init__(cfg, spec, cross)
        self.axis: Axis = axis
        self.causal_block = causal_block
        self.rope: Rope | None = None if cross else cfg.rope.get(axis)
        self.q_norm, self.k_norm = _qk_norm(cfg), _qk_norm(cfg)
        self._kept: tuple[Any, Mask] | None = None  # the last grid's own mask

        queries = "batch pos head d_head"
        keys = "batch key head d_head" if cross else queries
        self.hook_q = HookPoint(queries, "queries, before qk-norm and rotation")
        self.hook_k = HookPoint(keys, "keys, before qk-norm and rotation")
        self.hook_v = HookPoint(keys, "values")
        self.hook_rot_q = HookPoint(queries, "queries as they are multiplied: normalised and rotated")
        self.hook_rot_k = HookPoint(keys, "keys as they are multiplied: normalised and rotated")
        dims = PATTERN_DIMS[axis]
        self.hook_mask = HookPoint(_ones(dims), "which keys a query may see (boolean)", lazy=True, broadcasts=True)
        self.hook_attn_scores = HookPoint(dims, "scaled dot products, -inf where masked", lazy=True)
        self.hook_pattern = HookPoint(dims, "attention probabilities, rows sum to 1", lazy=True)
        if not cross:
            add_statistics(self)
        self.hook_z = HookPoint(queries, "head outputs, before W_O")
        self.hook_result = HookPoint("batch pos head d_model", "head outputs after W_O, without bias", lazy=True)
        self.hook_out = HookPoint("batch pos d_model", "sublayer output, before the gate")

    @property
    def scale(self) -> float:
        """What dot products are multiplied by."""
        return self.d_head**-0.5

    @property
    def partition(self) -> Partition:
        """Of the keys, for the statistic `mass`; `model.key_partition` sets it."""
        return self.hook_q.ctx.get("partition", "frame")

    def forward(
        self,
        x: Float[torch.Tensor, "batch pos d_model"],
        given: Given,
    ) -> Float[torch.Tensor, "batch pos d_model"]:
        q, k, v = self.project(x, given.text)
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        rot_q, rot_k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            rot_q, rot_k = (rotate(x, self.rope, given.rope[self.axis]) for x in (rot_q, rot_k))
        rot_q, rot_k = self.hook_rot_q(rot_q), self.hook_rot_k(rot_k)
        z = self.hook_z(self._attend(rot_q, rot_k, v, given))
        out = self.proj(z.flatten(2))
        if self.hook_result.is_hooked:
            result = self.head_results(z)
            out = out + (self.hook_result(result) - result).sum(2)  # exactly + 0 when the hook changes nothing
        return self.hook_out(out)

    def mask(self, grid: TokenGrid, device: torch.device) -> Mask | None:
        """Which keys a query may see within its group; None when it sees all."""
        if not self.causal_block:
            return None
        kept, key = self._kept, (grid.shape, device)  # read once: another thread may put its own there
        if kept is None or kept[0] != key:
            per_frame = 1 if self.axis == "time" else grid.tokens_per_frame
            with torch.inference_mode(False):  # a mask made in inference mode could not be used in training later
                kept = key, Mask.causal(grid.n_frames * per_frame, self.causal_block * per_frame, device)
            self._kept = kept
        return kept[1]

    def scores(
        self,
        rot_q: Float[torch.Tensor, "batch pos head d_head"],
        rot_k: Float[torch.Tensor, "batch _ head d_head"],
        grid: TokenGrid,
        mask: Mask | None = None,
    ) -> Float[torch.Tensor, "*group head query key"]:
        """Scaled dot products in the shape of `hook_attn_scores`, -inf where `mask` (None: the model's own) forbids."""
        q, k = self._fold(rot_q, grid), self._fold(rot_k, grid)
        return self._scores(q, k, self.mask(grid, rot_q.device) if mask is None else mask, grid)

    def pattern(
        self,
        rot_q: Float[torch.Tensor, "batch pos head d_head"],
        rot_k: Float[torch.Tensor, "batch _ head d_head"],
        grid: TokenGrid,
        mask: Mask | None = None,
    ) -> AttentionPattern:
        """The pattern of these queries and keys, under `mask`; None is the model's own."""
        mask = self.mask(grid, rot_q.device) if mask is None else mask
        return self._pattern(self._fold(rot_q, grid), self._fold(rot_k, grid), mask, grid)

    def _pattern(self, q: torch.Tensor, k: torch.Tensor, mask: Mask | None, grid: TokenGrid) -> AttentionPattern:
        """The pattern of folded queries and keys."""
        groups = self._groups(grid) or (1,)
        q, k = (x.unflatten(0, (-1, *groups)) for x in (q, k))
        return AttentionPattern(q, k, self.scale, mask, grid, self.axis, self.cross)

    def _fold(self, x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        return rearrange(x, FOLD[self.axis], **({} if self.axis == "3d" else {"frame": grid.n_frames}))

    def _unfold(self, x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        sizes = {"3d": {}, "space": {"frame": grid.n_frames}, "time": {"pos": grid.tokens_per_frame}}
        return rearrange(x, UNFOLD[self.axis], **sizes[self.axis])

    def _groups(self, grid: TokenGrid) -> tuple[int, ...]:
        """The axis that folding merges into the batch, if any."""
        return {"3d": (), "space": (grid.n_frames,), "time": (grid.tokens_per_frame,)}[self.axis]

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: Given) -> torch.Tensor:
        grid = given.grid
        q, k, v = self._fold(q, grid), self._fold(k, grid), self._fold(v, grid)
        mask = text_keys(given.text_mask) if self.cross else self.mask(grid, q.device)
        if self.hook_mask.is_hooked:
            mask = self._hooked_mask(q, k, mask, grid)
        if wanted := wanted_statistics(self):
            return self._unfold(self._attend_with_statistics(q, k, v, mask, grid, wanted), grid)
        return self._unfold(self._weighted(q, k, v, mask, grid), grid)

    def _weighted(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask | None, grid: TokenGrid
    ) -> torch.Tensor:
        """Values (of any width) averaged by attention; the N x N way only if somebody hooks that."""
        if self.hook_attn_scores.is_hooked or self.hook_pattern.is_hooked:
            scores = self.hook_attn_scores(self._scores(q, k, mask, grid))
            pattern = self.hook_pattern(scores.float().softmax(dim=-1).to(v.dtype))
            return (pattern.flatten(0, 1) if self._groups(grid) else pattern) @ v
        return attended(q, k, v, mask, self.scale)

    def _attend_with_statistics(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: Mask | None,
        grid: TokenGrid,
        wanted: dict[str, HookPoint],
    ) -> torch.Tensor:
        """Attention that also hands out what was asked about its pattern."""
        groups = self._groups(grid) or (1,)
        pattern = self._pattern(q, k, mask, grid)
        # Half precision would round the masses to three digits, so there they take a float32 pass of their own.
        columns = riding_columns(wanted, pattern, self.partition, v) if v.dtype == torch.float32 else {}
        out = self._weighted(q, k, torch.cat([v, *columns.values()], dim=-1) if columns else v, mask, grid)
        if changed := [point.name for point in (self.hook_attn_scores, self.hook_pattern) if point.edited]:
            raise ValueError(
                f"A hook changed {' and '.join(map(str, changed))}: statistics come from queries and keys, and would "
                "be of what the model did not use. Record `pattern` and reduce it yourself."
            )
        with torch.no_grad():
            z, *masses = out.split([self.d_head, *(column.shape[-1] for column in columns.values())], dim=-1)
            known = dict(zip(columns, masses, strict=True))
            for name, point in wanted.items():
                if name in known:
                    point(ridden(name, known[name].unflatten(0, (-1, *groups)), pattern))
                else:
                    point(STATISTICS[name].compute(pattern, self.partition))
        return z

    def _scores(self, q: torch.Tensor, k: torch.Tensor, mask: Mask | None, grid: TokenGrid) -> torch.Tensor:
        scores = (q @ k.transpose(-1, -2)) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~folded(mask.whole(), len(q)), -torch.inf)
        groups = self._groups(grid)
        return scores.unflatten(0, (-1, *groups)) if groups else scores

    def _hooked_mask(self, q: torch.Tensor, k: torch.Tensor, own: Mask | None, grid: TokenGrid) -> Mask:
        """The mask after `hook_mask`: as a tensor, unless it is large and those who hook it know what to do with
        rules."""
        n_query, n_key, groups = q.shape[-2], k.shape[-2], self._groups(grid)
        if own is None:
            own = Mask.anything(n_query, n_key, q.device)
        if not own.is_small:
            if self.hook_mask.takes_rules:
                return self.hook_mask(own)  # type: ignore[arg-type]
            hint = "MaskAttention and a model's own mask are not made whole; your own hook may be one of these."
            check_fits(own.shape.numel(), q.device, f"{self.hook_mask.name}, whole", hint)
        mask = own.whole().expand(-1, -1, -1, n_query, n_key)
        mask = self.hook_mask(mask if groups else mask.squeeze(1)).bool()
        full = (len(q) // math.prod(groups), *groups, self.n_heads, n_query, n_key)
        if any(size not in (1, wanted) for size, wanted in zip(mask.shape, full, strict=True)):
            raise ValueError(
                f"{self.hook_mask.name}: a hook returned the shape {list(mask.shape)}, which does not broadcast to "
                f"{list(full)} ({' '.join(self.hook_pattern.dims)})."
            )
        if not mask.any(-1).all():
            raise ValueError(f"{self.hook_mask.name}: {NO_KEY}")
        return Mask.hooked(mask)


def text_keys(mask: Bool[torch.Tensor, "batch key"] | None) -> Mask | None:
    """Which text tokens may be looked at, as a mask of cross-attention."""
    return None if mask is None else Mask.given(mask[:, None, None, None])


def _ones(dims: str) -> str:
    """The dims of a pattern with everything but query and key of size 1."""
    return " ".join(dim if dim in ("query", "key") else "1" for dim in dims.split())


def _qk_norm(cfg: VideoDiTConfig) -> nn.Module:
    """Per head (RMS or LayerNorm), RMS over all heads together, or none."""
    if cfg.qk_norm is None:
        return nn.Identity()
    if cfg.qk_norm == "full_rms":
        return _FullRMSNorm(cfg.n_heads * cfg.d_head, eps=cfg.qk_norm_eps)
    kind = nn.RMSNorm if cfg.qk_norm == "head_rms" else nn.LayerNorm
    return kind(cfg.d_head, eps=cfg.qk_norm_eps)


class _FullRMSNorm(nn.RMSNorm):
    """RMSNorm over all heads laid side by side, as in Wan."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(2)).unflatten(-1, x.shape[2:])
