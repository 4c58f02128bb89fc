"""Result: base of every frozen result dataclass, and Section, what a report is made of."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vdinterp.wording import caution

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of a report: a title, paragraphs of text, captioned figures and tables.

    `text` is plain text: a blank line starts a new paragraph, `backticks` set code, **stars** set bold, and lines
    that start with "- " become a list. Figures and tables are keyed by their captions (captions may be empty only
    when there is one). `moving`: animated pictures by caption, as `data:` addresses (`plotting.moving_clips`). `level`
    2 is a chapter, 3 a subsection.
    """

    title: str
    text: str = ""
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    moving: Mapping[str, str] = field(default_factory=dict)
    level: int = 2

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError("a Section needs a title that is not empty: it is its entry in the table of contents")
        if self.level not in (2, 3):
            raise ValueError(f"Section level is 2 (chapter) or 3 (subsection), got {self.level!r}")
        if outside := [caption for caption, address in self.moving.items() if not address.startswith("data:image/")]:
            raise ValueError(f"{self.title}: moving {outside} is no data:image/ address; make it with moving_clips")


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What an analysis or study hands back: numbers, their table, their figures, and where they came from.

    Subclasses are `@dataclass(frozen=True, kw_only=True, eq=False)` with fields that are tensors, numpy arrays,
    pandas tables, numbers, strings, `None`, other `Result`s, or lists, tuples and string-keyed dicts of these:
    exactly what `save` can write without pickling (tables with plain rows, named columns and cells that are numbers,
    booleans or text). A subclass with a field `table: pd.DataFrame` (tidy: one
    row a measurement) gets `to_frame` and `summary` for nothing; it overrides `plot`, and `sections` for a report
    with more than one chapter. `meta` says how the numbers were made: model, clips, seed, settings.
    """

    title: ClassVar[str] = "Result"
    meta: dict[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__repr__ = cls.__repr__  # in the class itself: there @dataclass leaves it, instead of printing all numbers

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.meta.items() if _is_scalar(value))
        return f"{type(self).__name__}({self.title!r}{', ' if settings else ''}{settings})"

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a tidy table, one row a measurement. A copy: changing it leaves the result as it is."""
        table = getattr(self, "table", None)
        if not isinstance(table, pd.DataFrame):
            raise TypeError(f"{type(self).__name__} has no field `table`, so it must define to_frame()")
        return table.copy()

    def plot(self) -> dict[str, go.Figure]:
        """Figures by caption. Subclasses hand their own numbers to `vdinterp.plotting`."""
        return {}

    def summary(self) -> str:
        """A few paragraphs of text: settings, number of rows. Subclasses put their finding first."""
        frame = self.to_frame()
        said = caution(self.meta)
        scalars = {key: value for key, value in self.meta.items() if _is_scalar(value) and key != "caution"}
        settings = ", ".join(f"{key} `{value}`" for key, value in scalars.items())
        columns = ", ".join(f"`{column}`" for column in frame.columns)
        return said + "\n\n".join(part for part in (settings, f"{len(frame)} rows with columns {columns}.") if part)

    def sections(self) -> list[Section]:
        """What a report shows of this result: by default one section with the summary, all figures and the table."""
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={"": self.to_frame()})]

    @classmethod
    def compare(cls, results: Sequence[Self]) -> list[Section]:
        """What a report on several results of this class begins with; by default nothing."""
        return []

    def save(self, folder: str | Path) -> Path:
        """Write `result.json`, `result.safetensors` (if there are tensors), one CSV a table, and `table.csv`.

        `table.csv` is `to_frame()`. Nothing is pickled. Returns the folder, which is made if need be.
        """
        folder = Path(folder)
        if folder.is_file():
            raise ValueError(f"cannot save a result to {folder}: it is a file; give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        parts = _Parts()
        fields = {f.name: _encode(getattr(self, f.name), f.name, parts) for f in dataclasses.fields(self)}
        for name, table in parts.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        if "table" not in parts.tables:
            self.to_frame().to_csv(folder / "table.csv", index=False)
        if parts.tensors:
            save_file(parts.tensors, folder / "result.safetensors")
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        record = {"format": FORMAT, "result": kind, "title": self.title, "fields": fields}
        (folder / "result.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote, equal to what was saved.

        `Result.load` finds the class by the name in the file if vdinterp defines it; for a class of your own call
        `YourResult.load`. Raises FileNotFoundError for a folder without `result.json`, ValueError for another class.
        """
        folder = Path(folder)
        path = folder / "result.json"
        if not path.is_file():
            raise FileNotFoundError(f"no result in {folder}: it has no result.json, the file that Result.save writes")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            kind, fields = record["result"], record["fields"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no saved result (unreadable or truncated JSON): {error}") from error
        if record["format"] != FORMAT:
            raise ValueError(f"{path} has format {record['format']!r}, this version reads format {FORMAT}")
        target = _class_for(kind, cls)
        tensors: dict[str, torch.Tensor] = {}
        if (folder / "result.safetensors").is_file():
            with safe_open(folder / "result.safetensors", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        return target(**{name: _decode(value, tensors, folder) for name, value in fields.items()})


def rows_of(table: pd.DataFrame, **where: Any) -> Any:
    """The rows of a tidy table whose columns have these values, in their order."""
    chosen = np.ones(len(table), dtype=bool)
    for column, value in where.items():
        chosen &= (table[column] == value).to_numpy()
    return table[chosen]


def slug(text: str) -> str:
    """A file name from a title: lower-case words joined by dashes, never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "untitled"


@dataclass
class _Parts:
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _encode(value: Any, path: str, parts: _Parts) -> Any:
    """A JSON value; tensors and tables go to `parts` under their path and leave a reference."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, (torch.Tensor, np.ndarray)) and path in parts.tensors:
        raise ValueError(f"two parts of this result are both called {path}; a key with '/' in it collides with a dict")
    if isinstance(value, torch.Tensor):
        parts.tensors[path] = value.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(value, np.ndarray):
        parts.tensors[path] = torch.from_numpy(np.array(value, order="C"))
        return {"$array": path}
    if isinstance(value, pd.DataFrame):
        name = path.replace("/", ".")
        _check_table(value, name)
        if name in parts.tables:
            raise ValueError(f"two tables of this result are both called {name}; rename one of them")
        parts.tables[name] = value
        return {"$table": name, "dtypes": {str(column): str(dtype) for column, dtype in value.dtypes.items()}}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{path}/{index}", parts) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and not key.startswith("$") for key in value):
            raise ValueError(f"{path}: a saved dict has string keys that do not start with '$', got {list(value)}")
        return {key: _encode(item, f"{path}/{key}", parts) for key, item in value.items()}
    if isinstance(value, Result):
        inner = {f.name: _encode(getattr(value, f.name), f"{path}/{f.name}", parts) for f in dataclasses.fields(value)}
        return {"$result": f"{type(value).__module__}:{type(value).__qualname__}", "fields": inner}
    raise ValueError(
        f"{path}: a result cannot save {type(value).__name__}; use tensors, arrays, pandas tables, numbers, strings, "
        "None, other results, or lists, tuples and string-keyed dicts of these"
    )


def _check_table(table: pd.DataFrame, name: str) -> None:
    """Raise ValueError for what a CSV file would not give back as it was."""
    if not isinstance(table.index, pd.RangeIndex) or table.index.start or table.index.step != 1:
        raise ValueError(f"the table {name} has an index of its own; save table.reset_index()")
    if not all(isinstance(column, str) for column in table.columns) or table.columns.has_duplicates:
        raise ValueError(f"the columns of table {name} need names of their own that are strings: {list(table.columns)}")
    for column in table.columns[[str(dtype) in ("object", "str", "string") for dtype in table.dtypes]]:
        odd = [cell for cell in table[column].dropna() if not isinstance(cell, str) or not cell]
        if odd:
            raise ValueError(f"table {name}, column {column!r}: {odd[0]!r} would not come back; use text or numbers")


def _decode(value: Any, tensors: dict[str, torch.Tensor], folder: Path) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tensor" in value or "$array" in value:
        name = value.get("$tensor", value.get("$array"))
        if name not in tensors:
            raise ValueError(f"{folder}/result.safetensors lacks {name!r}: the saved result is incomplete")
        return tensors[name] if "$tensor" in value else tensors[name].numpy()
    if "$table" in value:
        return _read_table(folder / f"{value['$table']}.csv", value["dtypes"])
    if "$tuple" in value:
        return tuple(_decode(item, tensors, folder) for item in value["$tuple"])
    if "$result" in value:
        fields = {name: _decode(item, tensors, folder) for name, item in value["fields"].items()}
        return _class_for(value["$result"], Result)(**fields)
    return {key: _decode(item, tensors, folder) for key, item in value.items()}


def _read_table(path: Path, dtypes: dict[str, str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"the saved result is incomplete: {path} is missing")
    text = {column for column, dtype in dtypes.items() if dtype in ("str", "object", "string")}
    # Text cells like "none" or "nan" are words, not gaps: only an empty cell is a gap.
    table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    return table.astype({column: dtype for column, dtype in dtypes.items() if column not in text})


def _class_for(kind: str, cls: type[Result]) -> Any:
    """The class a saved result names: `cls` itself, or a Result that vdinterp defines (nothing else is imported)."""
    module_name, _, qualname = kind.partition(":")
    if kind == f"{cls.__module__}:{cls.__qualname__}":
        return cls
    known = {f"{c.__module__}:{c.__qualname__}": c for c in _subclasses(Result)}
    if kind not in known and module_name.startswith("vdinterp."):
        importlib.import_module(module_name)
        known = {f"{c.__module__}:{c.__qualname__}": c for c in _subclasses(Result)}
    found = known.get(kind)
    if found is None:
        raise ValueError(f"the saved result is a {qualname} of {module_name}; import that module, then load it again")
    if not issubclass(found, cls):
        raise ValueError(f"the saved result is a {qualname}, not a {cls.__name__}; load it with {qualname}.load")
    return found


def _subclasses(cls: type[Result]) -> list[type[Result]]:
    return [sub for direct in cls.__subclasses__() for sub in (direct, *_subclasses(direct))]
