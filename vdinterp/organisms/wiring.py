"""Wiring: where things lie in the residual stream of an organism, and how a head is set to read and write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float

from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.models.components.attention import Attention
from vdinterp.models.config import BlockSpec, Rope, Sublayer

PATCH, SIDE, N_FRAMES = 4, 8, 16
CONTENT = PATCH * PATCH  # numbers in a patch, all of which the stream carries
ROPE = Rope(dims=(16, 4, 4), theta=(100.0, 100.0, 100.0))
ROTATED = sum(ROPE.dims)
FLAG_SLOT = ROTATED + CONTENT  # of a head: which keys are noisy
D_HEAD = 48
CONSTANT = 16.0  # norm of a constant part of every token, beside which LayerNorm hardly changes with the content
NORM = 1.75  # what LayerNorm divides by, about
SHARP = 12.0  # a chosen place scores so much more than the one beside it
MATCH = 24.0  # equal contents score so much, unrelated ones 0 +- 6
GATE = 120.0  # of a gate, where another query adds 15
STRAY = 0.5  # norm of what a head without a purpose adds to the stream
Space = Literal["content", "before", "after", "found"]
SPACES: tuple[Space, ...] = ("content", "before", "after", "found")


def config(n_layers: int, n_heads: int) -> VideoDiTConfig:
    """The network of every organism: 16 frames of 2 x 2 patches, no normalisation of queries and keys."""
    return VideoDiTConfig(
        model_name="organism",
        d_model=96,
        n_layers=n_layers,
        n_heads=n_heads,
        d_head=D_HEAD,
        d_mlp=96,
        in_channels=1,
        out_channels=1,
        patch_size=(1, PATCH, PATCH),
        n_frames=N_FRAMES,
        height=SIDE,
        width=SIDE,
        period=(BlockSpec(attn=Sublayer(mod=(0, 1, 2)), mlp=Sublayer(mod=(3, 4, 5))),),
        qkv_bias=False,
        rope={"3d": ROPE},
    )


class Wiring:
    """Writes into the weights of one model.

    The stream holds, in channels drawn at random: `content` (a token's own patch, noise and all), `before` and `after`
    (contents of the frame before and after, once heads have fetched them), `found` (what is to be predicted), a
    constant, and channels without a purpose. The condition says whether a frame is noisy, and how much.
    """

    def __init__(self, model: HookedVideoDiT, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        order = torch.randperm(model.cfg.d_model, generator=generator)
        self.constant, self.flag, rest = order[:4], order[4:6], order[6:]
        self.signs = torch.tensor([1.0, 1.0, -1.0, -1.0])  # LayerNorm subtracts the mean, so nothing may have one
        self.at: dict[Space, torch.Tensor] = {
            name: rest[CONTENT * i : CONTENT * (i + 1)] for i, name in enumerate(SPACES)
        }
        self.basis = self._rotation()

    # What all organisms share

    @torch.no_grad()
    def background(self) -> None:
        """Random weights everywhere, and what brings patches in and `found` out."""
        for parameter in self.model.parameters():
            parameter.zero_()
        self._embeddings()
        for block in self.model.blocks:
            self._modulation(block.modulation.linear)  # type: ignore[union-attr]
            self._stray(block)
        linear, final = self.model.final.modulation.linear, self.model.final.linear
        assert linear is not None
        # a clean frame shows its own content, pure noise only what was found, and what lies between some of both
        _, scale = linear.weight.chunk(2)
        scale[self.at["content"], 1] = -0.1
        scale[self.at["found"], 1] = 0.1
        linear.bias.chunk(2)[1][self.at["found"]] = -1.0
        for space in ("content", "found"):
            final.weight[:, self.at[space]] = self.basis.T * NORM

    def _embeddings(self) -> None:
        self.model.patch_embed.proj.weight[self.at["content"]] = self.basis.view(CONTENT, 1, PATCH, PATCH)
        self.model.patch_embed.proj.bias[self.constant] = self.signs * CONSTANT / 2  # type: ignore[index]
        embed = self.model.noise_embed
        # the slowest sine is linear in the level; differences of SiLUs make a step and a ramp of it
        per_level = 10_000.0 ** (-(embed.width // 2 - 1) / (embed.width // 2))
        embed.linear_1.weight[:3, -1] = torch.tensor([1.0, 1.0, 0.01]) / per_level
        embed.linear_1.bias[:2] = torch.tensor([-6.0, -16.0])
        embed.linear_2.weight[0, :2] = torch.tensor([1.0, -1.0])  # 10 for a noisy frame, 0 for a clean one
        embed.linear_2.weight[1, 2] = 1.0  # 10 times the share of the levels

    def _modulation(self, linear: torch.nn.Linear) -> None:
        """Gates open; noisy frames flagged at the entrance of attention; scales that wander with the level."""
        shift, scale, gate, _, mlp_scale, mlp_gate = linear.weight.chunk(6)
        shift[self.flag, 0] = 0.3 * torch.tensor([1.0, -1.0])
        for part in (scale, mlp_scale, gate, mlp_gate):
            part[:, :2] = 0.002 * self._normal(len(part), 2)
        for index in (2, 5):
            linear.bias.chunk(6)[index].fill_(1.0)

    def _stray(self, block: torch.nn.Module) -> None:
        """Heads and MLP without a purpose: they attend anywhere, and add a little of anything."""
        attn, mlp, width = block.attn, block.mlp, self.model.cfg.d_model  # type: ignore[union-attr]
        attn.qkv.weight.copy_(self._normal(*attn.qkv.weight.shape) / math.sqrt(width))  # type: ignore[union-attr]
        written = STRAY / math.sqrt(width * D_HEAD)
        attn.proj.weight.copy_(self._normal(*attn.proj.weight.shape) * written)  # type: ignore[union-attr]
        mlp.fc1.weight.copy_(self._normal(*mlp.fc1.weight.shape) / math.sqrt(width))  # type: ignore[union-attr]
        mlp.fc2.weight.copy_(self._normal(*mlp.fc2.weight.shape) * STRAY / width)  # type: ignore[union-attr]

    # Heads with a purpose

    @torch.no_grad()
    def head(
        self,
        layer: int,
        head: int,
        *,
        copies: tuple[Space, Space],
        displacement: int | None = None,
        sharp: float = SHARP,
        first: bool = False,
        same_cell: bool = True,
        clean_only: bool = True,
        strength: float = 1.0,
        match: tuple[Space, Mapping[Space, float]] | None = None,
        gate: Space | None = None,
    ) -> None:
        """Set one head.

        `copies` (from, to): what it reads at the attended token, and where it writes that, `strength` times. Where it
        looks is the sum of: `displacement`, so many frames on, any other frame scoring `sharp` less or worse (more, if
        it is negative); `first`, the earlier the better; `same_cell`; `match` (space of the query, spaces of the key
        with weights): equal contents; `clean_only`. `gate`: a query for which a number drawn at random from this space
        is negative, as it is for half of all contents, looks at noisy frames instead of clean ones.
        """
        attn: Attention = self.model.blocks[layer].attn  # type: ignore[assignment,union-attr]
        for view in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
            view[head].zero_()
        self._values(attn, head, *copies, strength)
        q, k = torch.zeros(D_HEAD), torch.zeros(D_HEAD)  # the same for every token
        rates = self.model.rope["3d"].frequencies()  # type: ignore[operator,union-attr]
        starts = (0, ROPE.dims[0], ROPE.dims[0] + ROPE.dims[1])
        if displacement is not None:
            _place(q, k, starts[0], rates[0], displacement, sharp)
        if first:
            pair, gain = 5, 1500.0  # a rotation slow enough to keep growing over the whole clip
            q[2 * pair], k[2 * pair + 1] = gain**0.5, gain**0.5
        if same_cell:
            for start, rate in zip(starts[1:], rates[1:], strict=True):
                _place(q, k, start, rate, 0, SHARP)
        if match is not None:
            query, keys = match
            turn, gain = self._rotation(), (MATCH / CONTENT * math.sqrt(D_HEAD)) ** 0.5 * NORM
            slots = slice(ROTATED, FLAG_SLOT)
            attn.W_Q[head][self.at[query], slots] = turn * gain
            for space, weight in keys.items():
                attn.W_K[head][self.at[space], slots] = turn * gain * weight
        if clean_only:  # noisy keys score 30 less
            if gate is None:
                q[FLAG_SLOT] = 15.0
            else:
                number = torch.nn.functional.normalize(self._normal(CONTENT), dim=0)
                attn.W_Q[head][self.at[gate], FLAG_SLOT] = GATE * number * NORM
            attn.W_K[head][self.flag, FLAG_SLOT] = -2.5 * torch.tensor([1.0, -1.0])
        for view, vector in ((attn.W_Q, q), (attn.W_K, k)):
            view[head][self.constant] += self.signs[:, None] / 2 * vector * NORM / CONSTANT

    def _values(self, attn: Attention, head: int, source: Space, target: Space, strength: float) -> None:
        turn = self._rotation()
        attn.W_V[head][self.at[source], ROTATED:FLAG_SLOT] = turn * NORM
        attn.W_O[head][ROTATED:FLAG_SLOT, self.at[target]] = turn.T * strength

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def _rotation(self) -> Float[torch.Tensor, "channel channel"]:
        return torch.linalg.qr(self._normal(CONTENT, CONTENT)).Q


def _place(q: torch.Tensor, k: torch.Tensor, start: int, rates: torch.Tensor, displacement: int, sharp: float) -> None:
    """Rotary channels from `start` on so that keys `displacement` away score highest: every pair of channels adds
    `gain * cos(rate * (key - query - displacement))`."""
    beside = float((1 - rates.cos()).sum())  # what one step off costs, in units of the gain
    gain = (abs(sharp) / beside * math.sqrt(D_HEAD)) ** 0.5
    pairs = slice(start, start + 2 * len(rates), 2), slice(start + 1, start + 2 * len(rates), 2)
    q[pairs[0]] = math.copysign(gain, sharp)
    k[pairs[0]] = gain * (rates * displacement).cos()
    k[pairs[1]] = -gain * (rates * displacement).sin()
