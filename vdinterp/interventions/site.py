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

    `heads`, `frames`, `rows`, `cols`, `tokens`, `channels`: only these; what is given together must hold together. On
    N x N sites frames, rows, columns and tokens are the query's. `channels` counts along d_model, d_head, d_mlp or the
    latents' channels. `subspace` `[channels]` or `[k channels]`: only the component in the span of these directions is
    replaced, `x + P (replacement - x)`.
    """

    ELSEWHERE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("layer", "layers"), "the site says the layer: site=('z', 3), or a list of such"
    )

    heads: Sequence[int] | None = None
    frames: Sequence[int] | None = None
    rows: Sequence[int] | None = None
    cols: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    channels: Sequence[int] | None = None
    subspace: torch.Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_place(self.site)  # type: ignore[attr-defined]
        for field in ("heads", "frames", "rows", "cols", "tokens", "channels"):
            check_indices(field, getattr(self, field))
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

    def frames_chosen(self, model: Any) -> Sequence[int] | None:
        if self.tokens is None:
            return self.frames
        of_tokens = {int(token) // (model.cfg.n_rows * model.cfg.n_cols) for token in self.tokens}
        return sorted(of_tokens if self.frames is None else of_tokens & {int(frame) for frame in self.frames})

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
            if self.noise_levels is not None and not bool(chosen.any()):
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
        cfg, grid, dims = model.cfg, model.grid(), full_dims(model, name)
        check_choice("heads", self.heads, cfg.n_heads, cfg.model_name)
        check_choice("frames", self.frames, cfg.n_frames, cfg.model_name)
        check_choice("rows", self.rows, cfg.n_rows, cfg.model_name)
        check_choice("cols", self.cols, cfg.n_cols, cfg.model_name)
        check_choice("tokens", self.tokens, grid.n_tokens, cfg.model_name)
        for field, axes in _NEEDED.items():
            if getattr(self, field) is not None and not axes & set(dims):
                raise ValueError(f"{name} has the axes {' '.join(dims)}: there are no {field} to choose.")
        if self.tokens is not None and not self._tokens(grid).any():
            raise ValueError(f"No token lies in all of {self._asked()}: nothing would be changed.")
        if (axis := channel_axis(dims)) is not None:
            width = model.hook_shape(name)[axis]
            check_choice("channels", self.channels, width, name)
            if self.subspace is not None and self.subspace.shape[-1] != width:
                raise ValueError(
                    f"subspace {list(self.subspace.shape)}: {name} has {width} channels, so [k {width}] is needed."
                )

    # Which part of an activation

    def _asked(self) -> str:
        fields = ("frames", "rows", "cols", "tokens")
        return ", ".join(f"{field} {getattr(self, field)}" for field in fields if getattr(self, field) is not None)

    def _tokens(self, grid: Any, device: torch.device | None = None) -> Bool[torch.Tensor, "pos"]:
        """Which tokens of a clip are chosen."""
        coordinates = grid.all_coordinates(device).unbind(-1)
        token = torch.arange(grid.n_tokens, device=device)
        wanted = torch.ones_like(token, dtype=torch.bool)
        for at, chosen in zip((*coordinates, token), (self.frames, self.rows, self.cols, self.tokens), strict=True):
            if chosen is not None:
                wanted &= _among(at, chosen)
        return wanted

    def selection(self, activation: torch.Tensor, hook: Any, model: Any) -> torch.Tensor:
        """Boolean, broadcastable to the activation: the part to replace."""
        dims, device = full_dims(model, hook.name), activation.device
        chosen = torch.ones([1] * activation.ndim, dtype=torch.bool, device=device)
        if self.heads is not None:
            flags = _among(torch.arange(model.cfg.n_heads, device=device), self.heads)
            chosen = chosen & _along(flags, activation.ndim, dims.index("head"))
        if self.channels is not None:
            axis = channel_axis(dims)
            assert axis is not None
            flags = _among(torch.arange(activation.shape[axis], device=device), self.channels)
            chosen = chosen & _along(flags, activation.ndim, axis)
        if self._asked() or self.noise_levels is not None:
            chosen = chosen & self._places(activation, hook, dims, model)
        return chosen

    def _places(self, activation: torch.Tensor, hook: Any, dims: Sequence[str], model: Any) -> torch.Tensor:
        """The chosen tokens and frames, laid along the axes of the activation."""
        levels, cells = self.frames_at_levels(hook), model.cfg.n_rows * model.cfg.n_cols
        axis, n_frames = attention_axis(model, hook.name), model.cfg.n_frames
        if "pos" in dims or (axis == "3d" and "query" in dims):
            along = (dims.index("pos" if "pos" in dims else "query"),)
            n_frames = activation.shape[along[0]] // cells
        elif axis == "time" and "query" in dims:
            along = (dims.index("query"), dims.index("row*col"))
            n_frames = activation.shape[along[0]]
        else:
            along = (dims.index("frame"), dims.index("query")) if "query" in dims else (dims.index("frame"),)
            if hook.broadcasts and activation.shape[along[0]] == 1:  # a mask that is the same for all frames
                n_frames = n_frames if levels is None else levels.shape[1]
            else:
                n_frames = activation.shape[along[0]]
        tokens = self._tokens(model.grid(n_frames), activation.device).view(1, n_frames, cells)
        if not tokens.any():
            raise ValueError(f"{self._asked()}: this clip is shorter than that, so nothing is left to change.")
        if levels is not None:
            batch = len(levels) if hook.broadcasts else len(activation)
            if levels.shape != (batch, n_frames):
                raise ValueError(
                    f"{hook.name}: this call has {batch} clips of {n_frames} frames; their noise levels in hook.ctx "
                    f"are {list(levels.shape)}."
                )
            tokens = tokens & levels.to(activation.device).unsqueeze(-1)
        if len(along) == 2:
            return _along(tokens, activation.ndim, 0, *along)
        every_token = dims[along[0]] != "frame"
        return _along(tokens.flatten(1) if every_token else tokens.any(-1), activation.ndim, 0, *along)


@dataclass(frozen=True)
class Computed(SiteIntervention):
    """What another intervention does at one of its sites: `function(activation, hook)` gives the replacement."""

    site: Place
    function: Callable[..., torch.Tensor]

    def replacement(self, activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return self.function(activation, hook)


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


def _among(values: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    return torch.isin(values, torch.tensor([int(value) for value in chosen], device=values.device))


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
