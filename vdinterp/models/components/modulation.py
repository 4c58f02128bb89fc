"""AdaLN-Zero: the condition sets shift, scale and gate of every sublayer, per frame.

Peebles & Xie 2022 (arXiv 2212.09748); the `table` kind (one shared projection, a small table per block) is
PixArt-alpha's adaLN-single (arXiv 2310.00426), also used by Wan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from vdinterp.models.components.norm import Norm
from vdinterp.models.config import Sublayer, VideoDiTConfig
from vdinterp.models.hooks import HookPoint


def modulate(
    x: Float[torch.Tensor, "batch pos d_model"],
    shift: Float[torch.Tensor, "batch frame d_model"] | None,
    scale: Float[torch.Tensor, "batch frame d_model"] | None,
) -> Float[torch.Tensor, "batch pos d_model"]:
    """`x * (1 + scale) + shift`, the same for all tokens of a frame."""
    if scale is not None:
        x = by_frame(torch.mul, x, 1 + scale)
    return x if shift is None else by_frame(torch.add, x, shift)


def by_frame(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: Float[torch.Tensor, "*stack pos d_model"],
    value: Float[torch.Tensor, "batch frame d_model"],
) -> Float[torch.Tensor, "*stack pos d_model"]:
    """`function(x, value)` with the value of each frame for all of its tokens."""
    return function(x.unflatten(-2, (value.shape[-2], -1)), value.unsqueeze(-2)).flatten(-3, -2)


class SharedModulation(nn.Module):
    """The `table` kind's one projection for all blocks: `SiLU -> Linear`, then `[batch frame slot d_model]`."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.n_slots = max(1, *(block.n_slots for block in cfg.period))
        self.linear = nn.Linear(cfg.d_model, self.n_slots * cfg.d_model)

    def forward(self, cond: Float[torch.Tensor, "batch frame d_model"]) -> torch.Tensor:
        return self.linear(F.silu(cond)).unflatten(-1, (self.n_slots, -1))


class BlockModulation(nn.Module):
    """All slots of one block (or of the final layer): from its own projection, or shared slots plus its table."""

    def __init__(self, cfg: VideoDiTConfig, n_slots: int) -> None:
        super().__init__()
        self.n_slots = n_slots
        own = cfg.modulation == "mlp" and n_slots > 0
        self.linear = nn.Linear(cfg.d_model, n_slots * cfg.d_model) if own else None
        self.table = None if own or not n_slots else nn.Parameter(torch.zeros(n_slots, cfg.d_model))

    def forward(
        self, cond: Float[torch.Tensor, "batch frame d_model"], shared: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        if self.linear is not None:
            return self.linear(F.silu(cond)).chunk(self.n_slots, dim=-1)
        if not self.n_slots:  # a block without any modulation
            return ()
        assert self.table is not None and shared is not None
        return (shared[..., : self.n_slots, :] + self.table).unbind(-2)


class SlotHooks(nn.Module):
    """The named shift, scale and gate of one sublayer."""

    MEANINGS: ClassVar[dict[str, str]] = {
        "shift": "added to the normalised stream",
        "scale": "multiplies it, as 1 + scale",
        "gate": "multiplies the sublayer's output",
    }

    def __init__(self, slots: tuple[int, int, int]) -> None:
        super().__init__()
        self.slots = dict(zip(self.MEANINGS, slots, strict=True))
        for name, slot in self.slots.items():
            if slot >= 0:
                point = HookPoint("batch frame d_model", f"AdaLN {name}: {self.MEANINGS[name]}")
                self.add_module(f"hook_{name}", point)

    def forward(self, values: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | None]:
        return {
            name: getattr(self, f"hook_{name}")(values[slot]) if slot >= 0 else None
            for name, slot in self.slots.items()
        }


class AdaLN(nn.Module):
    """How a sublayer reads the stream: norm, then shift and scale; its gate is handed back for the way out.

    The base of `Attention` and `MLP`, so that `blocks.{i}.attn.mod.hook_shift` and `blocks.{i}.attn.ln.hook_scale`
    sit beside the sublayer's own hooks.
    """

    def __init__(self, cfg: VideoDiTConfig, spec: Sublayer) -> None:
        super().__init__()
        self.mod = SlotHooks(spec.mod) if spec.mod is not None else None
        affine = spec.norm == "plain" or cfg.norm_affine
        self.ln = Norm(cfg.d_model, cfg.norm, cfg.norm_eps, affine) if spec.norm != "none" else None
        self.hook_in = HookPoint("batch pos d_model", "modulated input of the sublayer")

    @property
    def path(self) -> str:
        """Where this stands in the model: `blocks.0.attn`."""
        return (self.hook_in.name or f"{type(self).__name__}.hook_in").removesuffix(".hook_in")

    def enter(
        self, x: Float[torch.Tensor, "batch pos d_model"], slots: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The sublayer's input, and the gate for its output."""
        values = self.mod(slots) if self.mod is not None else dict.fromkeys(SlotHooks.MEANINGS)
        if self.ln is not None:
            x = self.ln(x)
        return self.hook_in(modulate(x, values["shift"], values["scale"])), values["gate"]
