"""Hook points: TransformerLens's, mended where they fail silently. The only file that imports transformer_lens.

What differs from `transformer_lens.HookedRootModule`, each because the original says nothing when it goes wrong:
a name that matches no hook raises with the closest ones; a hook that never fired warns; a returned tensor of another
shape raises instead of being broadcast; a hook gets its own copy, so that an in-place edit reaches neither the cache
nor anyone's input; backward hooks that would be removed before any backward pass raise.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeGuard

import torch
from transformer_lens import FactoredMatrix as FactoredMatrix
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint as _HookPoint
from transformer_lens.hook_points import LensHandle
from transformer_lens.utilities.matrix import composition_scores as composition_scores

Name = str | tuple[str, int] | tuple[str, int, str]
Names = Name | Sequence[Name] | Callable[[str], bool]
HookFn = Callable[..., Any]


class HookPoint(_HookPoint):
    """A named activation. `dims` are its axes, `meaning` one line for `describe_hooks()`.

    `lazy`: computed only when somebody hooks it (attention patterns, per-head results, masks).
    `broadcasts`: a hook may return any shape that broadcasts together with what it was given (masks).
    `read_only`: nothing is computed from it (statistics), so a hook that changes it raises.
    """

    def __init__(
        self, dims: str, meaning: str, lazy: bool = False, broadcasts: bool = False, read_only: bool = False
    ) -> None:
        super().__init__()
        self.dims, self.meaning, self.lazy = tuple(dims.split()), meaning, lazy
        self.broadcasts, self.read_only = broadcasts, read_only
        self.edited = False  # whether a hook changed the activation in the last call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.edited = False  # the hooks run after this
        return x

    @property
    def is_hooked(self) -> bool:
        """Whether somebody wants this activation; a `Recorder` that only listens along does not count."""
        return any(not getattr(handle.user_hook, "listens", False) for handle in (*self.fwd_hooks, *self.bwd_hooks))

    def add_hook(
        self,
        hook: HookFn,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        alias_names: list[str] | None = None,
    ) -> LensHandle:
        """As in TransformerLens; `hook` is called as `hook(activation, hook=point)` and may return None.

        Recorders come last whatever the order of adding, so that a cache holds what the network went on with.
        """
        guarded: Any = hook if isinstance(hook, Recorder) else GuardedHook(hook, self.broadcasts, dir == "bwd")
        handle = super().add_hook(guarded, dir, is_permanent, level, prepend, alias_names)
        if dir == "fwd":
            for other in self.fwd_hooks:
                if isinstance(other.user_hook, Recorder):
                    self._forward_hooks[other.hook.id] = self._forward_hooks.pop(other.hook.id)
        return handle

    def drop_hook(self, handle: LensHandle) -> None:
        """Remove one hook, by what `add_hook` returned for it."""
        handle.hook.remove()
        self.fwd_hooks = [other for other in self.fwd_hooks if other is not handle]
        self.bwd_hooks = [other for other in self.bwd_hooks if other is not handle]


class GuardedHook:
    """A user's hook function, given a copy of the activation and checked in what it returns."""

    def __init__(self, function: HookFn, broadcasts: bool = False, backward: bool = False) -> None:
        self.function, self.broadcasts, self.backward = function, broadcasts, backward

    def __call__(self, activation: Any, hook: HookPoint) -> torch.Tensor | None:
        given = activation.clone()
        returned = self.function(given, hook=hook)
        if hook.read_only:
            if _edited_in_place(given, activation) or not (returned is None or returned is given):
                raise ValueError(f"{hook.name} is a statistic: the network does not go on with it, so change nothing.")
            return None
        if returned is None:
            # An in-place edit counts, as in TransformerLens. A gradient that was only looked at stays autograd's own:
            # it is not the one given here when a forward hook on the same point changed the activation.
            edited = _edited_in_place(given, activation)
            if self.backward and not edited:
                return None
            hook.edited |= edited
            return given
        if isinstance(returned, tuple) and len(returned) == 1:
            returned = returned[0]  # TransformerLens's form for backward hooks
        if not isinstance(returned, torch.Tensor):
            raise ValueError(
                f"The hook on {hook.name} returned {type(returned).__name__}; return a tensor of shape "
                f"{tuple(activation.shape)}, or None to leave the activation as it is."
            )
        if returned.shape != activation.shape and not (
            self.broadcasts and _broadcastable(returned.shape, activation.shape)
        ):
            raise ValueError(
                f"The hook on {hook.name} returned shape {tuple(returned.shape)}; the activation is "
                f"{tuple(activation.shape)} ({' '.join(hook.dims)}). Return that shape, or None to leave it as it is."
            )
        if returned.dtype != activation.dtype:
            raise ValueError(
                f"The hook on {hook.name} returned {returned.dtype}; the activation is {activation.dtype}. "
                f"{'True lets a query see a key.' if self.broadcasts else 'Return result.to(activation).'}"
            )
        # Only on-demand activations are asked whether they were edited; there an identity is none.
        hook.edited |= not hook.lazy or not _same(returned, activation)
        return returned

    def __repr__(self) -> str:
        return f"GuardedHook({getattr(self.function, '__name__', type(self.function).__name__)})"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _edited_in_place(given: torch.Tensor, activation: torch.Tensor) -> bool:
    """Whether a hook changed its copy `given`; what counts versions is switched off in inference mode."""
    return not torch.equal(given, activation) if given.is_inference() else given._version > 0


class Recorder:
    """A hook that only looks: it is trusted with the live tensor and changes nothing.

    One that `listens` does not make an on-demand activation be computed; it keeps it if somebody else does.
    """

    def __init__(self, keep: Callable[[torch.Tensor, HookPoint], None], listens: bool = False) -> None:
        self.keep, self.listens, self.fired = keep, listens, listens

    def __call__(self, activation: torch.Tensor, hook: HookPoint) -> None:
        self.fired = True
        self.keep(activation, hook)

    def __repr__(self) -> str:
        return "Recorder()"


class Watched:
    """A user's function that notes whether it was ever called."""

    def __init__(self, function: HookFn) -> None:
        self.function, self.fired = function, False

    def __call__(self, activation: Any, hook: HookPoint) -> Any:
        self.fired = True
        return self.function(activation, hook=hook)


def _broadcastable(first: Sequence[int], second: Sequence[int]) -> bool:
    if len(first) != len(second):
        return False
    return all(a == b or 1 in (a, b) for a, b in zip(first, second, strict=True))


def match_alias(alias: str, names: Iterable[str]) -> list[str]:
    """Hook names that an alias stands for: `"z"`, `"attn.z"`, `"mod.gate"`, `"resid_post"`, or a name in full.

    The dots of an alias are those of the name: `"attn.z"` is not `"cross_attn.z"`.
    """
    head, _, last = alias.rpartition(".")
    full = alias if last.startswith("hook_") else f"{head}.hook_{last}".lstrip(".")
    return [name for name in names if name == full or name.endswith("." + full)]


def is_key(name: Any) -> TypeGuard[tuple]:
    """Whether `name` is a key `(alias, layer[, sublayer])`, not a list of names."""
    return isinstance(name, tuple) and len(name) in (2, 3) and isinstance(name[1], int) and isinstance(name[0], str)


def match_key(key: tuple, names: Iterable[str], n_layers: int) -> list[str]:
    """Hook names that `(alias, layer[, sublayer])` stands for; layers may be negative. KeyError for other layers."""
    alias, layer, *sublayer = key
    if not -n_layers <= layer < n_layers:
        raise KeyError(f"No layer {layer}: there are {n_layers}, so 0..{n_layers - 1} or negative.")
    block = f"blocks.{layer % n_layers}."
    found = match_alias(alias, [name for name in names if name.startswith(block)])
    within = [name for name in found if name.startswith(f"{block}{sublayer[0] if sublayer else 'attn'}.")]
    return within if within or sublayer else found


def unknown_hook(name: str, names: Iterable[str]) -> KeyError:
    """The error for a name that matches no hook, with what may have been meant."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    short = sorted({known_name.rpartition(".hook_")[2] for known_name in known if ".hook_" in known_name})
    close += [alias for alias in difflib.get_close_matches(name, short, n=3, cutoff=0.6) if alias not in close]
    hint = f"Did you mean {', '.join(map(repr, close))}?" if close else "model.describe_hooks() lists them all."
    return KeyError(f"No hook is called {name!r}. {hint}")


class HookedModule(HookedRootModule):
    """`HookedRootModule` with strict names, and hooks that speak up when they did nothing."""

    hook_dict: dict[str, HookPoint]  # type: ignore[assignment]

    @property
    def hook_names(self) -> list[str]:
        return list(self.hook_dict)

    @property
    def has_live_hooks(self) -> bool:
        return any(point.is_hooked for point in self.hook_dict.values())

    def resolve_names(self, names: Names) -> list[str]:
        """Full hook names for a name, an alias ("z": that of every layer), a cache's key `(alias, layer[, sublayer])`,
        a list of these, or a predicate.

        Raises `KeyError` with the closest names when something matches no hook.
        """
        if callable(names):
            found = [name for name in self.hook_dict if names(name)]
            if not found:
                raise KeyError("The name filter matches no hook of this model; model.describe_hooks() lists them.")
            return found
        found = []
        for alias in [names] if isinstance(names, str) or is_key(names) else names:
            if is_key(alias):
                found += [self.resolve_key(alias)]
                continue
            if not isinstance(alias, str):
                raise ValueError(
                    f"{alias!r} is no hook name; give names, aliases such as 'z', or keys such as ('z', 3)."
                )
            matches = match_alias(alias, self.hook_dict)
            if not matches:
                raise unknown_hook(alias, self.hook_dict)
            kinds = {kind for kind in ("mod", "ln") for name in matches if f"{kind}." in name}
            if len(kinds) > 1:  # AdaLN's scale and the norm's
                raise KeyError(
                    f"{alias!r} is ambiguous: use {' or '.join(repr(f'{kind}.{alias}') for kind in sorted(kinds))}."
                )
            found += [name for name in matches if name not in found]
        if not found:
            raise KeyError(
                "An empty list of hook names; model.describe_hooks() lists them all, None means the default."
            )
        return found

    def resolve_key(self, key: tuple) -> str:
        """The one hook that `(alias, layer[, sublayer])` stands for; without a sublayer the self-attention's."""
        names = match_key(key, self.hook_dict, self.n_layers)
        if len(names) != 1:
            alias, layer, *sublayer = key
            if names:
                raise KeyError(f"{key!r} is ambiguous: {', '.join(names)}. Give the full name.")
            raise unknown_hook(".".join(["blocks", str(layer), *sublayer, alias]), self.hook_dict)
        return names[0]

    @property
    def n_layers(self) -> int:
        layers = [int(name.split(".")[1]) for name in self.hook_dict if name.startswith("blocks.")]
        return max(layers, default=-1) + 1

    @staticmethod
    def recorder(keep: Callable[[torch.Tensor, HookPoint], None]) -> Recorder:
        """A hook that only looks, after all hooks that change something: `keep(activation, hook)`."""
        return Recorder(keep)

    def add_hook(self, name: Names, hook: HookFn, *args: Any, **kwargs: Any) -> None:
        """As in TransformerLens, for every hook that `name` resolves to. Raises `KeyError` when there is none."""
        for full in self.resolve_names(name):
            self.hook_dict[full].add_hook(hook, *args, **kwargs)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[Names, HookFn]] = (),
        bwd_hooks: Sequence[tuple[Names, HookFn]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """Hooks that live inside the `with` block and are removed at its end, whatever happens in it.

        `fwd_hooks`: list of (name, function); a name may be an alias, a list or a predicate, and the function gets
        `(activation, hook)`. Raises `KeyError` for unknown names before anything is hooked; warns about every
        function that was never called.
        """
        wanted = {
            side: [(name, fn) for names, fn in given for name in self.resolve_names(names)]
            for side, given in (("fwd", fwd_hooks), ("bwd", bwd_hooks))
        }
        watched = {
            side: [(name, fn if isinstance(fn, Recorder) else Watched(fn)) for name, fn in pairs]
            for side, pairs in wanted.items()
        }
        added: list[tuple[HookPoint, LensHandle]] = []
        self.context_level += 1
        try:
            for side in ("fwd", "bwd"):
                for name, function in watched[side]:
                    point = self.hook_dict[name]
                    added.append((point, point.add_hook(function, side, level=self.context_level)))
            yield self
        finally:
            self.context_level -= 1
            if reset_hooks_end:  # these and no others: contexts need not end in the order they began
                for point, handle in added:
                    point.drop_hook(handle)
                if clear_contexts:
                    self.clear_contexts()
        silent = [name for pairs in watched.values() for name, function in pairs if not function.fired]
        if silent and reset_hooks_end:
            warnings.warn(
                f"These hooks never fired: {', '.join(silent)}. Was the model called, and with the input they need?",
                stacklevel=3,
            )

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

    def add_caching_hooks(self, names_filter: Names | None = None, *args: Any, **kwargs: Any) -> dict:
        """As in TransformerLens, with strict names."""
        return super().add_caching_hooks(self.cacheable_names(names_filter), *args, **kwargs)

    def get_caching_hooks(
        self, names_filter: Names | None = None, *args: Any, **kwargs: Any
    ) -> tuple[dict, list, list]:
        """As in TransformerLens, with strict names."""
        return super().get_caching_hooks(self.cacheable_names(names_filter), *args, **kwargs)

    def cacheable_names(self, names: Names | None) -> list[str]:
        """What `names` stands for when caching: None is everything but what is computed on demand only."""
        if names is not None:
            return self.resolve_names(names)
        return [name for name, point in self.hook_dict.items() if not point.lazy]

    def set_hook_ctx(self, **values: Any) -> None:
        """What `hook.ctx` shows to every hook function from now on (while sampling: `step`, `noise_levels`)."""
        for point in self.hook_dict.values():
            point.ctx.update(values)

    def clear_hook_ctx(self, *names: str) -> None:
        """Take `names` (all of it without any) out of `hook.ctx` again."""
        if not names:
            self.clear_contexts()
        for point in self.hook_dict.values():
            for name in names:
                point.ctx.pop(name, None)
