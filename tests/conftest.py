"""Shape checking for the whole suite: functions of vdinterp that state shapes check them while tests run.

A call whose arguments break the annotations must be refused by the function itself, with the error a user would see
(ValueError, KeyError, ...): that error is let through, so tests of bad input run unchanged. A function that accepts
such arguments, or returns something else than it says, fails with jaxtyping's TypeCheckError.

Set VDINTERP_TYPECHECK=0 to run without (faster, and tracebacks are shorter).
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
import torch

_jaxtyped = jaxtyping.jaxtyped
SHAPE = re.compile(r"\b(Bool|Complex|Float|Float32|Int|Integer|Num|Shaped|UInt8)\[")


def _own_error_first(plain: Callable, checked: Callable) -> Callable:
    where = f"checking the parameters of {plain.__module__}.{plain.__qualname__}."

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except jaxtyping.TypeCheckError as error:
            if where not in str(error):
                raise
            violation = error
        outcome = plain(*args, **kwargs)
        if inspect.isgenerator(outcome):
            next(outcome, None)
        raise violation

    return call


def _has_shapes(target: Any) -> bool:
    """Whether an annotation says the shape of a tensor. Others are left alone: checked, the suite takes three times as
    long."""
    found = getattr(target, "__annotations__", {}).values()
    return any(SHAPE.search(text if isinstance(text, str) else repr(text)) for text in found)


def _jaxtyped_own_error_first(*, typechecker: Any) -> Callable:
    strict = _jaxtyped(typechecker=typechecker)

    def decorate(target: Any) -> Any:
        if not _has_shapes(target):
            return target
        if inspect.isfunction(target):
            return _own_error_first(target, strict(target))
        if inspect.isclass(target) and "__init__" in vars(target):
            plain = target.__init__
            target = strict(target)
            if target.__init__ is not plain:
                target.__init__ = _own_error_first(plain, target.__init__)
            return target
        return strict(target)

    return decorate


if os.environ.get("VDINTERP_TYPECHECK", "1") != "0":
    jaxtyping.jaxtyped = _jaxtyped_own_error_first  # what the import hook's decorators look up
    jaxtyping.install_import_hook("vdinterp", "beartype.beartype")

# Small models gain nothing from more threads, and with several test processes they lose.
torch.set_num_threads(1)
