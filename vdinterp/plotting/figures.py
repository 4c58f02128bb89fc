"""Figures by caption, as every `plot()` returns them: a dict that shows itself in a notebook."""

from __future__ import annotations

import html
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

PICTURE_WIDTH = 980  # pixels of a static picture: what a figure gets in a report
PICTURE_SCALE = 1.5
STATIC = "plotly_mimetype+png"  # no HTML: places that run no scripts would take it, and show an empty box
_interactive: str | None = None  # the renderer before `static`


class Figures(dict[str, "go.Figure"]):
    """Figures by caption, in order. A position does as well: `figures[0]`, `figures[-1]`; a slice, and
    `about(words)`, give `Figures`.

    As the last line of a notebook's cell they are shown, each as plotly shows a figure there; so does `show()`,
    anywhere. For places that run no scripts (GitHub, a printed page) see `vdinterp.plotting.static`.
    """

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return Figures(list(self.items())[key])
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"there is no figure {key}; there are {len(self)}, so 0..{len(self) - 1} or negative")
            return list(self.values())[key]
        return super().__getitem__(key)

    def __missing__(self, caption: Any) -> Any:
        raise KeyError(f"no figure has the caption {caption!r}; there are {list(self)}")

    def __or__(self, other: Any) -> Figures:
        return Figures({**self, **other})

    def __repr__(self) -> str:
        return f"Figures({', '.join(map(repr, self))})"

    def about(self, *words: str) -> Figures:
        """Those with one of these words (or parts of sentences) in the caption. KeyError if there are none."""
        wanted = [word.casefold() for word in words]
        found = [item for item in self.items() if any(word in item[0].casefold() for word in wanted)]
        if not found:
            raise KeyError(f"no caption has {' or '.join(map(repr, words))} in it; there are {list(self)}")
        return Figures(found)

    def show(self) -> None:
        """Show every figure: in the notebook, or in a browser."""
        for figure in self.values():
            figure.show()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        for caption, figure in self.items():
            said = title_of(figure)
            if caption and caption != said:
                display({"text/html": f"<p>{html.escape(caption)}</p>", "text/plain": caption}, raw=True)
            display({"text/plain": f"[figure: {said or caption}]", **(figure._repr_mimebundle_() or {})}, raw=True)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """All in one, for what takes only one bundle: with one figure its own, with several their HTML."""
        bundles = [figure._repr_mimebundle_() or {} for figure in self.values()]
        merged: dict[str, Any] = dict(bundles[0]) if len(bundles) == 1 else {}
        pages = [bundle["text/html"] for bundle in bundles if "text/html" in bundle]
        return {**merged, **({"text/html": "\n".join(pages)} if pages else {}), "text/plain": repr(self)}


def title_of(figure: go.Figure) -> str:
    """The title that is drawn in a figure, in one line."""
    layout: Any = figure.layout
    return (layout.title.text or "").replace("<br>", " ")


def static(on: bool = True) -> None:
    """Whether notebooks get a picture of every figure beside the interactive one, from here on.

    A picture shows where no scripts run: on GitHub, in a converted page, in print. It takes a third of a second (the
    first one five) and needs the extra `export` and a Chrome or Chromium. Raises ValueError without the extra.
    """
    import plotly.io as pio

    global _interactive
    if on and importlib.util.find_spec("kaleido") is None:
        raise ValueError("static pictures of figures need kaleido: pip install 'vdinterp[export]', and a Chrome")
    if not on:
        pio.renderers.default = pio.renderers.default if _interactive is None else _interactive
        return
    import kaleido

    kaleido.start_sync_server(silence_warnings=True)  # one browser for all, not one a picture
    warnings.filterwarnings("ignore", message="The kopts argument is ignored if using a server")  # plotly gives it
    picture: Any = pio.renderers["png"]
    picture.width, picture.scale = PICTURE_WIDTH, PICTURE_SCALE
    if pio.renderers.default != STATIC:
        _interactive, pio.renderers.default = pio.renderers.default, STATIC
