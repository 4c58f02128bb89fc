"""Figures of an induction search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vdinterp import plotting
from vdinterp.analysis.induction import words
from vdinterp.analysis.induction.behaviour import KINDS
from vdinterp.analysis.induction.stimuli import CONTROL_CLIPS, strip

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vdinterp.analysis.induction.result import InductionResult

MOST_ROWS = 48  # heads of a mosaic
APART = 0.07  # lags
LEAST_EDGE = 0.02  # of the strongest edge: weaker ones are not drawn


def figures(found: InductionResult) -> dict[str, go.Figure]:
    """Behaviour, mosaic of heads by level, and of the candidates: attention, lags, ablation, circuit."""
    made = strip(found.stimuli) | behaviour_figures(found)
    if len(found.table):
        made |= _mosaic(found)
    if found.candidates and found.example:  # a search for the verdict alone has none
        made |= _candidates(found)
    return made


def behaviour_figures(found: InductionResult) -> dict[str, go.Figure]:
    behaviour = found.behaviour.assign(control=found.behaviour["twin"].map(lambda twin: CONTROL_CLIPS.get(twin, twin)))
    one_off: Any = behaviour[behaviour["design"] == found.design]
    overall: Any = one_off[one_off["lag"] == 0]
    by_level = "What the repeat gains over each control clip, by noise level (95 % interval over clips)"
    by_lag = f"What the repeat gains over each control clip, by lag, noise level {found.level:g}"
    gain = "gain: x0 error on the control clip minus that on the clip"
    lags: Any = one_off[(one_off["lag"] > 0) & (one_off["level"] == found.level)]
    designs: Any = found.behaviour[(found.behaviour["lag"] == 0) & (found.behaviour["twin"] == "none")]
    relative = designs.assign(share=designs["gain"] / designs["twin_error"].clip(lower=1e-9))
    grid = relative.pivot(index="design", columns="level", values="share")
    grid = grid.loc[[name for name in KINDS if name in grid.index]]
    by_design = "Share of the error that a repeat saves, by kind of repeat and noise level"
    return {
        by_level: plotting.lines(
            overall,
            x="level",
            y="gain",
            color="control",
            color_title="control clip",
            low="low",
            high="high",
            title=by_level,
            x_title="noise level",
            y_title=gain,
            reference={"no gain": 0.0},
        ),
        by_lag: plotting.lines(
            lags,
            x="lag",
            y="gain",
            color="control",
            color_title="control clip",
            low="low",
            high="high",
            title=by_lag,
            x_title="lag (frames)",
            y_title=gain,
            reference={"no gain": 0.0},
        ),
        by_design: plotting.heatmap(
            grid.to_numpy(),
            x=[f"{level:g}" for level in grid.columns],
            y=list(grid.index),
            title=by_design,
            x_title="noise level",
            y_title="kind of repeat",
            value_title="share saved",
            zmin=-1.0,
            zmax=1.0,
            diverging=True,
            number_format=".2f",
        ),
    }


def _mosaic(found: InductionResult) -> dict[str, go.Figure]:
    names = [f"{layer}.{head}" for layer, head in zip(found.table["layer"], found.table["head"], strict=True)]
    grid = found.table.assign(name=names).pivot(index="name", columns="level", values="prefix_matching")
    grid = grid.loc[list(dict.fromkeys(names))]
    title = "Prefix matching of every head by noise level"
    if len(grid) > MOST_ROWS:
        title = f"Prefix matching of the {MOST_ROWS} best heads by noise level"
        grid = grid.loc[grid.max(axis=1).nlargest(MOST_ROWS).index]
    return {
        title: plotting.heatmap(
            grid.to_numpy(),
            x=[f"{level:g}" for level in grid.columns],
            y=list(grid.index),
            title=title,
            x_title="noise level",
            y_title="head",
            value_title="prefix matching (share minus chance)",
            zmin=-1.0,
            zmax=1.0,
            diverging=True,
            number_format=".2f",
        )
    }


def _candidates(found: InductionResult) -> dict[str, go.Figure]:
    names = [f"{layer}.{head}" for layer, head in found.candidates]
    video = found.example["video"].numpy()
    weights = {f"head {name}": found.example[name].numpy() for name in names[:4]}
    lag = int(found.lags["lag"].iloc[0])
    at = f"(query, in blue: a token of the noisy last frame; the earlier B is frame {len(video) - 1 - lag})"
    over = f"Attention of the candidates over one clip {at}"
    query: Any = tuple(int(x) for x in found.example["query"])
    follow = "The lag that candidates attend to most, against the true lag (lines are set apart a little)"
    line = pd.DataFrame({"head": "true lag", "lag": sorted(set(found.lags["lag"]))})
    line["preferred"] = line["lag"].astype(float)
    ablation = found.ablation.melt(id_vars=["set", "heads"], value_vars=["repeats", "others"], var_name="clips")
    ablation = ablation.merge(found.ablation[["set", "low", "high"]], on="set")
    of_others = ablation["clips"] == "others"
    ablation.loc[of_others, ["low", "high"]] = np.nan
    ablation["clips"] = ablation["clips"].map({"repeats": "where B came back", "others": "where nothing came back"})
    mean = "Rise of the x0 error when heads are replaced by their mean (95 % interval where B came back)"
    figures = {
        over: plotting.attention_strip(video, weights, title=over, queries={name: query for name in weights}),
        follow: plotting.lines(
            pd.concat([line, apart(found.lags)]),
            x="lag",
            y="preferred",
            color="head",
            title=follow,
            x_title="true lag (frames)",
            y_title="preferred lag (frames)",
            color_title="head",
        ),
        mean: plotting.bars(
            ablation,
            x="set",
            y="value",
            color="clips",
            low="low",
            high="high",
            title=mean,
            x_title="heads",
            y_title="rise of x0 error over variance",
        ),
    }
    if len(edges := circuit(found)):
        title = "The circuit: which earlier heads the candidates rely on, and what they copy into the prediction"
        figures[f"{title}. Numbers: drop of prefix matching, or copy gain"] = plotting.circuit_graph(
            edges,
            title=title,
            value_title="drop of prefix matching, or copy gain",
            meaning=("needed to find the earlier B, or copies it", "hinders"),
        )
    return figures


def apart(lags: pd.DataFrame) -> pd.DataFrame:
    """Each head's line a little above the one before, so that equal ones do not hide one another."""
    order = {head: index + 1 for index, head in enumerate(dict.fromkeys(lags["head"]))}
    return lags.assign(preferred=lags["preferred"] + APART * lags["head"].map(order))


def circuit(found: InductionResult) -> pd.DataFrame:
    """Edges `sender receiver score`: earlier heads that a candidate relies on (drop of its prefix matching, see
    `reliance`), and the candidates' copy gains to the output; without those below a fiftieth of the strongest."""
    edges = [
        {"sender": row["sender"], "receiver": row["head"], "score": row["drop"]}
        for row in words.relied_on(found).to_dict("records")
    ]
    if edges:
        edges += [
            {"sender": f"{row['layer']}.{row['head']}", "receiver": "final", "score": row["copy_gain"]}
            for row in found.copying.to_dict("records")
            if row["level"] == found.level and (row["layer"], row["head"]) in found.candidates
        ]
    table: Any = pd.DataFrame(edges, columns=["sender", "receiver", "score"])
    return table[table["score"].abs() >= LEAST_EDGE * table["score"].abs().max()]
