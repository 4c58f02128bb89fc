"""Where named heads look: lag by lag, and over one clip."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from vdinterp.analysis.induction import effects
from vdinterp.analysis.induction.task import Task


def lag_table(task: Task, level: float, heads: Sequence[effects.Head]) -> pd.DataFrame:
    """Where the named heads look, lag by lag: `head lag share preferred`, means over clips."""
    look, lags = task.look(level), task.repeats.lag
    on, rows = task.on_successor(look), []
    for layer, head in heads:
        preferred = task.n_frames - 1 - look.last[layer, :, head].argmax(1)
        for lag in sorted(set(lags.tolist())):
            chosen = lags == lag
            rows.append(
                {
                    "head": f"{layer}.{head}",
                    "lag": lag,
                    "share": float(on[layer, chosen, head].mean()),
                    "preferred": float(preferred[chosen].float().mean()),
                }
            )
    return pd.DataFrame(rows)


def example(task: Task, level: float, heads: Sequence[effects.Head]) -> dict[str, torch.Tensor]:
    """One clip, and the attention of the named heads over it: of the middle token of the last frame."""
    noised = task.noised()
    grid = noised.grid
    query = grid.index(grid.n_frames - 1, grid.n_rows // 2, grid.n_cols // 2)
    cache = noised.cache(level, ["rot_q", "rot_k"], slice(0, 1))
    found = {"video": task.pictures(task.repeats.video[0]), "query": torch.tensor(grid.coordinates(query))}
    for layer, head in heads:
        row = cache["pattern", layer].heads([head]).rows([query])[0, 0, 0]
        found[f"{layer}.{head}"] = row[: grid.n_tokens].view(grid.shape).cpu()
    return found
