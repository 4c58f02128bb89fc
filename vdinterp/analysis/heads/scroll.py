"""Scroll heads: heads that look where an action says the picture comes from; and whether they ask the action or the
outcome."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from vdinterp.analysis.heads.tables import mass_map
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.results import Result, rows_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

PLACES = {
    "moved, implied": "after a move: the cell it came from",
    "moved, opposite": "after a move: the opposite cell",
    "moved, same cell": "after a move: the own cell",
    "blocked, implied": "move blocked: where the action points",
    "blocked, same cell": "move blocked: the own cell",
    "stayed, same cell": "no move: the own cell",
}
FOLLOWS = {
    "action": "it follows the **action**",
    "outcome": "it follows the **outcome**",
    "unclear": "which of the two it follows is **unclear**",
    "scroll": "it follows the **scroll**; no move was blocked, so action and outcome are one",
}
SCROLLS = 0.3  # mass on the implied cell after a move that makes a scroll head
CLEARLY = 3.0  # times as much as on the opposite cell


@dataclass(frozen=True, kw_only=True, eq=False)
class ScrollHeads(Result):
    """`table`, one row a head and noise level: `level layer head follows`, and for every place its mass (`value`), with
    the ends of a 95 % bootstrap interval over clips (`.. low`, `.. high`)."""

    title = "Heads that follow the scroll"
    table: pd.DataFrame

    def plot(self) -> dict[str, go.Figure]:
        """At every noise level, the mass of every head on each place."""
        figures = {}
        for level in self.table["level"].unique():
            rows = rows_of(self.table, level=level)
            title = f"Attention of the last frame's cells to the frame before, noise level {level:g}"
            shown = [place for place in PLACES if rows[place].notna().any()]
            named = {place: "<br>".join(wrap(PLACES[place], 18)) for place in shown}
            figures[title] = mass_map(rows, named, title=title, x_title="where, one frame back")
        return figures

    def summary(self) -> str:
        """The scroll heads of every level, and what they follow."""
        lines = []
        for level in self.table["level"].unique():
            for _, row in rows_of(self.table, level=level).iterrows():
                if row["follows"] == "nothing":
                    continue
                line = (
                    f"- noise level {level:g}, head {row['layer']}.{row['head']}: {row['moved, implied']:.2f} on the "
                    f"cell the picture came from ({row['moved, opposite']:.3f} on the opposite one); "
                )
                if row["follows"] != "scroll":
                    line += (
                        f"when the move is blocked, {row['blocked, implied']:.2f} where the action points and "
                        f"{row['blocked, same cell']:.2f} on its own cell: "
                    )
                lines.append(f"{line}{FOLLOWS[row['follows']]}.")
        return "\n".join(lines) or "No head follows the scroll."


@on_noised_clips
def scroll_heads(
    noised: NoisedClips, implied: Int[torch.Tensor, "clip 2"], actual: Int[torch.Tensor, "clip 2"]
) -> ScrollHeads:
    """How much of each head's attention, from the last frame, goes one frame back to the cell the action implies.

    `implied`: where the last action leads, `actual`: where it did lead, (row, col) in cells; they differ where a move
    was blocked. Mass: mean over the last frame's cells of A at displacement (-1, row, col), over the cells for which
    that key is in the picture. Range 0 to 1. Chance: one over the number of tokens. A head is a scroll head with a mass
    of at least 0.3 on the implied cell after a move, at least three times that on the opposite cell; it follows the
    `action` if blocked moves leave it there, the `outcome` if it then looks at its own cell ("unclear" if neither has
    twice the other). Misleads: a head can look where the picture came from because it recognises the content there; the
    opposite cell and blocked moves are the controls for that, and only an intervention says whether the model needs the
    head.

    Raises ValueError for displacements of another shape, or if no clip moved.
    """
    for name, given in (("implied", implied), ("actual", actual)):
        if given.shape != (len(noised.clips), 2) or given.is_floating_point():
            raise ValueError(f"{name} must be integers {[len(noised.clips), 2]} (clip, (row, col)), got {given.shape}")
    reach = int(implied.abs().max())
    if noised.n_frames < 2 or reach >= min(noised.grid.shape[1:]):
        raise ValueError(
            f"a scroll needs two frames and steps smaller than the picture, got {noised.n_frames} frames and steps up "
            f"to {reach} in {noised.grid.n_rows} x {noised.grid.n_cols} cells"
        )
    goes = (implied != 0).any(1)
    moved, blocked = goes & (actual == implied).all(1), goes & (actual == 0).all(1)
    if not moved.any():
        raise ValueError("no clip moved as its last action says: there is no scroll to follow")
    zero = torch.zeros_like(implied)
    wanted: dict[str, tuple[Bool[torch.Tensor, " clip"], torch.Tensor]] = {
        "moved, implied": (moved, implied),
        "moved, opposite": (moved, -implied),
        "moved, same cell": (moved, zero),
        "blocked, implied": (blocked, implied),
        "blocked, same cell": (blocked, zero),
        "stayed, same cell": (~goes, zero),
    }
    rows = []
    for level in noised.levels:
        kernels = torch.cat(
            [
                torch.stack([p.displacement_kernel((1, reach, reach), [noised.n_frames - 1]) for p in layers], 1).cpu()
                for layers in noised.patterns(level)
            ]
        )[:, :, :, 0]  # one frame back: clip layer head row col
        found = {name: _at(kernels[clips], shift[clips]) for name, (clips, shift) in wanted.items() if clips.any()}
        for layer in range(kernels.shape[1]):
            for head in range(kernels.shape[2]):
                row: dict[str, object] = {"level": level, "layer": layer, "head": head}
                values: dict[str, float] = {}
                for name in PLACES:
                    part = found[name][:, layer, head] if name in found else torch.full((1,), torch.nan)
                    interval = bootstrap_mean(part)
                    values[name] = float(interval.value)
                    row |= {
                        name: values[name],
                        f"{name} low": float(interval.low),
                        f"{name} high": float(interval.high),
                    }
                rows.append({**row, "follows": _follows(values)})
    meta = noised.meta(moved=int(moved.sum()), blocked=int(blocked.sum()), stayed=int((~goes).sum()))
    return ScrollHeads(table=pd.DataFrame(rows), meta=meta)


def _at(
    kernels: Float[torch.Tensor, "clip layer head row col"], shift: Int[torch.Tensor, "clip 2"]
) -> Float[torch.Tensor, "clip layer head"]:
    """Each clip's kernel at its own displacement."""
    rows, cols = kernels.shape[3] // 2, kernels.shape[4] // 2
    return kernels[torch.arange(len(kernels)), :, :, rows + shift[:, 0], cols + shift[:, 1]]


def _follows(mass: dict[str, float]) -> str:
    if mass["moved, implied"] < SCROLLS or mass["moved, implied"] < CLEARLY * mass["moved, opposite"]:
        return "nothing"
    action, outcome = mass["blocked, implied"], mass["blocked, same cell"]
    if action != action:  # no blocked clip
        return "scroll"
    return "action" if action > 2 * outcome else "outcome" if outcome > 2 * action else "unclear"
