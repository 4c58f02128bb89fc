"""Scores of every head: does it look at what came next last time, rather than at anything else?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp.analysis.induction.task import Look, Task
from vdinterp.analysis.intervals import bootstrap_mean, resamples, tails

FIRST_PERMUTATIONS, MOST_PERMUTATIONS = 1_000, 1_000_000
NUMBERS_AT_ONCE = 20_000_000  # held while permuting

UNITS = {
    "prefix_matching": "share of attention to clean frames that goes to the successor, minus chance",
    "contrast": "share on the successor minus that on the best foil",
    "beyond_position": "share on the successor minus what the same lag gets without a repeat",
    "auc": "probability that the successor gets more than another clean frame",
    "slope": "of the preferred lag against the true lag",
    "copy_gain": "how far x0 goes towards what the head alone may see, 0 to 1",
    "previous_frame": "attention of clean frames to the frame before",
    "duplicate": "attention of a clean frame to its earlier copy, as a share",
    "first_frame": "share on the first frame",
    "offset_matching": "prefix matching by the language-model convention: of the clean frame before",
    "same_position": "share on the own place in other frames, minus uniform attention's",
}


def score_table(task: Task, seed: int = 0, significance: bool = True) -> pd.DataFrame:
    """Scores of all heads at all noise levels on one-off repeats, one row a head and level.

    All are of the last frame's tokens (the query that has to be foretold) and count attention to clean frames only,
    `s(f) = mass on frame f / mass on all clean frames`:

    - `prefix_matching` = `mean s(successor) - 1 / n clean frames`. Range -1/n to 1 - 1/n, chance 0; `low`, `high`: its
      95 % bootstrap interval over clips. In a language model the query is the token *before* the answer; a denoiser
      predicts its own token, so the query is the noisy frame itself.
    - `contrast` = `mean s(successor) - max over foils of mean s(foil)`; `best_foil` says which. -1 to 1, chance 0.
      Foils: the frame before the earlier match (what a head that cannot tell before from after takes), the match
      itself, the first frame, the frame before, and one of equal texture (the successor turned by half).
    - `beyond_position` = `mean of s(successor) - kernel(lag)`, with `kernel` the mean of s at that lag on clips without
      a repeat. 0 for a head that attends by displacement alone.
    - `auc`: probability that the successor gets more than a random other clean frame; 0.5 is chance. `rank`: its mean
      rank among clean frames, 1 the first.
    - `slope`: least squares of the lag that gets most against the true lag: 1 follows the repeat in every clip, 0 a
      fixed distance, between them in some clips; `slope_low`: the lower end of its 95 % interval over clips. A gap
      where all clips have one lag.
    - `p`: permutation of which clip has which successor (positions stay, contents do not fit), one-sided; `q`:
      Benjamini-Hochberg over all heads and levels.
    - `previous_frame`, `duplicate` (the clean cue on its earlier copy), `first_frame`: other roles of the head.
    - `offset_matching`: the cue's share on the successor - 1 / n clean frames, which is prefix matching as language
      models have it. Chance 0.

    Misleads: a high score is not an effect (a head may look and not tell, or another one may do the same); a chain of
    heads can do the matching while none of them looks at the successor from the last frame.
    """
    rows = []
    for level in task.levels:
        look, plain = task.look(level), task.look(level, "none")
        for layer in range(look.last.shape[0]):
            for head in range(look.last.shape[2]):
                rows.append({"level": level, "layer": layer, "head": head, **_scores(task, look, plain, layer, head)})
    table = pd.DataFrame(rows)
    if significance:
        table["p"] = _p_values(task, seed)
        table["q"] = benjamini_hochberg(table["p"].to_numpy())
    return table


@dataclass(frozen=True)
class _Geometry:
    """Where things lie in the clips of a task, as indices of frames."""

    clip: torch.Tensor
    at: torch.Tensor  # of the successor
    lag: torch.Tensor
    n_clean: int


def _geometry(task: Task) -> _Geometry:
    lag = task.repeats.lag
    return _Geometry(torch.arange(len(lag)), task.n_frames - 1 - lag, lag, task.n_frames - 1)


def _scores(task: Task, look: Look, plain: Look, layer: int, head: int) -> dict[str, object]:
    where = _geometry(task)
    share, without = look.last[layer, :, head], plain.last[layer, :, head]
    successor = share[where.clip, where.at]
    interval = bootstrap_mean(successor - 1 / where.n_clean)
    foils = {name: share[where.clip, frames] for name, frames in task.repeats.foils.items()}
    best = max(foils, key=lambda name: float(foils[name].mean()))
    contrast = bootstrap_mean(successor - foils[best])
    kernel = without.mean(0)
    others = torch.ones_like(share, dtype=torch.bool)
    others[where.clip, where.at] = False
    more = (successor[:, None] > share).float() + 0.5 * (successor[:, None] == share).float()
    above = (share > successor[:, None]).float() + 0.5 * (share == successor[:, None]).float()
    rank = 1 + (above * others).sum(1)
    slope, slope_low = _slope(share, where)
    copies = where.at - 1
    return {
        "share": float(successor.mean()),
        "prefix_matching": float(interval.value),
        "low": float(interval.low),
        "high": float(interval.high),
        "contrast": float(contrast.value),
        "contrast_low": float(contrast.low),
        "best_foil": best,
        "beyond_position": float((successor - kernel[where.at]).mean()),
        "auc": float(more[others].mean()),
        "rank": float(rank.mean()),
        "slope": slope,
        "slope_low": slope_low,
        "clean_mass": float(look.mass[layer, :, head].mean()),
        "previous_frame": float(look.previous[layer, :, head].mean()),
        "duplicate": float(look.cue[layer, where.clip, head, copies].mean()),
        "first_frame": float(share[:, 0].mean()),
        "offset_matching": float((look.cue[layer, where.clip, head, where.at] - 1 / (where.n_clean - 1)).mean()),
    }


def _slope(share: Float[torch.Tensor, "clip frame"], where: _Geometry) -> tuple[float, float]:
    """Of the preferred lag against the true one, and the lower end of its 95 % interval over clips."""
    lag, preferred = where.lag.double().numpy(), (where.n_clean - share.argmax(1)).double().numpy()
    if not lag.var():
        return float("nan"), float("nan")
    draws = np.concatenate([np.ones((1, len(lag))), resamples(len(lag), 1000, 0)]) / len(lag)
    mean, other = draws @ lag, draws @ preferred
    spread = draws @ lag**2 - mean**2
    found = (draws @ (lag * preferred) - mean * other)[spread > 1e-12] / spread[spread > 1e-12]
    return float(found[0]), float(np.quantile(found[1:], tails(len(lag))[0]))


def _p_values(task: Task, seed: int) -> np.ndarray:
    """One a head and level, in the order of the table."""
    share = torch.stack([task.look(level).last for level in task.levels])  # level layer clip head frame
    flat = share.movedim(2, 3).flatten(0, 2).double()  # test clip frame
    where = _geometry(task)
    if len(set(where.lag.tolist())) < 2:
        return np.full(len(flat), np.nan)  # with one lag a permutation changes nothing
    generator = torch.Generator().manual_seed(seed)
    observed = flat[:, where.clip, where.at].mean(1)
    above, done = torch.zeros(len(flat)), torch.zeros(len(flat))
    enough = min(MOST_PERMUTATIONS, max(FIRST_PERMUTATIONS, 200 * len(flat)))  # so that one test of all can pass
    left = torch.arange(len(flat))
    while len(left):
        # Heads that no permutation has beaten yet go on until their p can pass the correction for all tests.
        n = min(FIRST_PERMUTATIONS, max(1, NUMBERS_AT_ONCE // (len(left) * len(where.at))))
        order = torch.rand(n, len(where.at), generator=generator).argsort(1)
        means = flat[left][:, where.clip, where.at[order]].mean(-1)
        above[left] += (means >= observed[left, None] - 1e-12).sum(1)
        done[left] += n
        left = left[(done[left] < FIRST_PERMUTATIONS) | ((above[left] == 0) & (done[left] < enough))]
    return ((1 + above) / (1 + done)).numpy()


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (false discovery rate); NaN stays NaN."""
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    ratio = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(1.0, np.minimum.accumulate(ratio[::-1])[::-1])
    return q


def candidates(table: pd.DataFrame, level: float, at_least: float) -> list[tuple[int, int]]:
    """Heads that look at the successor at a noise level, strongest first: prefix matching and contrast above it."""
    rows: Any = table[(table["level"] == level) & (table["prefix_matching"] >= at_least) & (table["contrast"] > 0)]
    ranked = rows.sort_values("prefix_matching", ascending=False)
    return [(int(row.layer), int(row.head)) for row in ranked.itertuples()]


def same_position(task: Task, level: float) -> Float[torch.Tensor, "layer head"]:
    """Attention of the last frame's tokens to their own place in clean frames, minus uniform attention's."""
    noised = task.noised()
    grid = noised.grid
    n_cells = grid.tokens_per_frame
    labels = torch.where(grid.frame_of() < grid.n_frames - 1, grid.cell_of(), n_cells)
    total = torch.zeros(task.pipe.model.cfg.n_layers, task.pipe.model.cfg.n_heads)
    with torch.no_grad(), task.pipe.model.key_partition(labels):
        for clips in noised.batches:
            cache = noised.cache(level, ["mass"], clips)
            for layer in range(len(total)):
                mass = cache["mass", layer][:, :, -n_cells:].cpu()  # clip head cell part
                clean = mass[..., :-1]
                own = clean.diagonal(dim1=-2, dim2=-1)
                total[layer] += (own / clean.sum(-1).clamp(min=1e-12)).mean(-1).sum(0)
    alone = [layer for layer, block in enumerate(task.pipe.model.cfg.blocks) if block.axis == "time"]
    found = total / len(noised.clips) - 1 / n_cells
    found[alone] = torch.nan  # temporal attention has no other place to choose
    return found
