"""Composition of all pairs of heads, from weights, as a table and as sender x receiver matrices."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.analysis.circuits.pairs import check_part, compose
from vdinterp.analysis.circuits.weights import FoldedWeights, Part, check_head, unseen
from vdinterp.models import HookedVideoDiT
from vdinterp.models.weights import undetermined
from vdinterp.progress import bar
from vdinterp.results import Result, rows_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

log = logging.getLogger("vdinterp")

Head = tuple[int, int]
NAMES = {"q": "Q-composition", "k": "K-composition", "v": "V-composition"}
ANY = "any"  # the displacement of V-composition, which knows none


@dataclass(frozen=True, kw_only=True, eq=False)
class CompositionScores(Result):
    """Composition of pairs of heads; see `composition`.

    `table`, one row a pair, part and displacement, senders and receivers in order: `part displacement sender receiver
    score baseline beyond z`. Heads are written "layer.head", displacements "(frames, rows, cols)", "any" for part "v".
    """

    title = "Composition of heads"
    table: pd.DataFrame

    def values(self, part: Part, displacement: tuple[int, int, int] | None = None) -> pd.DataFrame:
        """`beyond` of one part, senders down and receivers across; NaN for pairs that were not asked for.

        `displacement`: default the first. Raises KeyError for what is not there.
        """
        known = list(dict.fromkeys(rows_of(self.table, part=part)["displacement"]))
        wanted = (known or [""])[0] if displacement is None or part == "v" else _written(displacement)
        if wanted not in known:
            there = ", ".join(f"{part} at {place}" for part, place in self._figures())
            raise KeyError(f"no part {part!r} at {displacement}: there are {there}")
        rows = rows_of(self.table, part=part, displacement=wanted)
        wide = rows.pivot(index="sender", columns="receiver", values="beyond")
        return wide.reindex(index=_in_order(rows["sender"]), columns=_in_order(rows["receiver"]))

    def plot(self) -> dict[str, go.Figure]:
        """A matrix of senders (down) and receivers (across) for every part and displacement."""
        figures = {}
        for part, place in self._figures():
            wide = self.values(part, None if place == ANY else _read(place))
            where = "" if place == ANY else f", keys {place} (frames, rows, columns) from the query"
            title = f"{NAMES[part]} beyond chance{where}"
            if np.isfinite(wide.to_numpy()).any():
                figures[title] = plotting.heatmap(
                    wide.to_numpy(),
                    x=list(wide.columns),
                    y=list(wide.index),
                    title=title,
                    x_title="receiver",
                    y_title="sender",
                    value_title="score minus chance",
                    diverging=True,
                    number_format=".2f",
                )
        return figures

    def summary(self) -> str:
        """The pairs that compose most, part by part."""
        lines = []
        for part in dict.fromkeys(self.table["part"]):
            top = rows_of(self.table, part=part).nlargest(3, "beyond")
            named = [
                f"{row.sender} → {row.receiver}"
                + (f" at {row.displacement}" if row.displacement != ANY else "")
                + f" ({row.score:.2f}, z {row.z:.0f})"
                for row in top.itertuples()
            ]
            lines.append(f"- **{NAMES[part]}** (chance {self.table['baseline'].iloc[0]:.2f}): {'; '.join(named)}.")
        return "Strongest pairs (score, standard deviations above random rotations):\n\n" + "\n".join(lines)

    def _figures(self) -> list[tuple[Part, str]]:
        pairs: Any = self.table[["part", "displacement"]].drop_duplicates()
        return [(row["part"], row["displacement"]) for row in pairs.to_dict("records")]


def composition(
    model: HookedVideoDiT,
    noise_level: Any,
    query_level: Any = None,
    *,
    displacements: Sequence[tuple[int, int, int]] = ((0, 0, 0),),
    parts: Sequence[Part] | None = None,
    pairs: Sequence[tuple[Head, Head]] | None = None,
) -> CompositionScores:
    """Q-, K- and V-composition of all pairs of heads, or of some, at some displacements.

    >>> vd.circuits.composition(model, 0, query_level=0.9, displacements=[(-3, 0, 0)]).values("k")

    Formula, range, chance and when it misleads: `vd.circuits.composition`, which gives the same numbers for one
    pair. A pair whose receiver sees no key at a displacement (attention over space and another frame) has no row there.

    Args:
        noise_level: of the key's frame, a share in [0, 1]; `query_level`: of the query's, default the same.
        displacements: key minus query, (frames, rows, cols).
        parts: some of "q", "k", "v"; default all that the weights determine, which with qk-norm is "v" alone (a warning
            is logged).
        pairs: `((layer, head) of the sender, (layer, head) of the receiver)`; default all that come in order.

    Raises ValueError before any compute for parts that the weights do not determine (with qk-norm: "q" and "k"), heads
    or displacements that do not exist, senders that do not come before their receiver.
    """
    folded = FoldedWeights(model, noise_level, query_level)
    cfg = model.cfg
    if parts is None:
        reason = undetermined(model)
        parts = ("v",) if reason else ("q", "k", "v")
        if reason:
            log.warning("%s: %s; this is V-composition alone", cfg.model_name, reason)
    if not isinstance(parts, Sequence) or not len(parts):
        raise ValueError(f"parts={parts!r}: give some of 'q', 'k', 'v'")
    for part in parts:
        check_part(model, part)
    places: list[Any] = [tuple(displacement) for displacement in displacements]
    asked = _pairs(model, pairs)
    if not asked or not parts or not places:
        raise ValueError(f"nothing to compute: {len(asked)} pairs, parts {list(parts)}, displacements {places}")
    seen = {stop: [place for place in places if not unseen(model, stop, place)] for stop in range(cfg.n_layers)}
    for place in places:
        if set(parts) & {"q", "k"} and not any(place in seen[receiver[0]] for _, receiver in asked):
            reason = unseen(model, asked[0][1][0], place)
            raise ValueError(f"no receiver sees a key {place} (frames, rows, cols) from its query: {reason}")
    rows = []
    layers = sorted({(sender[0], receiver[0]) for sender, receiver in asked})
    for start, stop in bar(layers, desc="composition", leave=False):
        chosen = [(s[1], r[1]) for s, r in asked if (s[0], r[0]) == (start, stop)]
        for part in parts:
            at = seen[stop] if part != "v" else places[:1]
            if at:
                names = [ANY] if part == "v" else [_written(place) for place in at]
                rows.append(_rows(compose(folded, start, stop, part, at), (start, stop), chosen, part, names))
    table = pd.concat(rows, ignore_index=True)
    order = table.assign(at=[parts.index(part) for part in table["part"]]).sort_values("at", kind="stable").index
    return CompositionScores(table=table.loc[order].reset_index(drop=True), meta=folded.meta)


def _rows(
    found: Any, layers: tuple[int, int], heads: Sequence[tuple[int, int]], part: str, names: Sequence[str]
) -> pd.DataFrame:
    """Rows of the chosen pairs of two layers, for one part."""
    senders, receivers = torch.tensor(heads).T
    score, z = (values[:, senders, receivers].flatten().numpy() for values in (found.score, found.z))
    return pd.DataFrame(
        {
            "part": part,
            "displacement": np.repeat(np.array(names, dtype=object), len(heads)),
            "sender": [f"{layers[0]}.{head}" for head, _ in heads] * len(names),
            "receiver": [f"{layers[1]}.{head}" for _, head in heads] * len(names),
            "score": score,
            "baseline": found.baseline,
            "beyond": score - found.baseline,
            "z": z,
        }
    )


def _pairs(model: HookedVideoDiT, pairs: Sequence[tuple[Head, Head]] | None) -> list[tuple[Head, Head]]:
    """The pairs asked for, checked; None: all of which the sender writes before the receiver reads."""
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    if pairs is None:
        return [(sender, receiver) for sender in heads for receiver in heads if sender[0] < receiver[0]]
    for sender, receiver in pairs:
        for head in (sender, receiver):
            check_head(model, *head)
        if sender[0] >= receiver[0]:
            raise ValueError(f"head {sender} does not write before {receiver} reads")
    return list(pairs)


def _written(displacement: Sequence[int]) -> str:
    return f"({', '.join(str(int(step)) for step in displacement)})"


def _read(written: str) -> tuple[int, int, int]:
    frame, row, col = (int(step) for step in written.strip("()").split(","))
    return frame, row, col


def _in_order(names: Any) -> list[str]:
    """Heads layer by layer."""
    return sorted(set(names), key=lambda name: tuple(int(part) for part in name.split(".")))
