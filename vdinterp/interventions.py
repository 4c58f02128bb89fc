"""What to change where, as data.

An intervention is a frozen dataclass; `hooks(model)` checks it against a model and gives the hook functions that
carry it out. `model.intervene(...)` and `pipe.sample(..., interventions=[...])` apply them.

`heads`, `frames`, `rows`, `cols`, `channels` narrow an intervention down (None: all of them). On an N x N site
frames, rows and columns select queries. `steps` limits it to some denoising steps of a sampler.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

HookPair = tuple[str, Callable[..., Any]]
Site = str | Sequence[str] | Callable[[str], bool]

# Axes that a mean is taken over; what is left (head, d_model, d_head ...) tells the components apart.
SAMPLE_AXES = ("batch", "frame", "pos", "query", "key", "row*col")


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """Something that changes a forward pass. Subclasses say where and how."""

    steps: Collection[int] | None = None

    @abstractmethod
    def hooks(self, model: Any) -> list[HookPair]:
        """Hook functions for `model`. Raises `KeyError` or `ValueError` if they do not fit it, before anything runs."""

    def is_active(self, hook: Any) -> bool:
        """Whether this step is one of `steps`. Raises `ValueError` outside a sampler, which alone counts steps."""
        if self.steps is None:
            return True
        if "step" not in hook.ctx:
            raise ValueError("steps= needs a sampler, which counts denoising steps; leave it out for a single forward.")
        return hook.ctx["step"] in self.steps


@dataclass(frozen=True, kw_only=True)
class SiteIntervention(Intervention):
    """Replaces (a part of) the activations at `site`: a hook name, an alias ("z": every layer's), or a list."""

    heads: Sequence[int] | None = None
    frames: Sequence[int] | None = None
    rows: Sequence[int] | None = None
    cols: Sequence[int] | None = None
    channels: Sequence[int] | None = None

    @abstractmethod
    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        """What to put there; broadcast to the activation's shape."""

    @property
    def sites(self) -> Site:
        return self.site  # type: ignore[attr-defined]

    def hooks(self, model: Any) -> list[HookPair]:
        names = model.resolve_names(self.sites)
        for name in names:
            self._check(model, name)
        return [(name, self._hook(model)) for name in names]

    def _hook(self, model: Any) -> Callable[..., torch.Tensor | None]:
        def replace(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
            if not self.is_active(hook):
                return None
            chosen = self._selection(activation, hook.dims, model)
            return torch.where(chosen, self.replacement(activation, hook).to(activation), activation)

        return replace

    def _check(self, model: Any, name: str) -> None:
        dims = model.hook_dict[name].dims
        sizes = {"heads": model.cfg.n_heads, "frames": model.cfg.n_frames, "rows": model.cfg.n_rows, "cols": model.cfg.n_cols}
        for field, size in sizes.items():
            for value in getattr(self, field) or ():
                if not 0 <= value < size:
                    raise ValueError(f"{field} {value}: {model.cfg.model_name} has {size} {field}, so 0..{size - 1}.")
        if self.heads is not None and "head" not in dims:
            raise ValueError(f"{name} ({' '.join(dims)}) has no head axis; heads can be chosen on z, q, k, v, pattern ...")
        if (self.rows or self.cols) and not {"pos", "query"} & set(dims):
            raise ValueError(f"{name} ({' '.join(dims)}) has no tokens, so no rows or cols to choose from.")
        if self.frames is not None and not {"pos", "frame", "query"} & set(dims):
            raise ValueError(f"{name} ({' '.join(dims)}) has no frames to choose from.")

    def _selection(self, activation: torch.Tensor, dims: Sequence[str], model: Any) -> torch.Tensor:
        """Boolean, broadcastable to the activation: the part to replace."""
        chosen = torch.ones([1] * activation.ndim, dtype=torch.bool, device=activation.device)
        token_axis = "query" if "query" in dims else "pos"
        wanted: dict[int, list[bool]] = {}
        for axis, dim in enumerate(dims):
            size = activation.shape[axis]
            if dim == "head" and self.heads is not None:
                wanted[axis] = [head in self.heads for head in range(size)]
            elif dim == "frame" and self.frames is not None:
                wanted[axis] = [frame in self.frames for frame in range(size)]
            elif dim == token_axis and any(part is not None for part in (self.frames, self.rows, self.cols)):
                wanted[axis] = self._tokens(size, model, framed="frame" in dims)
        if self.channels is not None:
            last = activation.ndim - 1
            wanted[last] = [channel in self.channels for channel in range(activation.shape[last])]
        for axis, flags in wanted.items():
            shape = [1] * activation.ndim
            shape[axis] = len(flags)
            chosen = chosen & torch.tensor(flags, device=activation.device).view(shape)
        return chosen

    def _tokens(self, n_tokens: int, model: Any, framed: bool) -> list[bool]:
        """Which tokens lie in the chosen frames, rows and columns."""
        per_frame = model.cfg.n_rows * model.cfg.n_cols
        flags = []
        for token in range(n_tokens):
            frame, cell = divmod(token, per_frame)
            row, col = divmod(cell, model.cfg.n_cols)
            parts = ((None if framed else self.frames, frame), (self.rows, row), (self.cols, col))
            flags.append(all(picked is None or value in picked for picked, value in parts))
        return flags


@dataclass(frozen=True)
class Ablate(SiteIntervention):
    """Take a component's information away.

    `mode`: "zero"; "mean" (over the reference's clips, frames and positions, so one constant vector per head);
    "resample" (another clip's activation: the reference's clips rolled by one); "frozen" (the reference's own).
    All but "zero" need `reference`, an `ActivationCache` (or any mapping from hook name to tensor).
    Mean ablation keeps what is always there and removes what varies; zero ablation removes both, which can hurt for
    reasons that have nothing to do with the information (Li & Janson 2024, arXiv 2409.09951).
    """

    site: Site
    mode: Literal["zero", "mean", "resample", "frozen"] = "zero"
    reference: Mapping[str, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        modes = ("zero", "mean", "resample", "frozen")
        if self.mode not in modes:
            raise ValueError(f"Unknown ablation mode {self.mode!r}; choose one of {', '.join(modes)}.")
        if self.mode != "zero" and self.reference is None:
            raise ValueError(f"mode={self.mode!r} needs reference=, a cache of what to ablate with.")

    def _check(self, model: Any, name: str) -> None:
        super()._check(model, name)
        if self.mode == "zero":
            return
        assert self.reference is not None
        if name not in self.reference:
            raise KeyError(f"The reference has no {name!r}; record it with run_with_cache(..., names=[{name!r}]).")
        if self.mode == "resample" and len(self.reference[name]) < 2:
            raise ValueError("mode='resample' needs at least two clips in the reference: one clip has no other.")

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        if self.mode == "zero":
            return torch.zeros_like(activation)
        assert self.reference is not None
        stored = self.reference[hook.name]
        if self.mode == "mean":
            axes = [axis for axis, dim in enumerate(hook.dims) if dim in SAMPLE_AXES]
            return stored.float().mean(axes, keepdim=True)
        if self.mode == "resample":
            stored = stored.roll(1, dims=0)
        return fitted(stored, activation, hook)


@dataclass(frozen=True)
class Patch(SiteIntervention):
    """Put another run's activation there: `source` is the cache of that run."""

    site: Site
    source: Mapping[str, torch.Tensor]

    def _check(self, model: Any, name: str) -> None:
        super()._check(model, name)
        if name not in self.source:
            raise KeyError(f"The source has no {name!r}; record it with run_with_cache(..., names=[{name!r}]).")

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return fitted(self.source[hook.name], activation, hook)


@dataclass(frozen=True)
class Freeze(SiteIntervention):
    """Hold an activation at one value: a number, or a tensor that broadcasts to it (for gates: `Freeze("gate", 1)`)."""

    site: Site
    value: float | torch.Tensor

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        value = torch.as_tensor(self.value, dtype=activation.dtype, device=activation.device)
        try:
            return value.expand_as(activation)
        except RuntimeError:
            raise ValueError(
                f"Freeze: a value of shape {list(value.shape)} does not broadcast to {hook.name} "
                f"{list(activation.shape)} ({' '.join(hook.dims)})."
            ) from None


@dataclass(frozen=True)
class Custom(SiteIntervention):
    """Your own function `(activation, hook) -> tensor`, applied to the chosen part only."""

    site: Site
    function: Callable[..., torch.Tensor]

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return self.function(activation, hook)


@dataclass(frozen=True)
class MaskAttention(Intervention):
    """Forbid attention without computing a pattern: the mask goes into the fused kernel.

    `allow`: "own_frame" (a token sees its frame only), "same_position" (its own place in every frame only), a boolean
    tensor `[query key]` over all tokens of a clip, or None when only `cut` is wanted.
    `cut`: (query frames, key frames) between which no attention passes.
    `layers`, `heads`: where (None: everywhere). The model's own causal mask stays in force.
    """

    allow: Literal["own_frame", "same_position"] | torch.Tensor | None = None
    cut: tuple[Sequence[int], Sequence[int]] | None = None
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.allow is None and self.cut is None:
            raise ValueError("MaskAttention needs allow= ('own_frame', 'same_position' or a mask) or cut=.")
        if isinstance(self.allow, str) and self.allow not in ("own_frame", "same_position"):
            raise ValueError(f"Unknown allow={self.allow!r}; choose 'own_frame', 'same_position' or a boolean tensor.")
        if self.cut is not None and set(self.cut[0]) & set(self.cut[1]):
            raise ValueError("cut=(query frames, key frames) must not share frames: a token would lose sight of itself.")

    def hooks(self, model: Any) -> list[HookPair]:
        layers = range(model.cfg.n_layers) if self.layers is None else self.layers
        for field, values, size in (("layers", layers, model.cfg.n_layers), ("heads", self.heads, model.cfg.n_heads)):
            for value in values or ():
                if not 0 <= value < size:
                    raise ValueError(f"{field} {value}: {model.cfg.model_name} has {size}, so 0..{size - 1}.")
        axes = {layer: model.cfg.blocks[layer].axis for layer in layers}
        if isinstance(self.allow, torch.Tensor) and any(axis != "3d" for axis in axes.values()):
            raise ValueError("A mask over all tokens fits 3d attention only; use 'own_frame', 'same_position' or cut=.")
        return [(f"blocks.{layer}.attn.hook_mask", self._hook(model, axis)) for layer, axis in axes.items()]

    def _hook(self, model: Any, axis: str) -> Callable[..., torch.Tensor | None]:
        def restrict(mask: torch.Tensor, hook: Any) -> torch.Tensor | None:
            if not self.is_active(hook):
                return None
            allowed = self._allowed(mask.shape[-1], axis, model).to(mask.device)
            if self.heads is not None:
                chosen = torch.zeros(model.cfg.n_heads, 1, 1, dtype=torch.bool, device=mask.device)
                chosen[list(self.heads)] = True
                allowed = allowed | ~chosen
            return mask & allowed

        return restrict

    def _allowed(self, n_keys: int, axis: str, model: Any) -> torch.Tensor:
        """`[query key]` of one attention group: all tokens, one frame's, or one place's over time."""
        if isinstance(self.allow, torch.Tensor):
            if self.allow.shape != (n_keys, n_keys):
                raise ValueError(f"The mask is {list(self.allow.shape)}; this clip has {n_keys} tokens.")
            return self.allow.bool()
        per_frame = {"3d": model.cfg.n_rows * model.cfg.n_cols, "space": n_keys, "time": 1}[axis]
        index = torch.arange(n_keys)
        frame, cell = index // per_frame, index % per_frame
        allowed = torch.ones(n_keys, n_keys, dtype=torch.bool)
        if self.allow == "own_frame":
            allowed = frame[:, None] == frame[None, :]
        elif self.allow == "same_position":
            allowed = cell[:, None] == cell[None, :]
        if self.cut is not None and axis != "space":
            queries, keys = (torch.isin(frame, torch.tensor(list(frames))) for frames in self.cut)
            allowed = allowed & ~(queries[:, None] & keys[None, :])
        return allowed


def fitted(stored: torch.Tensor, activation: torch.Tensor, hook: Any) -> torch.Tensor:
    """A stored activation for as many clips as there are now: one for all, or repeated whole (guidance branches)."""
    n_stored, n_wanted = len(stored), len(activation)
    if stored.shape[1:] != activation.shape[1:] or (n_wanted % n_stored and n_stored != 1):
        raise ValueError(
            f"{hook.name}: the stored activation is {list(stored.shape)}, this run's is {list(activation.shape)}. "
            "Both runs need clips of the same size, and one or equally many of them."
        )
    return stored.repeat(math.ceil(n_wanted / n_stored), *[1] * (stored.ndim - 1))[:n_wanted]
