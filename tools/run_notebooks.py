"""Run the notebooks from their text form, which is what people edit (`notebooks/*.py`, jupytext's percent format).

    python tools/run_notebooks.py FOLDER              runs all, and keeps the executed copies in FOLDER
    python tools/run_notebooks.py --commit [NAME ..]  the same into `notebooks/*.ipynb`, made to be committed

What is committed shows on GitHub, where no scripts run: every figure is a picture (drawn here, with the extra `export`
and a Chrome or Chromium), beside the interactive one where that is small; times and other traces of the run are left
out, so that the same code gives nearly the same file.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

from vdinterp import store
from vdinterp.plotting.figures import PICTURE_SCALE, PICTURE_WIDTH

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SECONDS_PER_CELL = 600
FIGURE, PICTURE, HTML = "application/vnd.plotly.v1+json", "image/png", "text/html"
LARGEST_FIGURE, LARGEST_NOTEBOOK = 30_000, 1_500_000  # bytes of a figure's data that is kept; of a notebook
COLOURS = 256  # of a picture


def execute(path: Path) -> nbformat.NotebookNode:
    """Run every cell of a text notebook, in the notebooks' folder; raises CellExecutionError where a cell fails."""
    notebook = jupytext.read(path)
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    return notebook


def illustrate(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook as it is committed: pictures in it, and nothing of when and where it ran."""
    for cell in notebook.cells:
        cell.pop("id", None)
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        # Progress bars and warnings of other people's code
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if FIGURE in data:
                data[PICTURE] = base64.b64encode(picture(data[FIGURE])).decode("ascii")
                data.pop(HTML, None)  # where no scripts run, it would be taken, and be empty
                if len(json.dumps(data[FIGURE])) > LARGEST_FIGURE:
                    del data[FIGURE]
            for kind in [kind for kind in data if kind.startswith("application/vnd.jupyter.widget")]:
                del data[kind]  # of a kernel that is gone
    notebook.metadata.pop("widgets", None)
    notebook.nbformat_minor = 4  # without ids of cells, which are random
    return notebook


def picture(figure: dict[str, Any]) -> bytes:
    """A plotly figure as a PNG of few colours."""
    import plotly.io as pio
    from PIL import Image

    shown = {name: part for name, part in figure.items() if name != "config"}
    height = shown["layout"].get("height")
    drawn = pio.to_image(shown, "png", width=PICTURE_WIDTH, height=height, scale=PICTURE_SCALE, validate=False)
    packed = io.BytesIO()
    Image.open(io.BytesIO(drawn)).convert("RGB").quantize(COLOURS).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def unpictured(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What is wrong with a committed notebook: cells that did not run, figures without a picture."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if not cell.execution_count:
            yield f"cell {index} was not run"
        for output in cell.outputs:
            data = output.get("data", {})
            said = str(data.get("text/plain", ""))
            if (FIGURE in data or said.startswith("[figure:")) and PICTURE not in data:
                yield f"cell {index} has a figure without a picture"


def commit(path: Path) -> Path:
    """Run a text notebook and write its pair; ValueError if that is too large to be committed."""
    written = nbformat.writes(illustrate(execute(path)))
    if len(written.encode()) > LARGEST_NOTEBOOK:
        raise ValueError(
            f"{path.stem}.ipynb would be {len(written.encode()) / 1e6:.1f} MB; show fewer figures or clips"
        )
    return store.write(path.with_suffix(".ipynb"), written + "\n")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--commit"]:
        import kaleido

        kaleido.start_sync_server(silence_warnings=True)  # one browser for all pictures
        wanted = arguments[1:] or [path.stem for path in sorted(NOTEBOOKS.glob("*.py"))]
        for path in (NOTEBOOKS / f"{name}.py" for name in wanted):
            written = commit(path)
            print(f"{path.name}: ran, {written.stat().st_size / 1e3:.0f} kB in {written.name}")
        kaleido.stop_sync_server()
        return
    target = Path(arguments[0])
    for path in sorted(NOTEBOOKS.glob("*.py")):
        store.write(target / f"{path.stem}.ipynb", nbformat.writes(execute(path)))
        print(f"{path.name}: ran, kept as {target / path.stem}.ipynb")


if __name__ == "__main__":
    if len(sys.argv) < 2 or (sys.argv[1].startswith("-") and sys.argv[1] != "--commit"):
        sys.exit(__doc__)
    main(sys.argv[1:])
