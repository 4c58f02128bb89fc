"""Spatial and temporal heads: whether a head needs only its own frame, or only its own place in every frame."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int

from vdinterp.analysis.heads.statistic import HeadStatistic, head_rows, head_statistic
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.models import AttentionPattern
from vdinterp.models.query_keys import fused


@on_noised_clips
def spatial_temporal(noised: NoisedClips, n_queries: int = 256, seed: int = 0) -> HeadStatistic:
    """How wrong every head's output becomes when it sees its own frame only, and when it sees its own place only.

    `error = mean (z_restricted - z)^2 / mean z^2` over `n_queries` random query tokens (drawn once by `seed`; all of
    them where there are fewer) and the channels of the head's output z. Restricted attention is renormalised over the
    keys of the query's frame (`spatial error`), or over those at its position in every frame (`temporal error`). Range:
    0 when nothing is lost, 1 as wrong as an output of zero, no upper end. Score `spatial`: the share of clips whose
    spatial error is the smaller one, 0 to 1; the others call the head temporal.

    Chance: what uniform attention over the same values scores, mean over the layer's heads. It is not 1, and its
    `spatial` is not 0.5: the mean of many keys is near that of all keys, so a frame of more tokens than the clip has
    frames makes unselective heads spatial. Misleads: one of the two always wins, so a head that needs both, or
    neither (both errors large), is still called something; and a head whose values are alike everywhere has two small
    errors wherever it looks.

    Source: the online profiling of Sparse VideoGen (arXiv 2502.01776). Its own masks also keep the first frame and a
    window of neighbours; these are the two pure ones, and stricter.

    Raises ValueError for fewer than one query, or a model with attention over space or time alone.
    """
    if n_queries < 1 or seed < 0:
        raise ValueError(f"need n_queries >= 1 and seed >= 0, got {n_queries=} and {seed=}")
    cfg = noised.model.cfg
    if others := {block.axis for block in cfg.blocks} - {"3d"}:
        raise ValueError(
            f"{cfg.model_name} attends over {' and '.join(sorted(others))} alone, so it is spatial or temporal by its "
            "architecture; a model whose every attention is 3d is needed"
        )
    drawn = torch.randperm(noised.grid.n_tokens, generator=torch.Generator().manual_seed(seed))
    queries = drawn[:n_queries].sort().values
    units = {
        "spatial error": "relative squared error within the own frame, 0 or more",
        "temporal error": "relative squared error within the own place, 0 or more",
        "spatial": "share of clips whose spatial error is smaller, 0 to 1",
    }
    rows = []
    for level in noised.levels:
        found, uniform = [], []
        for cache in noised.caches(level, ["rot_q", "rot_k", "v"]):
            layers = [(cache["pattern", i], cache["v", i]) for i in range(cfg.n_layers)]
            found.append(torch.stack([restriction_errors(pattern, v, queries) for pattern, v in layers], 2).cpu())
            uniform.append(
                torch.stack([restriction_errors(pattern.uniform(), v, queries) for pattern, v in layers], 2).cpu()
            )
        errors, chance = torch.cat(found, 1), torch.cat(uniform, 1)  # restriction clip layer head
        for index, score in enumerate(("spatial error", "temporal error")):
            rows.append(head_rows(errors[index], level=level, score=score, chance=chance[index].mean((0, 2))))
        smaller, by_chance = ((spatial < temporal).float() for spatial, temporal in (errors, chance))
        rows.append(head_rows(smaller, level=level, score="spatial", chance=by_chance.mean((0, 2))))
    meta = noised.meta(queries=len(queries), query_seed=seed)
    return head_statistic("Spatial and temporal heads", rows, units, meta)


def restriction_errors(
    pattern: AttentionPattern, v: Float[torch.Tensor, "batch pos head d_head"], queries: Int[torch.Tensor, " query"]
) -> Float[torch.Tensor, "2 batch head"]:
    """Relative squared error of the head outputs of some queries within the own frame, and within the own place."""
    q, k, values = pattern.q[:, 0].float(), pattern.k[:, 0].float(), v.transpose(1, 2).float()
    queries = queries.to(q.device)
    q = q[:, :, queries]
    # A mask before the softmax renormalises exactly, even where the full pattern has nothing left of these keys.
    full = fused(q, k, values, _seen(pattern, queries), pattern.scale)
    errors = []
    for label in (pattern.grid.frame_of(q.device), pattern.grid.cell_of(q.device)):
        seen = _seen(pattern, queries, label[queries, None] == label)
        errors.append((fused(q, k, values, seen, pattern.scale) - full).square().mean((-2, -1)))
    return torch.stack(errors) / full.square().mean((-2, -1))


def _seen(
    pattern: AttentionPattern,
    queries: Int[torch.Tensor, " query"],
    within: Bool[torch.Tensor, "query key"] | None = None,
) -> Bool[torch.Tensor, "... query key"] | None:
    """What these queries may see of the keys `within` (None: of all), for fused attention."""
    if pattern.mask is None:
        return within
    own = pattern.mask.allowed(queries)[:, 0]
    return own if within is None else own & within
