"""Reading and changing activations while a model runs: caches, statistics, recordings, interventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped

from vdinterp.conditions import Cond, Conditions
from vdinterp.gradient_state import check_gradients, keep_grad_mode
from vdinterp.grid import TokenGrid
from vdinterp.interventions import Acting, Intervention, check_interventions
from vdinterp.mask import Mask
from vdinterp.models.cache import ActivationCache, Recording, kept
from vdinterp.models.checks import (
    asked_names,
    asked_stop,
    check_habits,
    check_old,
    check_sizes,
)
from vdinterp.models.components.statistics import STATISTICS
from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.hooks import HookedModule, HookPoint, Names, Recorder
from vdinterp.models.identity import marks
from vdinterp.models.memory import check_fits
from vdinterp.models.pattern import Partition
from vdinterp.models.scopes import Call, Scope, current_call
from vdinterp.models.spread import is_spread
from vdinterp.site import Site


class Watched(HookedModule):
    """What can be asked of a model while it runs."""

    cfg: VideoDiTConfig
    blocks: Any
    final: Any
    hook_pred: HookPoint
    device: torch.device
    estimate_stats: Callable[..., dict[str, int]]
    names_before: Callable[[int | None, list[str]], list[str]]
    grid_of: Callable[[torch.Tensor], TokenGrid]

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
