"""Result: base of every frozen result dataclass, and Section, what a report is made of."""

from __future__ import annotations

import functools
import html
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vdinterp import store
from vdinterp.words import markup
from vdinterp.words.wording import caution

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

SHOWN_ROWS, SHOWN_FIGURES = 5, 8  # of a result as the last line of a cell


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of a report: a title, paragraphs of text, captioned figures and tables.

    `text` is plain text: a blank line starts a new paragraph, `backticks` set code, **stars** set bold, and lines
    that start with "- " become a list. Figures and tables are keyed by their captions (captions may be empty only
    when there is one). `moving`: animated pictures by caption, as `data:` addresses (`plotting.moving_clips`). `level`
    2 is a chapter, 3 a subsection.
    """

    title: str
    text: str = ""
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    moving: Mapping[str, str] = field(default_factory=dict)
    level: int = 2

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError("a Section needs a title that is not empty: it is its entry in the table of contents")
        if self.level not in (2, 3):
            raise ValueError(f"Section level is 2 (chapter) or 3 (subsection), got {self.level!r}")
        if outside := [caption for caption, address in self.moving.items() if not address.startswith("data:image/")]:
            raise ValueError(f"{self.title}: moving {outside} is no data:image/ address; make it with moving_clips")


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What an analysis or study hands back: numbers, their table, their figures, and where they came from.

    Subclasses are `@dataclass(frozen=True, kw_only=True, eq=False)` with fields that are tensors, numpy arrays,
    pandas tables, numbers, strings, `None`, other `Result`s, or lists, tuples and string-keyed dicts of these:
    exactly what `save` can write without pickling (tables with plain rows, named columns and cells that are numbers,
    booleans or text). A subclass with a field `table: pd.DataFrame` (tidy: one
    row a measurement) gets `to_frame` and `summary` for nothing; it overrides `plot`, and `sections` for a report
    with more than one chapter. `meta` says how the numbers were made: model, clips, seed, settings.

    As the last line of a notebook's cell, a result shows its finding, its figures and its first rows; so does `show`.
    `plot` gives `vdinterp.plotting.Figures` and `summary` a `words.markup.Text`, which show themselves as well: a
    subclass returns any dict of figures by caption, and any string.
    """

    title: ClassVar[str] = "Result"
    meta: dict[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__repr__ = cls.__repr__  # in the class itself: there @dataclass leaves it, instead of printing all numbers
        for name, kind in _SHOWN.items():
            if callable(vars(cls).get(name)):
                setattr(cls, name, _returning(kind, vars(cls)[name]))

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.meta.items() if _is_scalar(value))
        return f"{type(self).__name__}({self.title!r}{', ' if settings else ''}{settings})"

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a tidy table, one row a measurement. A copy: changing it leaves the result as it is."""
        table = getattr(self, "table", None)
        if not isinstance(table, pd.DataFrame):
            raise TypeError(f"{type(self).__name__} has no field `table`, so it must define to_frame()")
        return table.copy()

    def plot(self) -> dict[str, go.Figure]:
        """Figures by caption (or position). Subclasses hand their own numbers to `vdinterp.plotting`."""
        return _figures({})

    def summary(self) -> str:
        """A few paragraphs of text: settings, number of rows. Subclasses put their finding first."""
        frame = self.to_frame()
        said = caution(self.meta)
        scalars = {key: value for key, value in self.meta.items() if _is_scalar(value) and key != "caution"}
        settings = ", ".join(f"{key} `{value}`" for key, value in scalars.items())
        columns = ", ".join(f"`{column}`" for column in frame.columns)
        parts = (settings, f"{len(frame)} rows with columns {columns}.")
        return markup.Text(said + "\n\n".join(part for part in parts if part))

    def show(self) -> None:
        """Show the finding, the figures and the first rows: in the notebook, or the figures in a browser."""
        if _in_notebook():
            self._ipython_display_()
        else:
            _figures(self.plot()).show()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        figures, (finding, rows) = _figures(self.plot()), self._described()
        display(finding, raw=True)
        display(figures[:SHOWN_FIGURES])
        left = len(figures) - SHOWN_FIGURES
        if left > 0:
            display(markup.Text(f"{left} more figures: `.plot()[{SHOWN_FIGURES}:]`"))
        display(rows, raw=True)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """All in one, for what takes only one bundle."""
        (finding, rows), figures = self._described(), _figures(self.plot())[:SHOWN_FIGURES]
        drawn = figures._repr_mimebundle_().get("text/html", "")
        return {
            "text/plain": f"{finding['text/plain']}\n\n{rows['text/plain']}",
            "text/html": "\n".join([finding["text/html"], drawn, rows["text/html"]]),
        }

    def _described(self) -> tuple[dict[str, str], dict[str, str]]:
        """The finding and the first rows, each as a bundle of plain text, Markdown or HTML."""
        said = markup.Text(self.summary())
        finding = {
            "text/plain": f"{self.title}\n\n{said!s}",
            "text/markdown": f"### {markup.markdown(self.title)}\n\n{markup.markdown(said)}",
            "text/html": f"<h3>{html.escape(self.title)}</h3>{markup.paragraphs(said)}",
        }
        frame = self.to_frame()
        head = frame.head(SHOWN_ROWS)
        text = head.to_string(index=False, float_format="{:.4g}".format, max_cols=12)
        table = head.to_html(index=False, border=0, float_format="{:.4g}".format, max_cols=12)
        more = len(frame) > len(head)
        note = f"The first {len(head)} of {len(frame):,} rows; `.to_frame()` has all." if more else ""
        rows = {
            "text/plain": f"{text}\n{markup.plain(note)}".rstrip(),
            "text/html": f"{table}{markup.paragraphs(note)}",
        }
        return finding, rows

    def sections(self) -> list[Section]:
        """What a report shows of this result: by default one section with the summary, all figures and the table."""
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={"": self.to_frame()})]

    @classmethod
    def compare(cls, results: Sequence[Self]) -> list[Section]:
        """What a report on several results of this class begins with; by default nothing."""
        return []

    def save(self, folder: str | Path) -> Path:
        """Write `result.json`, `result.safetensors` (if there are tensors) and one CSV a table, each table once.

        `table.csv` is `to_frame()`. Nothing is pickled, and nothing says when: the same result gives the same bytes.
        Over an older result, it is that one until the new one is whole (`vdinterp.store`); other files in the folder
        stay. Returns the folder, which is made if need be.

        Raises ValueError for what would not come back as it is, before anything is written; OSError where it cannot
        be written.
        """
        from vdinterp.results import files as result_files

        return result_files.save(self, store.as_path(folder, "folder"))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote, equal to what was saved.

        `Result.load` finds the class by the name in the file if vdinterp defines it; for a class of your own call
        `YourResult.load`. Raises FileNotFoundError for a folder without `result.json`, or without a file that it names;
        ValueError for another class, and for files that are cut short, changed, or of different results.
        """
        from vdinterp.results import files as result_files

        return result_files.load(store.as_path(folder, "folder"), cls)


def _figures(drawn: Mapping[str, go.Figure]) -> Any:
    from vdinterp.plotting import Figures

    return drawn if isinstance(drawn, Figures) else Figures(drawn)


# What subclasses hand to a reader: these methods return what shows itself.
_SHOWN: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("plot", "overview", "figures"), _figures),
    **dict.fromkeys(("summary", "chapter"), markup.Text),
}


def _returning(kind: Callable[[Any], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with what it returns made into a kind that shows itself."""

    @functools.wraps(method)
    def shown(*args: Any, **kwargs: Any) -> Any:
        return kind(method(*args, **kwargs))

    return shown


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; IPython in a terminal shows no pictures."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def rows_of(table: pd.DataFrame, **where: Any) -> Any:
    """The rows of a tidy table whose columns have these values, in their order."""
    chosen = np.ones(len(table), dtype=bool)
    for column, value in where.items():
        chosen &= (table[column] == value).to_numpy()
    return table[chosen]


def slug(text: str) -> str:
    """A file name from a title: lower-case words joined by dashes, never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "untitled"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))
