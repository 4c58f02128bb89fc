"""Writing a report: the page, its tables and its record, all swapped in at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from vdinterp import store
from vdinterp.report.page import render
from vdinterp.report.tables import add_tables, unique
from vdinterp.results import Result, Section, files as result_files, slug
from vdinterp.results.files import files_of
from vdinterp.words import wording

PAGE, RECORD = "report.html", "report.json"
LARGEST_REPORT = 10_000_000  # bytes
HIDDEN = ("caution",)  # settings that the text says already


def write(
    content: Result | Section | Sequence[Result | Section],
    folder: str | Path,
    *,
    title: str | None = None,
    subtitle: str = "",
    run: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.html` into `folder` and return its path.

    `content` is a result, a section, or a list of both in reading order; several results of one class begin with what
    the class says of them side by side (`Result.compare`). The page holds everything it shows, the plotting library
    once, and asks the network for nothing. It ends with what was run (the settings of every result, and `run`: what
    only the caller knows, such as `{"command": .., "date": ..}`; a date is never looked up, so that the same content
    gives the same bytes) and with the meaning of the special words that occur in it (`words/glossary.py`). Beside it:
    every result as `Result.save` writes it (in `folder` itself for a single result, else in a folder of its own named
    by its title), every table that is in none of their files as `CHAPTER-CAPTION.csv`, and `report.json` with all texts
    and where each table is. All of it is replaced at once, and what an earlier report wrote and this one does not is
    removed; other files stay. `title` defaults to the first title.

    Raises ValueError for no content, for something that is neither Result nor Section, and for a page of
    10 MB or more (show fewer or shorter filmstrips).
    """
    folder = store.as_path(folder, "folder")
    items: list[Any] = list(content) if isinstance(content, (list, tuple)) else [content]
    if not items:
        raise ValueError("nothing to report: give a Result, a Section, or a list of them")
    for item in items:
        if not isinstance(item, (Result, Section)):
            raise ValueError(
                f"a report is made of Result and Section objects, got {type(item).__name__}; a table or figure "
                "of yours goes into vd.results.Section(title=.., tables={caption: table}, figures={caption: figure})"
            )
    results = [item for item in items if isinstance(item, Result)]
    sections = [section for item in items for section in (_sections(item) if isinstance(item, Result) else [item])]
    sections = [*_side_by_side(results), *sections, *_about(results, dict(run or {}))]
    heading = title or items[0].title
    files = _saved(items)
    tables = add_tables(sections, files)
    page = render(sections, title=heading, subtitle=subtitle, run=run, files=tables)
    if len(page.encode("utf-8")) >= LARGEST_REPORT:
        raise ValueError(
            f"the report would be {len(page.encode('utf-8')) / 1e6:.1f} MB, at most {LARGEST_REPORT / 1e6:.0f} MB "
            "are allowed: show fewer or shorter filmstrips"
        )
    names = iter(tables)
    about = {"title": heading, "vdinterp": version("vdinterp"), "run": dict(run or {})}
    record = {**about, "sections": [_record(s, names) for s in sections]}
    files |= {PAGE: page.encode("utf-8")}
    record["files"] = {name: {"sha256": store.digest(content)} for name, content in files.items()}
    files[RECORD] = (json.dumps(record, indent=1) + "\n").encode("utf-8")
    earlier = [RECORD, *({result_files.RECORD} & files.keys())]
    remove = {name for manifest in earlier for name in store.outdated(folder, manifest, files)}
    return store.write_files(folder, files, remove) / PAGE


def _saved(items: Sequence[Result | Section]) -> dict[str, bytes]:
    """The files of all results: of the only one in the report's own folder, of several in one folder each."""
    results = [item for item in items if isinstance(item, Result)]
    names = unique([slug(result.title) for result in results])
    folders = [""] if len(items) == 1 else [f"{name}/" for name in names]
    return {
        f"{folder}{name}": content
        for result, folder in zip(results, folders, strict=False)
        for name, content in files_of(result).items()
    }


def _sections(result: Result) -> list[Section]:
    """The sections of a result, its caution first, whatever its own text begins with."""
    first, *others = result.sections()
    said = wording.caution(result.meta)
    if said and said.strip() not in first.text:
        first = dataclasses.replace(first, text=said + first.text)
    return [first, *others]


def _side_by_side(results: Sequence[Result]) -> list[Section]:
    """What classes say of several of their results."""
    kinds = dict.fromkeys(type(result) for result in results)
    groups = [(kind, [result for result in results if type(result) is kind]) for kind in kinds]
    return [section for kind, group in groups if len(group) > 1 for section in kind.compare(group)]


def _about(results: Sequence[Result], run: Mapping[str, str]) -> list[Section]:
    """What was run, a row a setting; of several results all values that differ, in their order."""
    if not results and not run:
        return []
    rows = {**run, "version": f"vdinterp {version('vdinterp')}"}
    metas = [result.meta for result in results]
    for name in dict.fromkeys(name for meta in metas for name in meta if name not in HIDDEN):
        values = dict.fromkeys(_setting(meta[name]) for meta in metas if name in meta)
        if any(values):
            rows[name] = "; ".join(value for value in values if value)
    table = pd.DataFrame({"setting": list(rows), "value": list(rows.values())})
    differ = "; where results differ, all values in their order" if len(results) > 1 else ""
    return [Section(title="What was run", tables={f"Settings of this report{differ}": table})]


def _setting(value: Any) -> str:
    """A setting as text; nothing for what is too large to be one."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_setting(one)}" for name, one in value.items()) if len(value) <= 12 else ""
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(one) for one in value) if len(value) <= 40 else f"{len(value)} values"
    if isinstance(value, float):
        short = f"{value:g}"  # settings are short, 0.3; what was measured is not
        return short if len(short) <= 5 else wording.number(value)
    return "none" if value is None else str(value)


def _record(section: Section, files: Iterator[str]) -> dict[str, object]:
    tables = {caption: next(files) for caption in section.tables}
    return {"title": section.title, "text": section.text, "figures": list(section.figures), "tables": tables}
