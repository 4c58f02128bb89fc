"""The files of a saved result: what `Result.save` writes and `Result.load` reads.

`result.json` holds the fields and names the other files, each with its SHA-256, its bytes and (tables) its rows:
tensors are in `result.safetensors`, every table in a CSV file of its own. What does not fit together is not loaded.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vdinterp import store
from vdinterp.results import Result

FORMAT = 2
RECORD, TENSORS = "result.json", "result.safetensors"
TEXT = ("str", "object", "string")  # dtypes of text


def save(result: Result, folder: Path) -> Path:
    """Write all of them, or none."""
    if folder.is_file():
        raise ValueError(f"cannot save a result to {folder}: it is a file; give a folder")
    files = files_of(result)
    return store.write_files(folder, files, remove=store.outdated(folder, RECORD, files))


def files_of(result: Result) -> dict[str, bytes]:
    """The content of every file, by name. Raises ValueError for what would not come back as it is."""
    parts = _Parts()
    if not isinstance(getattr(result, "table", None), pd.DataFrame):
        parts.add("table", result.to_frame())
    fields = {f.name: _encode(getattr(result, f.name), f.name, parts) for f in dataclasses.fields(result)}
    files = parts.files
    if parts.tensors:
        from safetensors.torch import save as packed

        files = {TENSORS: packed(parts.tensors), **files}
    about = {name: {"sha256": store.digest(content), "bytes": len(content)} for name, content in files.items()}
    for name, rows in parts.rows.items():
        about[name]["rows"] = rows
    record: dict[str, Any] = {"format": FORMAT, "result": _kind(type(result)), "title": result.title}
    record |= {"fields": fields, "files": about}
    record["sha256"] = _digest(record)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    return {**files, RECORD: text.encode("utf-8")}


def load(folder: Path, cls: type[Result]) -> Any:
    """The result that is whole in the folder, also while another process saves over it."""
    while True:
        path = store.find(folder, RECORD)
        if not path.is_file():
            raise FileNotFoundError(f"no result in {folder}: it has no {RECORD}, the file that Result.save writes")
        text = path.read_bytes()
        try:
            return _read(text, folder, cls)
        except (ValueError, FileNotFoundError):
            now = store.find(folder, RECORD)
            if not now.is_file() or now.read_bytes() == text:
                raise


def _read(text: bytes, folder: Path, cls: type[Result]) -> Any:
    path = folder / RECORD
    try:
        record = json.loads(text)
        kind, fields, version = record["result"], record["fields"], record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no saved result (unreadable or truncated JSON): {error}") from error
    if not isinstance(kind, str) or not isinstance(fields, dict) or not isinstance(record.get("files"), dict):
        raise ValueError(f"{path} is no saved result: it does not say its class, fields and files")
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version reads format {FORMAT}; save the result again")
    target = _class_for(kind, cls)
    if record.pop("sha256", None) != _digest(record):
        raise ValueError(f"{path} was changed after it was saved; save the result again")
    files = {name: _verified(folder, name, about) for name, about in record["files"].items()}
    tensors: dict[str, torch.Tensor] = {}
    if TENSORS in files:
        from safetensors.torch import load as unpacked

        tensors = unpacked(files[TENSORS])
    rows = {name: about.get("rows", 0) for name, about in record["files"].items()}
    saved = _Saved(tensors, files, rows)
    return target(**{name: _decode(value, saved) for name, value in fields.items()})


def _verified(folder: Path, name: str, about: Mapping[str, Any]) -> bytes:
    """What the file holds, if it is the one that was saved. FileNotFoundError or ValueError that names it if not."""
    if not store.is_inside(name):
        raise ValueError(f"{folder / RECORD} names the file {name!r}, which is outside its folder")
    path = folder / name
    there = store.find(folder, name)
    if not there.is_file():
        raise FileNotFoundError(f"the saved result is incomplete: {path} is missing")
    content = there.read_bytes()
    if store.digest(content) == about["sha256"]:
        return content
    found = f"{len(content):,} of {about['bytes']:,} bytes"
    if "rows" in about:
        found += f", {_count(content)} of {about['rows']} rows"
    raise ValueError(
        f"{path} is not the file that was saved with {RECORD} ({found}): it was cut short or changed, or is of another "
        "save; save the result again"
    )


def _count(content: bytes) -> int:
    """Rows of a CSV file, as far as it goes."""
    return max(0, sum(1 for _ in csv.reader(io.StringIO(content.decode("utf-8", "replace"), newline=""))) - 1)


def _digest(record: Mapping[str, Any]) -> str:
    return store.digest(json.dumps(record, sort_keys=True).encode("utf-8"))


def _kind(cls: type[Result]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


@dataclass
class _Parts:
    """What leaves the JSON while it is made: tensors by path, tables as the CSV files that hold them."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, path: str, table: pd.DataFrame) -> str:
        """The name of the file that holds the table: one that is there already, if it is the same."""
        content = to_csv(table)
        for name, known in self.files.items():
            if known == content and self.rows[name] == len(table):
                return name
        stem = ".".join(re.sub(r"[^\w.-]+", "-", part).strip("-.") or "table" for part in path.split("/"))
        name = free_name(stem, ".csv", self.files)
        self.files[name], self.rows[name] = content, len(table)
        return name


@dataclass(frozen=True)
class _Saved:
    tensors: dict[str, torch.Tensor]
    files: dict[str, bytes]
    rows: dict[str, int]


def free_name(stem: str, suffix: str, taken: Collection[str]) -> str:
    """`stem` and `suffix`, with -2, -3, ... between where the name is taken; capitals do not tell names apart."""
    used = {name.casefold() for name in taken}
    name, number = f"{stem}{suffix}", 1
    while name.casefold() in used:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


def to_csv(table: pd.DataFrame) -> bytes:
    """A table as CSV (UTF-8, no index), with every line end of its texts inside quotes."""
    texts = [table.iloc[:, i] for i, dtype in enumerate(table.dtypes) if str(dtype) in TEXT]
    odd = any(isinstance(cell, str) and "\r" in cell for column in texts for cell in column)
    odd |= any("\r" in str(column) for column in table.columns)
    # csv quotes what holds its own line end: a lone \r it would not
    quoting = csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL
    try:
        return table.to_csv(index=False, lineterminator="\n", quoting=quoting).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"a table with columns {list(table.columns)} has text that is no Unicode: {error}") from error


def _from_csv(content: bytes, dtypes: Mapping[str, str], rows: int) -> pd.DataFrame:
    if not dtypes:
        return pd.DataFrame(index=pd.RangeIndex(rows))
    # Text cells like "none" or "nan" are words, not gaps: only an empty cell is a gap.
    gaps: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
    layout: dict[str, Any] = {"names": list(dtypes), "header": 0, "index_col": False, "dtype": str}
    cells = pd.read_csv(io.BytesIO(content), **layout, **gaps, encoding="utf-8")
    return pd.DataFrame({column: _column(cells[column], dtype) for column, dtype in dtypes.items()})


def _column(cells: pd.Series, dtype: str) -> pd.Series:
    """A column of its dtype from its cells as text."""
    if dtype.startswith("float"):  # Python reads a number to the last bit, pandas does not in every version
        return pd.Series([float(cell) for cell in cells], dtype=dtype)
    if dtype == "bool":
        return cells.map({"True": True, "False": False}).astype(dtype)
    if dtype.startswith(("int", "uint")):
        return pd.Series([int(cell) for cell in cells], dtype=dtype)
    return cells.astype(dtype)  # pyright: ignore[reportArgumentType]


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
        try:
            parts.tensors[path] = torch.from_numpy(np.array(value, order="C"))
        except TypeError as error:
            raise ValueError(f"{path}: a result cannot save an array of {value.dtype}; use numbers") from error
        return {"$array": path}
    if isinstance(value, pd.DataFrame):
        dtypes = {column: str(dtype) for column, dtype in value.dtypes.items()}
        _check_table(value, path.replace("/", "."))
        return {"$table": parts.add(path, value), "dtypes": dtypes}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{path}/{index}", parts) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and not key.startswith("$") for key in value):
            raise ValueError(f"{path}: a saved dict has string keys that do not start with '$', got {list(value)}")
        return {key: _encode(item, f"{path}/{key}", parts) for key, item in value.items()}
    if isinstance(value, Result):
        inner = {f.name: _encode(getattr(value, f.name), f"{path}/{f.name}", parts) for f in dataclasses.fields(value)}
        return {"$result": _kind(type(value)), "fields": inner}
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
    dtypes = {column: str(dtype) for column, dtype in table.dtypes.items()}
    for column in (column for column, dtype in dtypes.items() if dtype in TEXT):
        odd = [cell for cell in table[column].dropna() if not isinstance(cell, str) or not cell]
        if odd:
            raise ValueError(f"table {name}, column {column!r}: {odd[0]!r} would not come back; use text or numbers")
    try:
        back = _from_csv(to_csv(table), dtypes, len(table))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the table {name} would not come back from a CSV file: {error}") from error
    for column in table.columns:
        given: Any = table[column]
        read: Any = back[column]
        there = given.notna().to_numpy()
        same = len(read) == len(given) and given.dtype == read.dtype and np.array_equal(there, read.notna().to_numpy())
        if not same or not (given[there].to_numpy() == read[there].to_numpy()).all():
            raise ValueError(
                f"table {name}, column {column!r} would not come back from a CSV file; use text or numbers"
            )


def _decode(value: Any, saved: _Saved) -> Any:
    if isinstance(value, list):
        return [_decode(item, saved) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tensor" in value:
        return saved.tensors[value["$tensor"]]
    if "$array" in value:
        return saved.tensors[value["$array"]].numpy()
    if "$table" in value:
        name = value["$table"]
        return _from_csv(saved.files[name], value["dtypes"], saved.rows[name])
    if "$tuple" in value:
        return tuple(_decode(item, saved) for item in value["$tuple"])
    if "$result" in value:
        fields = {name: _decode(item, saved) for name, item in value["fields"].items()}
        return _class_for(value["$result"], Result)(**fields)
    return {key: _decode(item, saved) for key, item in value.items()}


def _class_for(kind: str, cls: type[Result]) -> Any:
    """The class a saved result names: `cls` itself, or a Result that vdinterp defines (nothing else is imported)."""
    module_name, _, qualname = kind.partition(":")
    if kind == _kind(cls):
        return cls
    known = {_kind(c): c for c in _subclasses(Result)}
    if kind not in known and module_name.startswith("vdinterp."):
        importlib.import_module(module_name)
        known = {_kind(c): c for c in _subclasses(Result)}
    found = known.get(kind)
    if found is None:
        raise ValueError(f"the saved result is a {qualname} of {module_name}; import that module, then load it again")
    if not issubclass(found, cls):
        raise ValueError(f"the saved result is a {qualname}, not a {cls.__name__}; load it with {qualname}.load")
    return found


def _subclasses(cls: type[Result]) -> list[type[Result]]:
    return [sub for direct in cls.__subclasses__() for sub in (direct, *_subclasses(direct))]
