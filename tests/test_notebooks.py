"""Every notebook runs from top to bottom, its two forms say the same, and the committed one shows its figures."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from run_notebooks import LARGEST_NOTEBOOK, NOTEBOOKS, execute, unpictured

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


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_and_shows_its_figures(path: Path) -> None:
    """`python tools/run_notebooks.py --commit` makes it so."""
    committed = path.with_suffix(".ipynb")
    assert list(unpictured(nbformat.read(committed, as_version=4))) == []
    assert committed.stat().st_size < LARGEST_NOTEBOOK


def test_notebooks_show_figures_by_themselves() -> None:
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        assert ".show()" not in text and ".plot().values()" not in text, path.name
