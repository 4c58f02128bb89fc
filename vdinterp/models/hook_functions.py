"""Hook functions as hook points call them: a user's, which may change an activation, and recorders, which only look."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vdinterp.checks.signatures import check_signature
from vdinterp.mask import Mask
from vdinterp.models.scopes import checkpointing, current_call, edited_names, in_backward

if TYPE_CHECKING:
    from vdinterp.models.hooks import HookPoint

HookFn = Callable[..., Any]
CALLED = "a hook is a function (activation, hook) -> activation or None, called as f(activation, hook=point)"

_CHECKED: weakref.WeakSet[Any] = weakref.WeakSet()  # code objects: asking a signature costs more than a small layer


def check_hook(function: Any) -> None:
    """Raise `ValueError` unless `function` can be called as a hook is."""
    code = getattr(function, "__code__", None) if not hasattr(function, "__self__") else None
    if code is not None and code in _CHECKED:
        return
    check_signature(function, CALLED, "activation", hook="point")
    if code is not None:
        _CHECKED.add(code)


class GuardedHook:
    """A user's hook function, given a copy of the activation and checked in what it returns.

    `fired`: whether it was ever called. `takes_rules`: whether the function says that it takes a `Mask` as well as a
    tensor. `due`: how often activation checkpointing will have to compute again, in a
    backward pass, what it changed.
    """

    def __init__(self, function: HookFn, backward: bool = False) -> None:
        check_hook(function)
        self.function, self.backward = function, backward
        self.takes_rules = getattr(function, "takes_rules", False)
        self.fired = self.asked = self.warned = False
        self.due = 0

    def __call__(self, activation: Any, hook: HookPoint) -> torch.Tensor | None:
        self.fired = True
        if isinstance(activation, Mask):  # which nobody can change in place
            if (returned := self.function(activation, hook=hook)) is not None:
                edited_names().add(str(hook.name))
            return returned
        given = activation.clone()
        returned: Any = self.function(given, hook=hook)
        if isinstance(returned, tuple) and len(returned) == 1:
            returned = returned[0]  # TransformerLens's form for backward hooks
        looked = (returned is None or returned is given) and not _edited_in_place(given, activation)
        if hook.read_only:
            if looked:
                return None
            raise ValueError(f"{hook.name} is a statistic: the network does not go on with it, so change nothing.")
        if looked:
            # The copy is the user's to keep, whatever is done to it later. Gradients have to pass through it.
            return given.clone() if given.requires_grad and not self.backward else None
        returned = given if returned is None else returned  # an in-place edit counts, as in TransformerLens
        self._check(returned, activation, hook)
        if not self.backward and not (hook.lazy and _same(returned, activation)):
            edited_names().add(str(hook.name))
            self._note(returned, str(hook.name))
        return returned

    def _check(self, returned: Any, activation: torch.Tensor, hook: HookPoint) -> None:
        """Raise `ValueError` unless the network can go on with what was returned."""
        if not isinstance(returned, torch.Tensor):
            raise ValueError(
                f"The hook on {hook.name} returned {type(returned).__name__}; return a tensor of shape "
                f"{tuple(activation.shape)}, or None to leave the activation as it is."
            )
        if returned.shape != activation.shape and not (
            hook.broadcasts and _broadcastable(returned.shape, activation.shape)
        ):
            raise ValueError(
                f"The hook on {hook.name} returned shape {tuple(returned.shape)}; the activation is "
                f"{tuple(activation.shape)} ({' '.join(hook.dims)}). Return that shape, or None to leave it as it is."
            )
        if returned.dtype != activation.dtype:
            raise ValueError(
                f"The hook on {hook.name} returned {returned.dtype}; the activation is {activation.dtype}. "
                f"{'True lets a query see a key.' if hook.broadcasts else 'Return result.to(activation).'}"
            )
        if returned.device != activation.device:
            raise ValueError(
                f"The hook on {hook.name} returned a tensor on {returned.device}; the activation is on "
                f"{activation.device}. Return result.to(activation)"
            )

    def _note(self, returned: torch.Tensor, name: str) -> None:
        """Remember what is said later: of NaN at the end of the call, of checkpointing at that of the block."""
        if in_backward():
            self.due = max(0, self.due - 1)
        elif torch.is_grad_enabled() or not self.asked:  # without gradients asking takes a walk up the stack
            self.asked = self.asked or not torch.is_grad_enabled()
            self.due += checkpointing()
        if returned.is_floating_point():
            suspect = (self, name, returned.detach().isnan().any())
            if (call := current_call()) is None:
                warn_of_nan([suspect])
            else:
                call.suspects.append(suspect)

    def __repr__(self) -> str:
        return f"GuardedHook({getattr(self.function, '__name__', type(self.function).__name__)})"


def warn_of_nan(suspects: Sequence[tuple[GuardedHook, str, torch.Tensor]]) -> None:
    """Warn of the first hook that returned NaN; those after it may only have been given it."""
    if not suspects or not bool(torch.stack([flag.cpu() for _, _, flag in suspects]).any()):
        return
    hook, name = next((hook, name) for hook, name, flag in suspects if bool(flag))
    if not hook.warned:
        hook.warned = True
        warnings.warn(f"The hook on {name} returned NaN, which the network went on with", stacklevel=2)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _edited_in_place(given: torch.Tensor, activation: torch.Tensor) -> bool:
    """Whether a hook changed its copy `given`, by whatever means: `.data` and NumPy leave no trace in the version."""
    if not given.is_inference() and given._version > 0:
        return True
    return given.shape != activation.shape or not torch.equal(_bits(given), _bits(activation))


def _bits(x: torch.Tensor) -> torch.Tensor:
    """Values as whole numbers, so that NaN equals itself."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().view(whole[x.dtype.itemsize]) if x.dtype.itemsize in whole else x.detach()


def _broadcastable(first: Sequence[int], second: Sequence[int]) -> bool:
    if len(first) != len(second):
        return False
    return all(a == b or 1 in (a, b) for a, b in zip(first, second, strict=True))


class Recorder:
    """A hook that only looks: it is trusted with the live tensor and changes nothing.

    One that `listens` does not make an on-demand activation be computed; it keeps it if somebody else does. `keep`
    returns False for what it has no use for; a recorder that never had any never fired.
    """

    def __init__(self, keep: Callable[[torch.Tensor, HookPoint], Any], listens: bool = False) -> None:
        self.keep, self.listens, self.fired = keep, listens, listens
        self.takes_rules = listens

    def __call__(self, activation: torch.Tensor, hook: HookPoint) -> None:
        if self.keep(activation, hook) is not False:
            self.fired = True

    def __repr__(self) -> str:
        return "Recorder()"


def warn_at_end(functions: Sequence[tuple[str, Recorder | GuardedHook]]) -> None:
    """Say what a block's hooks did not do."""
    silent = [name for name, function in functions if not function.fired]
    if silent:
        warnings.warn(
            f"These hooks never fired: {', '.join(silent)}. Was the model called, on the thread of this block, and "
            "with the input they need?",
            stacklevel=4,
        )
    again = [name for name, function in functions if isinstance(function, GuardedHook) and function.due]
    if again:
        warnings.warn(
            f"Hooks changed {', '.join(again)} under activation checkpointing, which computes it again in the backward "
            "pass, and without them from now on: call backward() inside the block, or its gradient is another",
            stacklevel=4,
        )
