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
from vdinterp.report import page as page_module, writing
from vdinterp.results import Result, Section
from vdinterp.words import glossary, wording

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
    assert "The first 12 of 70 rows; all are in table.csv" in page.text
    assert len(pd.read_csv(tmp_path / "table.csv")) == 70
    assert len(Result.load(tmp_path).to_frame()) == 70
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["sections"][0]["tables"] == {"": "table.csv"}, "each table once"
    csv = {path.name for path in tmp_path.glob("*.csv")}
    assert csv == {"table.csv", "what-was-run-settings-of-this-report.csv"}


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    text = report.write([Study(title="A", table=TABLE), Study(title="B", table=TABLE)], tmp_path).read_text("utf-8")
    page = Page(text)
    assert set(page.addresses) == {"data:,", "a/table.csv"}, "only tables that lie beside the page"
    library = get_plotlyjs()
    assert text.count(library) == 1, "the plotting library is inlined once"
    rest = text.replace(library, "")
    assert not re.search(r"@import|url\(|fetch\(|\bimport\(", rest)
    assert set(re.findall(r"https?://[^\"'\s<]+", rest)) == set()
    assert text.encode().__len__() < writing.LARGEST_REPORT


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
    assert cells == ["a", "0.333", "1234567", "yes", "–", "–", "2", "no"]


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


def test_a_page_says_what_was_run_and_is_the_same_again(tmp_path: Path) -> None:
    meta = {"model": "m", "weights": "0123456789ab", "levels": [0.3, 0.9], "seed": 7, "caution": "**m fails.**"}
    run = {"date": "2031-02-03 04:05", "command": "vdinterp study x --model 'a<b'"}
    made = [report.write(Study(title="A", table=TABLE, meta=meta), tmp_path / name, run=run) for name in ("1", "2")]
    assert made[0].read_bytes() == made[1].read_bytes()
    other = report.write(Study(title="A", table=TABLE, meta=meta), tmp_path / "3", run={**run, "date": "2031-02-04"})
    assert other.read_bytes() != made[0].read_bytes()
    text = Page(made[0].read_text("utf-8")).text
    assert "What was run" in text and text.count("vdinterp study x --model 'a<b'") == 2 and "2031-02-03 04:05" in text
    assert text.index("m fails.") < text.index("70 rows"), "first of all"
    for name, value in (("weights", "0123456789ab"), ("levels", "0.3, 0.9"), ("seed", "7"), ("model", "m")):
        assert f"{name} {value}" in text
    assert json.loads((tmp_path / "1" / "report.json").read_text())["run"] == run


def test_words_are_explained_where_they_are_used() -> None:
    page = Page(report.render([Section(title="T", text="A corrupted run, PSNR and two still pictures.")], title="T"))
    meanings = page.text.split("Words used here")[-1]
    assert "corrupted run" in meanings and "PSNR" in meanings and "still picture" in meanings
    assert "SSIM" not in meanings and "prefix matching" not in meanings
    for key in glossary.TERMS:
        for name in key.split(" / "):
            assert key.split(" / ")[0] in glossary.used(f"The {name}, here"), name
    assert glossary.used("nothing special") == {} and "head" not in glossary.used("a heading ahead")


def test_columns_that_do_not_apply_are_left_out_and_long_tables_link_to_their_file() -> None:
    table = TABLE.assign(unmeasured=np.nan)
    text = report.render([Section(title="Heads", tables={"Scores. What they mean": table})], title="T")
    assert "unmeasured" not in text and text.count("<tr>") == 1 + page_module.FIRST_ROWS
    assert '<a href="heads-scores.csv">' in text, "the name ends where the explanation begins"


def test_a_moving_picture_is_shown_once() -> None:
    address = plotting.moving_clips({"a": np.zeros((2, 1, 4, 4))})
    sections = [Section(title="First", moving={"Both": address}), Section(title="Again", moving={"Both": address})]
    text = report.render(sections, title="T")
    assert text.count("<img") == 1 and text.count(address) == 1
    with pytest.raises(ValueError, match="no data:image/ address"):
        Section(title="Bad", moving={"x": "https://example.org/a.gif"})


def test_several_results_of_one_class_are_compared_first() -> None:
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Compared(Study):
        @classmethod
        def compare(cls, results: list) -> list[Section]:
            return [Section(title="Side by side", text=" and ".join(one.title for one in results))]

    some = [Compared(title=name, table=TABLE) for name in ("A", "B")]
    assert [s.title for s in writing._side_by_side([*some, Study(title="C", table=TABLE)])] == ["Side by side"]
    assert writing._side_by_side(some[:1]) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.2e-05, "<0.0001"), (-3.2e-05, "≈0"), (0.00031, "0.0003"), (0.0627, "0.0627"), (0.18834, "0.188"),
        (93.42, "93.4"), (2470.3, "2,470"), (1.0, "1"), (-0.0, "0"), (float("nan"), "–"), (float("inf"), "∞"),
        (0.99999, "1.000"), (-0.5, "-0.500"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_matter(value: float, shown: str) -> None:
    assert wording.number(value) == shown


def test_one_clip_has_no_interval_in_words() -> None:
    nan = float("nan")
    assert wording.with_interval(0.5, nan, nan) == "0.500" and wording.with_interval(2, 1, 3) == "2 [1, 3]"
    assert [wording.plural(n, "pass") for n in (1, 2)] == ["1 pass", "2 passes"] and wording.plural(
        0, "step"
    ) == "0 steps"
