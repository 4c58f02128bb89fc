"""HookedVideoDiT: config in, forward pass with named activations out.

It knows nothing of sampling, loading or plotting.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import nn

from vdinterp.conditions import Cond, Conditions, as_conditions
from vdinterp.grid import TokenGrid
from vdinterp.models.checks import (
    check_inputs,
    check_old,
    check_resume,
)
from vdinterp.models.compiled import run_uncompiled
from vdinterp.models.components import (
    ActionEmbed,
    Block,
    FinalLayer,
    Given,
    NoiseEmbed,
    PatchEmbed,
    RotaryEmbedding,
    SharedModulation,
    unpatchify,
)
from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.describe import HookDescriptions
from vdinterp.models.hook_functions import warn_of_nan
from vdinterp.models.hooks import HookPoint
from vdinterp.models.init import initialize
from vdinterp.models.scopes import Call, run_in
from vdinterp.models.spread import device_of
from vdinterp.models.watched import Watched
from vdinterp.models.weights import WeightViews
from vdinterp.site import Site


class HookedVideoDiT(Watched, WeightViews, HookDescriptions):
    """A video diffusion transformer whose every activation has a name.

    `model(latents, timestep)` predicts what its objective says (noise, velocity ...) for every frame.
    `describe_hooks()` lists the activations; `run_with_cache`, `run_with_hooks`, `hooks`, `intervene` and `record`
    read and change them.
    """

    schedule: Any = None
    """What becomes of noise levels, as a `VideoDiffusion` around the network says (its `NoiseSchedule`); None: nobody
    said."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_embed = PatchEmbed(cfg)
        self.hook_patch_embed = HookPoint("batch pos d_model", "embedded patches")
        if cfg.abs_pos == "learned_spatial":
            self.pos_embed = nn.Parameter(torch.zeros(cfg.n_rows * cfg.n_cols, cfg.d_model))
            self.hook_pos_embed = HookPoint("batch pos d_model", "position embedding, added to the patches")
        self.noise_embed = NoiseEmbed(cfg)
        self.hook_noise_embed = HookPoint("batch frame d_model", "embedded noise level of each frame")
        self.action_embed = ActionEmbed(cfg) if cfg.d_action else None
        self.hook_cond = HookPoint("batch frame d_model", "the full condition, which drives every modulation")
        self.shared_modulation = SharedModulation(cfg) if cfg.modulation == "table" else None
        self.rope = nn.ModuleDict({axis: RotaryEmbedding(rope) for axis, rope in cfg.rope.items()})
        self.blocks = nn.ModuleList([Block(cfg, spec) for spec in cfg.blocks])
        self.final = FinalLayer(cfg)
        self.hook_pred = HookPoint("batch frame channel height width", "the prediction, as latents")
        initialize(self)
        self.setup()  # names every hook point
        self.latest_grid = self.grid()  # of the call before, for what runs outside of one (activation checkpointing)

    def __repr__(self) -> str:
        return self.described()

    def forward(
        self,
        latents: Float[torch.Tensor, "batch frame channel height width"],
        timestep: Shaped[torch.Tensor, "batch frame"] | None = None,
        cond: Cond = None,
        *,
        start_at_layer: int = 0,
        stop_at_layer: int | None = None,
        resid_pre: Float[torch.Tensor, "batch pos d_model"] | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        **old: Any,
    ) -> Float[torch.Tensor, "batch ..."]:
        """The prediction, in the shape of the latents.

        `timestep`: what the network is fed for each frame, as it was trained: whole ones 0..K-1 (a negative one, clean,
        counts as 0), scaled log-SNRs, or scaled sigmas; `timestep(noise_levels)` of a pipeline converts.
        `cond`: actions, text ..: `vd.Conditions`, or the one tensor that the model takes. One that takes some and is
        given None is said to run without, once; `vd.NO_CONDITION` is silent.

        As in TransformerLens, `start_at_layer` resumes at a block, of which `resid_pre` is then the stream (blocks
        before it, and the patch embedding, are not run and their hooks do not fire); `n_layers` resumes at the final
        layer. `known`: what sublayers of that first block add to the stream (`{"attn": .., "mlp": ..}`, as
        `hook_attn_out` and `hook_mlp_out` show it), which then are not run either. `stop_at_layer` returns the
        stream before that block instead of a prediction.
        Raises `ValueError` when a shape or a layer does not fit the model.
        """
        check_old(old)
        cond = as_conditions(cond, self.cfg)
        check_inputs(self, latents, timestep, cond)
        grid = self.grid_of(latents)
        check_resume(self.cfg, grid, len(latents), start_at_layer, stop_at_layer, resid_pre, known)
        inputs: tuple[Any, ...] = (
            grid,
            latents,
            timestep,
            cond,
            start_at_layer,
            stop_at_layer,
            resid_pre,
            known,
        )
        if not torch.compiler.is_compiling():
            return self._run(*inputs)
        return (self._eager if self.may_have_hooks else self._forward)(*inputs)

    def _run(self, *inputs: Any) -> torch.Tensor:
        """One uncompiled pass, kept apart from others by whoever records."""
        grid, latents, timestep, cond, start, _, resid_pre, known = inputs
        self.latest_grid, call = grid, Call(grid=grid)
        if resid_pre is not None:
            call.edited |= {Site(start, what="resid_pre"), *(Site(start, name).added for name in known or {})}
        for scope in self.scopes.of_thread(self.scopes.hooking):
            if scope.at_call is not None and not scope.is_repeated:
                scope.at_call(call, latents, timestep, cond)
        pred = run_in(call, partial(run_uncompiled, self, self._forward), *inputs)
        if call.suspects and not bool(latents.isnan().any()):
            warn_of_nan(call.suspects)
        return pred

    def _forward(
        self,
        grid: TokenGrid,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        cond: Conditions,
        start: int,
        stop: int | None,
        resid_pre: torch.Tensor | None,
        known: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        x = self._embed(latents, grid) if resid_pre is None else resid_pre

        given = self._given(timestep, cond, grid, like=x)
        for block in self.blocks[start:stop]:
            x = block(x, given, known or {})
            known = None  # of the first block
        if stop is not None:
            return x
        return self.hook_pred(unpatchify(self.final(x, given.cond), self.cfg, grid))

    def _given(self, timestep: torch.Tensor, cond: Conditions, grid: TokenGrid, like: torch.Tensor) -> Given:
        """What travels beside the stream."""
        driven = self.hook_noise_embed(self.noise_embed(timestep))
        if self.action_embed is not None and cond.actions is not None:
            driven = driven + self.action_embed(cond.actions.to(driven), cond.dropped)
        driven = self.hook_cond(driven)
        shared = self.shared_modulation(driven) if self.shared_modulation is not None else None
        rope = {axis: table(grid, like=like) for axis, table in self.rope.items()}
        text = self._text(cond, like) if self.cfg.d_text else None
        return Given(driven, grid, shared, rope, text, cond.text_mask)

    def _text(self, cond: Conditions, like: torch.Tensor) -> torch.Tensor:
        """The text that is looked at: zeros for clips without."""
        if cond.text is None:
            return like.new_zeros(len(like), 1, self.cfg.d_text)
        text = cond.text.to(like)
        return text if cond.dropped is None else text.masked_fill(cond.dropped[:, None, None].to(text.device), 0)

    def _embed(self, latents: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """The stream before the first block."""
        x = self.hook_patch_embed(self.patch_embed(latents))
        if self.cfg.abs_pos == "learned_spatial":
            position = self.pos_embed.repeat(grid.n_frames, 1).expand(len(latents), -1, -1)
            x = x + self.hook_pos_embed(position)
        return x

    def _eager(self, *inputs: Any) -> Any:
        """Compiled code would skip hooks without a word, so a hooked model runs uncompiled."""
        # As a decorator this would load the compiler, a second of everyone's import; a break in the graph is as good.
        return torch.compiler.disable(self._uncompiled)(*inputs)

    def _uncompiled(self, *inputs: Any) -> torch.Tensor:
        if self.has_live_hooks:
            warnings.warn("Hooks are set: this call runs uncompiled, so that they fire.", stacklevel=2)
        return self._run(*inputs)

    def timestep(self, noise_levels: Any, name: str = "noise_levels") -> torch.Tensor:
        """What the network is fed at these noise levels, shares in [0, 1]: a tensor of any shape, or a number.

        Raises `ValueError` for others, and where no pipeline says how the network was trained to be noised.
        """
        if self.schedule is None:
            raise ValueError(
                f"{name}: {self.cfg.model_name} alone does not know its noise levels; say how it was trained: "
                "vd.VideoDiffusion(model, None, vd.DiffusionConfig(..))"
            )
        return self.schedule.timestep(self.schedule.k(noise_levels, name))

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs, which the first parameters take."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Of inputs and of the prediction. Blocks may lie elsewhere, where accelerate's hooks put them."""
        return device_of(self)

    def grid(self, n_frames: int | None = None, height: int | None = None, width: int | None = None) -> TokenGrid:
        """How this model's tokens lie in a clip of `n_frames` latent frames of `height` x `width` (default: the sizes
        it was trained at)."""
        cfg = self.cfg
        _, patch_h, patch_w = cfg.patch_size
        rows = cfg.n_rows if height is None else height // patch_h
        cols = cfg.n_cols if width is None else width // patch_w
        return TokenGrid(cfg.n_frames if n_frames is None else n_frames, rows, cols)

    def grid_of(self, latents: Shaped[torch.Tensor, "batch frame channel height width"]) -> TokenGrid:
        """How this model's tokens lie in these latents."""
        return self.grid(latents.shape[1], *latents.shape[-2:])

    def sublayer(self, layer: int, name: str = "attn") -> Any:
        """`blocks[layer].attn`, `.cross_attn` or `.mlp`. Raises `KeyError` when the block has none of that name."""
        found = getattr(self.blocks[layer], name, None)
        if not isinstance(found, nn.Module):
            raise KeyError(f"Block {layer} has no {name!r}; it has {', '.join(self.cfg.blocks[layer].sublayers)}.")
        return found

    def sublayer_at(self, place: Site) -> Any:
        """The sublayer, or the final layer, that a place is of."""
        return self.final if place.sublayer == "final" else self.sublayer(place.layer or 0, str(place.sublayer))

    @classmethod
    def from_state_dict(
        cls, family: str, config: Mapping[str, Any] | str, state_dict: Mapping[str, torch.Tensor]
    ) -> HookedVideoDiT:
        """Convert reference weights. Every key is consumed, or `ValueError` names those that are not, and those that
        hold no weights (NaN, integers).

        `family`: "dfot" or "oasis"; `config`: the reference's own settings (see `vdinterp.models.loading`), or the name
        of a published one ("K600", "MCRAFT", "OASIS_500M").
        """
        from vdinterp.models.loading import convert

        return convert(family, config, state_dict)
