"""Path patching: what one component tells another, everything else held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting, sweep
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.patching.edges import Graph, PatchEdges
from vdinterp.analysis.patching.judging import UNITS, Judge, find_metric
from vdinterp.analysis.stimulus.contrast import Contrast, Direction
from vdinterp.interventions import Intervention, Patch
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.results import Result
from vdinterp.words.wording import with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOTAL = "total"


@dataclass(frozen=True, kw_only=True, eq=False)
class PathResult(Result):
    """What senders tell receivers.

    `values` `[sender receiver]`: the change of the metric from the untouched base, mean over clips; NaN where a sender
    does not precede a receiver. `total` `[sender]`: the same if everyone reads the patched sender; the column "final"
    of `values` is the direct effect. `table`, one row a path: `sender receiver value low high n_clips` (95 % bootstrap
    interval over clips), receiver "total" for totals. `per_clip` `[clip sender receiver]`.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    senders: list[str]
    receivers: list[str]
    values: Float[torch.Tensor, "sender receiver"]
    total: Float[torch.Tensor, " sender"]
    per_clip: Float[torch.Tensor, "clip sender receiver"]
    table: pd.DataFrame
    unit: str
    failures: pd.DataFrame
    missing: int = 0

    def plot(self) -> dict[str, go.Figure]:
        """A matrix of all paths, and total beside direct effects."""
        figures = {}
        if np.isfinite(self.values.numpy()).any():
            figures[self.title] = plotting.heatmap(
                self.values.numpy(),
                x=self.receivers,
                y=self.senders,
                title=self.title,
                x_title="receiver",
                y_title="sender",
                value_title=f"change of {self.unit}",
                diverging=True,
                number_format=".2f" if self.unit == UNITS["recovered"] else None,
            )
        effects: Any = self.table[self.table["receiver"].isin([TOTAL, "final"])]
        shown = effects.dropna(subset=["value"])
        if len(shown):
            which = shown["receiver"].map({TOTAL: "total", "final": "direct (to the final layer)"})
            title = f"{self.title}: total and direct effect, 95 % interval over clips"
            figures[title] = plotting.bars(
                shown.assign(effect=which),
                x="sender",
                y="value",
                color="effect",
                low="low",
                high="high",
                title=title,
                x_title="sender",
                y_title=f"change of {self.unit}",
            )
        return figures

    def summary(self) -> str:
        """The strongest paths."""
        every: Any = self.table[self.table["receiver"] != TOTAL]
        paths = every.dropna(subset=["value"])
        top = paths.loc[paths["value"].abs().nlargest(6).index]
        lines = [
            f"- {row['sender']} → {row['receiver']}: {with_interval(row['value'], row['low'], row['high'])}"
            for row in top.to_dict("records")
        ]
        return f"{self.title}. The strongest of {len(paths)} paths, change of {self.unit}:\n\n" + "\n".join(lines)


def path_patch(
    model: VideoDiffusion | HookedVideoDiT,
    clean: Any,
    corrupted: Any,
    noise_levels: Any = None,
    *,
    senders: Sequence[str] | str = "all",
    receivers: Sequence[str] | str = ("final",),
    metric: Any = "recovered",
    direction: Direction = "denoising",
    engine: Literal["inline", "ray"] = "inline",
    sweep_options: Mapping[str, Any] | None = None,
    **contrast: Any,
) -> PathResult:
    """Patch what a sender writes into the stream, but only as one receiver reads it.

    >>> vd.path_patch(pipe, clips, clips.corrupt, 0.95, senders=["1.0"], receivers=["2.3.k", "2.3.q", "final"])

    All other components between the two keep their untouched outputs; what follows the receiver runs on (Wang et al.
    2023, arXiv 2211.00593). The stream that the receiver reads is computed exactly, with every normalisation on the
    way anew: in DFoT's `normed` stream a change passes through all of them.

    Args:
        model, clean, corrupted, noise_levels: the two runs, and `contrast`: see `vdinterp.analysis.Contrast`.
        senders: heads `"1.0"` (layer, head), `"mlp.1"`, `"embed"`, or "all".
        receivers: `"2.3.q"`, `"2.3.k"`, `"2.3.v"`, `"mlp.2"`, `"final"` (the direct effect), or "all".
        metric, direction, engine, sweep_options: as in `activation_patch`.

    The change of the metric from the base run; for "recovered" 0 is no effect and 1 all of the difference. Chance: 0.
    For a model that is linear all paths of a sender sum to its total effect; where they do not, they interact.
    Misleads as activation patching does. Raises ValueError before any compute for names that do not exist, and for
    senders that write after all receivers have read.
    """
    pair = Contrast(model, clean, corrupted, noise_levels, **contrast)
    if pair.steps is not None:
        raise ValueError("paths are patched in single passes: give noise_levels, not steps")
    name, function = find_metric(metric, pair.pipe)
    graph = Graph(pair.model)
    from_ = list(graph.senders) if senders == "all" else graph.check(senders, "sender")
    to = list(graph.receivers) if receivers == "all" else graph.check(receivers, "receiver")
    _check_paths(graph, from_ if senders != "all" else [], from_, to, to if receivers != "all" else [])
    base, source = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    trials = [
        sweep.Trial(interventions=(total_patch(graph, sender, source),), label={"sender": sender, "receiver": TOTAL})
        for sender in from_
    ]
    trials += [
        sweep.Trial(
            interventions=(PatchEdges({receiver: [sender]}, source=source, base=base),),
            label={"sender": sender, "receiver": receiver},
        )
        for sender in from_
        for receiver in to
        if graph.precedes(sender, receiver)
    ]
    found = sweep.run(
        pair.denoiser,
        pair.cases(direction),
        trials,
        {name: Judge(function)},
        engine=engine,
        **dict(sweep_options or {}),
    )
    how = "clean into corrupted" if direction == "denoising" else "corrupted into clean"
    title = f"{pair.model.cfg.model_name}: paths patched, {how}"
    meta = {
        "model": pair.model.cfg.model_name,
        "clips": len(pair),
        "levels": [str(level) for level in pair.levels],
        "metric": name,
        "direction": direction,
        "seed": pair.seed,
    }
    return _collect(pair, found, from_, to, base, title, UNITS.get(name, name), meta)


def _check_paths(graph: Graph, named: list[str], senders: list[str], receivers: list[str], asked: list[str]) -> None:
    """Raise `ValueError` if there is no path from a sender that was named, or to a receiver that was."""
    for sender in named:
        if not any(graph.precedes(sender, receiver) for receiver in receivers):
            raise ValueError(f"no path: {sender} writes after all of {', '.join(receivers)} have read")
    for receiver in asked:
        if not any(graph.precedes(sender, receiver) for sender in senders):
            raise ValueError(f"no path: {receiver} reads before any of {', '.join(senders)} writes")


def total_patch(graph: Graph, sender: str, source: Any) -> Intervention:
    """Activation patching of a sender: everyone reads the other run's."""
    head = graph.senders[sender][1]
    return Patch(graph.sender_hook(sender), source, heads=None if head is None else [head])


def _collect(
    pair: Contrast,
    found: sweep.SweepResult,
    senders: list[str],
    receivers: list[str],
    base: str,
    title: str,
    unit: str,
    meta: dict[str, Any],
) -> PathResult:
    columns = [*receivers, TOTAL]
    effects = found.per_clip({"sender": senders, "receiver": columns}, base=base)
    interval = bootstrap_mean(effects)
    rows = [
        {
            "sender": sender,
            "receiver": receiver,
            "value": interval.value[i, j],
            "low": interval.low[i, j],
            "high": interval.high[i, j],
            "n_clips": int((~effects[:, i, j].isnan()).sum()),
        }
        for i, sender in enumerate(senders)
        for j, receiver in enumerate(columns)
    ]
    values = torch.from_numpy(interval.value)
    return PathResult(
        title=title,
        senders=senders,
        receivers=receivers,
        values=values[:, :-1],
        total=values[:, -1],
        per_clip=effects[..., :-1],
        table=pd.DataFrame(rows),
        unit=unit,
        failures=found.failures,
        missing=found.missing,
        meta=meta,
    )
