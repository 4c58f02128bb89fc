"""What holds inside a `with` block: hooks, and what `hook.ctx` shows, on the thread that opened it.

Nothing is put on the network and taken off again: Ctrl-C may strike just as clean-up begins, and another thread may be
running the same network. A block's hooks lie in its scope, hook points ask which scopes are open, and a scope is open
for as long as the `with` statement holds on to it.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointFunction

from vdinterp.conditions import Conditions

Side = Literal["fwd", "bwd"]
_COUNT = itertools.count()


class Scopes:
    """The open scopes of one model, in the order of opening. A copy of the model starts with none."""

    def __init__(self) -> None:
        self.hooking: dict[int, weakref.ref[Scope]] = {}  # of any thread; plain and empty, for compiled code to check
        self.telling: dict[int, weakref.ref[Scope]] = {}

    def __reduce__(self) -> tuple[type[Scopes], tuple[()]]:
        return Scopes, ()

    def of_thread(self, opened: dict[int, weakref.ref[Scope]]) -> list[Scope]:
        """Those of this thread, outer ones first."""
        if not opened:
            return []
        thread = threading.get_ident()
        mine: list[Scope] = []
        others: list[Scope] = []
        for ref in list(opened.values()):  # asked at every hook point, so a plain loop
            if (scope := ref()) is not None and scope.is_open:
                (mine if scope.thread == thread else others).append(scope)
        if others and not mine and in_backward():
            # A device's own backward thread runs what activation checkpointing left out; it works for another thread.
            if len({scope.thread for scope in others}) > 1:
                raise RuntimeError(
                    "several threads have hooks on this model, and activation checkpointing runs it in the backward "
                    "pass on a thread of its own: whose hooks hold there is unknown; use one thread at a time"
                )
            return others
        return mine

    def told(self) -> list[dict[str, Any]]:
        """What this thread's scopes say, the innermost first."""
        return [scope.says for scope in reversed(self.of_thread(self.telling))]


class _Exit:
    """`__exit__`, a new object for every `with` statement, which alone holds it.

    An interrupt can come between the last line of a block and the first of its `__exit__`. A flag that `__exit__` takes
    down would then stay up; this object is gone as soon as the block is left, in whatever way.
    """

    def __get__(self, scope: Scope | None, owner: type[Scope]) -> Callable[..., None]:
        if scope is None:
            return Scope.leave  # `ExitStack` asks the class, and holds the scope itself
        leave = partial(Scope.leave, scope)
        if not scope.entered:
            scope.held = weakref.ref(leave)
        return leave


class Scope:
    """A context manager that gives `value`.

    `hooks`: by side and name of the hook point, handles in their order. `says`: what `hook.ctx` shows. `at_call`: told
    of every forward call inside, with its inputs. `at_end`: called when the block ends without an exception.
    """

    __exit__ = _Exit()

    def __init__(
        self,
        scopes: Scopes,
        value: Any = None,
        hooks: Mapping[Side, Mapping[str, Any]] | None = None,
        says: Mapping[str, Any] | None = None,
        at_call: Callable[[Call, torch.Tensor, torch.Tensor, Conditions], None] | None = None,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        self.scopes, self.value, self.says = scopes, value, dict(says or {})
        self.hooks: Mapping[Side, Mapping[str, Any]] = hooks or {}
        self.at_call, self.at_end = at_call, at_end
        self.entered, self.thread, self.task = False, 0, -1
        self.held: weakref.ref[Any] | None = None

    @property
    def is_open(self) -> bool:
        return self.entered and (self.held is None or self.held() is not None)

    @property
    def is_repeated(self) -> bool:
        """Whether what runs now is computed again, by activation checkpointing, for a backward pass begun inside."""
        return torch._C._current_graph_task_id() != self.task

    def __enter__(self) -> Any:
        key = next(_COUNT)
        kinds = [
            *([self.scopes.hooking] if any(self.hooks.values()) or self.at_call else []),
            *([self.scopes.telling] if self.says else []),
        ]
        for opened in kinds:
            for old, ref in list(opened.items()):  # what an interrupt left behind
                if (scope := ref()) is None or not scope.is_open:
                    opened.pop(old, None)
        if self.held is not None and self.held() is None:
            self.held = None  # no `with` statement: somebody looked at `__exit__` and calls the two by hand
        self.task = torch._C._current_graph_task_id()
        self.thread, self.entered = threading.get_ident(), True
        for opened in kinds:
            opened[key] = weakref.ref(self)
        return self.value

    def leave(self, kind: Any = None, error: Any = None, traceback: Any = None) -> None:
        """What `__exit__` does; safe to be cut short anywhere."""
        self.entered = False
        for opened in (self.scopes.hooking, self.scopes.telling):
            for key, ref in list(opened.items()):
                if ref() is self:
                    opened.pop(key, None)
        if kind is None and self.at_end is not None:
            self.at_end()


class Call:
    """One forward pass. `says`: what `hook.ctx` shows of it; `edited`: names of what hooks changed in it; `suspects`:
    `(hook function, name, whether what it returned holds NaN)`, still on the device."""

    def __init__(self, **says: Any) -> None:
        self.says = says
        self.edited: set[str] = set()
        self.suspects: list[tuple[Any, str, torch.Tensor]] = []


def run_in(call: Call | None, function: Callable[..., Any], *args: Any) -> Any:
    """Run `function` as a part of that pass."""
    with _Within(call):
        return function(*args)


class _Within:
    """A part of a pass, open as long as its `__exit__` is held, see `_Exit`."""

    def __init__(self, call: Call | None) -> None:
        self.call, self.held = call, None

    @property
    def __exit__(self) -> Callable[..., None]:
        leave = partial(_Within.leave, self)
        self.held = weakref.ref(leave)
        return leave

    def __enter__(self) -> None:
        _THREAD.within.append(self)

    def leave(self, *_: object) -> None:
        del _THREAD.within[_THREAD.within.index(self) :]


class _Thread(threading.local):
    """What belongs to one thread: the forward pass it is in, and what users keep in `hook.ctx`."""

    def __init__(self) -> None:
        self.within: list[_Within] = []
        self.outside = Call()  # for hook points that are run without their model
        self.own: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


_THREAD = _Thread()


def current_call() -> Call | None:
    """The innermost forward pass that this thread is in."""
    within = _THREAD.within
    while within and (within[-1].held is None or within[-1].held() is None):  # what an interrupt left behind
        within.pop()
    return within[-1].call if within else None


def edited_names() -> set[str]:
    """What hooks changed in the pass that this thread is in."""
    return (current_call() or _THREAD.outside).edited


def own_context(owner: Any) -> dict[str, Any]:
    """What this thread keeps for a hook point, or for all scopes of a model."""
    return _THREAD.own.setdefault(owner, {})


def call_says() -> dict[str, Any]:
    """What `hook.ctx` shows of the pass that this thread is in."""
    return (current_call() or _THREAD.outside).says


def in_backward() -> bool:
    """Whether this thread is computing a backward pass."""
    return torch._C._current_graph_task_id() != -1


def checkpointing() -> bool:
    """Whether this runs under activation checkpointing, of either kind, to be run again in the backward pass."""
    if not torch.is_grad_enabled():  # the reentrant kind leaves no other trace
        frame: Any = sys._getframe()
        while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
            frame = frame.f_back
        return frame is not None
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)  # pyright: ignore[reportAttributeAccessIssue]
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"
