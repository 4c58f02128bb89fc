"""Reports: one page that needs no network, says everything once, and leaves the numbers beside it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from vdinterp import plotting, report
from vdinterp.results import Result, Section

TABLE = pd.DataFrame({"condition": [f"head {i} <&>" for i in range(70)], "error": np.linspace(0, 1, 70)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Study(Result):
    title: str
    table: pd.DataFrame

    def plot(self) -> dict:
        drawn = plotting.bars(self.table.head(5), x="condition", y="error", title="Errors", y_title="error (MSE)")
        return {"Errors": drawn}


class Page(HTMLParser):
    """What the tests ask of a page: addresses it would load, ids, links inside, text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        given = dict(attrs)
        if "id" in given:
            self.ids.append(str(given["id"]))
        address = given.get("src") or given.get("href")
        if address:
            (self.links if address.startswith("#") else self.addresses).append(address)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_one_result(tmp_path: Path) -> None:
    path = report.write(Study(title="Ablations", table=TABLE, meta={"seed": 7}), tmp_path, subtitle="8 clips")
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open, "every tag is closed"
    assert "Ablations" in page.text and "seed 7" in page.text and "8 clips" in page.text
    assert "head 3 <&>" in page.text, "text is escaped, not interpreted"
    assert "The first 60 of 70 rows; all are in ablations.csv" in page.text
    assert len(pd.read_csv(tmp_path / "ablations.csv")) == 70
    assert len(Result.load(tmp_path).to_frame()) == 70
    record = json.loads((tmp_path / "report.json").read_text())
    assert len(record["sections"][0]["tables"][""]) == 70


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    text = report.write([Study(title="A", table=TABLE), Study(title="B", table=TABLE)], tmp_path).read_text("utf-8")
    page = Page(text)
    assert page.addresses == ["data:,"]
    library = get_plotlyjs()
    assert text.count(library) == 1, "the plotting library is inlined once"
    rest = text.replace(library, "")
    assert not re.search(r"@import|url\(|fetch\(|\bimport\(", rest)
    assert set(re.findall(r"https?://[^\"'\s<]+", rest)) == set()
    assert text.encode().__len__() < report.LARGEST_REPORT


def test_contents_link_to_every_section(tmp_path: Path) -> None:
    sections = [Section(title="Method", text="x"), Section(title="Method", level=3), Section(title="Sea & air")]
    page = Page(report.render(sections, title="T"))
    assert page.links == ["#method", "#method-2", "#sea-air"]
    assert [name for name in page.ids if not name.startswith("figure-")] == ["method", "method-2", "sea-air"]
    assert len(report.render(sections, title="T")) < 20_000, "no figure, no plotting library"


def test_several_results_get_folders_and_numbered_figures(tmp_path: Path) -> None:
    note = Section(title="Reading", text="One.\n\n- `a`\n- **b**\n  goes on", tables={"Bars": TABLE.head(2)})
    path = report.write([note, Study(title="A", table=TABLE), Study(title="A", table=TABLE)], tmp_path, title="Both")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["a", "a-2"]
    assert len(pd.read_csv(tmp_path / "reading-bars.csv")) == 2
    page = Page(path.read_text("utf-8"))
    assert re.findall(r"Figure \d\. Errors", page.text) == ["Figure 1. Errors", "Figure 2. Errors"]
    text = path.read_text("utf-8")
    assert "<ul><li><code>a</code></li><li><b>b</b> goes on</li></ul>" in text


def test_gaps_and_numbers_in_tables() -> None:
    table = pd.DataFrame(
        {"name": ["a", None], "value": [1 / 3, float("nan")], "count": [1234567, 2], "on": [True, False]}
    )
    text = report.render([Section(title="T", tables={"": table})], title="T")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text)
    assert cells == ["a", "0.3333", "1234567", "True", "–", "–", "2", "False"]


def test_bad_content_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for content, message in [([], "nothing to report"), ([TABLE], "got DataFrame")]:
        with pytest.raises(ValueError, match=message):
            report.write(content, tmp_path / "new")
    noise = {str(i): np.random.default_rng(i).random((16, 3, 128, 128)) for i in range(16)}
    heavy = plotting.filmstrip(noise, title="noise")
    with pytest.raises(ValueError, match=r"would be \d+\.\d MB"):
        report.write(Section(title="Heavy", figures={"a": heavy, "b": heavy, "c": heavy}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_table_alone_is_told_where_it_goes(tmp_path: Path) -> None:
    for given in (TABLE, "text", [TABLE]):
        with pytest.raises(ValueError, match=r"got (DataFrame|str); a table or figure of yours goes into .*Section"):
            report.write(given, tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
