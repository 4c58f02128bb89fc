"""Redundancy: heads of a layer that attend alike, and noise levels at which the stream is alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.analysis.heads.statistic import HeadStatistic, head_rows, head_statistic
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.models import AttentionPattern
from vdinterp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


# Heads


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadConsensus(Result):
    """`cosine`, `unrelated` `[level layer head head]`: between the maps of two heads of a layer, and its chance level.

    `scores`: the mean of each over the other heads of the layer, as a `HeadStatistic`.
    """

    title = "Heads of a layer that attend alike"
    cosine: Float[torch.Tensor, "level layer head head"]
    unrelated: Float[torch.Tensor, "level layer head head"]
    scores: HeadStatistic
    levels: tuple[float, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of heads, both ways round: `level layer head other cosine unrelated`."""
        index = np.indices(self.cosine.shape).reshape(4, -1)
        table = pd.DataFrame(dict(zip(("level", "layer", "head", "other"), index, strict=True)))
        table["level"] = np.asarray(self.levels)[index[0]]
        table["cosine"], table["unrelated"] = self.cosine.flatten().numpy(), self.unrelated.flatten().numpy()
        return table

    def plot(self) -> dict[str, go.Figure]:
        """A head x head matrix for every layer and noise level; then the mean over the other heads."""
        title = "Cosine between the attention maps of two heads of a layer"
        matrices = plotting.tiles(
            self.cosine,
            rows=[f"{level:g}" for level in self.levels],
            columns=[str(layer) for layer in range(self.cosine.shape[1])],
            title=title,
            x_title="layer (in a tile: head)",
            y_title="noise level (in a tile: head)",
            value_title="cosine, 0 to 1",
            cell_names=("head", "head"),
            zmax=1.0,
        )
        return {title: matrices, **self.scores.plot()}

    def summary(self) -> str:
        """The most alike heads, at the first noise level."""
        return self.scores.summary()


@on_noised_clips
def head_consensus(noised: NoisedClips) -> HeadConsensus:
    """How alike the attention of a layer's heads is: the mean cosine of a head's map to those of the others.

    `cosine(g, h) = <A_g, A_h> / (|A_g| |A_h|)` over all queries and keys of a clip, mean over clips. Range 0 to 1; a
    head has 1 with itself. Chance: two heads with uniform attention have 1, as all of theirs is the same. Two that
    concentrate as these do but on unrelated keys have `unrelated(g, h) = cosine(g, U) * cosine(h, U)`, with U uniform
    attention: exactly what the cosine is on average when the keys of every row of a map are shuffled. It is near
    `sqrt(n_g n_h) / n` for heads that look at n_g and n_h of n keys; read the cosine against it.

    Misleads: heads that look at the same places may fetch different things there; places that all heads like (the own
    token, a sink) raise it above `unrelated` without anything being redundant; and it is dominated by the queries
    that attend sharply. Source: arXiv 2602.10095.

    Raises ValueError for a model with one head.
    """
    cfg = noised.model.cfg
    if cfg.n_heads < 2:
        raise ValueError(f"{cfg.model_name} has one head a layer: at least two are needed to be alike")
    units = {
        "cosine": "mean cosine to the other heads, 0 to 1",
        "unrelated": "the same with the keys of every row shuffled, 0 to 1",
    }
    rows, matrices = [], []
    for level in noised.levels:
        parts = [torch.stack([map_cosines(one) for one in layers], 2).cpu() for layers in noised.patterns(level)]
        found = torch.cat(parts, 1)  # score clip layer head head
        matrices.append(found.mean(1))
        apart = ~torch.eye(cfg.n_heads, dtype=torch.bool)
        for score, values in zip(units, (found * apart).sum(-1) / (cfg.n_heads - 1), strict=True):
            rows.append(head_rows(values, level=level, score=score, chance=torch.ones(cfg.n_layers)))
    cosine, unrelated = torch.stack(matrices, 1)
    meta = noised.meta()
    return HeadConsensus(
        cosine=cosine,
        unrelated=unrelated,
        levels=noised.levels,
        meta=meta,
        scores=head_statistic("Cosine to the other heads of the layer", rows, units, meta),
    )


def map_cosines(pattern: AttentionPattern) -> Float[torch.Tensor, "2 batch head head"]:
    """Cosines between the heads' maps, and what they would be between maps with shuffled rows."""
    gram = torch.zeros(len(pattern.q), pattern.n_heads, pattern.n_heads, device=pattern.q.device)
    for _, part in pattern.chunks():
        flat = part.transpose(1, 2).flatten(2)
        gram += flat @ flat.transpose(1, 2)
    norm = gram.diagonal(dim1=1, dim2=2).sqrt()
    # A row times the uniform row is one over the keys it may see, whatever the row: so is the uniform row's own square.
    uniform = pattern.heads([0]).uniform()
    square = sum(part.square().sum((1, 2, 3, 4)) for _, part in uniform.chunks())
    both = norm[:, :, None] * norm[:, None, :]
    return torch.stack([gram, torch.as_tensor(square)[:, None, None].expand_as(gram)]) / both


# Noise levels


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRedundancy(Result):
    """How alike the stream is at two noise levels.

    `table`, one row a layer, pair of levels and score ("cosine", "centred"): `score layer level other value low high
    other_clip`; `low`, `high` are a 95 % bootstrap interval over clips, `other_clip` is the control.
    """

    title = "Noise levels at which the stream is alike"
    table: pd.DataFrame

    def values(self, score: str = "cosine", column: str = "value") -> np.ndarray:
        """A column as `[layer level level]`."""
        rows = self.table.loc[self.table["score"] == score]
        if not len(rows) or column not in ("value", "low", "high", "other_clip"):
            scores = ", ".join(self.table["score"].unique())
            raise KeyError(f"no {column!r} of {score!r}: scores are {scores}, columns value, low, high, other_clip")
        n_levels = self.table["level"].nunique()
        return rows[column].to_numpy().reshape(-1, n_levels, n_levels)

    def plot(self) -> dict[str, go.Figure]:
        """A level x level matrix for every layer: the score, and its control between different clips."""
        names = [f"{level:g}" for level in self.table["level"].unique()]
        kinds = {"value": "same clip", "other_clip": "another clip"}
        figures = {}
        for score, what in (("cosine", "Cosine"), ("centred", "Cosine without the tokens' mean")):
            both = np.stack([self.values(score, column) for column in kinds])
            title = f"{what} of the stream after a layer at two noise levels"
            figures[title] = plotting.tiles(
                both,
                rows=list(kinds.values()),
                columns=[str(layer) for layer in range(both.shape[1])],
                title=title,
                x_title="layer (in a tile: noise level)",
                y_title="compared with (in a tile: noise level)",
                value_title="cosine, -1 to 1",
                cell_names=("level", "level"),
                cell_x=names,
                cell_y=names,
                diverging=True,
                zmax=1.0,
            )
        return figures

    def summary(self) -> str:
        """The lowest and highest similarity of neighbouring noise levels, with its control."""
        lines = []
        for score in self.table["score"].unique():
            off = np.diagonal(self.values(score), 1, 1, 2)
            control = np.diagonal(self.values(score, "other_clip"), 1, 1, 2)
            line = f"- **{score}**: {off.min():.2f} to {off.max():.2f} between neighbouring levels, over layers"
            if np.isfinite(control).any():
                line += f"; {np.nanmin(control):.2f} to {np.nanmax(control):.2f} between one clip and the next"
            lines.append(f"{line}.")
        return "\n".join(lines)


@on_noised_clips
def step_redundancy(noised: NoisedClips) -> StepRedundancy:
    """Cosine of `resid_post` between every two noise levels, layer by layer: what a sampler computes over again.

    `cosine = <x_a, x_b> / (|x_a| |x_b|)`, x the stream of a clip's target tokens at one level, all tokens and channels
    as one vector; mean over clips. `centred`: the same after the mean over these tokens is taken from every channel.
    Range -1 to 1; 1 is the same up to its length. The noise of a clip is the same at all levels.

    Chance: unrelated vectors have 0, but streams are not unrelated; `other_clip` is the same number between a clip and
    the next one (a gap where a batch holds one clip), so only what lies above it is about the clip. Misleads: a
    constant that all tokens share (a bias, a few huge channels) brings any two streams near 1, so read `centred`; and
    small differences may be all that matters: alike is not replaceable. Source: arXiv 2602.10095.

    Raises ValueError for fewer than two noise levels.
    """
    if len(noised.levels) < 2:
        raise ValueError(
            f"noise levels are compared with one another, got {noised.levels}: give NoisedClips at least two levels"
        )
    target = noised.target_tokens
    parts = []
    # One batch at all levels at a time, so that no more than that is held.
    for caches in zip(*(noised.caches(level, ["resid_post"]) for level in noised.levels), strict=True):
        stream = torch.stack([cache.stack("resid_post")[:, :, target.to(noised.pipe.device)] for cache in caches])
        parts.append(level_cosines(stream.float()).cpu())
    found = torch.cat(parts, 2)  # same or other clip, score, clip layer level level
    rows = []
    for index, score in enumerate(("cosine", "centred")):
        interval, control = bootstrap_mean(found[0, index]), bootstrap_mean(found[1, index])
        layer, level, other = np.indices(interval.value.shape).reshape(3, -1)
        at = np.asarray(noised.levels)
        columns = {"score": score, "layer": layer, "level": at[level], "other": at[other]}
        measured = {"value": interval.value, "low": interval.low, "high": interval.high, "other_clip": control.value}
        rows.append(pd.DataFrame({**columns, **{name: values.ravel() for name, values in measured.items()}}))
    return StepRedundancy(table=pd.concat(rows, ignore_index=True), meta=noised.meta())


def level_cosines(
    stream: Float[torch.Tensor, "level layer clip pos d_model"],
) -> Float[torch.Tensor, "2 2 clip layer level level"]:
    """Cosines of two levels of a clip, and of one and the next clip (NaN without one); plain and centred."""
    found = []
    for values in (stream, stream - stream.mean(3, keepdim=True)):
        unit = torch.nn.functional.normalize(values.flatten(3), dim=-1)
        other = unit.roll(1, 2) if unit.shape[2] > 1 else torch.full_like(unit, torch.nan)
        found.append(torch.stack([torch.einsum("alcx,blcx->clab", unit, one) for one in (unit, other)]))
    return torch.stack(found, 1)
