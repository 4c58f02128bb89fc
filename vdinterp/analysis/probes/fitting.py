"""Linear probes: what can be read off an activation, at every layer and noise level, and off the input alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Shaped
from tqdm.auto import tqdm

from vdinterp.analysis.probes.folds import Held, Scorer, need_sklearn
from vdinterp.analysis.probes.result import BASELINES, ProbeResult
from vdinterp.analysis.probes.samples import Frames, activations, latents, make_samples, site_names, untrained
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips


@on_noised_clips
def fit(
    noised: NoisedClips,
    labels: Shaped[torch.Tensor, "clip frame *place"],
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    what: str = "labels",
    frames: Frames = "noised",
    mask: Bool[torch.Tensor, "..."] | None = None,
    folds: int = 5,
    max_tokens: int = 32,
    seed: int = 0,
) -> ProbeResult:
    """Linear probes of `labels` on an activation, at every layer and noise level, always against baselines.

    >>> materials = noised.labels("semantic_map")
    >>> found = vd.probes.fit(noised, materials, mask=materials < 9, what="material")
    >>> found.summary(), found.plot()

    Classes (integers) get a multinomial logistic regression and balanced accuracy: the mean over classes of the share
    that is right; range 0 to 1, chance 1/classes. Numbers (floats) get ridge regression and R^2, the mean over k;
    range up to 1, chance 0, negative where the mean is better. Folds are of whole clips, and features are standardised
    and the penalty is chosen (of five, on a quarter of the training clips) within the training folds. The interval
    draws clips, not fits: it does not cover the choice of training clips.

    Baselines, in the same table: see `BASELINES`. First of all `untrained`, the same layer with the entries of every
    weight shuffled: what is found there as well, a linear map finds without any training. `shuffled` gives every clip
    the labels of another; for labels that lie in the same place in all clips it is above chance, and says what the
    place alone tells. `earlier frames, actions` is told what the model is told: the two frames before with their
    neighbours, the action, and the frame before moved as the action says. A probe says something about the model only
    where it beats all of these; and then it says what can be read, not what the model uses. None but `untrained` sees
    the whole clip. `clean latents` is what the noised frames really are; a model that denoises well comes near it, and
    none needs to reach it.

    Args:
        labels: `[clip frame row col]` one a token; `[clip frame]` one a frame, or floats `[clip frame k]`: then the
            frame's tokens are averaged. Integers (or booleans) are classes, floats numbers.
        site: an activation that layers have, `[batch pos ..]` or (for labels of frames) `[batch frame d_model]`.
        layers: default all. `names`: of the classes, by number, or of the k numbers. `what`: the labels' name in
            figures.
        frames: those probed: "noised", "clean", or a list.
        mask: boolean, broadcasting to [clip frame row col]: the tokens that are probed, or averaged.
        max_tokens: tokens a clip, drawn by seed if there are more; `meta` has how many there were.
        seed: of folds, tokens, shuffles and weights.

    A level holds samples x channels x layers in memory, 8 bytes each. Misleads: what can be read need not be used
    (erase it and see); a rare class counts as much as a frequent one; a probe that finds nothing may be too weak, and
    scores a little below chance, as what is rare in the training folds is frequent in the others.
    Source: Alain & Bengio 2016, arXiv 1610.01644; control tasks and selectivity, Hewitt & Liang 2019, arXiv 1909.03368,
    who shuffle by word type; here by clip, so that a probe cannot learn the control by heart.

    Raises ValueError for labels or masks that do not fit, labels of one class, classes in fewer clips than folds, fewer
    than two clips a fold, NaN; KeyError for an unknown site; ImportError without scikit-learn, for classes.
    """
    samples = make_samples(noised, labels, frames, mask, max_tokens, folds, seed)
    sites, channels = site_names(noised.model, site, layers)
    point = noised.model.hook_dict[next(iter(sites.values()))]
    if samples.pool is None and "pos" not in point.dims:
        raise ValueError(f"{site!r} has one vector a frame: give labels of frames, [clip frame] or [clip frame k]")
    is_class = bool(samples.ids)
    called = _names(names, samples.ids, samples.y)
    if is_class:
        need_sklearn()
    scorer = Scorer(samples.y, samples.clip, folds, seed)
    random = untrained(noised, seed)
    shared = {"clean latents": scorer(latents(noised, samples, None)), "constant": scorer.constant()}
    rows: list[dict[str, Any]] = []
    fitted: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = []
    with tqdm(total=len(noised.levels) * len(sites), desc="probes", unit="layer") as bar:
        for level in noised.levels:
            shared["noisy input"] = scorer(latents(noised, samples, level))
            shared["noisy input, neighbours"] = scorer(latents(noised, samples, level, "neighbours"))
            shared["earlier frames, actions"] = scorer(latents(noised, samples, level, "earlier"))
            trained, control = (activations(one, level, sites, samples) for one in (noised, random))
            fitted.append([])
            for layer, x in trained.items():
                held = {
                    "probe": scorer(x),
                    "untrained": scorer(control[layer]),
                    "shuffled": scorer(x, samples.shuffled),
                }
                rows += _rows(scorer, level, layer, {**held, **shared}, len(samples.y))
                line = scorer.fit(x, samples.y, np.ones(len(x), bool))
                fitted[-1].append((line.weight, line.bias, scorer.association(x)))
                bar.update()
    weight, bias, association = (
        torch.from_numpy(np.array([[layer[part] for layer in at] for at in fitted])).float() for part in range(3)
    )
    shape = (*weight.shape[:3], *channels)
    meta = noised.meta(
        frames_probed=samples.frames,
        folds=folds,
        probe_seed=seed,
        samples=len(samples.y),
        samples_available=samples.n_available,
        pooled=samples.pool is not None,
    )
    return ProbeResult(
        table=pd.DataFrame(rows),
        weight=weight.view(shape),
        bias=bias,
        association=association.view(shape),
        names=called,
        levels=list(noised.levels),
        layers=list(sites),
        what=what,
        site=site,
        is_class=is_class,
        meta=meta,
    )


def _names(names: Sequence[str] | None, ids: list[int], y: np.ndarray) -> list[str]:
    needed = ids if ids else list(range(y.shape[1]))
    if names is None:
        return [str(index) for index in needed]
    if isinstance(names, str) or len(names) <= max(needed) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names={names!r}: give a list with a name for every number from 0 to {max(needed)}")
    return [names[index] for index in needed]


def _rows(scorer: Scorer, level: float, layer: int, held: dict[str, Held], n: int) -> list[dict[str, Any]]:
    scores = {kind: one.score(scorer.draws) for kind, one in held.items()}
    rows = []
    for kind in ("probe", *BASELINES):
        value, low, high = scorer.interval(scores[kind])
        gain = (np.nan,) * 3 if kind == "probe" else scorer.interval(scores["probe"] - scores[kind])
        rows.append(
            {
                "level": level,
                "layer": layer,
                "kind": kind,
                "value": value,
                "low": low,
                "high": high,
                "chance": 1 / scorer.n_out if scorer.is_class else 0.0,
                "gain": gain[0],
                "gain_low": gain[1],
                "gain_high": gain[2],
                "n": n,
                "clips": scorer.n_clips,
            }
        )
    return rows
