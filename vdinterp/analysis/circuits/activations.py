"""The QK circuit as it was measured: scores by displacement, for models whose weights alone do not determine it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from vdinterp import plotting
from vdinterp.analysis.circuits.weights import check_head, check_model
from vdinterp.models import ActivationCache, AttentionPattern, HookedVideoDiT
from vdinterp.models.query_keys import at_a_time
from vdinterp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

STEPS, ACCURATE = 40, 1e-7  # of the least-squares fit


@dataclass(frozen=True, kw_only=True, eq=False)
class QKActivations(Result):
    """Scores of one head by displacement; see `qk_activations`.

    `kernel`, `sd` `[frame row col]`: score of tokens that far apart (key minus query; displacement 0 in the middle) and
    how far scores scatter about it, NaN where there are none; `count`: of how many pairs. `position`, `chance`.
    """

    title = "QK scores by displacement"
    layer: int
    head: int
    kernel: Float[torch.Tensor, "frame row col"]
    sd: Float[torch.Tensor, "frame row col"]
    count: Int[torch.Tensor, "frame row col"]
    position: float
    chance: float

    @property
    def reach(self) -> tuple[int, int, int]:
        """The largest displacement along each axis."""
        frames, rows, cols = (size // 2 for size in self.kernel.shape)
        return frames, rows, cols

    def to_frame(self) -> pd.DataFrame:
        """One row a displacement that occurs: `frame row col value sd count`."""
        steps = np.indices(self.kernel.shape).reshape(3, -1) - np.array(self.reach)[:, None]
        table = pd.DataFrame(dict(zip(("frame", "row", "col"), steps, strict=True))).assign(
            value=self.kernel.flatten().numpy(), sd=self.sd.flatten().numpy(), count=self.count.flatten().numpy()
        )
        return table.loc[table["count"] > 0].reset_index(drop=True)

    def plot(self) -> dict[str, go.Figure]:
        """Scores by rows and columns; a slider chooses the displacement in time."""
        frames, rows, cols = self.reach
        title = f"Score of head {self.layer}.{self.head} by displacement"
        x, y = ([f"{step:+d}" if step else "0" for step in range(-reach, reach + 1)] for reach in (cols, rows))
        slices = [f"frame {step:+d}" if step else "same frame" for step in range(-frames, frames + 1)]
        figure = plotting.sliced_heatmap(
            self.kernel.numpy(),
            slices=slices,
            x=x,
            y=y,
            title=title,
            x_title="columns (key minus query)",
            y_title="rows (key minus query)",
            value_title="score over the mean",
            diverging=True,
        )
        return {title: figure}

    def summary(self) -> str:
        """Where keys score highest, and how much of the scores that is."""
        table = self.to_frame()
        best = table.loc[table["value"].idxmax()]
        place = tuple(int(best[axis]) for axis in ("frame", "row", "col"))
        return (
            f"Head {self.layer}.{self.head} scores keys highest at {place} (frames, rows, columns), "
            f"{best['value']:.2f} above the mean. Displacement alone accounts for {self.position:.0%} of what differs "
            f"between the keys of a query (chance {self.chance:.1%}); the rest depends on what the tokens hold."
        )


@torch.no_grad()
def qk_activations(model: HookedVideoDiT, cache: ActivationCache, layer: int, head: int) -> QKActivations:
    """What a head looks for, measured: its scores by displacement, and how much of them displacement accounts for.

    The counterpart of `qk` where weights do not determine scores (qk-norm divides every query and key by its own size).
    From the cached `rot_q`, `rot_k`, over all pairs that attention allows, by least squares:
    `q . k / sqrt(d_head) = row[query] + kernel[displacement] + rest`. Softmax ignores `row`. `kernel` has mean 0 over
    pairs; `sd` is the root mean square of the rest. `position`: the share of the variance within rows that the kernel
    accounts for, 0 to 1; near 1 the head looks at places, near 0 at contents. `chance`: what unrelated scores would
    give, the number of displacements over that of pairs.

    Misleads: places hold contents (in a clip that stands still "the same place" is "the same content"), so take clips
    that move; a large constant part of every token, with rotation, looks like a place; values at the rim are of few
    pairs; and scores are before softmax, which asks for the largest only.

    `cache`: of a forward pass with at least `names=["rot_q", "rot_k"]`; its noise levels are whatever it was run at.
    Raises ValueError for heads that do not exist, KeyError where the cache does not have them.
    """
    check_model(model)
    check_head(model, layer, head)
    pattern = cache.batched["pattern", layer].heads([head])
    shape = tuple(2 * size - 1 for size in cache.grid.shape)
    empty, n_clips = torch.zeros(math.prod(shape), dtype=torch.double, device=pattern.q.device), len(pattern.q)
    total, square, count = empty.clone(), empty.clone(), empty.clone()
    for within, allowed, places in _pairs(pattern):
        scores, every = _scores(pattern, within, allowed), allowed.expand(n_clips, -1, -1, -1)
        at = places.expand(every.shape)[every]
        total.index_add_(0, at, scores[every])
        count.index_add_(0, at, torch.ones_like(scores[every]))

    def within_rows(values: torch.Tensor) -> torch.Tensor:
        """By displacement, the sum of a kernel less its row's means."""
        found, repeats = empty.clone(), 1.0
        for _, allowed, places in _pairs(pattern):
            found.index_add_(0, places.expand(allowed.shape)[allowed], _centred(values[places], allowed)[allowed])
            repeats = n_clips / len(allowed)
        return found * repeats

    kernel = _solved(within_rows, total)
    of_scores = 0.0
    for within, allowed, places in _pairs(pattern):
        scores, every = _scores(pattern, within, allowed), allowed.expand(n_clips, -1, -1, -1)
        rest = scores - _centred(kernel[places], allowed)
        square.index_add_(0, places.expand(every.shape)[every], rest[every] ** 2)
        of_scores += float(scores.square().sum())
    kernel = torch.where(count > 0, kernel - (kernel * count).sum() / count.sum(), torch.nan)
    n_pairs, n_rows = float(count.sum()), pattern.q.shape[:-1].numel()
    return QKActivations(
        layer=layer,
        head=head,
        kernel=kernel.reshape(shape).float().cpu(),
        sd=(square / count).sqrt().reshape(shape).float().cpu(),
        count=count.reshape(shape).long().cpu(),
        position=1 - float(square.sum()) / of_scores if of_scores else float("nan"),
        chance=(int((count > 0).sum()) - 1) / max(n_pairs - n_rows, 1.0),
        meta={"model": model.cfg.model_name, "clips": n_clips},
    )


def _pairs(pattern: AttentionPattern) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Some queries at a time: which, what they may see `[batch group query key]` (batch 1 if that is the same for all),
    and the index of each pair's displacement `[group query key]`."""
    grid, device, n_keys = pattern.grid, pattern.q.device, pattern.k.shape[-2]
    at = grid.all_coordinates(device)[pattern.query_tokens]  # group token 3
    sizes, middle = (torch.tensor([m * n - 1 for n in grid.shape], device=device) for m in (2, 1))
    step = at_a_time(32 * pattern.q.shape[:2].numel() * n_keys)
    for start in range(0, pattern.q.shape[3], step):
        within = slice(start, min(start + step, pattern.q.shape[3]))
        seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        mask = seen if pattern.mask is None else pattern.mask.allowed(within)[:, :, 0]
        moved = at[:, None] - at[:, within, None] + middle  # group query key 3
        places = (moved[..., 0] * sizes[1] + moved[..., 1]) * sizes[2] + moved[..., 2]
        yield within, mask.expand(-1, *places.shape), places


def _scores(pattern: AttentionPattern, within: slice, allowed: torch.Tensor) -> torch.Tensor:
    """Scores of some queries less their row's mean, `[batch group query key]`, float64."""
    q, k = pattern.q[:, :, 0, within].float(), pattern.k[:, :, 0].float()
    return _centred((q * pattern.scale @ k.mT).double(), allowed)


def _centred(values: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Less the mean over the keys that a query may see; 0 at all others."""
    mean = torch.where(allowed, values, 0.0).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True)
    return torch.where(allowed, values - mean, 0.0)


def _solved(apply: Callable[[torch.Tensor], torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    """`x` with `apply(x) = wanted`, by conjugate gradients: `apply` is linear, symmetric and never negative."""
    x, rest = torch.zeros_like(wanted), wanted.clone()
    step, size = rest.clone(), rest @ rest
    for _ in range(STEPS):
        if float(size.sqrt()) <= ACCURATE * float(wanted.norm()):
            break
        ahead = apply(step)
        length = size / (step @ ahead)
        x, rest = x + length * step, rest - length * ahead
        size, before = rest @ rest, size
        step = rest + size / before * step
    return x
