"""The page of a report: sections, figures, tables and the words they use, as one HTML text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from plotly.offline import get_plotlyjs

from vdinterp.plotting.template import CONFIG
from vdinterp.report.tables import add_tables, unique
from vdinterp.results import Section, slug
from vdinterp.words import glossary, wording
from vdinterp.words.markup import inline, paragraphs

MOST_ROWS, FIRST_ROWS = 32, 12  # a longer table shows only its first rows on the page; the CSV has all
LONGEST_LINE = 34  # characters of a cell that stay on one line
MANY_COLUMNS = 12  # from here on a table may be wider than the page
STYLE = """
:root { --ink: #1f2430; --soft: #5b6272; --line: #dfe2e8; --accent: #0072b2; --paper: #ffffff; --wash: #f6f7f9; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 16px/1.6 "Inter", "Helvetica Neue", "Segoe UI", Arial, sans-serif; }
.page { max-width: 1320px; margin: 0 auto; padding: 40px 28px 96px; }
header { border-bottom: 2px solid var(--ink); margin-bottom: 28px; padding-bottom: 14px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
header p { margin: 0; color: var(--soft); font-size: .9rem; }
h2 { font-size: 1.4rem; margin: 56px 0 12px; padding-top: 8px; letter-spacing: -0.005em; }
main > section:first-child h2 { margin-top: 0; }
h3 { font-size: 1.1rem; margin: 36px 0 8px; padding-top: 6px; }
p, ul { max-width: 74ch; margin: 0 0 14px; }
ul { padding-left: 22px; }
code { font: .88em/1.4 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--wash); padding: 1px 4px; border-radius: 3px; overflow-wrap: anywhere; }
nav { font-size: .9rem; line-height: 1.4; }
nav strong { display: block; margin-bottom: 8px; color: var(--soft); font-weight: 600; font-size: .78rem;
  letter-spacing: .06em; text-transform: uppercase; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav li { margin: 0 0 7px; }
nav li.level3 { padding-left: 14px; }
nav a { color: var(--ink); text-decoration: none; }
nav a:hover, nav a:focus { color: var(--accent); text-decoration: underline; }
figure { margin: 26px 0 34px; }
figcaption { font-size: .92rem; color: var(--ink); margin: 0 0 6px; max-width: 90ch; }
figcaption b { font-weight: 650; }
.plot { width: 100%; }
/* A table wider than the page has a shadow at the side where it goes on. */
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px;
  background: linear-gradient(to right, var(--paper) 30%, transparent) 0 0 / 40px 100%,
    linear-gradient(to left, var(--paper) 30%, transparent) 100% 0 / 40px 100%,
    linear-gradient(to right, rgba(31,36,48,.28), transparent) 0 0 / 14px 100%,
    linear-gradient(to left, rgba(31,36,48,.28), transparent) 100% 0 / 14px 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
.moving { max-width: 100%; height: auto; image-rendering: pixelated; display: block; }
dl { max-width: 90ch; margin: 0 0 14px; }
dt { font-weight: 650; margin-top: 8px; }
dd { margin: 0; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.35; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: rgba(91, 98, 114, .08); font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; }
td.number, td.short { white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.more { font-size: .84rem; color: var(--soft); margin: 6px 0 0; }
@media (min-width: 1080px) {
  .columns { display: grid; grid-template-columns: 220px minmax(0, 1fr); gap: 44px; }
  nav { position: sticky; top: 24px; align-self: start; max-height: calc(100vh - 48px); overflow-y: auto; }
}
@media (max-width: 1079px) { nav { border-bottom: 1px solid var(--line); padding-bottom: 12px; margin-bottom: 28px; } }
@media print { nav { display: none; } .scroll { overflow: visible; }
  figure { break-inside: avoid; } }
"""


def render(
    sections: Sequence[Section],
    *,
    title: str,
    subtitle: str = "",
    run: Mapping[str, str] | None = None,
    files: Sequence[str] | None = None,
) -> str:
    """The report's HTML as a string: `sections` in order, with a table of contents, numbered figures, and the meanings
    of the special words that they use.

    `files`: of every table in its order, where all its rows are; by default where `write` puts a report of sections.
    """
    anchors = unique([slug(section.title) for section in sections])
    contents, body, scripts = [], [], False
    shown: set[str] = set()
    names = iter(add_tables(sections, {}) if files is None else files)
    figures = tables = 0
    for section, anchor in zip(sections, anchors, strict=True):
        contents.append(f'<li class="level{section.level}"><a href="#{anchor}">{inline(section.title)}</a></li>')
        body.append(f'<section id="{anchor}"><h{section.level}>{inline(section.title)}</h{section.level}>')
        body.append(paragraphs(section.text))
        for caption, address in section.moving.items():
            if address not in shown:  # a chapter may come back to a clip that the page began with
                figures += 1
                shown.add(address)
                body.append(_moving(address, caption, figures))
        for caption, figure in section.figures.items():
            figures += 1
            scripts = True
            body.append(_figure(figure, caption, figures))
        for caption, table in section.tables.items():
            tables += 1
            body.append(_table(table, caption or f"{section.title}: all numbers", tables, next(names)))
        body.append("</section>")
    if words := glossary.used(_texts(sections)):
        contents.append('<li class="level2"><a href="#words-used-here">Words used here</a></li>')
        meanings = "".join(f"<dt>{inline(word)}</dt><dd>{inline(meaning)}</dd>" for word, meaning in words.items())
        body.append(f'<section id="words-used-here"><h2>Words used here</h2><dl>{meanings}</dl></section>')
    # get_plotlyjs() holds no closing script tag; a figure's own JSON is escaped by plotly.
    library = f"<script>{get_plotlyjs()}</script>" if scripts else ""
    run = run or {}
    facts = [inline(subtitle), f"vdinterp {version('vdinterp')}", html.escape(run.get("date", ""))]
    facts.append(f"<code>{html.escape(run['command'])}</code>" if run.get("command") else "")
    under = " &middot; ".join(fact for fact in facts if fact)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n{library}\n</head>\n<body>\n"
        f'<div class="page">\n<header><h1>{inline(title)}</h1><p>{under}</p></header>\n<div class="columns">\n'
        f'<nav aria-label="Contents"><strong>Contents</strong><ol>{"".join(contents)}</ol></nav>\n'
        f"<main>{''.join(body)}</main>\n</div>\n</div>\n</body>\n</html>\n"
    )


def _texts(sections: Sequence[Section]) -> str:
    """Everything that a reader of these sections reads, to look for words."""
    parts = []
    for section in sections:
        parts += [section.title, section.text, *section.moving, *section.figures]
        for figure in section.figures.values():
            parts += _words_of(figure)
        for caption, table in section.tables.items():
            parts += [caption, *map(str, table.columns)]
    return "\n".join(parts)


def _words_of(figure: go.Figure) -> list[str]:
    """Titles, axes, colour bars and legend of a figure."""
    layout: Any = figure.layout
    found = [layout.title.text, layout.xaxis.title.text, layout.yaxis.title.text]
    for trace in figure.data:
        bar = getattr(trace, "colorbar", None)
        found += [getattr(trace, "name", None), None if bar is None else bar.title.text]
    return [text.replace("<br>", " ") for text in found if text]


def _moving(address: str, caption: str, number: int) -> str:
    label = f"<figcaption><b>Figure {number}.</b> {inline(caption)} (it plays again and again)</figcaption>"
    return f'<figure>{label}<img class="moving" src="{html.escape(address)}" alt="{html.escape(caption)}"></figure>'


def _figure(figure: go.Figure, caption: str, number: int) -> str:
    figure = go.Figure(figure)
    layout: Any = figure.layout
    # The page says the title above the figure, where it wraps with the window and the mode bar cannot cover it.
    shown_title = (layout.title.text or "").replace("<br>", " ")
    figure.update_layout(title_text="", margin_t=max(36, (layout.margin.t or 60) - 36))
    both = bool(caption) and not caption.startswith(shown_title) and bool(shown_title)
    heading = f"Figure {number}. {inline(shown_title)}" if both else f"Figure {number}."
    caption = caption or shown_title
    figure.update_layout(autosize=True, width=None)
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config=CONFIG,
        div_id=f"figure-{number}",
        default_height=f"{layout.height or 450}px",
    )
    label = f"<figcaption><b>{heading}</b> {inline(caption)}</figcaption>"
    return f'<figure>{label}<div class="plot" role="img" aria-label="{html.escape(caption)}">{drawn}</div></figure>'


def _table(table: pd.DataFrame, caption: str, number: int, file: str) -> str:
    if len(table):
        table = table.dropna(axis="columns", how="all")  # what does not apply to these clips or this model
    shown = table if len(table) <= MOST_ROWS else table.head(FIRST_ROWS)
    kinds = [_kind(shown[column]) for column in table.columns]
    head = "".join(
        f'<th class="{kind}">{html.escape(str(column))}</th>' for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = []
    for row in shown.itertuples(index=False, name=None):
        cells = "".join(
            f'<td class="{kind}">{html.escape(_cell(value))}</td>' for value, kind in zip(row, kinds, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    notes = []
    if len(table) > len(shown):
        notes.append(f'The first {len(shown)} of {len(table):,} rows; all are in <a href="{file}">{file}</a>.')
    if len(table.columns) >= MANY_COLUMNS:
        notes.append("Where it has a shadow at the side, the table goes on: scroll sideways.")
    more = f'<p class="more">{" ".join(notes)}</p>' if notes else ""
    return (
        f'<figure><figcaption><b>Table {number}.</b> {inline(caption)}</figcaption><div class="scroll" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{more}</figure>"
    )


def _kind(column: pd.Series) -> str:
    """CSS class of a column: numbers align right, short texts stay on one line, long ones wrap."""
    if is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype):
        return "number"
    return "short" if column.map(_cell).str.len().max() <= LONGEST_LINE else "text"


def _cell(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (float, np.floating)):
        short = f"{float(value):.12g}"  # 0.95: a setting, which has no more digits than it shows
        return short if len(short) <= 4 and "e" not in short else wording.number(float(value))
    return str(value)
