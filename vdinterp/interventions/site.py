"""SiteIntervention: replaces activations, and says which part of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float

from vdinterp.checks.counts import check_indices
from vdinterp.interventions.base import HookPair, Intervention, Place, check_choice, check_place
from vdinterp.interventions.places import FIELDS, Frames, among, check_places, frames_of, grid_of, tokens_in
from vdinterp.mask import Mask
from vdinterp.site import Site

# Axes that a mean is taken over; what is left (head, d_model, d_head ...) tells the components apart.
SAMPLE_AXES = ("batch", "frame", "pos", "query", "key", "row*col")
CHANNEL_AXES = ("d_model", "d_head", "d_mlp", "channel")

# What an activation needs an axis of, for a choice to mean anything.
_NEEDED = {
    "heads": {"head"},
    "channels": set(CHANNEL_AXES),
    "subspace": set(CHANNEL_AXES),
    "frames": {"pos", "frame", "query"},
    "noise_levels": {"pos", "frame", "query"},
    "rows": {"pos", "query"},
    "cols": {"pos", "query"},
    "tokens": {"pos", "query"},
}


@dataclass(frozen=True, kw_only=True)
class SiteIntervention(Intervention):
    """Replaces (a part of) the activations at `site`: a hook name, an alias ("z": every layer's), or a list.

    `heads`, `frames`, `rows`, `cols`, `tokens`, `channels`: only these (None: all, padding included); what is given
    together must hold together. Frames and tokens are those of the user's clip, in whatever window the network sees
    it; `frames="padding"`: what a sampler fills a short clip with. On N x N sites frames, rows, columns and tokens are
    the query's. `channels` counts along d_model, d_head, d_mlp or the
    latents' channels. `subspace` `[channels]` or `[k channels]`: only the component in the span of these directions is
    replaced, `x + P (replacement - x)`.
    """

    ELSEWHERE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("layer", "layers"), "the site says the layer: site=('z', 3), or a list of such"
    )

    heads: Sequence[int] | None = None
    frames: Frames | None = None
    rows: Sequence[int] | None = None
    cols: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    channels: Sequence[int] | None = None
    subspace: torch.Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_place(self.site)  # type: ignore[attr-defined]
        for field in ("heads", "channels"):
            check_indices(field, getattr(self, field))
        for field in FIELDS:
            check_places(field, getattr(self, field))
        if self.subspace is not None:
            orthonormal(self.subspace)
            if self.channels is not None:
                raise ValueError("channels= and subspace= both choose directions of the channel axis; give one.")

    @abstractmethod
    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        """What to put there; broadcast to the activation's shape."""

    @property
    def sites(self) -> Place:
        return self.site  # type: ignore[attr-defined]

    def hooks(self, model: Any) -> list[HookPair]:
        self.check_bound()
        return [(name, self._hook(model)) for name in self.site_names(model)]

    def site_names(self, model: Any) -> list[str]:
        """Full names of the sites. Raises `KeyError` or `ValueError` where one does not fit."""
        names = model.resolve_names(self.sites)
        for name in names:
            self._check(model, name)
        return names

    def sites_of_run(self, model: Any) -> dict[str, list[str]]:
        return {run: self.site_names(model) for run in self.run_names}

    def _hook(self, model: Any) -> Callable[..., torch.Tensor | None]:
        basis = None if self.subspace is None else orthonormal(self.subspace)

        def replace(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
            if not self.is_active(hook):
                return None
            chosen = self.selection(activation, hook, model)
            if chosen is None:
                return None
            wanted = self.replacement(activation, hook).to(activation)
            if basis is not None:
                wanted = within(basis, activation, wanted, channel_axis(hook.dims))
            return torch.where(chosen, wanted, activation)

        return replace

    def _check(self, model: Any, name: str) -> None:
        if model.hook_dict[name].read_only:
            raise ValueError(
                f"{name} is a statistic: the network does not go on with it, so there is nothing to change."
            )
        cfg, dims = model.cfg, full_dims(model, name)
        check_choice("heads", self.heads, cfg.n_heads, cfg.model_name)
        for field, axes in _NEEDED.items():
            if getattr(self, field) is not None and not axes & set(dims):
                raise ValueError(f"{name} has the axes {' '.join(dims)}: there are no {field} to choose.")
        if (axis := channel_axis(dims)) is not None:
            width = model.hook_shape(name)[axis]
            check_choice("channels", self.channels, width, name)
            if self.subspace is not None and self.subspace.shape[-1] != width:
                raise ValueError(
                    f"subspace {list(self.subspace.shape)}: {name} has {width} channels, so [k {width}] is needed."
                )

    # Which part of an activation

    def selection(self, activation: torch.Tensor | Mask, hook: Any, model: Any) -> torch.Tensor | None:
        """Boolean, broadcastable to the activation: the part to replace; None where this call has nothing of it."""
        dims, device = full_dims(model, hook.name), activation.device
        chosen = torch.ones([1] * len(dims), dtype=torch.bool, device=device)
        if self.heads is not None:
            flags = among(torch.arange(model.cfg.n_heads, device=device), self.heads)
            chosen = chosen & _along(flags, len(dims), dims.index("head"))
        if self.channels is not None:
            axis = channel_axis(dims)
            assert axis is not None
            flags = among(torch.arange(activation.shape[axis], device=device), self.channels)
            chosen = chosen & _along(flags, len(dims), axis)
        if self.places or self.noise_levels is not None:
            tokens = self._tokens(activation, hook, model)
            if not bool(tokens.any()):
                return None
            chosen = chosen & _laid_out(tokens.to(device), dims, attention_axis(model, hook.name))
        return chosen

    def _tokens(self, activation: torch.Tensor | Mask, hook: Any, model: Any) -> Bool[torch.Tensor, "batch frame _"]:
        """The chosen cells of every frame. Raises `ValueError` for a clip that has none of the places asked for."""
        grid, levels = grid_of(hook, model), self.frames_at_levels(hook)
        frames = frames_of(hook, grid.n_frames)
        tokens = tokens_in(frames, grid, self.places)
        if "frames" not in hook.ctx and not bool(tokens.any()):
            listed = ", ".join(f"{field} {chosen}" for field, chosen in self.places.items())
            raise ValueError(f"{listed}: this clip is shorter or smaller than that, so nothing is left to change.")
        batch = activation.shape[0] if not hook.broadcasts else len(frames) if levels is None else len(levels)
        for what, known, sizes in (("frames", frames, (1, batch)), ("noise levels", levels, (batch,))):
            if known is not None and (len(known) not in sizes or known.shape[1] != grid.n_frames):
                raise ValueError(
                    f"{hook.name}: this call has {batch} clips of {grid.n_frames} frames; their {what} in hook.ctx "
                    f"are {list(known.shape)}."
                )
        return tokens if levels is None else tokens.to(levels.device) & levels.unsqueeze(-1)


@dataclass(frozen=True)
class Computed(SiteIntervention):
    """What another intervention does at one of its sites: `function(activation, hook)` gives the replacement."""

    site: Place
    function: Callable[..., torch.Tensor]

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return self.function(activation, hook)


@dataclass(frozen=True)
class Restricted(SiteIntervention):
    """Keys taken away from a mask: `function(hook)` gives the rules, for the queries that are chosen."""

    site: Place
    function: Callable[[Any], Mask]

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        allowed = self.function(hook).to(activation.device).allowed()
        return activation & (allowed if activation.ndim == 5 else allowed.squeeze(1))

    def _hook(self, model: Any) -> Callable[..., Any]:
        replace = super()._hook(model)

        def restrict(mask: torch.Tensor | Mask, hook: Any) -> torch.Tensor | Mask | None:
            if isinstance(mask, torch.Tensor):
                return replace(mask, hook)
            if not self.is_active(hook) or (chosen := self.selection(mask, hook, model)) is None:
                return None
            rules = self.function(hook).to(mask.device)
            if chosen.numel() > 1:
                rules = rules.only(chosen if chosen.ndim == 5 else chosen[:, None])
            return mask & rules

        restrict.takes_rules = True  # type: ignore[attr-defined]
        return restrict


def _laid_out(tokens: torch.Tensor, dims: Sequence[str], axis: str) -> torch.Tensor:
    """Chosen cells of frames, laid along the axes of an activation."""
    if "pos" in dims or (axis == "3d" and "query" in dims):
        along = (dims.index("pos" if "pos" in dims else "query"),)
    elif axis == "time" and "query" in dims:
        along = (dims.index("query"), dims.index("row*col"))
    else:
        along = (dims.index("frame"), dims.index("query")) if "query" in dims else (dims.index("frame"),)
    if len(along) == 2:
        return _along(tokens, len(dims), 0, *along)
    every_token = dims[along[0]] != "frame"
    return _along(tokens.flatten(1) if every_token else tokens.any(-1), len(dims), 0, *along)


def full_dims(model: Any, name: str) -> tuple[str, ...]:
    """The axes of an activation; of a mask, those of the pattern that it broadcasts to."""
    point = model.hook_dict[name]
    return model.hook_dict[Site.parse(name).at("pattern")].dims if point.broadcasts else point.dims


def attention_axis(model: Any, name: str) -> str:
    """What the attention that a hook belongs to attends over: "3d", "space" or "time"."""
    return getattr(model.mod_dict.get(Site.parse(name).owner), "axis", "3d")


def channel_axis(dims: Sequence[str]) -> int | None:
    """Which of the axes are channels, if any."""
    return next((axis for axis, dim in enumerate(dims) if dim in CHANNEL_AXES), None)


def _along(flags: torch.Tensor, ndim: int, *axes: int) -> torch.Tensor:
    """Flags whose axes become `axes` of `ndim`, the others being 1."""
    order = sorted(range(len(axes)), key=lambda place: axes[place])
    sizes = dict(zip(axes, flags.shape, strict=True))
    return flags.permute(order).reshape([sizes.get(axis, 1) for axis in range(ndim)])


# Subspaces


def orthonormal(subspace: Any) -> Float[torch.Tensor, "k channels"]:
    """An orthonormal basis of the span of the rows, float64.

    Raises `ValueError` unless they are finite, not zero and linearly independent.
    """
    if not isinstance(subspace, torch.Tensor) or not subspace.is_floating_point() or subspace.ndim not in (1, 2):
        shown = list(subspace.shape) if isinstance(subspace, torch.Tensor) else type(subspace).__name__
        raise ValueError(f"subspace is {shown}: give a floating point tensor [channels] or [k channels].")
    rows = subspace.detach().double().reshape(-1, subspace.shape[-1])
    norms = rows.norm(dim=-1, keepdim=True)
    if not rows.numel() or not rows.isfinite().all() or not norms.all():
        raise ValueError(f"subspace {list(subspace.shape)}: every direction must be finite and not zero.")
    _, sizes, basis = torch.linalg.svd(rows / norms, full_matrices=False)
    smallest = max(rows.shape) * torch.finfo(subspace.dtype).eps
    rank = int((sizes > smallest * sizes[0]).sum())
    if rank < len(rows):
        raise ValueError(f"subspace {list(subspace.shape)}: its {len(rows)} directions span only {rank} dimensions.")
    return basis


def within(basis: torch.Tensor, activation: torch.Tensor, wanted: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The activation with its component in the span of `basis` taken from `wanted`."""
    assert axis is not None
    precise = torch.promote_types(activation.dtype, torch.float32)
    basis = basis.to(device=activation.device, dtype=precise)
    change = (wanted.to(precise) - activation.to(precise)).movedim(axis, -1)
    return (activation.to(precise) + (change @ basis.T @ basis).movedim(-1, axis)).to(activation)
