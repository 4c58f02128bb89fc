"""Hook points: TransformerLens's, mended where they fail silently. The only file that imports transformer_lens.

What differs from `transformer_lens.HookedRootModule`, each because the original says nothing when it goes wrong:
a name that matches no hook raises with the closest ones; a hook that never fired warns; a returned tensor of another
shape raises instead of being broadcast; a hook gets its own copy, so that an in-place edit reaches neither the cache
nor anyone's input; backward hooks that would be removed before any backward pass raise; hooks of a `with` block hold
on its thread only, and end with it even where an interrupt keeps clean-up from running (`scopes.py`).
"""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.hooks import RemovableHandle
from transformer_lens import FactoredMatrix as FactoredMatrix
from transformer_lens.hook_points import HookPoint as _HookPoint, LensHandle

from vdinterp.models.hook_functions import GuardedHook, HookFn, Recorder, warn_at_end
from vdinterp.models.hook_names import (
    Names as Names,
    is_key as is_key,
    match_alias as match_alias,
    match_key as match_key,
    resolve,
    resolve_one,
    unknown_hook as unknown_hook,
)
from vdinterp.models.scopes import (
    Call,
    Scope,
    Scopes,
    Side,
    call_says,
    current_call,
    edited_names,
    in_backward,
    own_context,
    run_in,
)
from vdinterp.site import count_layers

try:
    from transformer_lens import HookedRootModule
except ImportError:  # TransformerLens before 4
    from transformer_lens.hook_points import HookedRootModule  # type: ignore[no-redef]


@dataclass
class Handle(LensHandle):
    """TransformerLens's, with the hook function itself, which its older versions do not keep."""

    user_hook: Any = None


Handles = OrderedDict[int, Handle]


class HookPoint(_HookPoint):
    """A named activation. `dims` are its axes, `meaning` one line for `describe_hooks()`.

    `lazy`: computed only when somebody hooks it (attention patterns, per-head results, masks).
    `broadcasts`: a hook may return any shape that broadcasts together with what it was given (masks).
    `read_only`: nothing is computed from it (statistics), so a hook that changes it raises.
    """

    def __init__(
        self, dims: str, meaning: str, lazy: bool = False, broadcasts: bool = False, read_only: bool = False
    ) -> None:
        self.added: dict[Side, Handles] = {"fwd": OrderedDict(), "bwd": OrderedDict()}  # until `reset_hooks`
        self.scopes = Scopes()  # those of the model, once it has named its hook points
        super().__init__()
        self.dims, self.meaning, self.lazy = tuple(dims.split()), meaning, lazy
        self.broadcasts, self.read_only = broadcasts, read_only

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.scopes.hooking and not self.added["fwd"] and not self.added["bwd"]:
            return x
        if current_call() is None:  # a pass of the model starts with none
            edited_names().discard(str(self.name))
        for _, _, handle in _recorders_last(self._live("fwd")):
            assert handle.user_hook is not None
            returned = handle.user_hook(x, hook=self)
            x = x if returned is None else returned
        if torch.is_grad_enabled() and x.is_floating_point() and (backward := self._live("bwd")):
            # Where nothing before has a gradient (frozen weights), the activation itself is what one is taken of.
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            x.register_hook(partial(self._backward, backward, current_call()))
        return x

    def _backward(
        self, hooks: list[tuple[Scope | None, Handles, Handle]], call: Call | None, grad: torch.Tensor
    ) -> torch.Tensor:
        """The gradient after the hooks that were there in the forward pass and still are."""
        for scope, handles, handle in _recorders_last(hooks):
            if handle.hook.id in handles and (scope is None or scope.is_open):
                assert handle.user_hook is not None
                returned = run_in(call, partial(handle.user_hook, hook=self), grad)
                grad = grad if returned is None else returned
        return grad

    def _live(self, side: Side) -> list[tuple[Scope | None, Handles, Handle]]:
        """This thread's hooks, in order: those added, then those of open blocks, outer ones first."""
        added, name = self.added[side], str(self.name)
        live: list[tuple[Scope | None, Handles, Handle]] = []
        if added:
            live += [(None, added, handle) for handle in list(added.values())]
        for scope in self.scopes.of_thread(self.scopes.hooking):
            if (named := scope.hooks.get(side)) and (handles := named.get(name)):
                live += [(scope, handles, handle) for handle in list(handles.values())]
        return live

    def _handles(self, side: Side) -> list[Handle]:
        return [handle for _, _, handle in _recorders_last(self._live(side))]

    # TransformerLens's own fields, whose constructor sets them

    @property
    def fwd_hooks(self) -> list[Handle]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._handles("fwd")

    @fwd_hooks.setter
    def fwd_hooks(self, handles: list[Handle]) -> None:
        assert not handles

    @property
    def bwd_hooks(self) -> list[Handle]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._handles("bwd")

    @bwd_hooks.setter
    def bwd_hooks(self, handles: list[Handle]) -> None:
        assert not handles

    @property
    def ctx(self) -> MutableMapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What hook functions see, on this thread: what they put there themselves, then what blocks and
        `set_hook_ctx` say, then the `grid` of the clips."""
        return ChainMap(own_context(self), *self.scopes.told(), own_context(self.scopes), call_says())

    @ctx.setter
    def ctx(self, values: dict[str, Any]) -> None:
        if values:
            own_context(self).update(values)

    def clear_context(self) -> None:
        own_context(self).clear()

    def telling(self, **values: Any) -> Scope:
        """As `HookedModule.hook_ctx`, for who has only the hook point."""
        return Scope(self.scopes, says=values)

    @property
    def edited(self) -> bool:
        """Whether a hook changed the activation in the pass that this thread is in."""
        return self.name in edited_names()

    @property
    def is_hooked(self) -> bool:
        """Whether somebody wants this activation; a `Recorder` that only listens along does not count."""
        if not self.scopes.hooking and not self.added["fwd"] and not self.added["bwd"]:
            return False
        for side in ("fwd", "bwd"):
            for _, _, handle in self._live(side):
                if not getattr(handle.user_hook, "listens", False):
                    return True
        return False

    @property
    def takes_rules(self) -> bool:
        """Whether all who hook it can go on with the rules of a mask in place of a tensor."""
        return all(handle.user_hook.takes_rules for handle in (*self.fwd_hooks, *self.bwd_hooks))

    def add_hook(
        self,
        hook: HookFn,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        alias_names: list[str] | None = None,
    ) -> Handle:
        """As in TransformerLens, for every thread; `hook` is called as `hook(activation, hook=point)` and may return
        None.

        Recorders come last whatever the order of adding, so that a cache holds what the network went on with.
        Raises `ValueError` for what cannot be called so, and for `alias_names`, which these points do not have.
        """
        if dir not in ("fwd", "bwd") or alias_names is not None:
            raise ValueError(f"dir is 'fwd' or 'bwd' and alias_names None here, got {dir=}, {alias_names=}")
        return _held(self.added[dir], guarded(hook, dir), is_permanent, level, prepend)

    def remove_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """As in TransformerLens: those that were added, and this thread's of open blocks."""
        if dir not in ("fwd", "bwd", "both"):
            raise ValueError(f"dir is 'fwd', 'bwd' or 'both', got {dir!r}")
        sides: tuple[Side, ...] = ("fwd", "bwd") if dir == "both" else (dir,)
        for _, _, handle in [live for side in sides for live in self._live(side)]:
            if (including_permanent or not handle.is_permanent) and level in (None, handle.context_level):
                handle.hook.remove()


def guarded(hook: HookFn, side: Side) -> Recorder | GuardedHook:
    """A hook function as hook points call it. Raises `ValueError` for what cannot be called so."""
    return hook if isinstance(hook, Recorder) else GuardedHook(hook, side == "bwd")


def _held(
    handles: Handles,
    hook: Recorder | GuardedHook,
    is_permanent: bool = False,
    level: int | None = None,
    prepend: bool = False,
) -> Handle:
    """Put a hook function among `handles`."""
    handle = RemovableHandle(handles)
    handles[handle.id] = Handle(handle, is_permanent, level, user_hook=hook)
    if prepend:
        handles.move_to_end(handle.id, last=False)
    return handles[handle.id]


def _recorders_last(
    hooks: list[tuple[Scope | None, Handles, Handle]],
) -> list[tuple[Scope | None, Handles, Handle]]:
    if len(hooks) < 2:
        return hooks
    return sorted(hooks, key=lambda live: isinstance(live[2].user_hook, Recorder))


class HookedModule(HookedRootModule):
    """`HookedRootModule` with strict names, and hooks that speak up when they did nothing."""

    hook_dict: dict[str, HookPoint]  # type: ignore[assignment]
    scopes: Scopes
    n_layers: int

    def setup(self) -> None:
        """Name every hook point, and let them all ask the same scopes."""
        super().setup()
        self.scopes = Scopes()
        for point in self.hook_dict.values():
            point.scopes = self.scopes
        self.n_layers = count_layers(self.hook_dict)

    @property
    def hook_names(self) -> list[str]:
        return list(self.hook_dict)

    @property
    def has_live_hooks(self) -> bool:
        """Whether a call on this thread would meet hooks."""
        return any(point.is_hooked for point in self.hook_dict.values())

    @property
    def may_have_hooks(self) -> bool:
        """The same of any thread, and without asking whether blocks are still open: what compiled code can check."""
        return bool(self.scopes.hooking) or any(
            point.added["fwd"] or point.added["bwd"] for point in self.hook_dict.values()
        )

    def resolve_names(self, names: Names) -> list[str]:
        """Full hook names for a name, an alias ("z": that of every layer), a cache's key `(alias, layer[, sublayer])`,
        a list of these, or a predicate.

        Raises `KeyError` with the closest names when something matches no hook, `ValueError` for what is no name.
        """
        return resolve(names, self.hook_dict, self.n_layers)

    def resolve_key(self, key: tuple) -> str:
        """The one hook that `(alias, layer[, sublayer])` stands for; without a sublayer the self-attention's."""
        return resolve_one(key, self.hook_dict, self.n_layers)

    @staticmethod
    def recorder(keep: Callable[[torch.Tensor, HookPoint], None]) -> Recorder:
        """A hook that only looks, after all hooks that change something: `keep(activation, hook)`."""
        return Recorder(keep)

    def add_hook(self, name: Names, hook: HookFn, *args: Any, **kwargs: Any) -> None:
        """As in TransformerLens, for every hook that `name` resolves to. Raises `KeyError` when there is none."""
        for full in self.resolve_names(name):
            self.hook_dict[full].add_hook(hook, *args, **kwargs)

    def hooks(
        self,
        fwd_hooks: Sequence[tuple[Names, HookFn]] = (),
        bwd_hooks: Sequence[tuple[Names, HookFn]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Scope:
        """Hooks that live inside the `with` block, for calls on its thread, and end with it, whatever happens there.

        `fwd_hooks`: list of (name, function); a name may be an alias, a list or a predicate, and the function gets
        `(activation, hook)`. Raises `KeyError` for unknown names and `ValueError` for what is no hook function before
        anything is hooked; at the end of the block warns about every function that was never called.
        """
        made: dict[Side, list[tuple[str, Recorder | GuardedHook]]] = {
            "fwd": self._guarded(fwd_hooks, "fwd"),
            "bwd": self._guarded(bwd_hooks, "bwd"),
        }
        if not reset_hooks_end:
            for side, pairs in made.items():
                for name, function in pairs:
                    _held(self.hook_dict[name].added[side], function)
            return Scope(self.scopes, self)
        level = len(self.scopes.of_thread(self.scopes.hooking)) + 1
        hooks: dict[Side, dict[str, Handles]] = {"fwd": {}, "bwd": {}}
        for side, pairs in made.items():
            for name, function in pairs:
                _held(hooks[side].setdefault(name, OrderedDict()), function, level=level)
        functions = [pair for pairs in made.values() for pair in pairs]

        def at_end() -> None:
            if clear_contexts:
                self.clear_contexts()
            warn_at_end(functions)

        return Scope(self.scopes, self, hooks=hooks, at_end=at_end)

    def _guarded(self, given: Any, side: Side) -> list[tuple[str, Recorder | GuardedHook]]:
        """Name and function of every hook that `fwd_hooks` or `bwd_hooks` asks for."""
        if not isinstance(given, Sequence) or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in given):
            raise ValueError(f"{side}_hooks={given!r}: give a list of pairs (name, function)")
        return [(name, guarded(function, side)) for names, function in given for name in self.resolve_names(names)]

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[tuple[Names, HookFn]] = (),
        bwd_hooks: Sequence[tuple[Names, HookFn]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        """One forward pass under temporary hooks; same arguments as the model, plus `fwd_hooks`."""
        if bwd_hooks and reset_hooks_end:
            raise ValueError(
                "bwd_hooks would be removed before any backward pass. Use `with model.hooks(bwd_hooks=...): "
                "loss(model(...)).backward()`, or run_with_cache(..., incl_bwd=True, loss=...)."
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def add_caching_hooks(
        self,
        names_filter: Names | None = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict | None = None,
    ) -> dict:
        """As in TransformerLens, with strict names, and of one call: a second raises `ValueError` instead of
        overwriting the first, unless the dict was cleared. `model.record(names)` keeps several apart."""
        cache, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        made: dict[Side, list] = {"fwd": forward, "bwd": backward}
        for side, pairs in made.items():
            for name, function in pairs:
                self.hook_dict[name].add_hook(function, side)
        return cache

    def get_caching_hooks(
        self, names_filter: Names | None = None, *args: Any, **kwargs: Any
    ) -> tuple[dict, list, list]:
        """As in TransformerLens, with strict names, and of one call, as `add_caching_hooks`."""
        names = self.cacheable_names(names_filter)
        cache, forward, backward = super().get_caching_hooks(names, *args, **kwargs)
        return (
            cache,
            [(name, Recorder(partial(_save_once, save, cache, name))) for name, save in forward],
            [(name, Recorder(partial(_save_once, save, cache, f"{name}_grad"))) for name, save in backward],
        )

    def cacheable_names(self, names: Names | None) -> list[str]:
        """What `names` stands for when caching: None is everything but what is computed on demand only."""
        if names is not None:
            return self.resolve_names(names)
        return [name for name, point in self.hook_dict.items() if not point.lazy]

    def hook_ctx(self, **values: Any) -> Scope:
        """What `hook.ctx` shows to hook functions inside the `with` block (while sampling: `step`, `noise_levels`)."""
        return Scope(self.scopes, self, says=values)

    def set_hook_ctx(self, **values: Any) -> None:
        """What `hook.ctx` shows to every hook function on this thread from now on, where no block says otherwise."""
        own_context(self.scopes).update(values)

    def clear_hook_ctx(self, *names: str) -> None:
        """Take `names` (all of it without any) out of `hook.ctx` again."""
        if not names:
            self.clear_contexts()
        for owner in (self.scopes, *self.hook_dict.values()):
            for name in names:
                own_context(owner).pop(name, None)

    def clear_contexts(self) -> None:
        """As in TransformerLens."""
        super().clear_contexts()
        own_context(self.scopes).clear()


def _save_once(save: HookFn, cache: dict, key: str, activation: torch.Tensor, hook: HookPoint) -> bool:
    """Let TransformerLens's function save a copy, unless the cache is another call's already."""
    if in_backward() and not key.endswith("_grad"):
        return False  # activation checkpointing computes it again
    if key in cache:
        raise ValueError(
            f"this cache holds {key} of another call, which would be lost: use `with model.record(names)`, which keeps "
            "calls apart, or cache.clear() between them"
        )
    save(activation.clone(), hook=hook)
    return True
