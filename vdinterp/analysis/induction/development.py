"""Development: in which order the parts of an induction circuit form during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.analysis.induction.effects import reliance_table
from vdinterp.analysis.induction.scores import score_table
from vdinterp.analysis.induction.search import find_induction
from vdinterp.analysis.induction.task import Task, of_latents, pool_of
from vdinterp.data import Clips
from vdinterp.data.repeats import lags_of, make_repeats
from vdinterp.pipeline import VideoDiffusion
from vdinterp.progress import bar
from vdinterp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVES = {
    "previous_frame": "previous frame: best head's attention to the frame before",
    "duplicate": "duplicate: best head's share on the earlier A, when A comes again",
    "prefix_matching": "induction: best head's prefix matching",
    "composition": "composition: loss of prefix matching when a previous-frame head's output is a control clip's",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DevelopmentResult(Result):
    """Behaviour and scores along training.

    `table`, one row a checkpoint: `step verdict reason`, `same` of `searches` with other clips and noise that came to
    this verdict (the first counts), `error` of one-off repeats (x0, over the variance),
    `twin_error` where nothing came back, and `loop_error`; `previous_frame duplicate prefix_matching` of the best head
    each (named in `previous_frame_head` ..) and `composition`.
    """

    title = "Induction over training"
    table: pd.DataFrame
    level: float

    def plot(self) -> dict[str, go.Figure]:
        """Errors, and scores of the parts, over training steps."""
        errors = self.table.melt(
            id_vars="step", value_vars=["error", "twin_error", "loop_error"], var_name="clips", value_name="x0 error"
        )
        names = {"error": "one-off repeats", "twin_error": "the same without a repeat", "loop_error": "loops"}
        scores = self.table.melt(id_vars="step", value_vars=list(CURVES), var_name="part", value_name="score")
        first = f"x0 error of the last frame over training, noise level {self.level:g}"
        second = f"Parts of the circuit over training, noise level {self.level:g}"
        return {
            first: plotting.lines(
                errors.assign(clips=errors["clips"].map(names)),
                x="step",
                y="x0 error",
                color="clips",
                title=first,
                x_title="training step",
                y_title="x0 error over variance",
            ),
            second: plotting.lines(
                scores.assign(part=scores["part"].map({k: v.split(":")[0] for k, v in CURVES.items()})),
                x="step",
                y="score",
                color="part",
                title=second,
                x_title="training step",
                y_title="score (see the text)",
            ),
        }

    def summary(self) -> str:
        """When each part is half of what it becomes, and the verdicts."""
        formed = []
        for name, meaning in CURVES.items():
            largest = float(self.table[name].max())
            reached: Any = self.table[self.table[name] >= largest / 2]
            if largest > 0.05 and len(reached):
                formed.append(
                    (
                        int(reached["step"].iloc[0]),
                        f"- step {int(reached['step'].iloc[0])}: {meaning} (half of its largest value, {largest:.2f}).",
                    )
                )
        order = "\n".join(text for _, text in sorted(formed))
        verdicts = "\n".join(
            f"- step {row['step']}: {row['verdict']} ({row['same']} of {row['searches']} searches)."
            for row in self.table.to_dict("records")
        )
        return f"When the parts form:\n\n{order}\n\nVerdicts:\n\n{verdicts}"


def induction_over_training(
    checkpoints: Mapping[int, VideoDiffusion],
    clips: Clips | torch.Tensor | None = None,
    *,
    seed: int = 0,
    noise_level: float = 0.95,
    n_per_lag: int = 8,
    repeats: int = 2,
    engine: Literal["inline", "ray"] = "inline",
    out: str | Path | None = None,
    progress: bool = True,
) -> DevelopmentResult:
    """The search at every checkpoint, and the best score of each part of a circuit.

    >>> steps = vd.list_checkpoints("tiny-induction")
    >>> vd.induction_over_training({step: vd.load("tiny-induction", checkpoint=step) for step in steps}).plot()

    All at one noise level, where the query carries hardly any content. `composition` is the largest drop of the best
    induction head's prefix matching when one of the three best previous-frame heads before it tells of a twin
    (`reliance_table`). A verdict on an edge comes out one way or the other by the clips of the search: `repeats` more
    of them say how often it comes again. Best-of-all-heads scores are above chance even for random weights: compare
    with the first
    checkpoint. `clips`, `engine`, `out`: as of `find_induction`.

    Raises ValueError for no checkpoints.
    """
    if not checkpoints:
        raise ValueError("no checkpoint is given: a mapping from training step to pipeline is needed")
    rows: list[dict[str, Any]] = []
    for step, pipe in bar(sorted(checkpoints.items()), desc="checkpoints", show=progress):
        folder = None if out is None else Path(out) / f"step-{step}"
        options: Any = {
            "noise_levels": (noise_level,),
            "n_per_lag": n_per_lag,
            "designs": (),
            "repeats": repeats,
            "verdict_only": True,
            "progress": False,
        }
        found = find_induction(pipe, clips, seed=seed, engine=engine, out=folder, **options)
        same, searches = found.reproduced
        rows.append(
            {
                "step": step,
                "verdict": found.verdict,
                "reason": found.reason,
                "same": same,
                "searches": searches,
                **_errors(found.behaviour),
                **_parts(pipe, clips, seed, noise_level, n_per_lag),
            }
        )
    some = next(iter(checkpoints.values()))
    meta = {"model": some.model.cfg.model_name, "level": noise_level, "seed": seed, "checkpoints": len(rows)}
    return DevelopmentResult(table=pd.DataFrame(rows), level=noise_level, meta=meta)


def _errors(behaviour: pd.DataFrame) -> dict[str, float]:
    overall = behaviour[(behaviour["lag"] == 0) & (behaviour["twin"] == "none")].set_index("design")
    return {
        "error": float(overall.loc["one-off", "error"]),
        "twin_error": float(overall.loc["one-off", "twin_error"]),
        "loop_error": float(overall.loc["loop", "error"]),
    }


def _parts(
    pipe: VideoDiffusion, clips: Clips | torch.Tensor | None, seed: int, level: float, n_per_lag: int
) -> dict[str, Any]:
    n_frames = pipe.model.cfg.n_frames
    repeats = make_repeats(
        "one-off", pool_of(pipe, clips), n_per_lag * len(lags_of(n_frames)), n_frames=n_frames, seed=2 * seed + 1
    )
    task = Task(pipe, repeats, (level,), seed=2 * seed + 1, encoded=of_latents(pipe, clips))
    scores = score_table(task, significance=False)
    found: dict[str, Any] = {}
    heads: dict[str, Sequence[tuple[int, int]]] = {}
    for name in ("previous_frame", "duplicate", "prefix_matching"):
        ranked: Any = scores.sort_values(name, ascending=False)
        heads[name] = [(int(row.layer), int(row.head)) for row in ranked.itertuples()]
        layer, head = heads[name][0]
        found |= {name: float(ranked[name].iloc[0]), f"{name}_head": f"{layer}.{head}"}
    best = heads["prefix_matching"][0]
    senders = [head for head in heads["previous_frame"] if head[0] < best[0]][:3]
    drops = reliance_table(task, level, senders, [best])["drop"]
    return {**found, "composition": float(drops.max()) if len(drops) else 0.0}
