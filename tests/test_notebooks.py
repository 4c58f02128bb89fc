"""Every notebook runs from top to bottom, and its two forms say the same."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
from run_notebooks import NOTEBOOKS, execute

TEXTS = sorted(NOTEBOOKS.glob("*.py"))


def test_there_are_notebooks() -> None:
    assert [path.stem for path in TEXTS] == [
        "01_main_demo",
        "02_ablations",
        "03_attention",
        "04_patching",
        "05_induction",
        "06_residual_and_circuits",
        "07_mlps_and_probes",
        "08_who_decides",
    ]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside it; more threads than cores wait for each other
    notebook = execute(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert len(code) >= 3
    assert all(cell.execution_count for cell in code)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_both_forms_say_the_same(path: Path) -> None:
    text, paired = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in text.cells] == [(c.cell_type, c.source) for c in paired.cells]
