"""Files are whole: what cannot be written to its end leaves what was there, and nothing of its own."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from vdinterp import plotting, report, store
from vdinterp.grid import TokenGrid
from vdinterp.models import ActivationCache
from vdinterp.results import Result, Section

KILLED = Path(__file__).parent / "killed_saves.py"


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers(Result):
    table: pd.DataFrame
    values: torch.Tensor | None

    def plot(self) -> dict:
        return {"Bars": plotting.bars(self.table, x="x", y="x", title="Bars", x_title="x", y_title="y")}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def full_disk(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The at-th file does not fit on the disk any more."""
    written = 0
    sync = os.fsync

    def fsync(file: int) -> None:
        nonlocal written
        written += 1
        if written == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("write", ["save", "report"])
def test_killed_at_any_moment_there_is_the_old_or_the_new(tmp_path: Path, write: str) -> None:
    """Each moment: what loads is one of the two, the user's files are there, and saving again works."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(KILLED), str(tmp_path), write], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    levels = json.loads(done.stdout)
    assert len(levels) >= 30 and levels == sorted(levels, reverse=True), "the old ones, and from one moment on the new"
    assert levels[0] == 0.9 and levels[-1] == 0.5 and levels.count(0.5) > 5


def test_one_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.write(tmp_path / "deep" / "a.txt", "old")
    assert path.read_text() == "old"
    full_disk(monkeypatch, 1)
    with pytest.raises(OSError, match=r"a\.txt could not be written \(No space left on device\): what was there"):
        store.write(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["deep/a.txt"]
    with pytest.raises(ValueError, match="it is a folder"):
        store.write(tmp_path, "x")


def test_a_device_is_written_to_and_not_replaced() -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"):
        store.write("/dev/full", b"x")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_several_files_are_replaced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    store.write_files(tmp_path, {"a": "old", "in/b": "old", "c": "old"})
    with monkeypatch.context() as patch:
        full_disk(patch, at)
        with pytest.raises(OSError, match="what was there before is kept"):
            store.write_files(tmp_path, {"a": "new", "in/b": "new", "d": "new"}, remove=["c"])
    assert names(tmp_path) == ["a", "c", "in/b"] and (tmp_path / "a").read_text() == "old"
    store.write_files(tmp_path, {"a": "new", "d": "new"}, remove=["c", "in/b", "gone"])
    assert names(tmp_path) == ["a", "d"] and not (tmp_path / "in").exists()


def test_what_was_committed_but_not_moved_is_found_and_moved(tmp_path: Path) -> None:
    store.write_files(tmp_path / "r", {"a": "old", "sub/b": "old"})
    store.write_files(tmp_path / "left", {"a": "new", "sub/b": "new"})
    os.rename(tmp_path / "left", tmp_path / "r" / store.SAVED)
    assert store.find(tmp_path / "r", "a").read_text() == store.find(tmp_path / "r" / "sub", "b").read_text() == "new"
    store.write_files(tmp_path / "r" / "sub", {"c": "newest"})
    assert names(tmp_path / "r") == ["a", "sub/b", "sub/c"] and (tmp_path / "r" / "sub" / "b").read_text() == "new"


def test_names_stay_inside_and_do_not_clash(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, message in [
        ("../x", "no name of a file"),
        ("/x", "no name"),
        ("", "no name"),
        ("a", "a folder or a file"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.write_files(tmp_path, {name: "x"})
    assert names(tmp_path) == []


def test_what_is_left_of_killed_processes_is_removed_in_time(tmp_path: Path) -> None:
    young, old = tmp_path / ".saving-1", tmp_path / ".saving-2"
    for folder in (young, old):
        folder.mkdir()
        (folder / "a").write_text("half")
    os.utime(old, (time.time() - 2 * store.ABANDONED,) * 2)
    store.write_files(tmp_path, {"a": "x"})
    assert young.exists() and not old.exists(), "who writes there may be alive"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_are_for_those_whom_the_umask_lets(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store.write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2).expand(3, 2)})
        store.write_files(tmp_path / "r", {"a": "x", "t": store.tensors_file({"b": torch.ones(1)}, {"of": "b"})})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
    assert load_file(tmp_path / "t.safetensors")["a"].shape == (3, 2)


def test_a_report_leaves_only_its_own_files(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": [1]})
    (tmp_path / "mine.csv").write_text("a\n")
    report.write(Section(title="A", tables={"one": table, "two": table.assign(x=2)}), tmp_path)
    assert names(tmp_path) == ["a-one.csv", "a-two.csv", "mine.csv", "report.html", "report.json"]
    first = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    report.write(Section(title="A", tables={"one": table, "two": table.assign(x=2)}), tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}, "byte for byte"
    (tmp_path / "a-one.csv").write_text("edited\n")
    Numbers(table=table, values=torch.ones(1)).save(tmp_path)
    report.write(Section(title="B", tables={"one": table}), tmp_path)
    assert {"result.json", "result.safetensors", "table.csv"} < set(names(tmp_path)), "no report of them was replaced"
    report.write(Numbers(table=table.assign(x=3), values=None), tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert list(first) == ["a-one.csv", "mine.csv", "report.html", "report.json", "result.json", "table.csv",
                           "what-was-run-settings-of-this-report.csv"]  # fmt: skip
    report.write(Numbers(table=table.assign(x=3), values=None), tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}, "byte for byte, with a figure"
    report.write(Section(title="B", tables={"one": table}), tmp_path)
    assert names(tmp_path) == ["a-one.csv", "b-one.csv", "mine.csv", "report.html", "report.json"], "edited: kept"


def test_a_cache_is_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = TokenGrid(1, 2, 2)
    ActivationCache({"hook_pred": torch.zeros(1, 4)}, grid).save(tmp_path / "c")
    full_disk(monkeypatch, 2)
    with pytest.raises(OSError, match="what was there before is kept"):
        ActivationCache({"hook_pred": torch.ones(1, 4)}, grid).save(tmp_path / "c")
    assert not ActivationCache.load(tmp_path / "c").tensors["hook_pred"].any() and len(names(tmp_path)) == 2


# Ledgers


def test_a_ledger_survives_a_torn_line_and_a_lost_file(tmp_path: Path) -> None:
    ledger = store.Ledger(tmp_path, {"model": "a"})
    for name in "xyz":
        ledger.get(name, lambda: {"t": torch.ones(2), "n": 1})
    file = tmp_path / "ledger.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    (tmp_path / "y.safetensors").unlink()
    file.write_text("".join(lines[:3]) + lines[3][:20])
    again = store.Ledger(tmp_path, {"model": "a"})
    assert "x" in again and "y" not in again and "z" not in again
    for name in "xyz":
        found = again.get(name, lambda: {"t": torch.ones(2), "n": 1})
        assert torch.equal(found["t"], torch.ones(2)) and found["n"] == 1
    assert again.added == 2 and len(store.Ledger(tmp_path, {"model": "a"})) == 3
    with pytest.raises(ValueError, match=r"is the ledger of another model \(a; this is b\): use another folder"):
        store.Ledger(tmp_path, {"model": "b"})
    assert len(store.Ledger(tmp_path, {"model": "b"}, resume=False)) == 0


def test_tensors_that_were_damaged_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = store.Ledger(tmp_path)
    for name in "xy":
        ledger.get(name, lambda: {"t": torch.ones(2)})
    file = tmp_path / "x.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # another number
    again = store.Ledger(tmp_path)
    assert all(torch.equal(again.get(name, lambda: {"t": torch.ones(2)})["t"], torch.ones(2)) for name in "xy")
    assert again.added == 1 and f"{file} is damaged; what it recorded is computed again" in caplog.text
    assert file.read_bytes() == whole and len(store.Ledger(tmp_path)) == 2
    assert store.Ledger(tmp_path).get("x", lambda: pytest.fail("it is recorded"))["t"].sum() == 2


def test_writers_of_one_ledger_see_what_all_have(tmp_path: Path) -> None:
    one, other = (store.Ledger(tmp_path, writer=f"{part}-of-2") for part in (1, 2))
    one.add({"a": {"n": 1}, "b": {"n": 2}})
    one.say(batch=4)
    other.add({"c": {"t": torch.zeros(1)}})
    both = store.Ledger(tmp_path, writer="2-of-2")
    assert [name in both for name in "abc"] == [True] * 3 and both.said == {}
    assert store.Ledger(tmp_path, writer="1-of-2").said == {"batch": 4}
    store.Ledger(tmp_path, writer="1-of-2", resume=False)
    assert len(store.Ledger(tmp_path)) == 1, "its own alone are forgotten"
