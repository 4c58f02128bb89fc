"""AttentionExplorer: click a patch of a clip and see where it attends, in every frame, layer and head."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float
from plotly.colors import get_colorscale

from vdinterp.analysis.stimulus.noised_clips import NoisedClips, check_noised
from vdinterp.explorer.encoding import frame_sheet
from vdinterp.grid import TokenGrid
from vdinterp.models import ActivationCache, AttentionPattern
from vdinterp.plotting._filmstrip import to_rgb
from vdinterp.plotting.attention import COLORSCALE
from vdinterp.plotting.page import written

Direction = Literal["from", "to", "frame"]

if TYPE_CHECKING:
    from vdinterp.explorer.widget import ExplorerWidget

LARGEST_PAGE = 2_000_000  # bytes
LARGEST_WALL = 2_000_000  # probabilities of all heads for one patch
MOST_QUERIES = 32  # of a frame, by which the head that is shown first is chosen
MOST_AT_ONCE = 2**24  # probabilities in memory while a frame's mean is taken
STEPS = 255  # quantisation of what a notebook's front end is sent


class AttentionExplorer:
    """A clip's frames; hovering over a patch or clicking it shows where it looks, or what looks at it.

    Put it last in a notebook's cell. Rows and columns are computed when they are looked at, from the queries and keys;
    neither they nor the frames are saved with the notebook, so that a notebook opened again asks to run the cell.
    Where there is no kernel, `to_html` makes a page that works by itself.

    Args:
        frames: `[frame channel height width]` in [0, 1], 1 or 3 channels, one for each frame of tokens; height and
            width are multiples of the grid's rows and columns.
        patterns: for each pass over the clip, under a name for it ("noise level 0.9"), the self-attention patterns of
            all layers in order.
        clip: which clip of the patterns' batch `frames` are.
        layer, head, query: what is shown first; `query` is (frame, row, col) and stays pinned. Without it the middle
            of the last frame, and of the layers and heads that are left open the one whose queries in that frame give
            the most to a single patch of another frame.

    Raises ValueError for patterns that are not of one model and grid, for cross-attention, and for frames that do not
    fit the grid.
    """

    def __init__(
        self,
        frames: Any,
        patterns: Mapping[str, Sequence[AttentionPattern]],
        *,
        clip: int = 0,
        layer: int | None = None,
        head: int | None = None,
        query: tuple[int, int, int] | None = None,
    ) -> None:
        self.patterns = {str(name): list(layers) for name, layers in patterns.items()}
        _check_patterns(self.patterns)
        first = next(iter(self.patterns.values()))
        self.grid: TokenGrid = first[0].grid
        self.n_layers, self.n_heads = len(first), first[0].n_heads
        self._asked = (
            None if layer is None else _index("layer", layer, self.n_layers),
            None if head is None else _index("head", head, self.n_heads),
        )
        self.pinned = query is not None
        middle = (-1, self.grid.n_rows // 2, self.grid.n_cols // 2)
        if query is not None and len(query) != 3:
            raise ValueError(f"query={query}: three numbers are needed, (frame, row, col).")
        self.token = self.grid.index(*(middle if query is None else query))
        for name, layers in self.patterns.items():
            at = [_index("clip", clip, len(pattern.q)) for pattern in layers]
            self.patterns[name] = [pattern.clips(slice(i, i + 1)) for i, pattern in zip(at, layers, strict=True)]
        self.axes = [pattern.axis for pattern in first]
        self.pixels = to_rgb(frames.detach().cpu().float() if isinstance(frames, torch.Tensor) else frames, "frames")
        n_frames, height, width = self.pixels.shape[:3]
        if n_frames != self.grid.n_frames or height % self.grid.n_rows or width % self.grid.n_cols:
            raise ValueError(
                f"{n_frames} frames of {height} x {width} pixels do not fit the token grid {self.grid.shape} (frames, "
                "rows, columns): one frame for each frame of tokens, height and width multiples of rows and columns."
            )

    @classmethod
    def from_caches(
        cls,
        frames: Any,
        caches: Mapping[str, ActivationCache],
        clip: int = 0,
        *,
        layer: int | None = None,
        head: int | None = None,
        query: tuple[int, int, int] | None = None,
    ) -> AttentionExplorer:
        """The explorer of passes that were cached with `rot_q` and `rot_k` of every layer, under a name for each.

        Raises KeyError when a layer's were not cached; otherwise as the class.
        """
        patterns = {name: [cache["pattern", at] for at in range(cache.n_layers)] for name, cache in caches.items()}
        return cls(frames, patterns, clip=clip, layer=layer, head=head, query=query)

    @classmethod
    def of(
        cls,
        noised: NoisedClips,
        clip: int = 0,
        *,
        layer: int | None = None,
        head: int | None = None,
        query: tuple[int, int, int] | None = None,
    ) -> AttentionExplorer:
        """The explorer of one of some noised clips, a pass for each of their noise levels. Shows the clean frames.

        Raises ValueError when there is no such clip; otherwise as the class.
        """
        check_noised(noised)
        clip = _index("clip", clip, len(noised.clips))
        names, frames = ["rot_q", "rot_k"], noised.pictures[clip]
        caches = {
            f"noise level {level:g}": noised.cache(level, names, slice(clip, clip + 1)) for level in noised.levels
        }
        return cls.from_caches(frames, caches, layer=layer, head=head, query=query)

    def __repr__(self) -> str:
        n_frames, n_rows, n_cols = self.grid.shape
        return (
            f"AttentionExplorer({n_frames} frames of {n_rows} x {n_cols} patches, {self.n_layers} layers x "
            f"{self.n_heads} heads, {self.n_passes})"
        )

    @property
    def n_passes(self) -> str:
        """How many passes there are, in words."""
        return f"{len(self.patterns)} pass{'es' if len(self.patterns) > 1 else ''}"

    @property
    def layer(self) -> int:
        """The layer that is shown first."""
        return self._first[0]

    @property
    def head(self) -> int:
        """The head that is shown first."""
        return self._first[1]

    @cached_property
    @torch.no_grad()
    def _first(self) -> tuple[int, int]:
        """Layer and head: as asked for, else of those that are open the one that looks elsewhere most sharply."""
        layers, heads = (
            [one] if one is not None else list(range(n))
            for one, n in zip(self._asked, (self.n_layers, self.n_heads), strict=True)
        )
        if len(layers) == len(heads) == 1:
            return layers[0], heads[0]
        frame = self.grid.coordinates(self.token)[0]
        own = self.grid.frame_of() == frame
        queries = own.nonzero()[:, 0]
        queries = queries[:: max(1, len(queries) // MOST_QUERIES)].tolist()
        sharp = torch.zeros(len(layers), len(heads))
        for index, layer in enumerate(layers):
            for pattern in (passes[layer].heads(heads) for passes in self.patterns.values()):
                elsewhere = pattern.rows(queries)[0].masked_fill(own.to(pattern.q.device), 0)
                sharp[index] += elsewhere.amax(-1).mean(-1).cpu()
        layer, head = np.unravel_index(int(sharp.argmax()), sharp.shape)
        return layers[int(layer)], heads[int(head)]

    @torch.no_grad()
    def values(
        self, name: str, layer: int, head: int, token: int, direction: Direction = "from"
    ) -> Float[np.ndarray, " pos"]:
        """What is drawn: the probabilities that query `token` gives every key, ("to") every query gives it, or
        ("frame") the queries of its frame give on average."""
        return self._of_heads(self.patterns[name][layer].heads([head]), token, direction)[0]

    @torch.no_grad()
    def wall(self, name: str, token: int, direction: Direction = "from") -> Float[np.ndarray, "layer head pos"]:
        """`values` of every layer and head."""
        return np.stack([self._of_heads(pattern, token, direction) for pattern in self.patterns[name]])

    def _of_heads(self, pattern: AttentionPattern, token: int, direction: Direction) -> Float[np.ndarray, "head pos"]:
        if direction == "to":
            return pattern.columns([token])[0, :, :, 0].float().cpu().numpy()
        queries = torch.tensor([token])
        if direction == "frame":
            queries = (self.grid.frame_of() == self.grid.coordinates(token)[0]).nonzero()[:, 0]
        at_once = max(1, MOST_AT_ONCE // (pattern.n_heads * pattern.n_keys))
        parts = [pattern.rows(part.tolist())[0].float().sum(1) for part in queries.split(at_once)]
        return (torch.stack(parts).sum(0) / len(queries)).cpu().numpy()

    @cached_property
    def sheet(self) -> tuple[bytes, int]:
        """All frames as one picture, and how many of them stand in a row."""
        return frame_sheet(self.pixels)

    def info(self, layers: Sequence[int], heads: Sequence[int], levels: int, rounding: str) -> dict[str, Any]:
        """What the front end needs to know before it draws: sizes, choices, colours, and what to show first."""
        several_axes = len(set(self.axes)) > 1
        return {
            "grid": self.grid.shape,
            "size": self.pixels.shape[1:3],
            "sheet": self.sheet[1],
            "passes": list(self.patterns),
            "layers": [(layer, f"{layer} ({self.axes[layer]})" if several_axes else str(layer)) for layer in layers],
            "heads": list(heads),
            "levels": levels,
            "wall": len(layers) * len(heads) * self.grid.n_tokens <= LARGEST_WALL,
            "rounding": f"Values are rounded to steps of 1/{levels} of the largest in their {rounding}.",
            "colors": [color for _, color in get_colorscale(COLORSCALE)],
            "start": {
                "layer": self.layer if self.layer in layers else layers[0],
                "head": self.head if self.head in heads else heads[0],
                "token": self.token,
                "pinned": self.pinned,
            },
        }

    @cached_property
    def widget(self) -> ExplorerWidget:
        """The anywidget that a notebook shows, made on first use. Needs the `notebook` extra (anywidget)."""
        from vdinterp.explorer.widget import ExplorerWidget

        return ExplorerWidget(self)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget and one line of text; a front end without widgets, as on GitHub, shows the line.

        Without anywidget it is the whole page in a frame, up to 2 MB of the notebook. The page never lies beside the
        widget, where it would grow every notebook unasked.
        """
        if importlib.util.find_spec("anywidget") is None:
            from vdinterp.explorer.page import framed

            return {"text/plain": repr(self), "text/html": framed(self.to_html())}, {}
        bundle, metadata = self.widget._repr_mimebundle_() or ({}, {})
        hint = f"{self!r}: run the cell to explore; to_html(path) makes a page to keep."
        return {**bundle, "text/plain": hint}, metadata

    @overload
    def to_html(
        self, *, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None, max_bytes: int = LARGEST_PAGE
    ) -> str: ...

    @overload
    def to_html(
        self,
        path: str | Path,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        max_bytes: int = LARGEST_PAGE,
    ) -> Path: ...

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        max_bytes: int = LARGEST_PAGE,
    ) -> str | Path:
        """A page with everything inside that works offline: returned as a string, or written and its path returned.

        `layers` and `heads` leave out the others. Probabilities are rounded to 255 steps of their row's largest, or to
        127, 63 or 31 where only that fits into `max_bytes`; the page says how many.

        Raises ValueError, with the size it would have, when even 31 steps do not fit.
        """
        from vdinterp.explorer.page import render

        chosen_layers = _chosen("layer", layers, self.n_layers)
        page = render(self, chosen_layers, _chosen("head", heads, self.n_heads), max_bytes)
        return written(page, path)


def _check_patterns(patterns: Mapping[str, Sequence[Any]]) -> None:
    """Raise ValueError unless these are self-attention patterns of one grid, and alike in every pass."""
    if not patterns or not all(patterns.values()):
        raise ValueError("No attention to explore: give the patterns of every layer, for at least one named pass.")
    for name, layers in patterns.items():
        for layer, pattern in enumerate(layers):
            if not isinstance(pattern, AttentionPattern):
                raise ValueError(
                    f"Layer {layer} of pass {name!r} is {type(pattern).__name__}, not an AttentionPattern; a cache "
                    'gives one as cache["pattern", layer] when it recorded rot_q and rot_k, but not pattern itself.'
                )
            if pattern.n_text and not pattern.cross:
                raise ValueError(f"Layer {layer} of pass {name!r} attends to text as well, which lies in no frame.")
            if pattern.cross:
                raise ValueError(
                    f"Layer {layer} of pass {name!r} is cross-attention: its keys are text, which lies in no frame. "
                    "Give self-attention patterns."
                )
    kinds = {
        name: [(pattern.grid.shape, pattern.n_heads, pattern.axis) for pattern in layers]
        for name, layers in patterns.items()
    }
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise ValueError(f"Passes {first!r} and {name!r} differ in layers, grid, heads or axis: show one model's.")
    if len({(grid, n_heads) for grid, n_heads, _ in kinds[first]}) > 1:
        raise ValueError("The layers' patterns differ in their grid or number of heads: leave out those that do.")


def _index(what: str, given: int, size: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not -size <= given < size:
        raise ValueError(f"No {what} {given!r}: there are {size}, so 0..{size - 1} or negative.")
    return given % size


def _chosen(what: str, given: Sequence[int] | None, size: int) -> list[int]:
    if given is not None and not len(given):
        raise ValueError(f"No {what} was chosen; leave {what}s=None for all {size}.")
    return list(range(size)) if given is None else sorted({_index(what, one, size) for one in given})
