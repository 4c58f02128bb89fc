"""Who attends to whom: attention forbidden, or taken from another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import and_
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool

from vdinterp.checks.counts import check_indices
from vdinterp.interventions.base import HookPair, Intervention, Run, check_choice, chosen_layers
from vdinterp.interventions.places import Frames, Pass, among, check_places, check_within, frames_of, grid_of
from vdinterp.interventions.replace import Patch
from vdinterp.interventions.site import Computed, Restricted, SiteIntervention
from vdinterp.interventions.stored import check_holds, fitted
from vdinterp.mask import Mask
from vdinterp.site import Site


@dataclass(frozen=True)
class MaskAttention(Intervention):
    """Forbid attention without computing a pattern: the mask goes into the fused kernel.

    `allow`: "own_frame" (a token sees its frame only), "same_position" (its own place in every frame only), a boolean
    tensor (or array, or list) `[query key]` over all tokens of a clip, True where a query may see a key, or None when
    only `cut` is wanted. Masks that are added to scores (0 and -inf) are refused: `scores == 0` is what is wanted.
    `cut`: (query frames, key frames) between which no attention passes. `hidden`: tokens that nobody but themselves may
    see. Frames and tokens are those of the user's clip.
    `layers`, `heads`: where (None: everywhere). The model's own causal mask stays in force. `noise_levels` are those of
    the queries' frames.
    """

    allow: Literal["own_frame", "same_position"] | torch.Tensor | np.ndarray | Sequence[Any] | None = None
    cut: tuple[Sequence[int], Sequence[int]] | None = None
    hidden: Sequence[int] | None = None
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("layers", "heads", "hidden"):
            check_indices(field, getattr(self, field), low=0 if field == "hidden" else None)
        if self.allow is None and self.cut is None and self.hidden is None:
            raise ValueError("MaskAttention needs allow= ('own_frame', 'same_position' or a mask), cut= or hidden=")
        if isinstance(self.allow, str) and self.allow not in ("own_frame", "same_position"):
            raise ValueError(f"Unknown allow={self.allow!r}; choose 'own_frame', 'same_position' or a boolean tensor.")
        if self.allow is not None and not isinstance(self.allow, str):
            object.__setattr__(self, "allow", _as_mask(self.allow))
        if self.cut is None:
            return
        if not isinstance(self.cut, (tuple, list)) or len(self.cut) != 2:
            raise ValueError(f"cut={self.cut!r}: give two lists, (query frames, key frames).")
        for frames in self.cut:
            if frames is None:
                raise ValueError(f"cut={self.cut!r}: name the query frames and the key frames")
            check_indices("cut", frames, low=0)
        if set(self.cut[0]) & set(self.cut[1]):
            raise ValueError("cut=(query frames, key frames) must not share frames: a token would not see itself.")
        if self.allow == "own_frame":
            raise ValueError("allow='own_frame' forbids all that cut= does; give one of them")

    @property
    def places(self) -> dict[str, Any]:
        found = {} if self.hidden is None else {"tokens": self.hidden}
        return found if self.cut is None or self.allow is not None or found else {"frames": self.cut[0]}

    def check_clips(self, passes: Sequence[Pass]) -> None:
        super().check_clips(passes)
        for frames in self.cut or ():
            check_within("MaskAttention: cut", {"frames": frames}, passes)
        for grid in [one.grid for one in passes if one.grid is not None and isinstance(self.allow, torch.Tensor)]:
            if len(self.allow) != grid.n_tokens:  # type: ignore[arg-type]
                raise self._misfit(grid.n_tokens)

    def hooks(self, model: Any) -> list[HookPair]:
        cfg = model.cfg
        axes = {layer: cfg.blocks[layer].axis for layer in chosen_layers(self.layers, model)}
        check_choice("heads", self.heads, cfg.n_heads, cfg.model_name)
        if any(axis != "3d" for axis in axes.values()):
            if isinstance(self.allow, torch.Tensor):
                raise ValueError(
                    "A mask over all tokens fits 3d attention only; use 'own_frame', 'same_position' or cut=."
                )
            if self.hidden is not None:
                raise ValueError("hidden= tokens are of 3d attention; over space or time alone use cut=")
        touched = {layer: axis for layer, axis in axes.items() if self._matters(axis)}
        idle = sorted(axes.keys() - touched.keys())
        if not touched or (idle and self.layers is not None):
            raise ValueError(f"allow={self.allow!r}, cut={self.cut!r} forbids nothing that the layers {idle} do")
        parts = [
            Restricted(
                Site(layer, "attn", "mask"), partial(self._rules, axis=axis, model=model), heads=self.heads, **self.when
            )
            for layer, axis in touched.items()
        ]
        return [pair for part in parts for pair in part.hooks(model)]

    def _misfit(self, n_tokens: int) -> ValueError:
        assert isinstance(self.allow, torch.Tensor)
        return ValueError(f"The mask is {list(self.allow.shape)}; a clip has {n_tokens} tokens")

    def _matters(self, axis: str) -> bool:
        """Spatial attention never leaves its frame, temporal attention never its place: nothing to forbid there."""
        if axis == "space":
            return self.allow == "same_position"
        return axis == "3d" or self.allow == "own_frame" or self.cut is not None

    def _rules(self, hook: Any, axis: str, model: Any) -> Mask:
        """What a query may see within its group: all tokens, one frame's, or one place's over time."""
        grid, found = grid_of(hook, model), []
        frame, cell = grid.frame_of(), grid.cell_of()
        if axis == "space":
            frame, cell = frame[: grid.tokens_per_frame], cell[: grid.tokens_per_frame]
        elif axis == "time":
            frame, cell = frame[:: grid.tokens_per_frame], cell[:: grid.tokens_per_frame]
        if isinstance(self.allow, torch.Tensor):
            if len(self.allow) != grid.n_tokens:
                raise self._misfit(grid.n_tokens)
            found.append(Mask.given(self.allow))
        elif self.allow is not None:
            label = (frame if self.allow == "own_frame" else cell)[None]
            found.append(Mask.by("same", label, label))
        if self.cut is None and self.hidden is None:
            return found[0]
        clip = frames_of(hook, grid.n_frames)[:, frame]
        if self.cut is not None and axis != "space":
            found.append(Mask.by("apart", *(among(clip, frames) for frames in self.cut)))
        if self.hidden is not None:
            token = torch.where(clip < 0, -1, clip * grid.tokens_per_frame + cell)
            found.append(Mask.by("own", token, torch.where(among(token, self.hidden), token, -1)))
        return reduce(and_, found)


@dataclass(frozen=True)
class TransferAttention(Intervention):
    """Attend as another run did, to this run's own values: the rest of it keeps its content, only the routing changes.

    `source`: that run's cache, with `rot_q` and `rot_k`, or its name in a sweep. `layers`, `heads`: where (None:
    everywhere). Its rotated queries and keys are put in, and its mask where the cache holds one (as it does when an
    intervention masked that run), so no N x N tensor is made, and a mask that is set in this run still holds.

    `frames`, `tokens`, `noise_levels`: the rows of these queries only; other queries attend as they do here, for which
    the pattern is computed. So it is where the cache holds the pattern itself, which is then what is taken.
    """

    RUNS: ClassVar[tuple[str, ...]] = ("source",)

    source: Run
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    frames: Frames | None = None
    tokens: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("layers", "heads"):
            check_indices(field, getattr(self, field))
        for field in ("frames", "tokens"):
            check_places(field, getattr(self, field))
        if self.source is None:
            raise ValueError("TransferAttention needs source=, a cache or the name of a run of a sweep.")
        for site in map(Site.parse, sorted(getattr(self.source, "edited", ()))):
            here = site.sublayer == "attn" and (self.layers is None or site.layer in self.layers)
            pattern = site.at("pattern")
            if here and site.what in ("attn_scores", "pattern") and pattern not in self.source:
                raise ValueError(f"A hook changed {site} in the source's run: record {pattern!r} there.")

    def hooks(self, model: Any) -> list[HookPair]:
        self.check_bound()
        parts = [part for layer in self._checked_layers(model) for part in self._parts(layer, model)]
        return [pair for part in parts for pair in part.hooks(model)]

    def sites_of_run(self, model: Any) -> dict[str, list[str]]:
        names: list[str] = [name for layer in self._checked_layers(model) for name in _names(layer)[:2]]
        return {run: names for run in self.run_names}

    def _checked_layers(self, model: Any) -> list[int]:
        layers = chosen_layers(self.layers, model)
        patterns = [_names(layer)[-1] for layer in layers]
        Computed(patterns, torch.clone, heads=self.heads, frames=self.frames, tokens=self.tokens).site_names(model)
        return layers

    def _parts(self, layer: int, model: Any) -> list[SiteIntervention]:
        """What it amounts to in one layer."""
        source: Any = self.source
        q, k, mask, pattern = _names(layer)
        rows = {"frames": self.frames, "tokens": self.tokens}
        where = {"heads": self.heads, **self.when}
        if pattern in source:
            return [Patch(pattern, source, **rows, **where)]
        for name in (q, k, *([mask] if mask in source else [])):
            check_holds(source, model, name)
        if any(chosen is not None for chosen in (self.frames, self.tokens, self.noise_levels)):
            return [
                Computed(pattern, partial(_source_pattern, source=source, model=model, layer=layer), **rows, **where)
            ]
        return [Patch([q, k, mask] if mask in source else [q, k], source, **where)]


def _as_mask(given: Any) -> Bool[torch.Tensor, "query key"]:
    """A mask as a boolean tensor. Raises `ValueError` for what could mean something else, and for what fits no clip."""
    try:
        mask = given if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError):  # ragged, or no numbers
        raise ValueError(f"allow={given!r:.80}: give 'own_frame', 'same_position' or a boolean [query key]") from None
    if mask.dtype != torch.bool or mask.ndim != 2 or mask.shape[0] != mask.shape[1] or not mask.numel():
        raise ValueError(
            f"allow is {mask.dtype} {list(mask.shape)}: a mask is boolean, [query key] over all tokens, True where a "
            "query may see a key (of scores that are added, 0 and -inf, that is scores == 0)"
        )
    if not bool(mask.any(-1).all()):
        query = int((~mask.any(-1)).nonzero()[0])
        raise ValueError(f"the mask leaves query {query} without any key; to switch attention off, ablate hook_out")
    return mask


def _names(layer: int) -> list[Site]:
    return [Site(layer, "attn", what) for what in ("rot_q", "rot_k", "mask", "pattern")]


def _source_pattern(
    activation: torch.Tensor, hook: Any, source: Mapping[str, torch.Tensor], model: Any, layer: int
) -> torch.Tensor:
    """The pattern of the source's run, for this run's clips."""
    q, k, mask, _ = _names(layer)
    rot_q, rot_k = (source[name].to(activation.device) for name in (q, k))
    seen = Mask.hooked(source[mask].to(activation.device)) if mask in source else None
    pattern = model.sublayer(layer).pattern(rot_q, rot_k, grid_of(hook, model), seen)
    return fitted(pattern.materialize(), activation, hook)
