"""Patch crossing: to what degree information crosses patch boundaries, by layer and noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.cases import changes
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.interventions import MaskAttention
from vdinterp.models import ActivationCache
from vdinterp.models.relations import Tokens
from vdinterp.results import Result, rows_of
from vdinterp.site import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go


def _same_cell(q: Tokens, k: Tokens) -> torch.Tensor:
    return (k.row == q.row) & (k.col == q.col)


# Where a key lies, seen from the query. The four make up the whole; the last two cross a patch boundary.
PARTS = {
    "itself": lambda q, k: _same_cell(q, k) & (k.frame == q.frame),
    "own position, other frames": lambda q, k: _same_cell(q, k) & (k.frame != q.frame),
    "other positions, own frame": lambda q, k: ~_same_cell(q, k) & (k.frame == q.frame),
    "other positions, other frames": lambda q, k: ~_same_cell(q, k) & (k.frame != q.frame),
}
CROSSING = tuple(PARTS)[2:]
QUANTITIES = {
    "attention mass": "attention mass, 0 to 1",
    "value-weighted share": "share of what attention adds, 0 to 1",
    "causal effect": "change of x0 over its variance",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchCrossing(Result):
    """`table`, one row a number: `level layer quantity part value low high`.

    `layer` is a number, or "all" for the causal effect of all layers together; `part` one of the four, or "crossing"
    for the two at other positions together.
    """

    title = "How much crosses patch boundaries"
    table: pd.DataFrame

    def pick(self, quantity: str, part: str = "crossing") -> Any:
        """The rows of one quantity and part. KeyError for one that is not there."""
        if quantity not in QUANTITIES or part not in (*PARTS, "crossing"):
            raise KeyError(f"no {quantity!r}, {part!r}: quantities {', '.join(QUANTITIES)}; parts {', '.join(PARTS)}")
        return rows_of(self.table, quantity=quantity, part=part)

    def plot(self) -> dict[str, go.Figure]:
        """Every quantity by layer, a line a noise level; and where attention goes, as bars."""
        figures = {}
        for quantity, unit in QUANTITIES.items():
            rows = self.pick(quantity)
            rows = rows[rows["layer"] != "all"]
            rows = rows.assign(layer=rows["layer"].astype(int), noise=[f"noise level {x:g}" for x in rows["level"]])
            title = f"{self.meta.get('model', 'model')}: {quantity} across patch boundaries, by layer"
            figures[title] = plotting.lines(
                rows,
                x="layer",
                y="value",
                low="low",
                high="high",
                color="noise",
                title=title,
                x_title="layer",
                y_title=unit,
            )
            figures[title].update_xaxes(dtick=1)
        for level in self.table["level"].unique():
            rows = rows_of(self.table, quantity="value-weighted share", level=level)
            rows = rows[rows["part"] != "crossing"]
            title = f"Where what attention adds comes from, noise level {level:g}, 95 % interval over clips"
            figures[title] = plotting.bars(
                rows,
                x="layer",
                y="value",
                low="low",
                high="high",
                color="part",
                title=title,
                x_title="layer",
                y_title=QUANTITIES["value-weighted share"],
            )
        return figures

    def summary(self) -> str:
        """The layer at which most crosses, and what happens when nothing may."""
        lines = []
        for level in self.table["level"].unique():
            share = rows_of(self.pick("value-weighted share"), level=level)
            if share["value"].isna().all():  # as of gates that are still closed
                lines.append(f"- noise level {level:g}: attention adds nothing to the stream.")
                continue
            most = share.loc[share["value"].idxmax()]
            every = rows_of(self.pick("causal effect"), level=level, layer="all").iloc[0]
            lines.append(
                f"- noise level {level:g}: other positions give {share['value'].min():.2f} to {most['value']:.2f} of "
                f"what attention adds (most in layer {most['layer']}); when no layer may look at them, x0 moves by "
                f"{every['value']:.3f} of its variance [{every['low']:.3f}, {every['high']:.3f}]."
            )
        return "\n".join(lines)


@on_noised_clips
def patch_crossing(noised: NoisedClips) -> PatchCrossing:
    """How much of what a token becomes comes from other patches, in every layer and at every noise level.

    Three answers, from correlation to cause, over the tokens of the noised frames. `attention mass`: the mass off the
    own position, mean over heads (own position: the same patch in any frame). `value-weighted share`: what attention
    adds to a token (values, W_O and gate, summed over heads) is split by where the key lies, and a part's share is its
    norm over the sum of the parts' norms. `causal effect`: the change of the x0 estimate (squared, over its variance)
    when this layer's tokens may see their own position only; for "all", when no layer's may.
    Range 0 to 1, the effect from 0 up. Chance: uniform attention has `1 - 1/(rows * cols)` of its mass at other
    positions, so a low mass is what says something. Misleads: a layer can cross without need (mass and share high, no
    effect), later layers can make up for one that is cut, and parts may cancel, so shares of norms are no shares of
    information.

    Raises ValueError where attention runs over time only in every layer: nothing can cross there.
    """
    model = noised.model
    crossing = [i for i in range(model.cfg.n_layers) if model.sublayer(i).axis != "time"]
    if not crossing:
        raise ValueError(f"{model.cfg.model_name} attends over time only: nothing can cross a patch boundary")
    confined = {str(layer): MaskAttention("same_position", layers=[layer]) for layer in crossing}
    confined["all"] = MaskAttention("same_position", layers=crossing)
    rows = []
    for level in noised.levels:
        per_layer: list[list[dict[str, dict[str, torch.Tensor]]]] = []
        places = [Site(layer, "attn") for layer in range(model.cfg.n_layers)]
        gates = [gate for gate in (place.at("mod.gate") for place in places) if gate in model.hook_dict]
        for cache in noised.caches(level, ["rot_q", "rot_k", "v", *gates]):
            per_layer.append([_parts(noised, cache, layer) for layer in range(model.cfg.n_layers)])
        for layer in range(model.cfg.n_layers):
            for quantity in ("attention mass", "value-weighted share"):
                parts = {part: torch.cat([batch[layer][quantity][part] for batch in per_layer]) for part in PARTS}
                parts["crossing"] = torch.stack([parts[part] for part in CROSSING]).sum(0)
                rows += [_row(level, str(layer), quantity, part, values) for part, values in parts.items()]
        moved = changes(noised, level, confined)
        rows += [_row(level, layer, "causal effect", "crossing", values) for layer, values in moved.items()]
    return PatchCrossing(table=pd.DataFrame(rows), meta=noised.meta())


def _parts(noised: NoisedClips, cache: ActivationCache, layer: int) -> dict[str, dict[str, torch.Tensor]]:
    """Mass and norm share of every part in one layer, `[clip]` each."""
    pattern, model = cache["pattern", layer], noised.model
    target = noised.target_tokens
    ones = torch.ones(len(pattern.q), pattern.n_keys, 1, device=pattern.q.device)
    carry = cache.carry()
    mass, norms = {}, {}
    for part, relation in PARTS.items():
        values = torch.cat([cache["v", layer].float(), ones[:, :, None].expand(-1, -1, pattern.n_heads, -1)], -1)
        found = pattern.weighted(values, relation)  # batch head query d_head+1
        mass[part] = found[..., -1].mean(1)[:, target].mean(1).cpu()
        output = torch.einsum("bhqe,hed->bqd", found[..., :-1], model.W_O[layer].float())
        added = carry.wrote(Site(layer, "attn"), output)
        norms[part] = added.norm(dim=-1)[:, target]
    whole = torch.stack(list(norms.values())).sum(0)
    share = {part: (norm / whole).mean(1).cpu() for part, norm in norms.items()}
    return {"attention mass": mass, "value-weighted share": share}


def _row(level: float, layer: str, quantity: str, part: str, values: torch.Tensor) -> dict[str, object]:
    interval = bootstrap_mean(values)
    ends = {name: float(np.asarray(end)) for name, end in zip(("value", "low", "high"), interval, strict=True)}
    return {"level": level, "layer": layer, "quantity": quantity, "part": part, **ends}
