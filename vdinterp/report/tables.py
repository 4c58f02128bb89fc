"""The files of a report's tables: one CSV each, under names of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vdinterp.results import Section, slug
from vdinterp.results.files import free_name, to_csv


def add_tables(sections: Sequence[Section], files: dict[str, bytes]) -> list[str]:
    """Add the tables to the files, each content once; the file of every table, in the order of the page."""
    names = []
    for section in sections:
        for caption, table in section.tables.items():
            content = to_csv(table)
            name = next((known for known, there in files.items() if there == content), None)
            if name is None:
                # A caption may explain its columns after the first sentence: that is no part of a name.
                stem = slug(f"{section.title} {caption.split('. ')[0]}")[:120].rstrip("-")
                name = free_name(stem, ".csv", files)
                files[name] = content
            names.append(name)
    return names


def unique(names: Iterable[str]) -> list[str]:
    """The names, with -2, -3, ... appended where one stood before."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique
