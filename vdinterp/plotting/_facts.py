"""A small table of facts in a notebook, for what has no picture: a pipeline, a configuration."""

from __future__ import annotations

import dataclasses
import html
import textwrap
from collections.abc import Mapping
from typing import Any

LONGEST = 160  # characters of a value


def facts(title: str, rows: Mapping[str, Any], note: str = "") -> str:
    """An HTML table: a name and what is known under it, one row each; long values are cut."""
    left = ' style="text-align:left"'
    lines = "".join(
        f"<tr><td{left}>{html.escape(name)}</td>"
        f"<td{left}>{html.escape(textwrap.shorten(str(value), LONGEST, placeholder=' ..'))}</td></tr>"
        for name, value in rows.items()
    )
    said = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<p><b>{html.escape(title)}</b></p><table>{lines}</table>{said}"


def settings(config: Any, name: str = "") -> str:
    """The fields of a dataclass that have no default or differ from it, as such a table."""
    given = {field: getattr(config, field.name) for field in dataclasses.fields(config)}
    rows = {field.name: value for field, value in given.items() if value != _default(field)}
    kind = type(config).__name__
    others = [field.name for field in given if field.name not in rows]
    note = f"at their defaults: {', '.join(others)}" if others else ""
    return facts(f"{kind}: {name}" if name else kind, rows, note)


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default; MISSING, which equals nothing, where there is none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
