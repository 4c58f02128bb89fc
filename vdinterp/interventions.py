"""What to change where, as data.

An intervention is a frozen dataclass; `hooks(model)` checks it against a model and gives the hook functions that
carry it out. `model.intervene(...)` and `pipe.sample(..., interventions=[...])` apply them.

`heads`, `frames`, `rows`, `cols`, `channels` narrow an intervention down (None: all of them). On an N x N site
frames, rows and columns select queries. `channels` counts along d_model, d_head, d_mlp or the latents' channels.
`steps` limits it to some denoising steps of a sampler.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import torch

HookPair = tuple[str, Callable[..., Any]]
Site = str | Sequence[Any] | Callable[[str], bool]  # a name, an alias, a key such as ("z", 3), or several of these

# Axes that a mean is taken over; what is left (head, d_model, d_head ...) tells the components apart.
SAMPLE_AXES = ("batch", "frame", "pos", "query", "key", "row*col")
CHANNEL_AXES = ("d_model", "d_head", "d_mlp", "channel")


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """Something that changes a forward pass. Subclasses say where and how."""

    steps: Collection[int] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and not isinstance(self.steps, Collection):
            raise ValueError(f"steps={self.steps!r}: give a list or a range of denoising steps.")

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

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("heads", "frames", "rows", "cols", "channels"):
            check_list(field, getattr(self, field))

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
        if model.hook_dict[name].read_only:
            raise ValueError(
                f"{name} is a statistic: the network does not go on with it, so there is nothing to change."
            )
        cfg, dims, shape = model.cfg, model.hook_dict[name].dims, dict(zip(*model.hook_axes(name), strict=True))
        check_choice("heads", self.heads, cfg.n_heads, cfg.model_name)
        check_choice("frames", self.frames, cfg.n_frames, cfg.model_name)
        check_choice("rows", self.rows, cfg.n_rows, cfg.model_name)
        check_choice("cols", self.cols, cfg.n_cols, cfg.model_name)
        channel_axis = next((dim for dim in dims if dim in CHANNEL_AXES), None)
        needed = {"heads": {"head"}, "channels": set(CHANNEL_AXES), "frames": {"pos", "frame", "query"}}
        for field, axes in {**needed, "rows": {"pos", "query"}, "cols": {"pos", "query"}}.items():
            if getattr(self, field) is not None and not axes & set(dims):
                raise ValueError(f"{name} has the axes {' '.join(dims)}: there are no {field} to choose.")
        if channel_axis is not None:
            check_choice("channels", self.channels, shape[channel_axis], name)

    def _selection(self, activation: torch.Tensor, dims: Sequence[str], model: Any) -> torch.Tensor:
        """Boolean, broadcastable to the activation: the part to replace."""
        per_frame = model.cfg.n_rows * model.cfg.n_cols
        wanted: dict[int, list[bool]] = {}
        for axis, dim in enumerate(dims):
            size = activation.shape[axis]
            if dim == "head":
                wanted[axis] = _among(self.heads, range(size))
            elif dim == "frame" or (dim == "query" and "row*col" in dims):  # over time a query is a frame
                wanted[axis] = _among(self.frames, range(size))
            elif dim in ("pos", "query", "row*col"):
                cells = [token % per_frame for token in range(size)]
                rows = _among(self.rows, [cell // model.cfg.n_cols for cell in cells])
                cols = _among(self.cols, [cell % model.cfg.n_cols for cell in cells])
                has_frames = "frame" in dims or dim == "row*col"
                frames = _among(None if has_frames else self.frames, [token // per_frame for token in range(size)])
                wanted[axis] = [all(parts) for parts in zip(frames, rows, cols, strict=True)]
            elif dim in CHANNEL_AXES:
                wanted[axis] = _among(self.channels, range(size))
        chosen = torch.ones([1] * activation.ndim, dtype=torch.bool, device=activation.device)
        for axis, flags in wanted.items():
            if not any(flags):
                raise ValueError(f"frames {self.frames}: this clip is shorter than that, so nothing is left to change.")
            shape = [1] * activation.ndim
            shape[axis] = len(flags)
            chosen = chosen & torch.tensor(flags, device=activation.device).view(shape)
        return chosen


def _among(chosen: Sequence[int] | None, values: Sequence[int]) -> list[bool]:
    return [chosen is None or value in chosen for value in values]


def check_interventions(given: Any) -> tuple[Intervention, ...]:
    """What was given as interventions, as a tuple. Raises `ValueError` if it holds anything else."""
    if isinstance(given, Intervention) or not isinstance(given, Sequence):
        raise ValueError(f"interventions is {type(given).__name__}; give a list of interventions, e.g. [Ablate('z')].")
    for item in given:
        if not isinstance(item, Intervention):
            raise ValueError(
                f"{item!r} is no intervention (Ablate, Patch, Freeze, MaskAttention, Custom). A hook function of your "
                "own is Custom(site, function)."
            )
    return tuple(given)


def check_list(field: str, chosen: Any) -> None:
    """Raise `ValueError` unless `chosen` is None or a collection that is not empty (an empty one would do nothing)."""
    if chosen is not None and (not isinstance(chosen, Collection) or isinstance(chosen, str) or not len(chosen)):
        raise ValueError(f"{field}={chosen!r}: give a list of one or more numbers, or None for all.")


def check_choice(field: str, chosen: Any, size: int, owner: str) -> None:
    """Raise `ValueError` unless `chosen` is None or a list of whole numbers in `range(size)` that is not empty."""
    check_list(field, chosen)
    for value in chosen or ():
        if not isinstance(value, Integral) or int(value) not in range(size):
            raise ValueError(f"{field} {value!r}: {owner} has {size} {field}, so 0..{size - 1}.")


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
        super().__post_init__()
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
        check_stored(self.reference[name], model, name)
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
        check_stored(self.source[name], model, name)

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
    """Your own function `(activation, hook) -> tensor`, or None after an edit in place.

    It gets and returns the whole activation; what it did outside the chosen part is dropped.
    """

    site: Site
    function: Callable[..., torch.Tensor]

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        given = activation.clone()
        returned = self.function(given, hook)
        if returned is None:
            return given
        if not isinstance(returned, torch.Tensor) or returned.shape != activation.shape:
            shown = list(returned.shape) if isinstance(returned, torch.Tensor) else type(returned).__name__
            raise ValueError(f"Custom: the function gave {shown} for {hook.name}, which is {list(activation.shape)}.")
        return returned


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
        super().__post_init__()
        if self.allow is None and self.cut is None:
            raise ValueError("MaskAttention needs allow= ('own_frame', 'same_position' or a mask) or cut=.")
        if isinstance(self.allow, str) and self.allow not in ("own_frame", "same_position"):
            raise ValueError(f"Unknown allow={self.allow!r}; choose 'own_frame', 'same_position' or a boolean tensor.")
        if self.cut is not None and len(self.cut) != 2:
            raise ValueError(f"cut={self.cut!r}: give two lists, (query frames, key frames).")
        if self.cut is not None and set(self.cut[0]) & set(self.cut[1]):
            raise ValueError("cut=(query frames, key frames) must not share frames: a token would not see itself.")

    def hooks(self, model: Any) -> list[HookPair]:
        cfg = model.cfg
        check_choice("layers", self.layers, cfg.n_layers, cfg.model_name)
        check_choice("heads", self.heads, cfg.n_heads, cfg.model_name)
        for frames in self.cut or ():
            check_choice("frames", frames, cfg.n_frames, cfg.model_name)
        axes = {
            layer: cfg.blocks[layer].axis for layer in (range(cfg.n_layers) if self.layers is None else self.layers)
        }
        if isinstance(self.allow, torch.Tensor) and any(axis != "3d" for axis in axes.values()):
            raise ValueError("A mask over all tokens fits 3d attention only; use 'own_frame', 'same_position' or cut=.")
        touched = {layer: axis for layer, axis in axes.items() if self._matters(axis)}
        if not touched:
            raise ValueError(f"allow={self.allow!r}, cut={self.cut!r} forbids nothing that these layers do.")
        return [(f"blocks.{layer}.attn.hook_mask", self._hook(model, axis)) for layer, axis in touched.items()]

    def _matters(self, axis: str) -> bool:
        """Spatial attention never leaves its frame, temporal attention never its place: nothing to forbid there."""
        if axis == "space":
            return self.allow == "same_position"
        return axis == "3d" or self.allow == "own_frame" or self.cut is not None

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


def check_stored(stored: torch.Tensor, model: Any, name: str) -> None:
    """Raise `ValueError` if a stored activation cannot be this hook's: other axes, heads or widths."""
    dims, shape = model.hook_axes(name)
    fixed = {axis: size for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)) if dim not in SAMPLE_AXES}
    if stored.ndim != len(dims) or any(stored.shape[axis] != size for axis, size in fixed.items()):
        raise ValueError(
            f"The stored {name} is {list(stored.shape)}; {model.cfg.model_name} has {list(shape)} ({' '.join(dims)}). "
            "Is it of another model?"
        )


def fitted(stored: torch.Tensor, activation: torch.Tensor, hook: Any) -> torch.Tensor:
    """A stored activation for as many clips as there are now: one for all, or repeated whole (guidance branches)."""
    n_stored, n_wanted = len(stored), len(activation)
    if stored.shape[1:] != activation.shape[1:] or (n_wanted % n_stored and n_stored != 1):
        raise ValueError(
            f"{hook.name}: the stored activation is {list(stored.shape)}, this run's is {list(activation.shape)}. "
            "Both runs need clips of the same size, and one or equally many of them. A sampler pads clips that are "
            "shorter than the model's to full length unless pad=False."
        )
    return stored.repeat(math.ceil(n_wanted / n_stored), *[1] * (stored.ndim - 1))[:n_wanted]
