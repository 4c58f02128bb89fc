"""Calls as a table: what is called, with which good arguments, and what may be wrong with each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from fuzz.harness import Case


@dataclass(frozen=True)
class Target:
    """A function, its arguments as they should be (made anew for each call), and strategies of wrong values."""

    name: str
    call: Callable[..., Any]
    good: Callable[[], Mapping[str, Any]]
    wrong: Mapping[str, st.SearchStrategy]


def cases(targets: list[Target]) -> st.SearchStrategy[Case]:
    """One argument of one of them wrong."""
    places = [(target, argument) for target in targets for argument in target.wrong]

    @st.composite
    def draw(draw: Any) -> Case:
        target, argument = draw(st.sampled_from(places))
        value = draw(target.wrong[argument])
        return Case(
            f"{target.name}({argument}={_shown(value)})", lambda: target.call(**{**target.good(), argument: value})
        )

    return draw()


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return (
        f"{type(value).__name__}{list(shape)} {getattr(value, 'dtype', '')}" if shape is not None else repr(value)[:60]
    )
