"""Labels of tokens: what each patch shows, as integers with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

from vdinterp.analysis.stimulus.noised_clips import NoisedClips

PADDING = ("outside",)  # labels of what is no content, as beyond the edge of a map: never what a list begins with
NONE = "none"  # the label of a neuron that has no selectivity


@dataclass(frozen=True)
class TokenLabels:
    """Labels of all tokens, and the control's: those of the clips half way on."""

    values: Int[torch.Tensor, "clip token"]
    names: list[str]

    def members(self, clips: slice) -> list[Float[torch.Tensor, "label token"]]:
        """Which tokens of a batch have each label, and which have it in the control."""
        if not self.names:
            return []
        each = torch.arange(len(self.names)).unsqueeze(1)
        moved = self.values.roll(len(self.values) // 2, 0)
        return [(values[clips].flatten() == each).double() for values in (self.values, moved)]


def checked_labels(noised: NoisedClips, labels: Any, names: Sequence[str] | None) -> TokenLabels:
    """The labels that were given, none if there are none. Raises `ValueError` unless each token has one with a name."""
    n_clips, (n_frames, n_rows, n_cols) = len(noised.clips), noised.grid.shape
    if labels is None:
        if names is not None:
            raise ValueError("label_names without labels: give labels [clip frame row col] as well")
        return TokenLabels(torch.zeros(n_clips, 0, dtype=torch.long), [])
    whole = isinstance(labels, torch.Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
    if not whole or labels.ndim != 4 or not labels.numel():
        shown = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels).__name__
        wanted = [n_clips, n_frames, n_rows, n_cols]
        raise ValueError(f"labels are integers [clip frame row col] = {wanted}, got {shown}")
    if (len(labels), *labels.shape[2:]) != (n_clips, n_rows, n_cols):
        raise ValueError(
            f"labels {list(labels.shape)}: these clips have {[n_clips, n_frames, n_rows, n_cols]} (clip frame row col) "
            "tokens; give every token its label"
        )
    labels = noised.by_frame(labels).cpu().long()
    lowest, highest = int(labels.min()), int(labels.max())
    names = [str(label) for label in range(highest + 1)] if names is None else list(names)
    named = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
    if lowest < 0 or highest >= len(names) or not named or NONE in names:
        raise ValueError(
            f"labels are in [{lowest}, {highest}] and there are {len(names)} label_names: each label is one of 0.."
            f"{len(names) - 1}, with a name of its own (other than {NONE!r}); tokens without need a label for that"
        )
    return TokenLabels(labels.flatten(1), names)
