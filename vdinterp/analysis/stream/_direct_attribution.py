"""Direct attribution: the prediction as an exact sum over what every component wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.analysis.stream.readout import Readout
from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.models.parts import is_head
from vdinterp.pipeline import VideoDiffusion
from vdinterp.results import Result, Section
from vdinterp.words.wording import number, plural

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_BARS = 30


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectAttribution(Result):
    """What each component contributes to the prediction.

    `parts` `[part clip ...]` sum to `total` `[clip ...]`: latents `[clip frame channel height width]` of the chosen
    frames, or with a direction one number a clip. `names` of the parts: `input` (what x0 takes from the noisy latents
    themselves), `embed`, `pos_embed`, heads `1.0`, `1.attn.bias`, `mlp.1`, shifts of a normed stream, `final.bias` (the
    final layer's shift and bias). `table`, one row a part: `part layer share size`. `share`: projection on the total,
    `<part, total> / <total, total>`, mean over clips; shares sum to 1. `size`: its norm over the total's.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    parts: Float[torch.Tensor, "part clip ..."]
    total: Float[torch.Tensor, "clip ..."]
    names: list[str]
    table: pd.DataFrame
    unit: str

    def part(self, name: str) -> Float[torch.Tensor, "clip ..."]:
        """One component's contribution. Raises `KeyError` for one that is not among `names`."""
        if name not in self.names:
            raise KeyError(f"no part is called {name!r}; there are {', '.join(self.names)}")
        return self.parts[self.names.index(name)]

    def plot(self) -> dict[str, go.Figure]:
        """The largest parts as bars, and the heads as a layer x head grid."""
        largest = self.table.reindex(self.table["share"].abs().sort_values(ascending=False).index).head(MOST_BARS)
        title = f"{self.title}: contributions to the prediction ({self.unit})"
        figures = {
            title: plotting.bars(
                largest, x="part", y="share", title=title, x_title="component", y_title="share of the prediction"
            )
        }
        heads: Any = self.table[[is_head(name) and not name.startswith("cross") for name in self.table["part"]]]
        if len(heads):
            head = heads["part"].str.split(".").str[-1].astype(int)
            grid = heads.assign(head=head).pivot(index="layer", columns="head", values="share")
            title = f"{self.title}: contribution of every head ({self.unit})"
            figures[title] = plotting.layer_head(
                grid.to_numpy(), title=title, value_title="share of the prediction", diverging=True
            )
        return figures

    def summary(self) -> str:
        """The largest parts."""
        top = self.table.reindex(self.table["share"].abs().sort_values(ascending=False).index).head(6)
        lines = [f"- `{row['part']}`: {number(row['share'])}" for row in top.to_dict("records")]
        return (
            f"Shares of the prediction ({self.unit}) that components write themselves, mean over "
            f"{plural(len(self.total), 'clip')}; all components together have 1:\n\n" + "\n".join(lines)
        )

    def sections(self) -> list[Section]:
        """Summary, figures and the table, the largest parts first."""
        caption = (
            "Every component. What it writes into the prediction, the largest share first. `share`: projection on the "
            "prediction; `size`: norm over the prediction's (large with a small share: it cancels with others)"
        )
        table = self.table.reindex(self.table["share"].abs().sort_values(ascending=False).index)
        tables = {caption: table.reset_index(drop=True).astype({"layer": "Int64"})}
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables=tables)]


def direct_attribution(
    model: VideoDiffusion | HookedVideoDiT,
    cache: ActivationCache,
    *,
    frames: Sequence[int] | None = None,
    direction: torch.Tensor | None = None,
    neurons: bool = False,
) -> DirectAttribution:
    """Split the prediction over patch embedding, every head, every MLP and every bias.

    >>> pred, cache = pipe.model.run_with_cache(noisy, pipe.timestep(noise_levels))
    >>> vd.direct_attribution(pipe, cache, frames=[15]).plot()

    Exact: everything after a component that is not another component is linear once LayerNorm's scales are held at what
    they were (in DFoT's normed stream, all of those on the way). The direct effect only: what a component does through
    others is theirs. Known for language models as direct logit attribution.

    Args:
        model: a pipeline splits x0, a bare model what it predicts.
        cache: of `run_with_cache`, everything kept (`names=None`).
        frames: only the prediction of these (default: all).
        direction: split the inner product with this instead, latents of the chosen frames `[frame channel height
            width]`, or one a clip. Its unit is the prediction's times the direction's: give a unit vector for lengths.
        neurons: every MLP neuron for itself, instead of every MLP.

    Chance: with random weights shares are spread evenly. Misleads: parts may be large and cancel; LayerNorm's scale,
    held here, is itself changed by every part.

    Raises ValueError for frames or a direction that do not fit, KeyError for activations that were not kept, and
    ValueError if parts do not sum to what was predicted, to the rounding of the model's dtype (a hook changed something
    on the way), or the model has other weights now than those the cache was made with.
    """
    readout = Readout(model, cache, frames)
    cache = readout.cache
    if direction is not None:
        direction = readout.checked(direction)
    names, parts, whole = [], [], torch.zeros(())

    def add(name: str, latents: torch.Tensor) -> None:
        nonlocal whole
        names.append(name)
        whole = latents.float() if not names[1:] else whole + latents
        parts.append(latents if direction is None else (latents * direction).flatten(1).sum(1))

    with torch.no_grad():
        if (given := readout.offset()) is not None:
            add("input", given)
        for name, part in cache.stream_parts(None, readout.tokens, neurons):
            add(name, readout.linear(part))
        add("final.bias", readout.constant())
        readout.check_sum(whole, "the parts miss")
        stacked, total = torch.stack(parts), readout.total()
        total = total if direction is None else (total * direction).flatten(1).sum(1)
    meta = {"model": readout.model.cfg.model_name, "clips": plural(len(total), "clip"), "frames read": readout.frames}
    return DirectAttribution(
        title=f"Direct attribution{readout.where}",
        parts=stacked,
        total=total,
        names=names,
        table=_table(names, stacked, total),
        unit=readout.unit,
        meta=meta,
    )


def _table(names: list[str], parts: torch.Tensor, total: torch.Tensor) -> pd.DataFrame:
    flat, whole = parts.reshape(len(parts), len(total), -1).double(), total.reshape(len(total), -1).double()
    power = whole.square().sum(-1).clamp(min=1e-24)
    share = ((flat * whole).sum(-1) / power).mean(1)
    size = (flat.norm(dim=-1) / power.sqrt()).mean(1)
    return pd.DataFrame({"part": names, "layer": [layer_of(name) for name in names], "share": share, "size": size})


def layer_of(name: str) -> float:
    """The layer that a part was written in; NaN for what is in none."""
    pieces: list[Any] = [piece for piece in name.split(".") if piece.isdigit()]
    return float(pieces[0]) if pieces else float(np.nan)
