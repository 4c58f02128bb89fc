"""Guidance: predictions combined from branches that see different histories or no condition.

A branch is one forward pass. Branches differ in the noise level of each *history* frame (its level is its mask: level 0
clean, level 1 nothing left of it) and in whether the condition is dropped. The combined prediction is their weighted
sum; the weights sum to 1. Several guidances multiply out: two of two branches make four.
History guidance: Song et al. 2025, https://arxiv.org/abs/2502.06764.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from vdinterp.checks.counts import check_between
from vdinterp.checks.signatures import check_signature
from vdinterp.gradient_state import check_gradients, keep_grad_mode

MASKED = 1.0
CLEAN = 0.0


def history_k(level: float, n_levels: int) -> int:
    """The level `k` of a history level in [0, 1], as the Diffusion Forcing Transformer rounds: `long(float32(level) * K
    - 1)`; 0 is clean (-1)."""
    return int((torch.tensor(level, dtype=torch.float32) * n_levels - 1).long())


@dataclass(frozen=True)
class Branch:
    """One forward pass: its `weight`, the noise levels `[batch frame]` it gives history frames (others are
    ignored), and whether it drops the condition."""

    weight: float
    levels: torch.Tensor
    drop_cond: bool


@dataclass(frozen=True)
class HistorySegment:
    """Part of the history, seen at some noise level.

    Args:
        level: noise level in [0, 1] of the frames of the segment; frames outside it are masked (level 1).
        level_generated: the same for history that the model generated itself; `None`: as `level`.
        frames: positions within the history (0 is the oldest history frame, negative from the end); `None`: all.
    """

    level: float = CLEAN
    level_generated: float | None = None
    frames: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for value in (self.level, self.level_generated):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"a history level must be in [0, 1] (0 clean, 1 masked), got {value!r}")

    def levels(self, mask: Int[torch.Tensor, "batch frame"], n_levels: int) -> Int[torch.Tensor, "batch frame"]:
        """Integer noise level of every history frame under this segment."""
        own = history_k(self.level, n_levels)
        generated = own if self.level_generated is None else history_k(self.level_generated, n_levels)
        out = torch.where(mask == 2, generated, own)
        if self.frames is None:
            return out
        history = mask >= 1
        rank = history.long().cumsum(1) - 1
        count = history.sum(1, keepdim=True)
        chosen = torch.zeros_like(history)
        for frame in self.frames:
            if bool((count <= (frame if frame >= 0 else -frame - 1)).any()):
                raise ValueError(f"history frame {frame} does not exist: a clip has {int(count.min())} history frames")
            chosen |= rank == (frame if frame >= 0 else count + frame)
        return torch.where(chosen, out, history_k(MASKED, n_levels))


@dataclass(frozen=True)
class HistoryGuidance:
    """A weighted sum over history segments; whatever is missing to 1 goes to the branch with all history masked.

    Use the named constructors, or give segments and weights of your own.

    Args:
        segments, weights: the branches with some history and their weights.
        drop_cond: the branch without history also drops the condition, so the condition is guided with the history.
    """

    segments: tuple[HistorySegment, ...]
    weights: tuple[float, ...]
    drop_cond: bool = True

    def __post_init__(self) -> None:
        if len(self.segments) != len(self.weights) or not self.segments:
            raise ValueError(
                f"as many weights as segments are needed, at least one: got {len(self.segments)} segments and "
                f"{len(self.weights)} weights"
            )

    @classmethod
    def conditional(cls) -> HistoryGuidance:
        """No guidance: one branch, all history clean."""
        return cls((HistorySegment(),), (1.0,))

    @classmethod
    def stabilized_conditional(cls, level: float) -> HistoryGuidance:
        """One branch; history that the model generated itself is shown slightly noisy, at `level` in [0, 1]."""
        return cls((HistorySegment(level_generated=level),), (1.0,))

    @classmethod
    def vanilla(cls, weight: float, drop_cond: bool = True) -> HistoryGuidance:
        """`weight` x clean + (1 - `weight`) x masked. 1 is no guidance, more sharpens."""
        return cls((HistorySegment(),), (float(weight),), drop_cond)

    @classmethod
    def stabilized_vanilla(cls, weight: float, level: float, drop_cond: bool = True) -> HistoryGuidance:
        """`vanilla` with generated history at `level`."""
        return cls((HistorySegment(level_generated=level),), (float(weight),), drop_cond)

    @classmethod
    def fractional(cls, weight: float, level: float, drop_cond: bool = True) -> HistoryGuidance:
        """Clean + (`weight` - 1) x (history at `level`) + (1 - `weight`) x masked: guides by what survives at
        `level`, the low frequencies, so motion is kept."""
        return cls((HistorySegment(), HistorySegment(level=level)), (1.0, float(weight) - 1.0), drop_cond)

    @classmethod
    def stabilized_fractional(
        cls, weight: float, level: float, stabilization: float, drop_cond: bool = True
    ) -> HistoryGuidance:
        """`fractional` with generated history at `stabilization` in the clean branch."""
        segments = (HistorySegment(level_generated=stabilization), HistorySegment(level=level))
        return cls(segments, (1.0, float(weight) - 1.0), drop_cond)

    @classmethod
    def temporal(
        cls, subsets: Sequence[Sequence[int]], weights: Sequence[float], drop_cond: bool = True
    ) -> HistoryGuidance:
        """`weights[i]` x (history frames `subsets[i]` clean, the rest masked) + the remainder x all masked."""
        segments = tuple(HistorySegment(frames=tuple(int(f) for f in subset)) for subset in subsets)
        return cls(segments, tuple(float(w) for w in weights), drop_cond)

    def branches(self, mask: Int[torch.Tensor, "batch frame"], n_levels: int) -> list[Branch]:
        """Branches for one mask (-1 padding, 0 generate, 1 ground truth, 2 generated history), masked one first."""
        masked = torch.full_like(mask, history_k(MASKED, n_levels))
        found = [Branch(1.0 - sum(self.weights), masked, self.drop_cond)]
        found += [Branch(w, s.levels(mask, n_levels), False) for s, w in zip(self.segments, self.weights, strict=True)]
        return found


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """`weight` x with condition + (1 - `weight`) x without (Ho & Salimans 2022). The condition must be given."""

    weight: float

    def __post_init__(self) -> None:
        check_between("weight", self.weight, -1e6, 1e6)

    def branches(self, mask: Int[torch.Tensor, "batch frame"], n_levels: int) -> list[Branch]:
        """The two branches; they leave the history as it is."""
        clean = torch.full_like(mask, -1)
        return [Branch(1.0 - self.weight, clean, True), Branch(float(self.weight), clean, False)]


@dataclass(frozen=True)
class ClassifierGuidance:
    """Adds `scale` times the gradient of `log_prob` to the score (Dhariwal & Nichol 2021).

    Args:
        log_prob: `(latents x_k [batch frame channel height width], noise levels [batch frame]) -> log p(y | x_k, level)
            [batch]`, differentiable in its first argument. Frames at level 0 are clean context.
        scale: 1 is the posterior; more sharpens.
    """

    log_prob: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_signature(
            self.log_prob, "log_prob is called as log_prob(latents, noise_levels)", "latents", "noise_levels"
        )
        check_between("scale", self.scale, -1e6, 1e6)

    def gradient(
        self,
        x: Float[torch.Tensor, "batch frame channel height width"],
        noise_levels: Float[torch.Tensor, "batch frame"],
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """`scale * d log_prob / d x`. Raises `ValueError` if `log_prob` does not return one number a clip, or one that
        does not depend on `x`."""
        with keep_grad_mode(), torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = self.log_prob(x, noise_levels)
            if value.shape != x.shape[:1]:
                raise ValueError(f"log_prob must return [batch] = {(x.shape[0],)}, got {tuple(value.shape)}")
            if not value.requires_grad:
                raise ValueError("log_prob does not depend on its latents by anything that has a gradient")
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return self.scale * gradient


Guidance = HistoryGuidance | ClassifierFreeGuidance | ClassifierGuidance


def as_guidances(guidance: Guidance | Sequence[Guidance] | None, has_cond: bool) -> tuple[Guidance, ...]:
    """Normalise a `guidance=` argument to a tuple and check it.

    Raises:
        ValueError: something that is no guidance, two history guidances, or classifier-free guidance without condition.
    """
    if guidance is None:
        items: tuple = ()
    elif isinstance(guidance, (HistoryGuidance, ClassifierFreeGuidance, ClassifierGuidance)):
        items = (guidance,)
    elif isinstance(guidance, Sequence):
        items = tuple(guidance)
    else:
        items = (guidance,)
    for item in items:
        if not isinstance(item, (HistoryGuidance, ClassifierFreeGuidance, ClassifierGuidance)):
            raise ValueError(
                f"{item!r} is no guidance; give a HistoryGuidance, ClassifierFreeGuidance or ClassifierGuidance, or "
                "several of them in a list"
            )
    if any(isinstance(item, ClassifierGuidance) for item in items):
        check_gradients("classifier guidance")
    if sum(isinstance(i, HistoryGuidance) for i in items) > 1:
        raise ValueError("two history guidances cannot be combined; write one HistoryGuidance with both segments")
    if sum(isinstance(i, ClassifierFreeGuidance) for i in items) > 1:
        raise ValueError("two classifier-free guidances were given; multiply their weights into one")
    if not has_cond and any(isinstance(i, ClassifierFreeGuidance) for i in items):
        raise ValueError("classifier-free guidance needs a condition: pass cond=[batch frame d_action]")
    return items


def make_branches(
    guidances: Sequence[Guidance], mask: Int[torch.Tensor, "batch frame"], n_levels: int, has_cond: bool
) -> list[Branch]:
    """All branches of several guidances multiplied out; equal ones merged, those of weight 0 left out."""
    products = [Branch(1.0, torch.full_like(mask, -1), False)]
    for guidance in guidances:
        if isinstance(guidance, ClassifierGuidance):
            continue
        products = [
            Branch(a.weight * b.weight, torch.maximum(a.levels, b.levels), (a.drop_cond or b.drop_cond) and has_cond)
            for b in guidance.branches(mask, n_levels)
            for a in products
        ]
    merged: list[Branch] = []
    for branch in products:
        levels = torch.where(mask >= 1, branch.levels, -1)
        for i, other in enumerate(merged):
            if other.drop_cond == branch.drop_cond and torch.equal(other.levels, levels):
                merged[i] = Branch(other.weight + branch.weight, levels, other.drop_cond)
                break
        else:
            merged.append(Branch(branch.weight, levels, branch.drop_cond))
    return [b for b in merged if b.weight != 0]
