"""Labels of clips' own ground truth, as probes take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool

from vdinterp.analysis.stimulus.latent_clips import LatentClips
from vdinterp.data import Clips, crafter, digits, objects
from vdinterp.data.clips import DIGIT_KINDS, OBJECT_KINDS

MATERIALS = 9  # the first semantic ids of crafter: what occurs often enough to be probed for
FEWEST = 12  # clips that a class has to occur in, for every fold to hold some of it
_OF_WORLDS = {*crafter.LABELS, *digits.LABELS, *objects.LABELS}  # what it takes to make the labels of a kind


@dataclass(frozen=True, eq=False)
class Labels:
    """`values` for `vd.probes.fit`: `[clip frame row col]`, `[clip frame]` or `[clip frame k]`; `names` of classes;
    `mask`: where there is a label, broadcasting to `[clip frame row col]`."""

    values: torch.Tensor
    names: list[str] | None = None
    mask: Bool[torch.Tensor, "clip frame ..."] | None = None


def label_names(clips: Clips | str | None) -> list[str]:
    """What clips, or any clips of a kind, can be labelled with, the most telling first."""
    if isinstance(clips, Clips):
        made = label_names(clips.kind)
        return [*(name for name in clips.labels if not made or name not in _OF_WORLDS), *made]
    kind = clips
    if kind == "crafter":
        return ["material", "action", "moved"]
    if kind in DIGIT_KINDS:
        return ["digit", "lag"]
    return ["position", "velocity", "occluded"] if kind in OBJECT_KINDS else []


def labels_of(stimulus: LatentClips | Clips, name: str, frames: Sequence[int]) -> Labels:
    """One of `label_names(clips)`, masked to some frames: those that are to be probed. Of clips their own frames, of
    `NoisedClips` latent frames, each labelled as its last video frame (`by_frame`).

    Classes are those that occur in at least 12 clips there.

    `material`: of every cell (crafter). `action`: the one that led to the frame. `moved`: whether its step succeeded,
    of moves. `digit`: which digit the frame shows. `lag`: how long ago its content came after the same predecessor, of
    frames for which it did. `position`, `velocity`: of the nearest object, (row, col). `occluded`: whether less than
    half of the farthest object is visible.

    Raises ValueError for another name.
    """
    clips = stimulus.clips if isinstance(stimulus, LatentClips) else stimulus
    if name not in label_names(clips):
        known = ", ".join(label_names(clips)) or "none"
        raise ValueError(f"{clips.kind!r} clips have no label {name!r}; they have {known}")
    makers = {
        "material": _material,
        "action": _action,
        "moved": _moved,
        "digit": _digit,
        "lag": _lag,
        "position": _of_object,
        "velocity": _of_object,
        "occluded": _occluded,
    }
    found = _own(clips, name) if name not in label_names(clips.kind) else makers[name](clips, name)
    if isinstance(stimulus, LatentClips):
        mask = None if found.mask is None else stimulus.by_frame(found.mask)
        found = Labels(stimulus.by_frame(found.values), found.names, mask)
    probed = torch.zeros(found.values.shape[:2], dtype=torch.bool)
    probed[:, list(frames)] = True
    mask = probed[:, :, None, None]
    if found.mask is not None:
        mask = mask & (found.mask if found.mask.ndim == 4 else found.mask[:, :, None, None])
    if found.names is None:
        return Labels(found.values, None, mask)
    per_label = mask if found.values.ndim == 4 else mask[:, :, 0, 0]
    return _often(found.values, found.names, per_label, mask)


def _own(clips: Clips, name: str) -> Labels:
    """A label that came with the clips; one number a clip holds for all its frames."""
    values = clips.labels[name]
    lengths = {part.shape[1] for part in (clips.video, clips.encoded) if part is not None}
    if values.ndim == 1:
        values = values[:, None].expand(-1, clips.n_frames)
    if values.ndim not in (2, 3, 4) or values.shape[1] not in lengths:
        raise ValueError(
            f"label {name!r} has shape {list(values.shape)}; give [clip], [clip frame], [clip frame row col] or "
            f"[clip frame k], with {clips.n_frames} frames"
        )
    if values.is_floating_point():
        known = values.isfinite()
        known = known.all(-1) if known.ndim == 3 else known
        return Labels(values.float().nan_to_num(), None, known)
    if values.ndim == 3:
        raise ValueError(f"label {name!r} has shape {list(values.shape)}: k values a frame are floating point")
    values = values.long()
    return Labels(values.clamp(min=0), [str(index) for index in range(int(values.max()) + 1)], values >= 0)


def _material(clips: Clips, name: str) -> Labels:
    return Labels(clips.labels["semantic_map"], list(crafter.SEMANTIC), clips.labels["semantic_map"] < MATERIALS)


def _action(clips: Clips, name: str) -> Labels:
    assert clips.action is not None
    return Labels(clips.action.argmax(-1), list(crafter.ACTIONS), clips.action.any(-1))


def _moved(clips: Clips, name: str) -> Labels:
    return Labels(crafter.moved(clips).long(), ["stayed", "moved"], (crafter.implied(clips) != 0).any(-1))


def _digit(clips: Clips, name: str) -> Labels:
    return Labels(digits.digit_labels()[clips.labels["state_id"]], [str(digit) for digit in range(10)])


def _lag(clips: Clips, name: str) -> Labels:
    return Labels(clips.labels["lag"].float(), None, clips.labels["lag"] > 0)


def _of_object(clips: Clips, name: str) -> Labels:
    values = clips.labels[name]
    nearest = clips.labels["depth_order"].argmin(-1)
    return Labels(values.gather(2, nearest[..., None, None].expand(-1, -1, 1, 2))[:, :, 0].float())


def _occluded(clips: Clips, name: str) -> Labels:
    farthest = clips.labels["depth_order"].argmax(-1, keepdim=True)
    return Labels((clips.labels["visible_fraction"].gather(2, farthest)[..., 0] < 0.5).long(), ["visible", "occluded"])


def _often(values: torch.Tensor, names: list[str], counted: torch.Tensor, mask: torch.Tensor) -> Labels:
    """Only classes that occur in enough clips, numbered anew. `counted`: in the shape of the values, what counts."""
    there = torch.stack([((values == index) & counted).flatten(1).any(1).sum() for index in range(len(names))])
    kept = (there >= FEWEST).nonzero()[:, 0]
    if len(kept) < 2:
        raise ValueError(f"fewer than two of {', '.join(names)} occur in {FEWEST} clips or more; give more clips")
    renamed = torch.full((len(names),), -1)
    renamed[kept] = torch.arange(len(kept))
    found = renamed[values]
    known = found >= 0 if found.ndim == 4 else (found >= 0)[:, :, None, None]
    return Labels(found.clamp(min=0), [names[index] for index in kept.tolist()], mask & known)
