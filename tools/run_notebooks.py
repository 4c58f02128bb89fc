"""Run the notebooks from their text form: `python tools/run_notebooks.py FOLDER` keeps the executed copies.

The text form (`notebooks/*.py`, jupytext's percent format) is what people edit; the `.ipynb` beside it is its pair.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SECONDS_PER_CELL = 600


def execute(path: Path) -> nbformat.NotebookNode:
    """Run every cell of a text notebook, in the notebooks' folder; raises CellExecutionError where a cell fails."""
    notebook = jupytext.read(path)
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    return notebook


def main(folder: str) -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.py")):
        nbformat.write(execute(path), target / f"{path.stem}.ipynb")
        print(f"{path.name}: ran, kept as {target / path.stem}.ipynb")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/run_notebooks.py FOLDER")
    main(sys.argv[1])
