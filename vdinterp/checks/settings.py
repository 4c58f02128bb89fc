"""Settings as data: read from JSON, and fitted to the annotations of the dataclass that holds them.

Configurations come from files that anybody may have edited, so every field is checked against its annotation before
anything is done with it.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    Mapping: "a dictionary",
}
_PLURALS = {int: "whole numbers", float: "finite numbers"}


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `ValueError` where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers or nesting beyond reason
        raise ValueError(f"{path} is no JSON: {error}") from error


def check_fields(instance: Any) -> None:
    """Fit every field of a dataclass to its annotation; called from `__post_init__`.

    Lists become tuples, whole numbers floats and dictionaries the dataclasses they describe, where those are wanted.
    Raises `ValueError` naming the field, what it is given and what is wanted. NaN and infinity are no numbers here,
    True is no 1.
    """
    kind = type(instance)
    for name, hint in _hints(kind).items():
        value = getattr(instance, name)
        fit = _field(value, hint, f"{kind.__name__}.{name}")
        if fit is not value:
            object.__setattr__(instance, name, fit)


def build(kind: type[Any], data: Any) -> Any:
    """A dataclass from plain data. Raises `ValueError` for unknown, missing or unfitting fields."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{kind.__name__} is {reprlib.repr(data)}; a dictionary of its fields is wanted")
    known = {field.name: field for field in fields(kind)}
    required = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    _complain(kind.__name__, "unknown", data.keys() - known.keys(), f"; there are {', '.join(known)}")
    _complain(kind.__name__, "missing", required - data.keys())
    hints = _hints(kind)
    return kind(**{name: _field(value, hints[name], f"{kind.__name__}.{name}") for name, value in data.items()})


def pick(data: Any, what: str, hints: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    """Some values of a mapping that holds others besides, each fitted to its type; of `optional` ones those there are.

    Raises `ValueError` where one is missing or of another type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} is {reprlib.repr(data)}; a dictionary is wanted")
    _complain(what, "missing", hints.keys() - data.keys(), f"; it needs {', '.join(hints)}")
    wanted = {**hints, **{name: hint for name, hint in optional.items() if name in data}}
    return {name: _field(data[name], hint, f"{what}: {name}") for name, hint in wanted.items()}


class _Unfit(Exception):
    """A value is none of the type wanted."""


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _complain(owner: str, what: str, names: set[Any], hint: str = "") -> None:
    if names:
        raise ValueError(f"{owner}: {what} {', '.join(sorted(map(str, names)))}{hint}")


def _field(value: Any, hint: Any, name: str) -> Any:
    try:
        return _fitted(value, hint)
    except _Unfit:
        wanted = _words(hint)
        raise ValueError(
            f"{name} is {reprlib.repr(value)}; "
            + (wanted if wanted.startswith("choose") else f"{wanted} {'are' if wanted[0].isdigit() else 'is'} wanted")
        ) from None


def _fitted(value: Any, hint: Any) -> Any:
    """`value` as a field annotated `hint` keeps it. Raises `_Unfit` where it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
        raise _Unfit
    if origin in (Union, UnionType):
        for option in args:
            try:
                return _fitted(value, option)
            except _Unfit:
                continue
        raise _Unfit
    if origin is tuple and isinstance(value, list | tuple):
        each = [args[0]] * len(value) if args[1:] == (...,) else args
        if len(each) == len(value):
            return tuple(_fitted(part, wanted) for part, wanted in zip(value, each, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {_fitted(key, args[0]): _fitted(part, args[1]) for key, part in value.items()}
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value)
    if not _is(value, hint):
        raise _Unfit
    return value


def _is(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(hint, type) and isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"choose one of {list(args)}"
    if origin in (Union, UnionType):
        return " or ".join("None" if option is type(None) else _words(option) for option in args)
    if origin is tuple:
        several = _PLURALS.get(args[0], f"{getattr(args[0], '__name__', args[0])}s")
        return f"a list of {several}" if args[1:] == (...,) else f"{len(args)} {several}"
    if origin is dict:
        return "a dictionary" + (f" of {args[1].__name__}s by name" if isinstance(args[1], type) else "")
    return _NAMES.get(hint, f"a {getattr(hint, '__name__', hint)}")
