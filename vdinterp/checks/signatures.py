"""Whether a function of the user's can be called as it will be: asked before any compute."""

from __future__ import annotations

import inspect
from typing import Any


def check_signature(function: Any, called: str, *args: str, **kwargs: str) -> None:
    """Raise `ValueError` unless `function` takes these arguments; `called`: what it is and how it is called.

    What cannot be asked, as some built-in functions, is let through.
    """
    if not callable(function):
        raise ValueError(f"{function!r} is no function: {called}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(f"{name}{signature} does not fit: {called}") from error
