"""Pages and what they do when clicked, in a real headless Chromium; screenshots stay in out/browser/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import vdinterp as vd

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCREENSHOTS = Path(__file__).parent.parent / "out" / "browser"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def chromium() -> str | None:
    """Where a Chromium is: $CHROMIUM, or the system's."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium: install one, or name it in $CHROMIUM")


@dataclass
class Opened:
    """A page in the browser, and everything that it asked for or complained about."""

    page: Page
    requests: list[str]
    complaints: list[str]

    def check(self, path: Path) -> None:
        assert self.complaints == []
        assert self.requests == [path.as_uri()], "nothing is loaded but the file itself"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Opened]]:
    pages: list[Page] = []

    def open_page(path: Path, width: int = 1400, fragment: str = "") -> Opened:
        page = browser.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        found = Opened(page, [], [])
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.goto(path.as_uri() + (f"#{fragment}" if fragment else ""))
        return found

    yield open_page
    for page in pages:
        page.close()


def screenshot(opened: Opened, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    opened.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def explorer() -> vd.AttentionExplorer:
    """tiny-crafter on a held-out clip, its last frame noisy."""
    pipe, clips = vd.load("tiny-crafter"), vd.data.sample_clips("crafter", n=1, n_frames=8)
    caches = {}
    with torch.no_grad():
        latents = pipe.encode(clips.video)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        for level in (0.9, 0.3):
            levels = torch.zeros(1, 8)
            levels[:, -1] = level
            noisy = pipe.add_noise(latents, levels, noise)
            cache = pipe.model.run_with_cache(
                noisy, pipe.timestep(levels), cond=clips.action, names=["rot_q", "rot_k"]
            )[1]
            caches[f"noise level {level}"] = cache
    return vd.AttentionExplorer.from_caches(clips.video[0], caches, layer=2, head=2, query=(7, 3, 4))


@pytest.fixture(scope="module")
def explorer_page(explorer: vd.AttentionExplorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explorer.to_html(tmp_path_factory.mktemp("explorer") / "explorer.html", layers=[1, 2], heads=[0, 2])


class Strip:
    """The explorer's parts, by what a reader calls them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.locator(".frame canvas").first.wait_for()

    def picture(self) -> bytes:
        """The strip as drawn, once it has been."""
        self.page.locator('[aria-busy="false"] .strip').wait_for()
        return self.page.locator(".strip").screenshot()

    def drawn(self) -> list[str]:
        """The pixels of every frame, without marks and pointer."""
        return [canvas.evaluate("canvas => canvas.toDataURL()") for canvas in self.page.locator(".frame canvas").all()]

    def at(self, frame: int, row: int, col: int) -> dict[str, Any]:
        """Where a patch is, for the mouse."""
        canvas = self.page.locator(".frame canvas").nth(frame)
        box = canvas.bounding_box()
        assert box
        x, y = (col + 0.5) / 9 * box["width"], (row + 0.5) / 7 * box["height"]
        return {"x": box["x"] + x, "y": box["y"] + y}

    def text(self, name: str) -> str:
        return self.page.locator(f".readout .{name} .value").inner_text()


def test_a_click_an_arrow_and_every_choice_change_the_picture(opened: Callable, explorer_page: Path) -> None:
    shown = opened(explorer_page)
    page, strip = shown.page, Strip(shown.page)
    assert strip.text("patch") == "frame 7, row 3, col 4, pinned"
    pictures = [strip.picture()]
    screenshot(shown, "explorer")

    page.mouse.click(**strip.at(5, 1, 2))
    assert strip.text("patch") == "frame 5, row 1, col 2, pinned"
    pictures.append(strip.picture())
    for key, place in [
        ("ArrowDown", "frame 5, row 2, col 2"),
        ("ArrowRight", "frame 5, row 2, col 3"),
        ("[", "frame 4, row 2, col 3"),
        ("PageDown", "frame 5, row 2, col 3"),
    ]:
        page.keyboard.press(key)
        assert strip.text("patch") == f"{place}, pinned"
        pictures.append(strip.picture())
    assert pictures.pop() == pictures[-2], "back where it was"
    for label, choice in [
        ("direction", "from this whole frame: mean over its patches"),
        ("direction", "to this patch: what looks at it"),
        ("head", "0"),
        ("layer", "1"),
        ("pass", "noise level 0.3"),
    ]:
        page.locator(f"select.{label}").select_option(label=choice)
        pictures.append(strip.picture())
    assert len(set(pictures)) == len(pictures) == 10
    assert page.get_by_text("Key", exact=True).is_visible()
    assert "steps of 1/255" in page.locator(".hint").inner_text()
    shown.check(explorer_page)


def test_arrows_go_on_in_the_next_frame(opened: Callable, explorer_page: Path) -> None:
    shown = opened(explorer_page)
    strip = Strip(shown.page)
    shown.page.mouse.click(**strip.at(3, 6, 8))
    for key, place in [
        ("ArrowDown", "frame 3, row 6, col 8"),
        ("ArrowRight", "frame 4, row 6, col 0"),
        ("ArrowLeft", "frame 3, row 6, col 8"),
    ]:
        shown.page.keyboard.press(key)
        assert strip.text("patch") == f"{place}, pinned"
    shown.page.mouse.click(**strip.at(7, 0, 8))
    for key in ("ArrowRight", "ArrowUp", "PageDown"):
        shown.page.keyboard.press(key)
        assert strip.text("patch") == "frame 7, row 0, col 8, pinned", "the clip ends here"
    shown.check(explorer_page)


@pytest.mark.parametrize("direction", ["from", "to", "frame"])
def test_the_number_under_the_pointer_is_the_probability(
    opened: Callable, explorer: vd.AttentionExplorer, explorer_page: Path, direction: str
) -> None:
    shown = opened(explorer_page)
    strip, grid = Strip(shown.page), explorer.grid
    shown.page.locator("select.direction").select_option(direction)
    fixed = (6, 3, 5)
    shown.page.mouse.click(**strip.at(*fixed))
    strip.picture()
    values = explorer.values("noise level 0.9", 2, 2, grid.index(*fixed), direction)  # type: ignore[arg-type]
    most = int(values.argmax())
    number, _, place = strip.text("top").partition(" at ")
    assert float(number) == pytest.approx(values[most], rel=6e-3)
    assert place == "frame {}, row {}, col {}".format(*grid.coordinates(most))
    first = grid.index(fixed[0], 0, 0)
    in_frame = range(first, first + grid.n_rows * grid.n_cols)
    maxima = [explorer.values("noise level 0.9", 2, 2, one).max() for one in in_frame]
    for token in (most, grid.index(7, 3, 5), grid.index(6, 3, 4), grid.index(0, 0, 0)):
        query, key = (token, grid.index(*fixed)) if direction == "to" else (grid.index(*fixed), token)
        row = explorer.values("noise level 0.9", 2, 2, query, "frame" if direction == "frame" else "from")
        shown.page.mouse.move(**strip.at(*grid.coordinates(token)))
        number, _, place = strip.text("pointer").partition(" at ")
        assert place == "frame {}, row {}, col {}".format(*grid.coordinates(token))
        half = row.max() / 255 / 2 if direction != "frame" else float(np.mean(maxima)) / 255 / 2
        if number.startswith("below "):
            assert row[key] <= half * 1.01
        else:
            assert abs(float(number) - row[key]) <= half * 1.01 + 0.005 * row[key], "half a step, and three digits"
    shown.check(explorer_page)


def test_a_small_map_of_every_head_selects_it(opened: Callable, explorer_page: Path) -> None:
    shown = opened(explorer_page)
    page, strip = shown.page, Strip(shown.page)
    before = strip.picture()
    maps = page.locator(".wall .map")
    assert maps.count() == 4
    chosen = page.get_by_role("button", pressed=True)
    assert chosen.get_attribute("aria-label").startswith("layer 2, head 2: largest ")
    page.get_by_role("button", name="layer 1, head 0").click()
    assert strip.picture() != before
    assert page.locator("select.layer").input_value() == "1"
    assert page.locator("select.head").input_value() == "0"
    assert chosen.get_attribute("aria-label").startswith("layer 1, head 0: largest ")
    pictures = [one.screenshot() for one in maps.all()]
    page.mouse.click(**strip.at(2, 5, 7))
    strip.picture()
    assert all(one.screenshot() != picture for one, picture in zip(maps.all(), pictures, strict=True))
    shown.check(explorer_page)


def test_a_link_keeps_what_is_shown(opened: Callable, explorer_page: Path) -> None:
    shown = opened(explorer_page)
    strip = Strip(shown.page)
    shown.page.mouse.click(**strip.at(5, 1, 2))
    shown.page.locator("select.pass").select_option(label="noise level 0.3")
    shown.page.locator("select.head").select_option(label="0")
    strip.picture()
    drawn = strip.drawn()
    assert shown.page.url.endswith("#pass=1&layer=2&head=0&direction=from&patch=5.1.2")
    again = opened(explorer_page, fragment=shown.page.url.partition("#")[2])
    there = Strip(again.page)
    assert there.text("patch") == "frame 5, row 1, col 2, pinned"
    there.picture()
    assert there.drawn() == drawn
    odd = opened(explorer_page, fragment="pass=7&head=x&patch=99.0.0&layer=1")
    assert Strip(odd.page).text("patch") == "frame 7, row 3, col 4, pinned"
    assert odd.page.locator("select.layer").input_value() == "1" and odd.complaints == []


def test_frames_are_bright_where_nothing_looks(opened: Callable, explorer_page: Path) -> None:
    shown = opened(explorer_page)
    Strip(shown.page).picture()
    mean = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; " \
        "return d.reduce((sum, value, at) => sum + (at % 4 < 3 ? value : 0), 0) / (0.75 * d.length); }"  # fmt: skip
    canvas = shown.page.locator(".frame canvas").first
    assert canvas.evaluate(mean) > 90 and canvas.bounding_box()["width"] >= 200


def test_hovering_previews_until_a_click_pins(opened: Callable, explorer_page: Path) -> None:
    shown = opened(explorer_page, width=700)
    strip = Strip(shown.page)
    shown.page.mouse.move(**strip.at(2, 2, 2))
    assert strip.text("patch") == "frame 7, row 3, col 4, pinned"
    shown.page.mouse.click(**strip.at(2, 2, 2))
    shown.page.mouse.click(**strip.at(2, 2, 2))
    assert strip.text("patch") == "frame 2, row 2, col 2", "a second click unpins"
    before = strip.picture()
    shown.page.mouse.move(**strip.at(6, 3, 3))
    assert strip.text("patch") == "frame 6, row 3, col 3"
    assert strip.picture() != before
    screenshot(shown, "explorer-narrow")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 700, "nothing is cut off"
    shown.check(explorer_page)


def test_the_frame_for_a_notebook_without_widgets(opened: Callable, explorer_page: Path, tmp_path: Path) -> None:
    from vdinterp.explorer.page import framed

    path = tmp_path / "framed.html"
    path.write_text(f"<!DOCTYPE html><body>{framed(explorer_page.read_text('utf-8'))}</body>", encoding="utf-8")
    shown = opened(path)
    shown.page.frame_locator("iframe").locator(".frame canvas").first.wait_for()
    assert shown.complaints == []


def test_the_ablation_report(opened: Callable, tmp_path: Path) -> None:
    result = vd.studies.run("ablations", vd.load("tiny-induction"), n_clips=2, steps=2, batch=2)
    path = vd.report.write(result, tmp_path)
    shown = opened(path)
    plot = shown.page.locator(".js-plotly-plot").first
    plot.locator(".main-svg").first.wait_for()
    screenshot(shown, "report")
    plot.hover()
    for button in ("Zoom in", "Reset axes"):
        plot.locator(f'.modebar-btn[data-title="{button}"]').first.click()
    shown.page.locator(".legendtoggle").first.click()
    shown.page.wait_for_timeout(500)  # plotly waits for a double click
    shown.check(path)
