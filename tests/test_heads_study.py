"""The study of heads: every part is there, recorded as it is done, and not computed twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import vdinterp as vd
from vdinterp.results import Result
from vdinterp.studies import run


def test_the_heads_study_has_every_part_and_resumes(tmp_path: Path) -> None:
    pipe = vd.load("tiny-crafter")
    result: Any = run("heads", pipe, n_clips=12, noise_levels=(0.9,), out=tmp_path)
    assert list(result.parts) == ["head table", "frame mass", "displacement", "patch crossing", "chunks", "scroll"]
    assert result.meta["context frames"] == 7  # all but the last
    assert len(result.to_frame()) == 12
    kernels = result.parts["displacement"]
    assert set(kernels.groups) <= {"stay", "left", "right", "up", "down", "blocked"}
    assert len(result.sections()) == 6 and Result.load(result.save(tmp_path / "saved")).summary() == result.summary()
    shutil.rmtree(next((tmp_path / "records").iterdir()) / "scroll")  # killed before the last one was done
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("records/*/*/result.json")}
    again: Any = run("heads", pipe, n_clips=12, noise_levels=(0.9,), out=tmp_path)
    assert again.summary() == result.summary() and len(before) == 5
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert "scroll" not in run("heads", vd.load("tiny-loop"), n_clips=2, noise_levels=(0.9,)).parts  # type: ignore[attr-defined]
