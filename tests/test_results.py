"""Results: everything saved comes back equal, nothing is pickled, and bad folders say what they lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vdinterp.results import Result, Section, slug


@dataclass(frozen=True, kw_only=True, eq=False)
class Inner(Result):
    score: torch.Tensor

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({"score": self.score.numpy()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Everything(Result):
    title = "Every kind of field"
    table: pd.DataFrame
    patterns: dict[str, torch.Tensor]
    counts: np.ndarray
    inner: Inner
    shape: tuple[int, int]
    levels: list[float | None]
    note: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables(Result):
    table: pd.DataFrame
    parts: dict


def make() -> Everything:
    return Everything(
        meta={"model": "tiny", "seed": 3, "bound": float("inf")},
        table=pd.DataFrame(
            {
                "condition": ["none", "nan", "a, b"],
                "layer": [0, 1, 2],
                "value": [0.1 + 0.2, float("nan"), -1e-30],
                "held_out": [True, False, True],
            }
        ),
        patterns={"a/b": torch.rand(2, 3), "half": torch.ones(2, dtype=torch.float16)},
        counts=np.arange(6).reshape(2, 3).T,
        inner=Inner(score=torch.tensor([1.5, 2.5])),
        shape=(3, 4),
        levels=[0.5, None, float("nan")],
        note=None,
    )


@pytest.mark.parametrize("reader", [Everything, Result])
def test_what_is_saved_comes_back_equal(tmp_path: Path, reader: type[Result]) -> None:
    saved = make()
    back = reader.load(saved.save(tmp_path / "new" / "folder"))
    assert isinstance(back, Everything)
    pd.testing.assert_frame_equal(back.table, saved.table, check_exact=True)
    assert back.patterns.keys() == saved.patterns.keys()
    for name, tensor in saved.patterns.items():
        assert torch.equal(back.patterns[name], tensor) and back.patterns[name].dtype == tensor.dtype
    assert np.array_equal(back.counts, saved.counts)
    assert torch.equal(back.inner.score, saved.inner.score)
    assert back.shape == (3, 4) and back.note is None and back.meta == saved.meta
    assert back.levels[:2] == [0.5, None] and np.isnan(back.levels[2])


def test_files_are_safetensors_json_and_csv_only(tmp_path: Path) -> None:
    make().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.safetensors", "table.csv"]
    json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    # A result whose numbers are tensors still leaves a table for a spreadsheet.
    make().inner.save(tmp_path / "inner")
    assert pd.read_csv(tmp_path / "inner" / "table.csv")["score"].tolist() == [1.5, 2.5]


def test_a_result_is_frozen_and_its_frame_is_a_copy() -> None:
    result = make()
    with pytest.raises(FrozenInstanceError):
        result.note = "changed"  # type: ignore[misc]
    frame = result.to_frame()
    frame.loc[0, "value"] = 99.0
    assert result.table.loc[0, "value"] == 0.1 + 0.2


def test_summary_and_default_section() -> None:
    result = make()
    assert "model `tiny`, seed `3`" in result.summary() and "3 rows" in result.summary()
    assert "`" not in str(result.summary()) and f"{result.summary()}" == "".join(result.summary())
    (section,) = result.sections()
    assert section.title == result.title and list(section.tables) == [""]


def test_unsavable_values_are_named(tmp_path: Path) -> None:
    for bad, message in [
        ({"f": print}, r"meta/f: a result cannot save builtin"),
        ({"d": {1: 2}}, "meta/d: a saved dict"),
        ({"a": np.array(["x"])}, "meta/a: a result cannot save an array of <U1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Inner(score=torch.ones(1), meta=bad).save(tmp_path / "bad")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="it is a file; give a folder"):
        make().save(tmp_path / "file")


def test_loading_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no result\.json"):
        Result.load(tmp_path)
    make().save(tmp_path)
    with pytest.raises(ValueError, match="is a Everything, not a Inner"):
        Inner.load(tmp_path)
    for name in ("result.safetensors", "table.csv"):
        make().save(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"incomplete: .*{name} is missing"):
            Result.load(tmp_path)
    make().save(tmp_path)
    whole = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="unreadable or truncated JSON"):
        Result.load(tmp_path)


def test_what_is_cut_short_changed_or_of_another_save_is_named(tmp_path: Path) -> None:
    def spoil(name: str, change: Callable[[bytes], bytes]) -> Path:
        make().save(tmp_path)
        (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
        return tmp_path

    with pytest.raises(ValueError, match=r"table\.csv is not the file .* \(.* of .* bytes, 2 of 3 rows\)"):
        Result.load(spoil("table.csv", lambda held: held[: held[:-1].rfind(b"\n") + 1]))
    with pytest.raises(ValueError, match=r"table\.csv is not the file"):
        Result.load(spoil("table.csv", lambda held: held.replace(b"True", b"true")))
    for cut in (1, 10, 200):
        with pytest.raises(ValueError, match=r"result\.safetensors is not the file .* bytes\): it was cut short"):
            Result.load(spoil("result.safetensors", lambda held, cut=cut: held[:-cut]))
    with pytest.raises(ValueError, match=r"result\.json was changed after it was saved"):
        Result.load(spoil("result.json", lambda held: held.replace(b'"seed": 3', b'"seed": 4')))
    with pytest.raises(ValueError, match="has format 9, this version reads"):
        Result.load(spoil("result.json", lambda held: held.replace(b'"format": 2', b'"format": 9')))


def test_an_older_result_leaves_nothing_but_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("mine")
    make().save(tmp_path)
    make().inner.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.csv", "result.json", "result.safetensors", "table.csv"]
    rows = pd.DataFrame({"x": [1]})
    Tables(table=rows, parts={"head table": rows, "other part": rows + 1}).save(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.csv")) == ["notes.csv", "parts.other-part.csv", "table.csv"]
    assert not (tmp_path / "result.safetensors").exists()
    back = Tables.load(tmp_path)
    assert back.parts["head table"].equals(back.table) and back.parts["other part"]["x"].tolist() == [2]


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    result = make()
    first, second = result.save(tmp_path / "a"), result.save(tmp_path / "b")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame(
            {"text": ["x\ry", "\r", "\r\n", "a\nb", 'a "q"', " lead", "trail ", "nan", ",", "#", "\t", "\x00"]}
        ),
        pd.DataFrame({"text": np.array(["x", None, "NA"], dtype=object), " odd\r,name ": [1.0, float("nan"), -0.0]}),
        pd.DataFrame(),
        pd.DataFrame({"a": [], "b": pd.Series([], dtype="str"), "c": pd.Series([], dtype=bool)}),
        pd.DataFrame(index=range(3)),
        pd.DataFrame({"a": [float("nan"), 1.0, float("nan")]}),
        pd.DataFrame({"a": [2**62 + 1, -(2**63)], "b": np.array([2**64 - 1, 0], dtype=np.uint64)}),
        pd.DataFrame({"a": np.random.default_rng(0).standard_normal(500) * 10.0 ** np.arange(-250, 250)}),
        pd.DataFrame({"a": np.random.default_rng(0).standard_normal(500).astype(np.float32)}),
    ],
    ids=["text", "gaps", "empty", "no rows", "no columns", "one column", "large", "float64", "float32"],
)
def test_a_table_comes_back_exactly(tmp_path: Path, table: pd.DataFrame) -> None:
    back = Tables.load(Tables(table=table, parts={}).save(tmp_path)).table
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    if table.shape[1]:
        assert not (np.signbit(back.select_dtypes("number")) ^ np.signbit(table.select_dtypes("number"))).any().any()


def test_a_saved_class_name_imports_nothing_foreign(tmp_path: Path) -> None:
    make().inner.save(tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(record | {"result": "antigravity:Flight"}))
    with pytest.raises(ValueError, match="import that module, then load it again"):
        Result.load(tmp_path)


def test_a_section_needs_a_title_and_a_known_level() -> None:
    with pytest.raises(ValueError, match="needs a title"):
        Section(title=" ")
    with pytest.raises(ValueError, match="level is 2"):
        Section(title="x", level=1)


def test_slug() -> None:
    assert slug("No AdaLN: gates only (50 %)") == "no-adaln-gates-only-50"
    assert slug("…") == "untitled"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"head": [1, 2], "x": [0.1, 0.2]}).set_index("head"), "reset_index"),
        (pd.DataFrame({1: [0.1]}), "strings"),
        (pd.DataFrame({"cell": [[1, 2]]}), r"\[1, 2\] would not come back"),
        (pd.DataFrame({"text": ["", "a"]}), "'' would not come back"),
        (pd.DataFrame({"flag": pd.array([True, None], dtype="boolean")}), "would not come back from a CSV"),
        (pd.DataFrame({"text": np.array(["\ud800"], dtype=object)}, dtype=object), "no Unicode"),
    ],
)
def test_what_would_not_come_back_is_not_saved(tmp_path: Path, table: pd.DataFrame, message: str) -> None:
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Odd(Result):
        table: pd.DataFrame

    with pytest.raises(ValueError, match=message):
        Odd(table=table).save(tmp_path)


def test_colliding_names_are_not_saved_and_a_result_prints_as_one_line(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Nested(Result):
        table: pd.DataFrame
        parts: dict

    plain = pd.DataFrame({"x": [1.0]})
    clash = Nested(
        table=plain, parts={"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1)}, meta={"model": "m", "big": [1]}
    )
    with pytest.raises(ValueError, match="parts/a/b"):
        clash.save(tmp_path)
    assert repr(clash) == "Nested('Result', model='m')"
