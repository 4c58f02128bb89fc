"""How a kind of intervention is called: which fields it has, said in one sentence where a call does not fit."""

from __future__ import annotations

import difflib
import inspect
from abc import ABCMeta
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any


class Kind(ABCMeta):
    """The class of intervention classes. `ELSEWHERE`: of names that are no fields of a kind, what is meant instead."""

    ELSEWHERE: Mapping[str, str] = {}

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the fields: `inspect` would show the one of `__call__`."""
        first, *others = inspect.signature(cls.__init__).parameters.values()
        return inspect.Signature(others if first.name == "self" else [first, *others])

    if not TYPE_CHECKING:  # type checkers know the fields

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            """An intervention. Raises `ValueError` for unknown fields, with the closest, and for missing ones."""
            try:
                return super().__call__(*args, **kwargs)
            except TypeError:
                if said := misfit(cls, args, kwargs):
                    raise ValueError(said) from None
                raise


def misfit(kind: Kind, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What does not fit in such a call; None where the names and the number of fields do."""
    name, fields = kind.__name__, kind.__signature__.parameters
    placed = [field for field in fields if fields[field].kind is not inspect.Parameter.KEYWORD_ONLY]
    needed = [field for field in fields if fields[field].default is inspect.Parameter.empty]
    for field in kwargs:
        if field not in fields:
            return f"{name} has no field {field!r}; {kind.ELSEWHERE.get(field) or hinted(field, fields)}"
    if len(args) > len(placed):
        return (
            f"{name} takes {len(placed)} fields without their names ({', '.join(placed)}), got {len(args)}; give the "
            "others by name"
        )
    for field in placed[: len(args)]:
        if field in kwargs:
            return f"{name}: {field} is given twice, once without its name; give it once"
    missing = [field for field in needed if field not in placed[: len(args)] and field not in kwargs]
    if missing:
        others = [field for field in fields if field not in needed]
        return f"{name} needs {'=, '.join(missing)}=; other fields are {', '.join(others)}"
    return None


def hinted(name: str, known: Iterable[str]) -> str:
    """The closest of the known names, or all of them, to end a sentence with."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
