"""HookedVideoDiT: config in, forward pass with named activations out.

It knows nothing of sampling, loading or plotting.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import nn

from vdinterp.conditions import Cond, Conditions, as_conditions
from vdinterp.gradient_state import check_gradients, keep_grad_mode
from vdinterp.grid import TokenGrid
from vdinterp.interventions import Acting, Intervention, check_interventions
from vdinterp.mask import Mask
from vdinterp.models.cache import ActivationCache, Recording, kept
from vdinterp.models.checks import (
    asked_names,
    asked_stop,
    check_habits,
    check_inputs,
    check_old,
    check_resume,
    check_sizes,
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
from vdinterp.models.components.statistics import STATISTICS
from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.describe import HookDescriptions
from vdinterp.models.hook_functions import warn_of_nan
from vdinterp.models.hooks import HookedModule, HookPoint, Names, Recorder
from vdinterp.models.identity import marks
from vdinterp.models.init import initialize
from vdinterp.models.memory import check_fits
from vdinterp.models.pattern import Partition
from vdinterp.models.scopes import Call, Scope, current_call, run_in
from vdinterp.models.spread import device_of, is_spread
from vdinterp.models.weights import WeightViews
from vdinterp.site import Site


class HookedVideoDiT(HookedModule, WeightViews, HookDescriptions):
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
            grid, latents, timestep, cond, start_at_layer, stop_at_layer, resid_pre, known,
        )  # fmt: skip
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

    # Reading and changing activations

    def run_with_cache(
        self,
        latents: Float[torch.Tensor, "batch frame channel height width"],
        timestep: Shaped[torch.Tensor, "batch frame"] | None = None,
        cond: Cond = None,
        *,
        names: Names | None = None,
        names_filter: Names | None = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        pos_slice: Any = None,
        stop_at_layer: int | None = None,
        incl_bwd: bool = False,
        loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **old: Any,
    ) -> tuple[torch.Tensor, ActivationCache]:
        """The prediction and the activations behind it.

        `names` (or `names_filter`, as TransformerLens says): what to keep: names, aliases ("z": every layer's), keys
        (`("z", 3)`), or a predicate; None keeps everything but the N x N tensors and per-head results: `pattern`,
        `attn_scores` and `result` the cache computes on demand. `device`: where to keep it. `remove_batch_dim`: without
        the batch axis, of one clip. `stop_at_layer`: run and keep only what comes before that block (negative: counted
        from the end), and give the stream before it in place of a prediction. `incl_bwd`: also run
        `loss(pred).backward()` and keep gradients as `NAME_grad`; `loss` must give a scalar. Gradients of parameters
        accumulate, as ever.
        Raises `ValueError` for `pos_slice`: a pattern needs all keys, so tokens are chosen afterwards.
        """
        check_old(old)
        if incl_bwd != (loss is not None):
            raise ValueError("incl_bwd=True and loss=..., a function of the prediction giving one number, go together.")
        names, stop = asked_names(names, names_filter), asked_stop(self.cfg, stop_at_layer)
        check_habits(pos_slice, remove_batch_dim, latents)
        if loss is not None:
            check_gradients("run_with_cache(incl_bwd=True)")
        graded = torch.is_grad_enabled()
        with (
            self._recording(self.names_before(stop, self.cacheable_names(names)), device, incl_bwd) as recording,
            keep_grad_mode(),
            torch.set_grad_enabled(graded or incl_bwd),
        ):
            pred = self(latents, timestep, cond=cond, stop_at_layer=stop)
            if loss is not None:
                value = loss(pred)
                if value.numel() != 1:
                    raise ValueError(f"loss gave {list(value.shape)}; backward needs one number, e.g. its mean().")
                if not value.requires_grad:
                    raise ValueError("loss does not depend on the prediction by anything that has a gradient")
                value.backward()
        first = next(iter(recording.values()))  # a hook that calls the model makes further ones
        return (pred if graded else pred.detach()), first.remove_batch_dim() if remove_batch_dim else first

    def run_with_stats(
        self,
        latents: Float[torch.Tensor, "batch frame channel height width"],
        timestep: Shaped[torch.Tensor, "batch frame"] | None = None,
        *,
        stats: Sequence[str],
        partition: Partition = "frame",
        **inputs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The prediction and statistics of every head's attention, stacked over layers: `[layer batch head ...]`.

        `stats`: some of "frame_mass" (`[.. frame frame]`), "mass" (`[.. query part]`, on each part of a `partition` of
        the tokens: a label 0, 1, .. for every one, or "frame"), "sinks" (`[.. key]`), "entropy" (`[.. query]`),
        "displacement_kernel"; `describe_hooks()` says what they are. They are computed during the pass, in little
        memory: the pattern is never made and no activation is kept. `inputs`: cond.
        Raises MemoryError with the byte count where `estimate_stats` says that it would not fit.
        """
        if not isinstance(stats, Sequence) or not len(stats):
            raise ValueError(f"stats={stats!r}: give some of {', '.join(STATISTICS)}")
        stats = [stats] if isinstance(stats, str) else list(stats)
        for name in stats:
            if not isinstance(name, str) or not self.hook_dict[self.resolve_names(name)[0]].read_only:
                raise ValueError(f"{name!r} is no statistic; there are {', '.join(STATISTICS)}.")
        check_sizes(self.cfg, latents)
        needed = self.estimate_stats(stats, len(latents), partition=partition, grid=self.grid_of(latents))
        total = needed["result_bytes"] + needed["working_bytes"]
        check_fits(total, self.device, f"{', '.join(stats)} of all heads", "Use fewer clips or statistics at a time.")
        with self.key_partition(partition):
            pred, cache = self.run_with_cache(latents, timestep, names=stats, **inputs)
        return pred, {name: cache.stack(name) for name in stats}

    def key_partition(self, partition: Partition) -> Scope:
        """What the statistic `mass` is the mass on, in every call inside the block: a label a token, or "frame".

        For recording it while sampling: `with model.key_partition(labels): pipe.sample(..., record=["mass"])`.
        """
        return self.hook_ctx(partition=partition)

    def record(self, names: Names | None = None, device: torch.device | str | None = None) -> Scope:
        """Keep the activations of every call inside the block: `recording[step]` is the cache of one.

        A call that a hook makes inside another has a cache of its own. `with model.record(names) as recording: ...`.
        """
        return self._recording(names, device)

    def _recording(self, names: Names | None, device: torch.device | str | None, incl_bwd: bool = False) -> Scope:
        """A block that gives the `Recording` of its calls, of their gradients too with `incl_bwd`."""
        recording, caches, wanted, weights = Recording(), {}, self.cacheable_names(names), marks(self)
        if device is None and is_spread((self, *self.blocks, self.final)):
            device = self.device  # one place for all

        def begin(call: Call, latents: torch.Tensor, timestep: torch.Tensor, cond: Conditions) -> None:
            caches[call] = ActivationCache.of_run(self, latents, timestep, cond, weights)
            caches[call].edited = call.edited  # which grows as the call runs
            recording.begin(self.hook_pred.ctx.get("step"), caches[call])

        def current() -> ActivationCache | None:
            return caches.get(current_call())

        backward = [(wanted, _into(current, device, "_grad"))] if incl_bwd else []
        scope = self.hooks(self._recorders(wanted, current, device), backward)
        scope.value, scope.at_call = recording, begin
        return scope

    def _recorders(
        self, wanted: list[str], current: Callable[[], ActivationCache | None], device: torch.device | str | None
    ) -> list[tuple[Names, Recorder]]:
        """Hooks that keep `wanted`, and beside rotated queries the mask, if an intervention computes one."""
        masks = [site.at("mask") for site in map(Site.parse, wanted) if site.what == "rot_q"]
        unkept = [name for name in masks if name not in set(wanted)]
        listening = [(unkept, _into(current, device, listens=True))] if unkept else []
        return [(wanted, _into(current, device)), *listening]

    def intervene(self, *interventions: Intervention) -> Scope:
        """Apply interventions to every call inside the block. Each is checked against the model first.

        Warns at the end about those limited to `steps` or `noise_levels` that no call came by.
        """
        acting = Acting(check_interventions(interventions), self)
        scope = self.hooks(acting.pairs)
        of_hooks = scope.at_end

        def at_end() -> None:
            if of_hooks is not None:
                of_hooks()
            acting.warn_of_idle()

        def at_call(call: Call, *_: Any) -> None:
            acting.check(call.says["grid"], self.hook_pred.ctx.get("frames"))

        scope.at_end, scope.at_call = at_end, at_call if interventions else None
        return scope

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


def _into(
    current: Callable[[], ActivationCache | None],
    device: torch.device | str | None,
    suffix: str = "",
    listens: bool = False,
) -> Recorder:
    """A recorder that puts activations into the cache of their call; outside of any it has no use for them."""

    def keep(activation: Any, hook: HookPoint) -> bool:
        cache = current()
        if cache is None:
            return False
        if isinstance(activation, Mask):
            cache.masks[str(hook.name)] = activation if device is None else activation.to(device)
        else:
            cache.tensors[f"{hook.name}{suffix}"] = kept(activation, hook, device)
        return True

    return Recorder(keep, listens)
