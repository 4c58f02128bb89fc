"""Edge attribution: which connections between components carry a difference, and how few of them are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting, sweep
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.patching.edges import Graph, PatchEdges
from vdinterp.analysis.patching.gradients import GradientPass, batches, untouched
from vdinterp.analysis.patching.judging import UNITS, find_metric
from vdinterp.analysis.stimulus.contrast import Contrast, Direction, check_direction
from vdinterp.checks.counts import check_count
from vdinterp.gradient_state import check_gradients
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.results import Result
from vdinterp.words.wording import with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

KEPT = "strongest"  # of a circuit: its edges
MOST_DRAWN = 40  # edges of a figure


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeResult(Result):
    """Scores of all edges.

    `table`, one row an edge, largest size first: `sender receiver score low high`: the mean over clips, with a 95 %
    bootstrap interval. Signed: what patching an edge adds to the metric, so that with noising edges that carry the
    result are negative.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    table: pd.DataFrame
    unit: str
    per_clip: Float[torch.Tensor, "clip edge"]

    def circuit(self, n_edges: int) -> list[tuple[str, str]]:
        """The `n_edges` edges of the largest scores (by size). Raises ValueError for more than there are."""
        if not 0 <= n_edges <= len(self.table):
            raise ValueError(f"n_edges={n_edges}: this graph has {len(self.table)} edges")
        top = self.table.head(n_edges)
        return list(zip(top["sender"], top["receiver"], strict=True))

    def plot(self) -> dict[str, go.Figure]:
        """The strongest edges as a graph, layers from bottom to top."""
        title = f"{self.title}: the {min(MOST_DRAWN, len(self.table))} strongest edges"
        return {title: plotting.circuit_graph(self.table.head(MOST_DRAWN), title=title, value_title=self.unit)}

    def summary(self) -> str:
        lines = [
            f"- {row['sender']} → {row['receiver']}: {with_interval(row['score'], row['low'], row['high'])}"
            for row in self.table.head(8).to_dict("records")
        ]
        return f"{self.title}. The strongest of {len(self.table)} edges:\n\n" + "\n".join(lines)


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitCurve(Result):
    """What is left of the model's behaviour in circuits of growing size.

    `table`, one row a size: `n_edges recovered low high` (95 % bootstrap interval over clips), and `random`, the same
    of as many edges drawn at random: the control.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    table: pd.DataFrame

    def plot(self) -> dict[str, go.Figure]:
        curves = pd.concat(
            [
                self.table.assign(value=self.table["recovered"], edges="highest scores"),
                self.table.assign(value=self.table["random"], low=np.nan, high=np.nan, edges="drawn at random"),
            ]
        )
        figure = plotting.lines(
            curves,
            x="n_edges",
            y="value",
            low="low",
            high="high",
            color="edges",
            title=self.title,
            x_title="edges that are kept",
            y_title="recovered (0 all at their mean, 1 the whole model)",
            reference={"the whole model": 1.0},
        )
        return {self.title: figure}

    def summary(self) -> str:
        enough: Any = self.table[self.table["recovered"] >= 0.9]["n_edges"]
        size = f"{int(enough.iloc[0])} of {int(self.table['n_edges'].max())} edges" if len(enough) else "no size"
        return f"{self.title}: {size} recover .9 of what the whole model does."


def edge_attribution(
    model: VideoDiffusion | HookedVideoDiT,
    clean: Any,
    corrupted: Any,
    noise_levels: Any = None,
    *,
    metric: Any = "recovered",
    direction: Direction = "denoising",
    n_steps: int = 1,
    batch: int = 4,
    **contrast: Any,
) -> EdgeResult:
    """Estimate what patching every edge of the head-level graph would do, from gradients.

    Every edge gets a weight: how far its reader sees the other run's sender instead of the live one. The score is
    `d metric / d weight` at 0, which is edge attribution patching (Syed et al. 2023, arXiv 2310.10348), with queries,
    keys and values as separate readers, and exact to first order in both kinds of stream: every normalisation on the
    way is differentiated. `n_steps` above 1 averages over weights of all edges from 0 to 1 (integrated gradients): the
    more steps, the closer the scores sum to the whole change of the metric, where both runs have the same condition.

    Range: any, chance 0. Misleads as every gradient does where the metric is not linear, most of all for queries and
    keys of saturated attention. Confirm with `path_patch` and `faithfulness`. `batch`: clips a pass; a reader of each
    layer takes a stream of memory each. Other arguments: `Contrast`. Raises ValueError before any compute.
    """
    check_gradients("edge_attribution")
    check_direction(direction)
    n_steps = check_count("n_steps", n_steps)
    pair = Contrast(model, clean, corrupted, noise_levels, batch=batch, **contrast)
    if pair.steps is not None:
        raise ValueError("edges are attributed in single passes: give noise_levels, not steps")
    name, function = find_metric(metric, pair.pipe)
    graph = Graph(pair.model)
    base, source = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    wanted = sorted({graph.sender_hook(sender) for sender in graph.senders})
    by_level = []
    for level in pair.levels:
        parts = []
        for clips in batches(pair):
            runs, compare, caches = untouched(pair, clips, level, {source: wanted})
            total = torch.zeros(())
            for step in range(n_steps):
                at = 0.0 if n_steps == 1 else (step + 0.5) / n_steps
                shape = (runs[base].n_clips,)
                weights = {edge: torch.full(shape, at, requires_grad=True) for edge in graph.edges}
                edges: dict[str, dict[str, torch.Tensor]] = {}
                for (sender, receiver), weight in weights.items():
                    edges.setdefault(receiver, {})[sender] = weight
                patch = PatchEdges(edges, source=caches[source])
                done = GradientPass(pair, runs[base], compare, function, [], patch.hooks(pair.model))
                total = total + torch.stack(done.gradients(list(weights.values())), dim=1) / n_steps
            parts.append(total)
        by_level.append(torch.cat(parts))
    per_clip = torch.stack(by_level).mean(0).double()
    interval = bootstrap_mean(per_clip)
    order = np.argsort(-np.abs(interval.value), kind="stable")
    rows = [
        {
            "sender": graph.edges[i][0],
            "receiver": graph.edges[i][1],
            "score": interval.value[i],
            "low": interval.low[i],
            "high": interval.high[i],
        }
        for i in order
    ]
    meta = {
        "model": pair.model.cfg.model_name,
        "clips": len(pair),
        "levels": [str(level) for level in pair.levels],
        "metric": name,
        "direction": direction,
        "n_steps": n_steps,
        "seed": pair.seed,
    }
    return EdgeResult(
        title=f"{pair.model.cfg.model_name}: edges attributed, {source} into {base}",
        table=pd.DataFrame(rows),
        unit=f"score (change of {UNITS.get(name, name)})",
        per_clip=per_clip[:, torch.from_numpy(order)],
        meta=meta,
    )


def faithfulness(
    model: VideoDiffusion | HookedVideoDiT,
    edges: EdgeResult | Sequence[tuple[str, str]],
    clips: Any,
    noise_levels: Any = None,
    *,
    reference: Any = None,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    batch: int = 4,
    **contrast: Any,
) -> CircuitCurve:
    """Keep a circuit, put every edge outside it at the sender's mean, and see what of the behaviour is left.

    `recovered` is the projection of x0 (in the region) on the way from the model with all edges at their mean (0) to
    the whole model (1), for circuits of the first n of `edges` (in their order). Control: the mean over three draws of
    as many random edges. Means are over the clips of `reference` (default: `clips`), for every place and frame by
    itself, so what a component says of *these* clips is taken away and no more.

    Misleads: a circuit that recovers all may still hold more than is needed; means of few clips keep some of them.
    `sizes`: default doubling from 1 to all edges. Other arguments: `Contrast`. Raises ValueError before any compute.
    """
    ranked = edges.circuit(len(edges.table)) if isinstance(edges, EdgeResult) else list(edges)
    pair = Contrast(model, clips, clips if reference is None else reference, noise_levels, batch=batch, **contrast)
    graph = Graph(pair.model)
    unknown = [edge for edge in ranked if edge not in set(graph.edges)]
    if unknown or pair.steps is not None:
        raise ValueError(
            f"no such edge: {unknown[0]}" if unknown else "circuits are judged in single passes: noise_levels"
        )
    if sizes is None:
        sizes = [2**power for power in range(len(ranked).bit_length()) if 2**power < len(ranked)]
    sizes = sorted({int(size) for size in sizes} | {len(ranked)})
    if sizes[0] < 0 or sizes[-1] > len(ranked):
        raise ValueError(f"sizes lie in 0..{len(ranked)}, the number of edges given")
    rng = np.random.default_rng(seed)
    draws = [rng.permutation(len(graph.edges)) for _ in range(3)]
    circuits = {(size, KEPT): ranked[:size] for size in sizes}
    circuits |= {
        (size, f"random {n}"): [graph.edges[i] for i in draw[:size]] for n, draw in enumerate(draws) for size in sizes
    }
    levels = [_recovered(pair, graph, circuits, level) for level in pair.levels]
    found = {circuit: torch.cat([level[circuit] for level in levels]) for circuit in circuits}
    rows = []
    for size in sizes:
        interval = bootstrap_mean(found[size, KEPT])
        random = torch.stack([found[size, f"random {n}"] for n in range(len(draws))])
        rows.append(
            {
                "n_edges": size,
                "recovered": float(interval.value),
                "low": float(interval.low),
                "high": float(interval.high),
                "random": float(random.mean()),
            }
        )
    meta = {
        "model": pair.model.cfg.model_name,
        "clips": len(pair),
        "levels": [str(level) for level in pair.levels],
        "edges": len(graph.edges),
        "seed": seed,
    }
    title = f"{pair.model.cfg.model_name}: what circuits of the strongest edges recover"
    return CircuitCurve(title=title, table=pd.DataFrame(rows), meta=meta)


def _means(pair: Contrast, graph: Graph, level: Any) -> dict[str, torch.Tensor]:
    """Every sender's mean over the reference clips, place by place."""
    names = sorted({graph.sender_hook(sender) for sender in graph.senders})
    total: dict[str, Any] = {}
    for clips in batches(pair):
        caches = untouched(pair, clips, level, {"corrupted": names})[2]
        for name in names:
            total[name] = total.get(name, 0.0) + caches["corrupted"][name].sum(0, keepdim=True)
    return {name: value / len(pair) for name, value in total.items()}


def _recovered(
    pair: Contrast, graph: Graph, circuits: Mapping[tuple[int, str], Sequence[tuple[str, str]]], level: Any
) -> dict[tuple[int, str], torch.Tensor]:
    """What circuits recover at one noise level, clip by clip; all of it where no edge is left out."""
    means = _means(pair, graph, level)
    outside = {circuit: _outside(graph, kept) for circuit, kept in circuits.items()}
    trials = [
        sweep.Trial(interventions=(PatchEdges(edges, source=means),), label={"size": size, "kept": kept})
        for (size, kept), edges in outside.items()
        if edges
    ]
    cases = []
    for case in pair.cases("noising"):
        if case.label["level"] == level:
            run: Any = case.runs["clean"]
            with torch.no_grad(), pair.model.intervene(PatchEdges(_outside(graph, ()), source=means)):
                empty = pair.denoiser.denoise(*run)
            cases.append(replace(case, runs={"clean": run}, about={**case.about, "empty": empty}))
    whole = torch.ones(len(pair), dtype=torch.float64)
    if not trials:
        return dict.fromkeys(circuits, whole)
    found = sweep.run(pair.denoiser, cases, trials, {"recovered": Recovered()}, progress=False)
    found.check_whole()
    return {
        (size, kept): found.per_clip({"size": [size], "kept": [kept]})[:, 0, 0] if edges else whole
        for (size, kept), edges in outside.items()
    }


def _outside(graph: Graph, kept: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The senders that each receiver does not hear."""
    inside, outside = set(kept), {}
    for sender, receiver in graph.edges:
        if (sender, receiver) not in inside:
            outside.setdefault(receiver, []).append(sender)
    return outside


@dataclass(frozen=True)
class Recovered:
    """How far x0 has come from the model with all edges at their mean (0) to the whole model (1), in the region."""

    def __call__(self, x0: torch.Tensor, moment: sweep.Moment) -> Float[torch.Tensor, " clip"]:
        empty = moment.case.about["empty"].to(x0)
        way = (moment.x0["clean"].to(x0) - empty) * moment.case.about["region"].to(x0.device)
        length = way.square().flatten(1).sum(1)
        if bool((length == 0).any()):
            raise ValueError("the model says the same with all edges at their mean: there is no behaviour to recover")
        return ((x0 - empty) * way).flatten(1).sum(1) / length
