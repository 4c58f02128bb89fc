"""What values look like as the last line of a notebook's cell, in a real kernel; and what is committed of notebooks."""

from __future__ import annotations

import base64
import html
import io
import pickle
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import run_notebooks
import torch
from nbclient import NotebookClient
from PIL import Image

from vdinterp import plotting
from vdinterp.data import make_clips
from vdinterp.plotting import Figures, playing as playing_module
from vdinterp.results import Result
from vdinterp.words import markup

FIGURE = run_notebooks.FIGURE
START = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import dataclass
import pandas as pd, torch, vdinterp as vd
from factories import tiny_model
from vdinterp import plotting, results

@dataclass(frozen=True, kw_only=True, eq=False)
class Mine(vd.Result):
    title = "Mine <b>"
    table: pd.DataFrame
    def plot(self):
        return {{name: plotting.bars(self.table, x="x", y="y", title="Bars", x_title="x", y_title="y")
                for name in ("Bars", "The same, <again>")}}
    def summary(self):
        return "**Found** `it`.\\n\\n- one"

table = pd.DataFrame({{"x": list("abcdefgh"), "y": range(8)}})
result = Mine(table=table)
model = tiny_model()
pipe = vd.VideoDiffusion(model, vd.vae.IdentityVAE(2), vd.DiffusionConfig())
grey = vd.VideoDiffusion(tiny_model(in_channels=1, out_channels=1), vd.vae.IdentityVAE(1), vd.DiffusionConfig())
"""
CELLS = {
    "figures": "result.plot()",
    "one": "result.plot()[-1]",
    "slice": "result.plot().about('AGAIN')",
    "result": "result",
    "summary": "result.summary()",
    "printed": "print(result.summary())",
    "shown": "result.show()",
    "clips": "vd.data.make_clips('one_off', n=3)",
    "sample": "grey.sample(batch=2, steps=2)",
    "no picture": "pipe.sample(steps=1)",
    "latents": "vd.VideoDiffusion(model, None, vd.DiffusionConfig()).sample(steps=1)",
    "play": "plotting.play(torch.rand(4, 3, 8, 8))",
    "pipe": "pipe",
    "cfg": "model.cfg",
    "diffusion": "pipe.diffusion",
}


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Any]]:
    """Outputs of every cell, run by a kernel."""
    sources = [START, *CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return dict(zip(CELLS, (cell.outputs for cell in notebook.cells[1:]), strict=True))


def kinds(outputs: list[Any]) -> list[set[str]]:
    return [set(output.data) for output in outputs]


def test_figures_show_themselves(cells: dict[str, list[Any]]) -> None:
    drawn = [FIGURE in kind for kind in kinds(cells["figures"])]
    assert drawn == [True, False, True], "two figures, and the caption that the second does not say itself"
    assert cells["figures"][0].data["text/plain"] == "[figure: Bars]", "where nothing else is shown"
    assert "&lt;again&gt;" in cells["figures"][1].data["text/html"]
    assert [FIGURE in kind for kind in kinds(cells["one"])] == [True]
    assert [FIGURE in kind for kind in kinds(cells["slice"])] == [False, True]


@pytest.mark.parametrize("cell", ["result", "shown"])
def test_a_result_shows_its_finding_its_figures_and_its_first_rows(cells: dict[str, list[Any]], cell: str) -> None:
    finding, *figures, rows = cells[cell]
    assert finding.data["text/html"] == (
        "<h3>Mine &lt;b&gt;</h3><p><b>Found</b> <code>it</code>.</p><ul><li>one</li></ul>"
    )
    assert finding.data["text/markdown"] == "### Mine &lt;b&gt;\n\n**Found** `it`.\n\n- one"
    assert [FIGURE in kind for kind in kinds(figures)] == [True, False, True]
    assert rows.data["text/html"].count("<tr") == 1 + 5 and "The first 5 of 8 rows" in rows.data["text/plain"]


def test_a_summary_prints_plainly_and_is_rendered(cells: dict[str, list[Any]]) -> None:
    assert cells["printed"][0].text == "Found it.\n\n- one\n"
    (rendered,) = cells["summary"]
    assert rendered.data["text/markdown"] == "**Found** `it`.\n\n- one"


@pytest.mark.parametrize(("cell", "clips"), [("clips", 6), ("sample", 2), ("play", 1)])
def test_clips_and_samples_play(cells: dict[str, list[Any]], cell: str, clips: int) -> None:
    page = cells[cell][0].data["text/html"]
    animation = Image.open(io.BytesIO(base64.b64decode(page.split("base64,")[1].split('"')[0])))
    assert animation.format == "WEBP" and getattr(animation, "n_frames", 1) > 1
    assert animation.width >= 100 * min(clips, 3), "8 x 8 pixels can be seen"


def test_what_is_no_picture_says_so(cells: dict[str, list[Any]]) -> None:
    assert "not played: 'clip 0' has shape (3, 2, 4, 6)" in html.unescape(cells["no picture"][0].data["text/html"])
    assert kinds(cells["latents"]) == [{"text/plain"}]


def test_pipelines_and_configurations_are_small_tables(cells: dict[str, list[Any]]) -> None:
    pipe, cfg, diffusion = (cells[name][0].data["text/html"] for name in ("pipe", "cfg", "diffusion"))
    assert "tiny-3d" in pipe and "2 layers, 2 heads" in pipe and "IdentityVAE" in pipe and "v-prediction" in pipe
    assert "d_head" in cfg and ">12<" in cfg and "at their defaults" in cfg and len(cfg) < 3000
    assert "at their defaults: objective, schedule" in diffusion


def figures() -> Figures:
    return Figures({name: go.Figure(layout_title_text=name) for name in ("One", "Two of it", "Three of it")})


def test_figures_are_a_dict_that_positions_index() -> None:
    found = figures()
    assert found[0] is found["One"] and found[-1] is found["Three of it"] and list(found[1:]) == list(found)[1:]
    assert list(found.about("OF IT")) == ["Two of it", "Three of it"] and isinstance(found | {}, Figures)
    assert {**found} == dict(found) and repr(found) == "Figures('One', 'Two of it', 'Three of it')"
    with pytest.raises(IndexError, match=r"no figure 3; there are 3, so 0\.\.2"):
        found[3]
    with pytest.raises(KeyError, match="no figure has the caption 'Four'; there are"):
        found["Four"]
    with pytest.raises(KeyError, match="no caption has 'four' in it"):
        found.about("four")
    assert "text/plain" in found._repr_mimebundle_()


def test_markup_stays_in_the_string() -> None:
    text = markup.Text("**a** `b*c` <d>")
    assert markup.Text(text) == text == "**a** `b*c` <d>" and pickle.loads(pickle.dumps(text)) == text
    assert str(text) == "a b*c <d>" and f"{text}!" == "**a** `b*c` <d>!" and text + "" == "**a** `b*c` <d>"
    assert markup.paragraphs(text) == "<p><b>a</b> <code>b*c</code> &lt;d&gt;</p>"
    assert markup.markdown("`<a>` <b>") == "`<a>` &lt;b&gt;"


def test_a_subclass_that_calls_its_parent_keeps_the_markup() -> None:
    class Child(Result):
        def to_frame(self) -> pd.DataFrame:
            return pd.DataFrame({"x": [1]})

        def summary(self) -> str:
            return f"**More.** {super().summary()}"

    assert "".join(Child(meta={"seed": 1}).summary()) == "**More.** seed `1`\n\n1 rows with columns `x`."
    assert isinstance(Child().plot(), Figures)


def test_what_cannot_be_played_is_said_before() -> None:
    for clips, message in [
        (torch.rand(3, 8, 8), r"clips to play are \[batch frame"),
        ({}, "one shape; got none"),
        ({"a": torch.rand(4, 1, 8, 8), "b": torch.rand(5, 1, 8, 8)}, "one shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            plotting.play(clips)
    with pytest.raises(ValueError, match="fps is above 0"):
        plotting.play(torch.rand(4, 1, 8, 8), fps=0)


def test_animations_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).random((9, 70, 3, 200, 100), dtype=np.float32)
    playing = plotting.play(noise, n=2)
    assert repr(playing) == "Playing(2 clips of 64 frames of 144x72)"
    monkeypatch.setattr(playing_module, "LARGEST", 120_000)
    small = plotting.play(noise[:, :8], n=2)
    assert len(small.address()) <= 120_000, "clips, then frames are left out"
    assert len(plotting.play(make_clips("loop", n=9).video)._repr_html_()) < 500_000


def executed() -> nbformat.NotebookNode:
    """A notebook as a kernel leaves it: a large and a small figure, a widget, a progress bar."""
    large = {"data": [{"y": list(range(9000))}], "layout": {"height": 300}, "config": {}}
    outputs = [
        nbformat.v4.new_output("display_data", {FIGURE: large, "text/html": "<script>", "text/plain": "[figure: a]"}),
        nbformat.v4.new_output("display_data", {FIGURE: {"data": [], "layout": {}}, "text/plain": "b"}),
        nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "c"}),
        nbformat.v4.new_output("stream", name="stderr", text="50 %"),
    ]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, execution_count=1, metadata={"execution": {"at": "noon"}})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), cell])


def test_a_committed_notebook_has_pictures_and_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed()
    assert len(list(run_notebooks.unpictured(notebook))) == 2
    monkeypatch.setattr(run_notebooks, "picture", lambda figure: b"PNG")
    made = run_notebooks.illustrate(notebook)
    nbformat.validate(made)
    assert list(run_notebooks.unpictured(made)) == []
    large, small, widget = (output.data for output in made.cells[1].outputs)
    assert set(large) == {"image/png", "text/plain"} and set(small) == {FIGURE, "image/png", "text/plain"}
    assert set(widget) == {"text/plain"} and made.cells[1].metadata == {} and "id" not in made.cells[1]
    made.cells[1].execution_count = None
    assert list(run_notebooks.unpictured(made)) == ["cell 1 was not run"]


def test_pictures_are_small_pngs() -> None:
    from choreographer.browsers.chromium import Chromium

    if Chromium.find_browser(skip_local=False) is None:
        pytest.skip("needs a Chrome or Chromium")
    drawn = run_notebooks.picture(plotting.layer_head(torch.rand(4, 4), title="A", value_title="b").to_dict())
    image = Image.open(io.BytesIO(drawn))
    assert image.format == "PNG" and image.width == 1470 and len(drawn) < 60_000
    assert len(np.unique(np.asarray(image.convert("L")))) > 5, "something is drawn"
