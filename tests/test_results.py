"""Results: everything saved comes back equal, nothing is pickled, and bad folders say what they lack."""

from __future__ import annotations

import json
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
    (section,) = result.sections()
    assert section.title == result.title and list(section.tables) == [""]


def test_unsavable_values_are_named(tmp_path: Path) -> None:
    for bad, message in [
        ({"f": print}, r"meta/f: a result cannot save builtin"),
        ({"d": {1: 2}}, "meta/d: a saved dict"),
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
    (tmp_path / "result.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 'patterns/a/b'"):
        Result.load(tmp_path)
    make().save(tmp_path)
    (tmp_path / "table.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"table\.csv is missing"):
        Result.load(tmp_path)
    whole = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="unreadable or truncated JSON"):
        Result.load(tmp_path)


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
