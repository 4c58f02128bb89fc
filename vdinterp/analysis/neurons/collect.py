"""Collecting: one pass over the clips, from which every neuron's top patches and statistics remain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from vdinterp.analysis.neurons.directions import HeldMean, directions, layers_with_mlp, pixel_map
from vdinterp.analysis.neurons.labels import NONE, TokenLabels, checked_labels
from vdinterp.analysis.neurons.result import NeuronResult
from vdinterp.analysis.neurons.running import MOST_PLACES, RunningMoments, RunningSums, RunningTop, correlation
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.plotting._filmstrip import to_rgb
from vdinterp.progress import bar
from vdinterp.site import Site

CLEAN = 0.0  # what stands for the noise level of a context frame
MOST_PIXELS = 2**27  # bytes of frames that a result holds


@on_noised_clips
def top_patches(
    noised: NoisedClips,
    *,
    n_patches: int = 12,
    labels: Int[torch.Tensor, "clip frame row col"] | None = None,
    label_names: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> NeuronResult:
    """The patches at which every MLP neuron (`hook_post`) is most active, and what it does over all clips.

    >>> materials = noised.labels("semantic_map")
    >>> result = vd.neurons.top_patches(noised, labels=materials, label_names=vd.data.crafter.SEMANTIC)
    >>> result.to_html("neurons.html")

    Counted are all tokens of every pass: those of the target frames at each noise level; those of clean context frames
    as level 0, once for every level that the target beside them is at. A patch is in a neuron's list once, at the level
    at which it is most active there. Of equal activations the earlier clip, frame, row, column goes first.

    Measured, a neuron: `mean`, `std` and `active` (share of tokens with a positive activation, 0 to 1; about 0.5 with
    random weights, less is sparse); the mean by noise level and by label; and `selectivity` for each label, the
    correlation of the activation with whether a token has the label: `(mean with - mean without) sqrt(p (1 - p)) /
    std`, `p` the label's share of all tokens. Range -1 to 1; its square is the share of the neuron's variance that the
    label explains. Chance: 0, and `control`, the same with every clip's labels taken from another clip (half the clips
    further on; none for a single clip), which keeps how often and where in the frame a label lies: a neuron that knows
    only the place scores as high there. `label` in the table is the one with the highest selectivity.

    Misleads: selectivity is low for a neuron that fires for two labels, or for a part of one, and for a rare label if
    the neuron does anything else; compare neurons for one label, not labels. The best of many thousand pairs is high by
    chance if a label has few tokens. Top patches show the extreme only, which may be another thing than what a neuron
    mostly does (Bolukbasi et al. 2021, arXiv 2104.07143).

    Memory, beside clips and latents: one batch of activations (`batch x tokens x d_mlp` numbers of each chosen layer,
    and a few times that for one layer), a few numbers for each neuron and patch of its list, and the frames that these
    patches lie in, up to 128 MiB (best patches first; others have no picture). How many clips there are does not
    matter.

    Args:
        noised: what to look at; `n_context=0` noises every frame.
        n_patches: kept a neuron.
        labels: of the tokens, 0, 1, ..., for example the semantic map of a game; those of video frames count for latent
            frames as `noised.by_frame` says.
        label_names: one a label.
        layers: default all that have an MLP.

    Source: top activating examples as in language models' neuron viewers; selectivity as a point-biserial correlation.

    Raises ValueError before any compute for what does not fit, and for activations that are not finite.
    """
    if layers is not None and not isinstance(layers, Sequence):
        raise ValueError(f"layers={layers!r}: give a list of layers, or None for all that have an MLP")
    chosen = layers_with_mlp(noised.model, layers)
    n_tokens = noised.grid.n_tokens
    whole = isinstance(n_patches, int) and not isinstance(n_patches, bool)
    if not whole or not 1 <= n_patches <= len(noised.clips) * n_tokens:
        raise ValueError(f"n_patches={n_patches!r}: 1..{len(noised.clips) * n_tokens}, the number of patches there are")
    if len(noised.clips) * n_tokens * len(noised.levels) > MOST_PLACES:
        raise ValueError(f"{noised!r}: at most {MOST_PLACES} tokens at all levels together; give fewer clips or levels")
    given = checked_labels(noised, labels, label_names)
    to_rgb(noised.pictures[:1, 0].cpu(), "clips.video")  # refuses channels that make no picture
    tallies = {layer: _Tally(n_patches, len(noised.levels)) for layer in chosen}
    writes = []
    for index, level in enumerate(noised.levels):
        held = HeldMean(noised)
        names = [*held.names, *(Site(layer, "mlp", "post") for layer in chosen)]
        for clips in bar(noised.batches, desc=f"neurons, noise level {level:g}", unit="batch"):
            tensors = noised.cache(level, names, clips).tensors
            held.update(tensors)
            patches = torch.arange(clips.start * n_tokens, clips.stop * n_tokens, device=noised.pipe.device)
            members = torch.cat([_at_levels(noised, index, clips.stop - clips.start), *given.members(clips)])
            for layer, tally in tallies.items():  # each layer is let go when it was counted
                tally.update(tensors.pop(Site(layer, "mlp", "post")).flatten(0, 1), patches, index, members)
        writes.append(torch.stack([directions(noised.pipe, layer, level, held.means) for layer in chosen]))
    for layer, tally in tallies.items():
        if not bool(tally.moments.mean.isfinite().all()):
            raise ValueError(f"layer {layer}: its MLP's activations are not all finite, so they cannot be ranked")
    return _result(noised, chosen, list(tallies.values()), given, torch.stack(writes, 2))


class _Tally:
    """What is kept of one layer's neurons."""

    def __init__(self, n_patches: int, n_levels: int) -> None:
        self.top, self.moments, self.sums = RunningTop(n_patches, n_levels), RunningMoments(), RunningSums()

    def update(
        self, values: Float[torch.Tensor, "token neuron"], patches: torch.Tensor, level: int, members: torch.Tensor
    ) -> None:
        self.top.update(values, patches, level)
        precise = values.double()
        self.moments.update(precise)
        self.sums.update(precise, members)


def _at_levels(noised: NoisedClips, index: int, n_clips: int) -> Float[torch.Tensor, "level token"]:
    """Which tokens of a batch are clean (if any can be), and at each noise level, in a pass at one of them."""
    target = noised.target_tokens.repeat(n_clips)
    members = torch.zeros(1 + len(noised.levels), len(target), dtype=torch.float64)
    members[0], members[1 + index] = ~target, target
    return members if noised.n_context else members[1:]


def _result(
    noised: NoisedClips, layers: list[int], tallies: list[_Tally], given: TokenLabels, writes: torch.Tensor
) -> NeuronResult:
    levels = [*([CLEAN] if noised.n_context else []), *noised.levels]
    n, n_labels = len(levels), len(given.names)
    activations, patches, passes = (torch.stack(part) for part in zip(*(t.top.result() for t in tallies), strict=True))
    clip, token = patches // noised.grid.n_tokens, patches % noised.grid.n_tokens
    where = torch.stack([clip, *noised.grid.all_coordinates()[token].unbind(-1)], -1)
    at = torch.where(torch.isin(where[..., 1], torch.tensor(noised.target)), torch.tensor(noised.levels)[passes], CLEAN)
    means = torch.stack([tally.sums.means for tally in tallies]).float()
    scores = [correlation(tally.moments, tally.sums.means[:, n:], tally.sums.counts[n:]).float() for tally in tallies]
    selectivity, control = torch.stack(scores).split(n_labels, -1) if n_labels else (means[..., n:],) * 2
    if len(noised.clips) == 1:
        control = torch.full_like(control, torch.nan)
    frames, picture = _pictures(noised, where)
    return NeuronResult(
        table=_table(layers, tallies, activations, given.names, selectivity, control),
        layers=layers,
        levels=levels,
        grid=noised.grid.shape,
        patches=where,
        activations=activations,
        patch_levels=at,
        patch_labels=given.values[clip, token] if n_labels else torch.full_like(clip, -1),
        by_level=means[..., :n],
        by_label=means[..., n : n + n_labels],
        selectivity=selectivity,
        control=control,
        label_names=given.names,
        label_shares=[float((given.values == i).double().mean()) for i in range(n_labels)],
        writes=writes,
        pixel_map=pixel_map(noised),
        frames=frames,
        picture=picture,
        meta=noised.meta(tokens=tallies[0].moments.count, n_patches=where.shape[2]),
    )


def _table(
    layers: list[int],
    tallies: list[_Tally],
    activations: torch.Tensor,
    names: list[str],
    selectivity: torch.Tensor,
    control: torch.Tensor,
) -> pd.DataFrame:
    """One row a neuron."""
    parts = []
    for index, (layer, tally) in enumerate(zip(layers, tallies, strict=True)):
        moments = tally.moments
        columns = {"mean": moments.mean, "std": moments.std, "active": moments.active, "top": activations[index, :, 0]}
        part = pd.DataFrame({"layer": layer, "neuron": range(len(moments.mean))})
        if names:
            best = selectivity[index].nan_to_num(-2).argmax(1)
            known = (~selectivity[index].isnan().all(1)).tolist()
            part["label"] = [names[i] if k else NONE for i, k in zip(best.tolist(), known, strict=True)]
            scores = {"selectivity": selectivity[index], "control": control[index]}
            columns |= {name: values.gather(1, best[:, None])[:, 0] for name, values in scores.items()}
        for name, values in columns.items():
            part[name] = values.numpy()
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _pictures(
    noised: NoisedClips, where: Int[torch.Tensor, "layer neuron rank 4"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames that patches lie in, best ranks first as far as they may be kept; and of each patch the index of its
    frame, -1 where that was not kept."""
    video, n_frames = noised.pictures, noised.n_frames
    most = max(1, MOST_PIXELS // (video.shape[-1] * video.shape[-2] * 3))
    frame = where[..., 0] * n_frames + where[..., 1]
    in_order = frame.permute(2, 0, 1).flatten().numpy()
    _, first = np.unique(in_order, return_index=True)
    kept = in_order[np.sort(first)[:most]]
    index = torch.full((len(noised.clips) * n_frames,), -1)
    index[torch.from_numpy(kept)] = torch.arange(len(kept))
    frames = torch.zeros(len(kept), *video.shape[-2:], 3, dtype=torch.uint8)
    for picture, at in zip(frames, kept, strict=True):
        picture.copy_(torch.from_numpy(to_rgb(video[at // n_frames, at % n_frames][None].cpu(), "video"))[0])
    return frames, index[frame]
