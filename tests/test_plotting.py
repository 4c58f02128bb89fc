"""Figures: what is drawn is what was given, axes are titled, and nothing that cannot be drawn is drawn."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from vdinterp import plotting
from vdinterp.plotting._filmstrip import GAP, enlarge, jpeg_uri

ROWS = pd.DataFrame(
    {
        "condition": ["intact", "intact", "no attention", "no attention"],
        "against": ["truth", "intact", "truth", "intact"],
        "error": [0.2, 0.0, 0.9, 0.8],
        "low": [0.1, 0.0, 0.7, 0.6],
        "high": [0.4, 0.0, 1.0, 1.1],
    }
)
RANDOM = np.random.default_rng(0)


def picture(figure: go.Figure) -> np.ndarray:
    source = figure.data[0].source
    assert source.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))


def every_figure() -> dict[str, go.Figure]:
    clip = RANDOM.random((4, 3, 6, 8))
    return {
        "bars": plotting.bars(ROWS, x="condition", y="error", color="against", title="t", y_title="error (MSE)"),
        "heatmap": plotting.layer_head(RANDOM.random((2, 3)), title="t", value_title="share (0-1)"),
        "lines": plotting.lines(
            ROWS, x="low", y="error", color="against", title="t", x_title="level (0-1)", y_title="error (MSE)"
        ),
        "filmstrip": plotting.filmstrip({"truth": clip}, title="t"),
        "attention": plotting.attention_strip(clip, {"head 0": RANDOM.random((4, 3, 4))}, title="t"),
        "tiles": plotting.tiles(
            RANDOM.random((2, 3, 4, 5)),
            rows="ab",
            columns="xyz",
            title="t",
            x_title="head",
            y_title="layer",
            value_title="mass (0-1)",
        ),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_every_figure_is_titled_and_offers_no_upload(name: str) -> None:
    figure = every_figure()[name]
    assert figure.layout.title.text == "t"
    assert figure.layout.xaxis.title.text
    if name not in ("filmstrip", "attention"):  # their rows are labelled one by one
        assert figure.layout.yaxis.title.text
    assert figure.layout.xaxis.automargin is None  # not switched off: the template's automargin holds
    assert figure.layout.template.layout.xaxis.automargin is True
    assert "sendChartToCloud" in figure.layout.template.layout.modebar.remove
    assert plotting.CONFIG["showSendToCloud"] is False


def test_bars_draw_the_table_with_its_intervals() -> None:
    figure = plotting.bars(
        ROWS,
        x="condition",
        y="error",
        color="against",
        low="low",
        high="high",
        title="t",
        y_title="error (MSE)",
        reference={"chance": 1.0},
    )
    truth, intact = figure.data
    assert truth.name == "truth" and intact.name == "intact"
    assert list(truth.y) == ["intact", "no attention"] and list(truth.x) == [0.2, 0.9]
    assert list(truth.error_x.array) == pytest.approx([0.2, 0.1])
    assert list(truth.error_x.arrayminus) == pytest.approx([0.1, 0.2])
    (label,) = figure.layout.annotations
    assert label.text == "chance" and label.x == 1.0 and figure.layout.shapes[0].x0 == 1.0
    # Two bars at 0 and 1, first on top; the label stands below them, inside the axis.
    assert figure.layout.yaxis.range[1] == -0.5 and 1.5 < label.y < figure.layout.yaxis.range[0]
    upright = plotting.bars(
        ROWS[ROWS.against == "truth"], x="condition", y="error", title="t", y_title="error (MSE)", horizontal=False
    )
    assert list(upright.data[0].x) == ["intact", "no attention"] and list(upright.data[0].y) == [0.2, 0.9]
    assert upright.layout.yaxis.title.text == "error (MSE)" and upright.layout.xaxis.title.text == "condition"


def test_bars_refuse_what_would_mislead() -> None:
    options = {"x": "condition", "y": "error", "title": "t", "y_title": "error (MSE)"}
    with pytest.raises(ValueError, match=r"two rows for one bar, \{'condition': 'intact'\}"):
        plotting.bars(ROWS, **options)
    with pytest.raises(KeyError, match=r"color='colour' is not a column"):
        plotting.bars(ROWS, **options, color="colour")
    with pytest.raises(ValueError, match="both ends"):
        plotting.bars(ROWS, **options, color="against", low="low")
    with pytest.raises(ValueError, match="no rows"):
        plotting.bars(ROWS[:0], **options)
    with pytest.raises(ValueError, match="title is empty"):
        plotting.bars(ROWS, **{**options, "y_title": ""}, color="against")


def test_heatmap_centres_signed_values_and_leaves_gaps() -> None:
    values = np.array([[0.5, -2.0], [np.nan, 1.0]])
    figure = plotting.heatmap(
        values, x=["a", "b"], y=["0", "1"], title="t", x_title="part", y_title="layer", value_title="change (MSE)"
    )
    drawn = figure.data[0]
    assert (drawn.zmin, drawn.zmax) == (-2.0, 1.0), "only what occurs of the scale from -2 to 2"
    shares, colors = zip(*drawn.colorscale, strict=True)
    reds = [float(color.removeprefix("rgb(").split(",")[0]) for color in colors]
    blues = [float(color.removesuffix(")").split(",")[2]) for color in colors]
    zero = min(range(len(shares)), key=lambda i: abs(-2 + 3 * shares[i]))
    assert blues[0] > reds[0] and reds[-1] > blues[-1] and min(reds[zero], blues[zero]) > 230, "white at 0"
    assert blues[-1] > 60, "half of the limit is not the full colour"
    assert drawn.text[1][0] == "" and drawn.text[0][1] == "-2"
    positive = plotting.layer_head(np.array([[0.25, 0.75]]), title="t", value_title="mass (0-1)")
    assert (positive.data[0].zmin, positive.data[0].zmax) == (0.25, 0.75)
    assert list(positive.data[0].x) == ["0", "1"]
    with pytest.raises(ValueError, match="labels are for"):
        plotting.heatmap(values, x=["a"], y=["0", "1"], title="t", x_title="x", y_title="y", value_title="v")
    with pytest.raises(ValueError, match="no finite value"):
        plotting.layer_head(values * np.nan, title="t", value_title="v")


def test_lines_are_sorted_and_banded() -> None:
    table = pd.DataFrame({"step": [8, 1, 2], "error": [0.1, 0.9, 0.5], "low": [0, 0.8, 0.4], "high": [0.2, 1, 0.6]})
    figure = plotting.lines(
        table, x="step", y="error", low="low", high="high", title="t", x_title="steps", y_title="MSE", log_x=True
    )
    band, line = figure.data
    assert list(line.x) == [1, 2, 8] and list(line.y) == [0.9, 0.5, 0.1]
    assert list(band.x) == [1, 2, 8, 8, 2, 1] and list(band.y) == [1, 0.6, 0.2, 0, 0.4, 0.8]
    assert list(figure.layout.xaxis.tickvals) == [1, 2, 8]


def test_filmstrip_shows_each_pixel_where_it_belongs() -> None:
    clip = np.zeros((3, 1, 2, 4))
    clip[1, 0, 1, 3] = 1.0  # frame 1, bottom right pixel
    figure = plotting.filmstrip({"black": clip * 0, "one": clip}, title="t", n_context=2, upscale=16)
    image = picture(figure).astype(int)
    assert image.shape == (2 * 32 + GAP, 3 * 64 + 2 * GAP, 3)
    row, frame = 32 + GAP, 64 + GAP
    assert image[row + 24, frame + 56].min() > 240
    assert image[row + 8, frame + 56].max() < 15 and image[row + 24, frame + 40].max() < 15
    assert image[32 + GAP // 2, 10].min() > 240  # the gap between two rows is white
    assert list(figure.layout.yaxis.ticktext) == ["black", "one"]
    assert [note.text.strip() for note in figure.layout.annotations] == ["context", "target"]


def test_filmstrip_refuses_what_is_no_clip() -> None:
    good = np.zeros((3, 1, 4, 4))
    for clips, message in [
        ({}, "no clip"),
        ({"a": good[0]}, "'a' has shape"),
        ({"a": np.zeros((3, 2, 4, 4))}, "1 or 3 channels"),
        ({"a": good, "b": good[:2]}, "have one size"),
        ({"a": good * np.nan}, "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            plotting.filmstrip(clips, title="t")
    with pytest.raises(ValueError, match="n_context is 4"):
        plotting.filmstrip({"a": good}, title="t", n_context=4)


def test_enlarging_repeats_pixels() -> None:
    frames = RANDOM.integers(0, 255, (2, 3, 4, 3), dtype=np.uint8)
    assert np.array_equal(enlarge(frames, 3)[:, ::3, ::3], frames)
    assert np.array_equal(enlarge(frames, 3)[:, 2::3, 2::3], frames)


def test_jpeg_uri_keeps_colours() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8] = (200, 30, 60)
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg_uri(image).split(",", 1)[1]))))
    assert np.abs(back[:, :8].astype(int) - (200, 30, 60)).max() < 12


def test_attention_lights_up_the_attended_token_and_frames_the_query() -> None:
    frames = np.full((2, 3, 8, 8), 0.5)
    weights = np.zeros((2, 2, 2))
    weights[0, 1, 0] = 0.8
    figure = plotting.attention_strip(frames, {"head": weights}, title="t", queries={"head": (1, 0, 1)})
    image = picture(figure).astype(int)
    size = (image.shape[1] - GAP) // 2
    attended = image[size * 3 // 4, size // 4]
    elsewhere = image[size // 4, size // 4]
    assert attended.sum() > elsewhere.sum() + 150
    border = image[2, size + GAP + size * 3 // 4]
    assert border[2] > 180 and border[0] < 90  # blue
    assert figure.data[1].marker.cmax == 0.8
    for bad, message in [
        (weights[:1], "2 frames"),
        (-weights, "at least 0"),
        (np.zeros((2, 3, 2)), "dividing the pixels"),
    ]:
        with pytest.raises(ValueError, match=message):
            plotting.attention_strip(frames, {"head": bad}, title="t")
    with pytest.raises(ValueError, match="lies outside"):
        plotting.attention_strip(frames, {"head": weights}, title="t", queries={"head": (2, 0, 0)})


def test_long_titles_are_wrapped_and_empty_ones_refused() -> None:
    upright = plotting.lines(ROWS, x="low", y="error", title="t", x_title="level (0-1)", y_title="error " * 20)
    assert upright.layout.yaxis.title.text.count("<br>") >= 2
    figure = plotting.layer_head([[1.0]], title="word " * 60, value_title="share (0-1)")
    assert max(map(len, figure.layout.title.text.split("<br>"))) <= 95
    with pytest.raises(ValueError, match="title is empty"):
        plotting.layer_head([[1.0]], title=" ", value_title="share (0-1)")


def test_tiles_stand_apart_and_say_what_they_are() -> None:
    values = RANDOM.random((2, 3, 2, 4))
    options = {"title": "t", "x_title": "head", "y_title": "layer", "value_title": "mass (0-1)"}
    figure = plotting.tiles(
        values, rows=["0", "1"], columns=["0", "1", "2"], cell_names=("from", "to"), cell_x="abcd", marks=values > 0.99,
        **options,
    )  # fmt: skip
    drawn, hover = figure.data[0].z, figure.data[0].text
    assert drawn.shape == (5, 14) and np.isnan(drawn[2]).all() and np.isnan(drawn[:, 4]).all()
    assert (drawn[3:, 10:14] == values[1, 2]).all() and hover[4, 13] == "1, 2<br>from 1, to d"
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "2"] and figure.data[0].zmin == 0
    assert len(figure.layout.shapes) == 6 + int((values > 0.99).sum())
    assert plotting.tiles(-values, rows="ab", columns="xyz", diverging=True, **options).data[0].zmin < 0
    for bad, message in ((values[0], "tile row"), (values * np.nan, "no finite value")):
        with pytest.raises(ValueError, match=message):
            plotting.tiles(bad, rows="ab", columns="xyz", **options)
    with pytest.raises(ValueError, match="2 x 3 names"):
        plotting.tiles(values, rows="ab", columns="xyz", cell_x="abc", **options)


def test_a_video_under_attention_has_a_slider_that_starts_at_the_query() -> None:
    frames, weights = RANDOM.random((4, 1, 8, 8)), np.zeros((4, 2, 2))
    weights[1, 0, 1], weights[3, 1, 1] = 0.75, 0.25
    figure = plotting.attention_video(frames, weights, title="t", query=(3, 1, 0))
    assert [trace.visible for trace in figure.data[:4]] == [False, False, False, True]
    slider = figure.layout.sliders[0]
    assert slider.active == 3 and len(slider.steps) == 4
    shown, titles = slider.steps[1].args
    assert shown["visible"] == [False, True, False, False, True] and "0.75 of the attention" in titles["title.text"]
    cell = picture(go.Figure(figure.data[1])).astype(int)
    half = cell.shape[0] // 2
    assert cell[2 : half - 2, half + 2 :].mean() > cell[half + 2 :, 2 : half - 2].mean()
    with pytest.raises(ValueError, match="are no attention weights"):
        plotting.attention_video(frames, -weights, title="t")


@pytest.mark.parametrize("log", [False, True])
def test_the_label_of_a_level_stands_on_its_line(log: bool) -> None:
    options = {"title": "t", "x_title": "x", "y_title": "error (MSE)", "reference": {"chance": 0.5}}
    bars = plotting.bars(ROWS[ROWS.against == "truth"], x="condition", y="error", horizontal=False, log=log, **options)
    lines = plotting.lines(ROWS, x="low", y="error", color="against", log_y=log, **options)
    for figure in (bars, lines):
        (note,) = figure.layout.annotations
        assert note.text == "chance" and note.y == pytest.approx(np.log10(0.5) if log else 0.5)
        assert figure.layout.shapes[0].y0 == 0.5


def test_a_sliced_heatmap_shows_one_slice_and_keeps_one_scale() -> None:
    values = np.arange(24.0).reshape(4, 2, 3)
    values[1, 0, 0] = np.nan
    options = {"x": list("abc"), "y": list("de"), "title": "T", "x_title": "x", "y_title": "y", "value_title": "v"}
    figure = plotting.sliced_heatmap(values, slices=["s0", "s1", "s2", "s3"], **options)
    assert [trace.visible for trace in figure.data] == [False, False, False, True], "the strongest first"
    assert {(trace.zmin, trace.zmax) for trace in figure.data} == {(0.0, 23.0)}
    np.testing.assert_array_equal(figure.data[2].z, values[2])
    assert figure.data[1].text[0][0] == "" and figure.data[0].text[0][1] == "1"
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["s0", "s1", "s2", "s3"]
    assert steps[1].args[0]["visible"] == [False, True, False, False]
    with pytest.raises(ValueError, match="slices"):
        plotting.sliced_heatmap(values, slices=["one"], **options)
    with pytest.raises(ValueError, match="no finite value"):
        plotting.sliced_heatmap(np.full((1, 2, 3), np.nan), slices=["one"], **options)


def test_a_circuit_graph_draws_every_edge_and_node_once() -> None:
    table = pd.DataFrame(
        {"sender": ["embed", "0.1", "mlp.0", "cross.1.0"], "receiver": ["0.1.q", "mlp.0", "1.0.k", "final"],
         "score": [1.0, -0.5, 0.2, 0.1]}
    )  # fmt: skip
    figure = plotting.circuit_graph(table, title="T", value_title="score")
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.x[0] is not None]
    nodes = next(trace for trace in figure.data if trace.mode == "markers+text")
    assert len(lines) == 4 and sorted(nodes.text) == ["0.1", "1.0", "cross.1.0", "embed", "final", "mlp.0"]
    height = dict(zip(nodes.text, nodes.y, strict=True))
    assert height["embed"] < height["0.1"] < height["mlp.0"] < height["1.0"] < height["cross.1.0"] < height["final"]
    with pytest.raises(KeyError, match="score"):
        plotting.circuit_graph(table.drop(columns="score"), title="T", value_title="score")


def test_a_scatter_names_its_points() -> None:
    table = pd.DataFrame({"a": [0.0, 1.0], "b": [0.5, 2.0], "name": ["p", "q"]})
    figure = plotting.scatter(table, x="a", y="b", label="name", title="T", x_title="x", y_title="y", diagonal=True)
    assert list(figure.data[-1].text) == ["p", "q"] and list(figure.data[0].x) == [0.0, 2.0]


def test_of_many_points_the_outermost_have_their_names_written() -> None:
    angle = np.linspace(0, 6.28, 60)
    table = pd.DataFrame({"a": np.cos(angle) * 0.1, "b": np.sin(angle) * 0.1, "name": [f"p{i}" for i in range(60)]})
    table.loc[7, ["a", "b"]] = [5.0, -3.0]
    drawn = plotting.scatter(table, x="a", y="b", label="name", title="T", x_title="x", y_title="y").data[-1]
    assert drawn.text[7] == "p7" and 1 < sum(bool(text) for text in drawn.text) < 20
    assert list(drawn.customdata) == list(table["name"]), "hovering names all"


def test_lines_of_two_kinds_share_colours_and_have_whole_ticks() -> None:
    rows = [{"layer": layer, "level": level, "lens": lens, "error": 0.1 * layer}
            for layer in range(3) for level in ("0.3", "0.9") for lens in ("plain", "tuned")]  # fmt: skip
    figure = plotting.lines(
        pd.DataFrame(rows), x="layer", y="error", color="level", color_title="noise level", dash="lens", title="T",
        x_title="layer", y_title="error",
    )  # fmt: skip
    assert [trace.name for trace in figure.data] == ["0.3, plain", "0.3, tuned", "0.9, plain", "0.9, tuned"]
    assert figure.data[0].line.color == figure.data[1].line.color != figure.data[2].line.color
    assert figure.data[0].line.dash == figure.data[2].line.dash != figure.data[1].line.dash
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2] and figure.layout.legend.title.text.strip() == "noise level"


def test_a_circuit_graph_writes_weights_and_says_what_colours_mean() -> None:
    table = pd.DataFrame({"sender": ["0.1", "0.0"], "receiver": ["1.0.k", "final"], "score": [0.62, 0.3]})
    figure = plotting.circuit_graph(table, title="T", value_title="drop", meaning=("helps", "hinders"))
    assert {note.text for note in figure.layout.annotations} == {"k 0.62", "0.30"}
    assert [trace.name for trace in figure.data if trace.name] == ["helps"], "nothing hinders here"


def test_tiles_fill_the_width_with_the_scale_beside_them() -> None:
    options = {"title": "T", "x_title": "head", "y_title": "layer", "value_title": "mass"}
    wide = plotting.tiles(np.ones((1, 8, 4, 4)), rows=["0"], columns=list("abcdefgh"), **options)
    tall = plotting.tiles(np.ones((6, 1, 4, 4)), rows=list("abcdef"), columns=["0"], **options)
    assert wide.layout.xaxis.domain == (0, 1) and wide.data[0].colorbar.x == 1
    assert tall.layout.xaxis.domain[1] == tall.data[0].colorbar.x < 0.3


def test_moving_clips_play_in_step() -> None:
    clips = {"truth": np.zeros((5, 1, 8, 8)), "no attention: own frame only": np.ones((5, 1, 8, 8))}
    address = plotting.moving_clips(clips, n_context=2)
    picture = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,"))))
    assert picture.n_frames == 5 and picture.size[0] > 2 * 100
    with pytest.raises(ValueError, match="one size"):
        plotting.moving_clips({**clips, "short": np.zeros((4, 1, 8, 8))})
    with pytest.raises(ValueError, match="no clip"):
        plotting.moving_clips({})
