"""The attention explorer's Python side: right numbers on the wire and on the page, small state, clear errors."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import zlib
from typing import Any

import numpy as np
import planted
import pytest
import torch
from factories import inputs, tiny_model

import vdinterp as vd
from vdinterp.explorer import page
from vdinterp.explorer.encoding import frame_sheet, quantised
from vdinterp.models import AttentionPattern

KINDS = ["3d", "space_time", "causal"]
FRAMES = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(3))


def cached(kind: str, seed: int = 1, names: list[str] | None = None) -> vd.ActivationCache:
    model = tiny_model(kind)
    given: dict[str, Any] = inputs(model, seed=seed)
    with torch.no_grad():
        return model.run_with_cache(**given, names=names or ["rot_q", "rot_k"])[1]


def explorer(kind: str = "3d", **options: Any) -> vd.AttentionExplorer:
    return vd.AttentionExplorer.from_caches(FRAMES, {"low noise": cached(kind), "high": cached(kind, 2)}, 1, **options)


def random_pattern(n_heads: int = 8, uniform: bool = False) -> AttentionPattern:
    """One clip of 8 frames of 8 x 8 patches; with `uniform`, probabilities spread evenly from 0 to their maximum."""
    generator = torch.Generator().manual_seed(0)
    n = 512
    if uniform:  # queries are one-hot, so that the scores are whatever the keys say
        q = torch.eye(n).expand(1, 1, n_heads, n, n)
        k = torch.rand(1, 1, n_heads, n, n, generator=generator).clamp(min=1e-9).log()
    else:
        q, k = (4 * torch.randn(1, 1, n_heads, n, 16, generator=generator) for _ in "qk")
    return AttentionPattern(q, k, 1 / 4 if not uniform else 1.0, None, vd.TokenGrid(8, 8, 8))


def dense(pattern: AttentionPattern) -> torch.Tensor:
    """The matrix over all tokens of the clip, `[batch head query key]`, placed group by group."""
    parts = pattern.materialize()
    parts = parts if parts.ndim == 5 else parts.unsqueeze(1)
    found = torch.zeros(len(pattern.q), pattern.n_heads, pattern.n_queries, pattern.n_keys)
    for group, tokens in enumerate(pattern.query_tokens):
        found[:, :, tokens[:, None], tokens] = parts[:, group]
    return found


def embedded(text: str) -> dict[str, Any]:
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def head_of(data: dict[str, Any], place: int) -> tuple[np.ndarray, np.ndarray]:
    """One head's probabilities `[query key]` as a page holds them, and the maxima of its rows."""
    raw = zlib.decompress(base64.b64decode(data["blocks"][place]))
    n = int(np.prod(data["info"]["grid"]))
    maxima = np.frombuffer(raw, "<f4", n)
    levels = np.frombuffer(raw, np.uint8, offset=4 * n).reshape(n, n)
    return levels * maxima[:, None] / data["info"]["levels"], maxima


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_the_dense_pattern(kind: str) -> None:
    cache = cached(kind)
    for layer in range(2):
        pattern = cache["pattern", layer]
        keys = [4, 17, 4, -1, 0]
        torch.testing.assert_close(pattern.columns(keys), dense(pattern)[..., keys], atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="key token"):
        cache["pattern", 0].columns([18])


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_rows_and_columns(kind: str) -> None:
    shown = explorer(kind)
    whole = dense(cached(kind, 2)["pattern", 1])[1, 1].numpy()
    np.testing.assert_allclose(shown.values("high", 1, 1, 7), whole[7], atol=1e-6)
    np.testing.assert_allclose(shown.values("high", 1, 1, 7, "to"), whole[:, 7], atol=1e-6)


def test_what_an_attention_never_sees_is_exactly_0() -> None:
    space = explorer("space_time").values("low noise", 0, 0, 7)
    assert (space.reshape(3, 6)[[0, 2]] == 0).all() and space.sum() == pytest.approx(1)
    causal = explorer("causal")
    assert (causal.values("low noise", 0, 0, 7).reshape(3, 6)[2] == 0).all()
    assert (causal.values("low noise", 0, 0, 7, "to").reshape(3, 6)[0] == 0).all()


@pytest.mark.parametrize("direction", ["from", "to"])
def test_the_widget_answers_with_one_row(direction: str) -> None:
    shown = explorer("space_time")
    question = {"kind": "row", "pass": 1, "layer": 1, "head": 0, "direction": direction, "token": 9}
    answer, (levels,) = shown.widget.answer(question)
    assert len(levels) == 18
    values = np.frombuffer(levels, np.uint8) * answer["top"] / answer["levels"]
    right = shown.values("high", 1, 0, 9, direction)  # type: ignore[arg-type]
    assert answer["top"] == pytest.approx(right.max())
    assert np.abs(values - right).max() <= answer["top"] / 255 / 2 + 1e-7


def test_the_state_that_a_notebook_may_save_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = explorer()
    sent: list[tuple[Any, Any]] = []
    monkeypatch.setattr(shown.widget, "send", lambda content, buffers=None: sent.append((content, buffers)))
    fresh = len(json.dumps(shown.widget.get_state(), default=str))
    for number, question in enumerate([{"kind": "code"}, {"kind": "start"}]):
        shown.widget._handle_custom_msg({**question, "id": number}, [])
    (code, _), (start, (image,)) = sent
    assert "export default" in code["code"] and code["id"] == 0
    assert start["info"]["passes"] == ["low noise", "high"] and image == shown.sheet[0]
    state = shown.widget.get_state()
    assert len(json.dumps(state, default=str)) == fresh < 4000
    assert not any(isinstance(value, (bytes, memoryview, np.ndarray, torch.Tensor)) for value in state.values())
    bundle, _ = shown._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "application/vnd.jupyter.widget-view+json"}
    assert len(json.dumps(bundle)) < 500


def test_an_error_reaches_the_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = explorer()
    sent: list[Any] = []
    monkeypatch.setattr(shown.widget, "send", lambda content, buffers=None: sent.append(content))
    with pytest.raises(ValueError, match="lie outside"):
        asked = {"kind": "row", "pass": 0, "layer": 0, "head": 0, "direction": "from", "token": 99, "id": 5}
        shown.widget._asked(shown.widget, asked, [])
    assert sent[0]["id"] == 5 and "lie outside" in sent[0]["error"]


def test_without_anywidget_the_page_is_shown_in_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    bundle, _ = explorer()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/html"].startswith('<iframe srcdoc="&lt;!DOCTYPE html')


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_holds_the_pattern_to_half_a_step(kind: str, tmp_path: Any) -> None:
    shown = explorer(kind)
    path = shown.to_html(tmp_path / "new" / "page.html", layers=[-1], heads=[1])
    data = embedded(path.read_text("utf-8"))
    assert data["info"]["levels"] == 255 and "1/255 of the largest" in data["info"]["rounding"]
    assert [layer for layer, _ in data["info"]["layers"]] == [1] and data["info"]["heads"] == [1]
    assert data["info"]["start"]["layer"] == 1 and data["info"]["start"]["head"] == 1
    assert len(data["blocks"]) == 2, "one a pass"
    for place, seed in enumerate((1, 2)):
        right = dense(cached(kind, seed)["pattern", 1])[1, 1].numpy()
        values, maxima = head_of(data, place)
        np.testing.assert_allclose(maxima, right.max(-1), rtol=1e-6)
        assert (np.abs(values - right) <= maxima[:, None] / 255 / 2 + 1e-7).all()
        assert (values[right == 0] == 0).all()


def test_a_page_of_any_pattern_stays_under_its_limit() -> None:
    frames = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    worst = vd.AttentionExplorer(frames, {"worst": [random_pattern(uniform=True)]})
    text = worst.to_html()
    assert len(text.encode()) <= 2_000_000
    data = embedded(text)
    assert data["info"]["levels"] in page.LEVELS[1:], "coarser, and it says so"
    values, maxima = head_of(data, 7)
    right = dense(random_pattern(uniform=True))[0, 7].numpy()
    assert (np.abs(values - right) <= maxima[:, None] / data["info"]["levels"] / 2 + 1e-7).all()
    with pytest.raises(
        ValueError, match=r"would take 1,\d{3},\d{3} bytes, 1,000,000 are allowed: choose fewer layers="
    ):
        worst.to_html(max_bytes=1_000_000)


def test_what_can_never_fit_is_refused_before_any_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionPattern, "rows", lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match="more than"):
        explorer().to_html(max_bytes=1)


def test_names_of_passes_are_only_text() -> None:
    name = "</script><script>alert(1)</script><!--<script>"
    text = vd.AttentionExplorer.from_caches(FRAMES, {name: cached("3d")}, 0).to_html()
    assert text.count("</script>") == 2 and embedded(text)["info"]["passes"] == [name]
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == set()


def test_what_is_shown_first() -> None:
    shown = explorer(layer=-2, head=-1, query=(0, 1, 2))
    assert (shown.layer, shown.head, shown.grid.coordinates(shown.token), shown.pinned) == (0, 1, (0, 1, 2), True)
    assert repr(shown) == "AttentionExplorer(3 frames of 2 x 3 patches, 2 layers x 2 heads, 2 passes)"
    shown = explorer()
    assert (shown.grid.coordinates(shown.token), shown.pinned) == ((2, 1, 1), False)


def test_the_head_shown_first_looks_elsewhere_most_sharply() -> None:
    shown = explorer()
    sharp = torch.zeros(2, 2)
    for seed in (1, 2):
        for layer in range(2):
            rows = dense(cached("3d", seed)["pattern", layer])[1][:, 12:, :12]  # the last frame's queries, other frames
            sharp[layer] += rows.amax(-1).mean(-1)
    best = divmod(int(sharp.argmax()), 2)
    assert (shown.layer, shown.head) == best
    open_head = explorer(layer=1 - best[0])
    assert (open_head.layer, open_head.head) == (1 - best[0], int(sharp[1 - best[0]].argmax()))
    # A head that looks at itself alone is sharp, and shows nothing.
    sharp_on_itself = 1e3 * torch.eye(18)[None, None, None]
    own = AttentionPattern(sharp_on_itself, sharp_on_itself, 1.0, None, vd.TokenGrid(3, 2, 3))
    both = AttentionPattern(torch.cat([own.q, 0 * own.q], 2), torch.cat([own.k, own.k], 2), 1.0, None, own.grid)
    assert vd.AttentionExplorer(FRAMES, {"a": [both]}).head == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_frame_is_the_mean_of_its_patches(kind: str) -> None:
    shown = explorer(kind)
    whole = dense(cached(kind, 2)["pattern", 1])[1]
    np.testing.assert_allclose(shown.values("high", 1, 1, 7, "frame"), whole[1, 6:12].mean(0), atol=1e-6)
    for direction in ("from", "to", "frame"):
        found = shown.wall("high", 7, direction)  # type: ignore[arg-type]
        each = [[shown.values("high", layer, head, 7, direction) for head in (0, 1)] for layer in (0, 1)]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, np.array(each), atol=1e-6)
        answer, (levels,) = shown.widget.answer({"kind": "wall", "pass": 1, "token": 7, "direction": direction})
        got = np.frombuffer(levels, np.uint8).reshape(4, 18) * np.array(answer["tops"])[:, None] / answer["levels"]
        np.testing.assert_allclose(got, found.reshape(4, 18), atol=found.max() / 500)


def test_only_noised_clips_have_a_clip_to_show() -> None:
    with pytest.raises(ValueError, match=r"noised is VideoDiffusion; give vd.NoisedClips"):
        vd.AttentionExplorer.of(planted.pipe())  # type: ignore[arg-type]


def test_wrong_input_is_refused() -> None:
    good, cache = cached("3d"), cached("3d")
    patterns = [cache["pattern", 0], cache["pattern", 1]]
    for frames, message in [
        (FRAMES[:2], "2 frames of 4 x 6 pixels do not fit"),
        (FRAMES[..., :5], "3 frames of 4 x 5 pixels do not fit"),
        (FRAMES[:, :2], "1 or 3 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            vd.AttentionExplorer(frames, {"a": patterns})
    for given, message in [
        ({}, "No attention to explore"),
        ({"a": []}, "No attention to explore"),
        ({"a": [torch.zeros(2)]}, "is Tensor, not an AttentionPattern"),
        ({"a": patterns, "b": patterns[:1]}, "'a' and 'b' differ"),
        ({"a": [patterns[0], patterns[1].heads([0])]}, "differ in their grid or number of heads"),
    ]:
        with pytest.raises(ValueError, match=message):
            vd.AttentionExplorer(FRAMES, given)  # type: ignore[arg-type]
    for options, message in [
        ({"clip": 2}, "No clip 2: there are 2"),
        ({"layer": 2}, "No layer 2: there are 2"),
        ({"head": -3}, "No head -3: there are 2"),
        ({"query": (0, 2, 0)}, "row 2 is outside the grid"),
    ]:
        with pytest.raises(ValueError, match=message):
            vd.AttentionExplorer.from_caches(FRAMES, {"a": good}, **options)
    with pytest.raises(KeyError, match="was not cached"):
        vd.AttentionExplorer.from_caches(FRAMES, {"a": cached("3d", names=["z"])})
    with pytest.raises(ValueError, match="not an AttentionPattern"):
        vd.AttentionExplorer.from_caches(FRAMES, {"a": cached("3d", names=["pattern"])})
    cross = cached("cross", names=["cross_attn.hook_rot_q", "cross_attn.hook_rot_k"])
    with pytest.raises(ValueError, match="is cross-attention"):
        vd.AttentionExplorer(FRAMES, {"a": [cross["pattern", 0, "cross_attn"]]})
    for options, message in [({"heads": [5]}, "No head 5"), ({"layers": []}, "No layer was chosen")]:
        with pytest.raises(ValueError, match=message):
            explorer().to_html(**options)


def test_quantisation() -> None:
    values = np.array([[0.2, 0.1, 0.0], [0.0, 0.0, 0.0]], np.float32)
    levels, maxima = quantised(values, 255)
    assert levels.tolist() == [[255, 128, 0], [0, 0, 0]]
    np.testing.assert_array_equal(maxima, np.array([0.2, 0], np.float32))


def test_frames_are_one_picture_exact_unless_large() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 6, 3), np.uint8)
    drawn, per_row = frame_sheet(pixels)
    assert per_row == 3 and drawn.startswith(b"\x89PNG")
    large, _ = frame_sheet(np.random.default_rng(1).integers(0, 255, (5, 160, 160, 3), np.uint8))
    assert large.startswith(b"\xff\xd8")


def test_of_noised_clips_shows_every_level_of_one_clip() -> None:
    noised = vd.NoisedClips(planted.pipe(), planted.clips(), noise_levels=(0.3, 0.9), batch=2)
    explorer = vd.AttentionExplorer.of(noised, clip=3, layer=1, head=1, query=(3, 2, 1))
    assert list(explorer.patterns) == ["noise level 0.3", "noise level 0.9"]
    token = noised.grid.index(3, 2, 1)
    row = list(noised.patterns(0.9))[1][1].rows([token])[1, 1, 0]  # the second clip of the second batch
    np.testing.assert_allclose(explorer.values("noise level 0.9", 1, 1, token), row, atol=1e-6)
    with pytest.raises(ValueError, match="clip"):
        vd.AttentionExplorer.of(noised, clip=5)
    with pytest.raises(ValueError, match="three numbers are needed"):
        vd.AttentionExplorer.of(noised, query=(0, 0))  # type: ignore[arg-type]
