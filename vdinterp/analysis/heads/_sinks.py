"""Attention sinks: the key that receives most, what it holds, and whether anything depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.analysis.stimulus.cases import changes
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.interventions import MaskAttention
from vdinterp.results import Result
from vdinterp.words.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go

PerKey = Float[torch.Tensor, "layer head key"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sinks(Result):
    """The most attended key of every head.

    `table`, one row a head and noise level: `level layer head key frame row col received value_norm x0_change
    control_change`; the two changes are gaps when they were not asked for.
    """

    title = "Attention sinks"
    table: pd.DataFrame

    def plot(self) -> dict[str, go.Figure]:
        """Layer x head: what the sink receives; and the change of x0 without it and without another key, on one
        colour scale."""
        shown = {
            "received": ("Attention that the most attended key receives", "times that of uniform attention"),
            "x0_change": ("Change of x0 without the most attended key", "x0 change (squared, over variance)"),
            "control_change": ("Change of x0 without a random other key", "x0 change (squared, over variance)"),
        }
        tops = {"received": self.table["received"].max()}
        tops["x0_change"] = tops["control_change"] = self.table[["x0_change", "control_change"]].max(axis=None)
        figures = {}
        for column, (what, unit) in shown.items():
            if self.table[column].isna().all():
                continue
            for level in self.table["level"].unique():
                rows = self.table[self.table["level"] == level]
                values = rows.pivot(index="layer", columns="head", values=column)
                title = f"{what}, noise level {level:g}"
                figures[title] = plotting.layer_head(
                    values.to_numpy(), title=title, value_title=unit, zmin=0.0, zmax=tops[column] or 1.0
                )
        return figures

    def summary(self) -> str:
        """The strongest sinks at the first noise level."""
        first = self.table.loc[self.table["level"] == self.table["level"].iloc[0]]
        lines = []
        for row in first.sort_values("received", ascending=False).head(3).itertuples():
            line = (
                f"- Head {row.layer}.{row.head}: token {row.key} (frame {row.frame}, row {row.row}, column {row.col}) "
                f"receives {number(row.received)} times what uniform attention gives it; its value is "
                f"{number(row.value_norm)} times as long as the median"
            )
            if pd.notna(row.x0_change):
                line += f"; without it x0 changes by {number(row.x0_change)}, without a random other by "
                line += f"{number(row.control_change)}"
            lines.append(f"{line}.")
        return "\n".join(lines)


@on_noised_clips
def sinks(noised: NoisedClips, effect: bool = True, seed: int = 0) -> Sinks:
    """The key of every head that receives most attention, and what depends on it.

    `received = sum over queries of A[q, key]`, in units of what the key would get if all attention were uniform; mean
    over clips, so a sink is a place, not a content. Range 0 to the number of queries; chance 1, though the largest of
    many keys lies above 1 by luck. `value_norm`: length of its value over the median length of the head's keys in the
    same clip, mean over clips; 1 is usual, near 0 a place where attention can rest and fetch nothing.

    With `effect`: `x0_change` of the target frames when that key is masked, in this head only, for all queries but
    itself; in units of the variance of the target frames, 0 or more. Its control `control_change` masks a random other
    key of the same head (drawn by `seed`).

    Misleads: masking moves the sink's attention to the other keys, so a sink that fetches nothing still matters if
    the head must not fetch from elsewhere; and a static background is the most attended place without being a sink,
    which its value norm tells apart. Two forward passes a head and noise level.
    Source: attention sinks (arXiv 2309.17453) with small values (2410.10781); in video (2504.10317).

    Raises ValueError if the effect is asked for of a model that attends over space or time alone.
    """
    cfg, grid = noised.model.cfg, noised.grid
    if effect and any(block.axis != "3d" for block in cfg.blocks):
        raise ValueError(
            f"{cfg.model_name} attends over space or time alone, and a single token is masked in 3d attention only: "
            "use effect=False"
        )
    if grid.n_tokens < 2 or seed < 0:
        raise ValueError(f"need at least two tokens and seed >= 0, got {grid.n_tokens} tokens and {seed=}")
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, grid.n_tokens, (cfg.n_layers, cfg.n_heads), generator=generator)
    heads = list(product(range(cfg.n_layers), range(cfg.n_heads)))
    rows = []
    for level in noised.levels:
        received, length = _keys(noised, level)
        keys = {at: int(received[at].argmax()) for at in heads}
        others = {at: (key + int(steps[at])) % grid.n_tokens for at, key in keys.items()}
        masked = {
            (name, *at): chosen[at]
            for name, chosen in (("x0_change", keys), ("control_change", others))
            for at in heads
        }
        moved = changes(noised, level, {at: without_key(key, *at[1:]) for at, key in masked.items()}) if effect else {}
        for layer, head in heads:
            key = keys[layer, head]
            frame, row, col = grid.coordinates(key)
            found = {"level": level, "layer": layer, "head": head, "key": key, "frame": frame, "row": row, "col": col}
            found["received"] = float(received[layer, head, key])
            found["value_norm"] = float(length[layer, head, key])
            for name in ("x0_change", "control_change"):
                found[name] = float(moved[name, layer, head].mean()) if effect else float("nan")
            rows.append(found)
    return Sinks(table=pd.DataFrame(rows), meta=noised.meta(control_seed=seed))


def without_key(key: int, layer: int, head: int) -> MaskAttention:
    """Nobody but the key itself may see it, in one head."""
    return MaskAttention(hidden=[key], layers=[layer], heads=[head])


def _keys(noised: NoisedClips, level: float) -> tuple[PerKey, PerKey]:
    """Attention received, and value length over the median, of all keys; means over clips."""
    received, length = [], []
    layers = range(noised.model.cfg.n_layers)
    for cache in noised.caches(level, ["rot_q", "rot_k", "v"]):
        received.append(torch.stack([cache["pattern", i].received() for i in layers], 1).cpu())
        norms = torch.stack([cache["v", i].float().norm(dim=-1).transpose(1, 2) for i in layers], 1)
        length.append((norms / norms.median(-1, keepdim=True).values).cpu())
    return torch.cat(received).mean(0), torch.cat(length).mean(0)
