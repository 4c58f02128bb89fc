"""What a probe is shown: tokens or pooled frames with their labels, their activations, and the input behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float

from vdinterp.analysis.stimulus.noised_clips import NoisedClips
from vdinterp.checks.counts import check_count, check_seed
from vdinterp.interventions.site import CHANNEL_AXES
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion

Frames = Literal["noised", "clean"] | Sequence[int]


@dataclass(frozen=True)
class Samples:
    """`clip`, `place` [sample]: the clip, and the token in it, or the frame if tokens are pooled. `y`: classes
    [sample] numbered without gaps, or numbers [sample k]; `shuffled`: those of another clip. `ids`: the classes' own
    numbers. `pool`: which tokens of a frame are averaged. `n_available`: samples before some were drawn."""

    clip: np.ndarray
    place: np.ndarray
    y: np.ndarray
    shuffled: np.ndarray
    ids: list[int]
    pool: Bool[torch.Tensor, "clip frame row col"] | None
    frames: list[int]
    n_available: int

    def take(self, values: torch.Tensor, clips: slice, n_frames: int) -> np.ndarray:
        """`[sample channel]` of the batch of clips `clips`, whose `values` are [batch pos ...] or [batch frame ...]."""
        here = (self.clip >= clips.start) & (self.clip < clips.stop)
        clip, place = torch.from_numpy(self.clip[here] - clips.start), torch.from_numpy(self.place[here])
        values = values.flatten(2)
        if self.pool is not None and values.shape[1] > n_frames:
            chosen = self.pool[clips].flatten(2).to(values)
            mean = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
            values = torch.einsum("bfpd,bfp->bfd", values.unflatten(1, (n_frames, -1)), mean)
        return values[clip.to(values.device), place.to(values.device)].float().cpu().numpy()


def make_samples(
    noised: NoisedClips, labels: Any, frames: Any, mask: Any, max_tokens: int, folds: int, seed: int
) -> Samples:
    """Check what was given, choose tokens, shuffle. Raises `ValueError` for what does not fit."""
    check_count("folds", folds, 2)
    check_count("max_tokens", max_tokens)
    check_seed(seed)
    n_clips, grid = len(noised.clips), noised.grid
    labels = _labels(noised, labels)
    is_class, per_token = not labels.is_floating_point(), labels.ndim == 4
    chosen = frames_of(noised, frames)
    wanted = torch.zeros(n_clips, *grid.shape, dtype=torch.bool)
    wanted[:, chosen] = True
    wanted &= _mask(noised, mask, wanted.shape)
    there = (wanted if per_token else wanted.flatten(2).any(-1)).flatten(1).numpy()  # clip place
    values = labels.flatten(1, -1).numpy() if per_token or labels.ndim == 2 else labels.numpy()
    _check_values(values[there], is_class)
    used = np.flatnonzero(there.any(1))
    if len(used) < 2 * folds:
        raise ValueError(
            f"{len(used)} clips have something to probe: {folds} folds need at least {2 * folds}; give more clips or "
            "fewer folds"
        )
    # The control keeps what is the same in all clips, such as where in the picture a class lies.
    order = np.random.default_rng([seed, 1]).permutation(used)
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    parts = []
    for clip in used.tolist():
        places = np.flatnonzero(there[clip])
        if len(places) > max_tokens and per_token:
            places = np.sort(np.random.default_rng([seed, 2, clip]).choice(places, max_tokens, replace=False))
        source, has = values[other[clip]].copy(), there[other[clip]]
        source[~has] = np.resize(source[has], source[~has].shape)  # places without a label there
        parts.append((np.full(len(places), clip), places, values[clip][places], source[places]))
    clip, place, y, shuffled = (np.concatenate(part) for part in zip(*parts, strict=True))
    ids: list[int] = []
    if is_class:
        ids = np.unique(y).tolist()
        _check_support(y, clip, ids, folds)
        # A class that none of the drawn tokens has can be among the shuffled labels: it counts as its neighbour.
        y, shuffled = np.searchsorted(ids, y), np.searchsorted(ids, shuffled).clip(max=len(ids) - 1)
    else:
        y, shuffled = (part.reshape(len(clip), -1).astype(np.float64) for part in (y, shuffled))
    pool = None if per_token else wanted
    return Samples(clip, place, y, shuffled, ids, pool, chosen, int(there.sum()))


def frames_of(noised: NoisedClips, frames: Any) -> list[int]:
    """The frames that `frames` names. Raises `ValueError` for others than "noised", "clean" or frames that exist."""
    n = noised.n_frames
    if isinstance(frames, str):
        known = {"noised": noised.target, "clean": noised.context}
        if not known.get(frames):
            what = "no frame is clean: n_context is 0" if frames in known else "give 'noised', 'clean' or a list"
            raise ValueError(f"frames={frames!r}: {what}")
        return known[frames]
    if not isinstance(frames, Sequence) or not frames or not all(isinstance(f, int) and -n <= f < n for f in frames):
        raise ValueError(f"frames={frames!r}: give 'noised', 'clean' or a list of frames, the clips have {n}")
    return sorted({frame % n for frame in frames})


def _labels(noised: NoisedClips, labels: Any) -> torch.Tensor:
    """Labels of the frames that the model sees, on the CPU; booleans as classes 0 and 1."""
    n_clips, (n_frames, n_rows, n_cols) = len(noised.clips), noised.grid.shape
    wanted = (
        f"[clip frame row col] = [{n_clips} {n_frames} {n_rows} {n_cols}] for one a token, [clip frame] = "
        f"[{n_clips} {n_frames}] for one a frame, or floats [clip frame k] for k numbers a frame"
    )
    if not isinstance(labels, torch.Tensor) or labels.is_complex():
        raise ValueError(f"labels are {type(labels).__name__}; give a tensor, {wanted}")
    shape = list(labels.shape)
    if (
        labels.ndim not in (2, 3, 4)
        or shape[0] != n_clips
        or 0 in shape
        or (labels.ndim == 4 and shape[2:] != [n_rows, n_cols])
    ):
        raise ValueError(f"labels of shape {shape} fit neither tokens nor frames: give {wanted}")
    if labels.ndim == 3 and not labels.is_floating_point():
        raise ValueError(
            f"labels {shape} of {labels.dtype}: k numbers a frame are floats (labels.float()); classes have one number "
            "a frame, [clip frame] (of one-hot labels: labels.argmax(-1))"
        )
    labels = noised.by_frame(labels).detach().cpu()
    return labels if labels.is_floating_point() else labels.long()


def _mask(noised: NoisedClips, mask: Any, shape: Sequence[int]) -> Bool[torch.Tensor, "clip frame row col"]:
    if mask is None:
        return torch.ones(tuple(shape), dtype=torch.bool)
    wanted = f"a boolean tensor that broadcasts to [clip frame row col] = {list(shape)}"
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(f"mask is {given}; give {wanted}")
    if mask.ndim == 4 and mask.shape[1] not in (1, shape[1]):
        mask = noised.by_frame(mask)
    try:
        return mask.cpu().expand(tuple(shape))
    except RuntimeError as error:
        raise ValueError(f"mask of shape {list(mask.shape)}: give {wanted}") from error


def _check_values(values: np.ndarray, is_class: bool) -> None:
    if not len(values):
        raise ValueError("the mask and the frames leave nothing to probe")
    if not is_class and not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} labels are NaN or infinite: leave them out with mask=")
    if is_class and values.min() < 0:
        raise ValueError(f"classes are 0, 1, 2 ..; {int(values.min())} is among them: leave it out with mask=")
    if is_class and values.min() == values.max():
        raise ValueError(f"every label is {int(values.min())}: a probe needs at least two classes")
    if not is_class and (values.reshape(len(values), -1).std(0) == 0).any():
        raise ValueError("a number is the same everywhere: there is nothing to predict; leave it out")


def _check_support(y: np.ndarray, clip: np.ndarray, ids: list[int], folds: int) -> None:
    rare = [label for label in ids if len(np.unique(clip[y == label])) < folds]
    if len(ids) < 2 or rare:
        raise ValueError(
            f"the classes {rare} occur in fewer clips than there are folds ({folds}), so held-out clips say nothing of "
            "them: leave them out with mask=, merge them, give more clips or raise max_tokens"
        )


# Activations


def site_names(
    model: HookedVideoDiT, site: str, layers: Sequence[int] | None
) -> tuple[dict[int, str], tuple[int, ...]]:
    """The hook of every layer, and the shape of one token's activation. `ValueError` for a site without a channel."""
    if not isinstance(site, str):
        raise ValueError(f"site={site!r}: give the name of an activation that layers have, such as 'resid_post'")
    whole = layers is None or (isinstance(layers, Sequence) and layers and all(isinstance(i, int) for i in layers))
    if not whole:
        raise ValueError(f"layers={layers!r}: give a list of layers, or None for all")
    chosen = range(model.cfg.n_layers) if layers is None else layers
    names = {layer % model.cfg.n_layers: model.resolve_key((site, layer)) for layer in chosen}
    dims = model.hook_dict[next(iter(names.values()))].dims
    if dims[:2] not in (("batch", "pos"), ("batch", "frame")) or not set(dims) & set(CHANNEL_AXES):
        raise ValueError(f"{site!r} has the axes {' '.join(dims)}: a probe needs [batch pos ..] or [batch frame ..]")
    return names, tuple(model.hook_shape(next(iter(names.values())))[2:])


def activations(noised: NoisedClips, level: float, names: dict[int, str], samples: Samples) -> dict[int, np.ndarray]:
    """`[sample channel]` of every layer. Of each batch of clips only the samples are kept."""
    parts: dict[int, list[np.ndarray]] = {layer: [] for layer in names}
    for clips in noised.batches:
        cache = noised.cache(level, list(names.values()), clips)
        for layer, name in names.items():
            parts[layer].append(samples.take(cache[name], clips, noised.n_frames))
    return {layer: np.concatenate(part) for layer, part in parts.items()}


Seen = Literal["own", "neighbours", "earlier"]


def latents(noised: NoisedClips, samples: Samples, level: float | None, seen: Seen = "own") -> np.ndarray:
    """`[sample channel]` of the VAE latents in a token's patch: clean (`level` None), or as the model was given them.

    `seen`: "neighbours", also those of the 3 x 3 patches around it, in its frame and in the frame before (0 beyond the
    edges); "earlier", also those in the frame two before, and what the model is told: the frame's action, and its
    product with the patches around in the frame before, so that a linear map can move these as the action says.
    """
    return np.concatenate(list(_latents(noised, samples, level, seen)))


def _latents(noised: NoisedClips, samples: Samples, level: float | None, seen: Seen) -> Iterator[np.ndarray]:
    _, patch_h, patch_w = noised.model.cfg.patch_size
    for clips in noised.batches:
        noisy, _, cond = (noised.latents[clips], None, None) if level is None else noised.inputs(level, clips)
        patches = rearrange(
            noisy.float(),
            "batch frame channel (row p) (col q) -> batch frame (channel p q) row col",
            p=patch_h,
            q=patch_w,
        )
        found = patches
        if seen != "own":
            found = around(patches)
        if seen == "earlier":
            found = torch.cat([found, around(patches, 2, 2), *_told(patches, _actions(noised, cond))], 2)
        yield samples.take(_tokens(found), clips, noised.n_frames)


def _actions(noised: NoisedClips, cond: Any) -> torch.Tensor | None:
    """`[batch frame k]`: the actions the model is given, without the numbers that are the same in all clips."""
    if cond is None or cond.actions is None:
        return None
    action = cond.actions if noised.cond.actions is None else noised.cond.actions
    changes = (action.flatten(0, 1).std(0) > 0).nonzero()[:, 0]
    return cond.actions.float()[..., changes]


def _told(
    patches: Float[torch.Tensor, "batch frame channel row col"], action: torch.Tensor | None
) -> list[Float[torch.Tensor, "batch frame k row col"]]:
    """The action at every place, and its products with the 3 x 3 patches in the frame before."""
    if action is None:
        return []
    before = around(patches, 1, 1)
    spread = action[..., None, None].expand(*action.shape, *patches.shape[3:])
    products = torch.einsum("bfk,bfcyx->bfkcyx", action, before).flatten(2, 3)
    return [spread, products]


def around(
    patches: Float[torch.Tensor, "batch frame channel row col"], first: int = 0, last: int = 1
) -> Float[torch.Tensor, "batch frame _ row col"]:
    """The 3 x 3 patches around each, in the frames `first` to `last` before it (its own is 0; 0 beyond the clip)."""
    frames = []
    for back in range(first, last + 1):
        frames.append(torch.cat([torch.zeros_like(patches[:, :back]), patches[:, : patches.shape[1] - back]], 1))
    both = torch.cat(frames, 2)
    found = torch.nn.functional.unfold(both.flatten(0, 1), 3, padding=1)
    return found.view(*both.shape[:2], -1, *both.shape[3:])


def _tokens(values: Float[torch.Tensor, "batch frame channel row col"]) -> Float[torch.Tensor, "batch pos channel"]:
    return rearrange(values, "batch frame channel row col -> batch (frame row col) channel")


def untrained(noised: NoisedClips, seed: int) -> NoisedClips:
    """The same clips and noise for a model of the same shape in which the entries of every weight are shuffled.

    A new model would start with closed gates and be the identity; shuffled weights keep their sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    model = HookedVideoDiT(noised.model.cfg)
    state = {name: value.detach().clone() for name, value in noised.model.state_dict().items()}
    for name, _ in model.named_parameters():
        flat = state[name].flatten()
        state[name] = flat[torch.randperm(len(flat), generator=generator).to(flat.device)].view(state[name].shape)
    model.load_state_dict(state)
    pipe = noised.pipe
    other = VideoDiffusion(model.to(pipe.device, pipe.dtype).eval(), pipe.vae, pipe.diffusion, pipe.latent_stats)
    return noised.for_model(other)
