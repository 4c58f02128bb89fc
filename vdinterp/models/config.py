"""The architecture of a video diffusion transformer, as data.

Published families are one block with different settings: a `VideoDiTConfig` says which. Converters in
`vdinterp.models.loading` write these; the model reads them and contains no `if family ==`.
"""

from __future__ import annotations

import logging
from dataclasses import MISSING, asdict, dataclass, field
from typing import Any, Literal, get_args

from vdinterp.checks.settings import build, check_fields

Axis = Literal["3d", "space", "time"]

logger = logging.getLogger(__name__)

MOST_LAYERS, MOST_SLOTS = 1_000, 1_000
MOST = 2**20  # of anything else that is counted: beyond every network there is, below what hangs a machine


@dataclass(frozen=True)
class Sublayer:
    """How one residual update meets the stream.

    `norm`: "mod" (AdaLN: normalise, then shift and scale by the condition), "plain" (an affine norm), "none".
    `mod`: positions of (shift, scale, gate) among the block's modulation slots; -1 leaves that one out.
    """

    norm: Literal["mod", "plain", "none"] = "mod"
    mod: tuple[int, int, int] | None = (0, 1, 2)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.norm == "mod" and self.mod is None:
            raise ValueError("Sublayer(norm='mod') needs mod=(shift, scale, gate) slots, e.g. (0, 1, 2).")
        if self.mod is not None and not -1 <= min(self.mod) <= max(self.mod) < MOST_SLOTS:
            raise ValueError(
                f"Sublayer.mod is three slots (shift, scale, gate) below {MOST_SLOTS}, -1 for none; got {self.mod}."
            )


@dataclass(frozen=True)
class BlockSpec:
    """One block: self-attention over `axis`, at most one cross-attention, at most one MLP.

    `causal_block`: 0 is bidirectional; n lets a frame see its own group of n frames and all earlier groups.
    """

    attn: Sublayer = Sublayer(mod=(0, 1, 2))
    cross_attn: Sublayer | None = None
    mlp: Sublayer | None = Sublayer(mod=(3, 4, 5))
    axis: Axis = "3d"
    causal_block: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.causal_block <= MOST:
            raise ValueError(f"causal_block is a number of frames, 0 for bidirectional; got {self.causal_block}.")
        if self.causal_block and self.axis == "space":
            raise ValueError("causal_block masks time; spatial attention never sees another frame. Use 0.")

    @property
    def sublayers(self) -> dict[str, Sublayer]:
        """The sublayers there are, in the order they are applied."""
        named = {"attn": self.attn, "cross_attn": self.cross_attn, "mlp": self.mlp}
        return {name: sub for name, sub in named.items() if sub is not None}

    @property
    def n_slots(self) -> int:
        """Width of the block's modulation, in units of d_model."""
        used = [slot for sub in self.sublayers.values() if sub.mod is not None for slot in sub.mod]
        return max(used, default=-1) + 1


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding over (frame, row, col).

    `dims`: rotary channels of each axis (even; 0 leaves the axis unrotated), together at most d_head (or d_model).
    `theta`: base of each axis's geometric frequencies; with `freqs="pixel"` the largest frequency times 2/pi instead
    (frequencies `linspace(1, theta/2, dims/2) * pi`).
    `style`: which channels form a pair. "interleaved": (0,1), (2,3) ..; "half": channel i with i + n/2 over all axes
    together; "half_axis": the same within each axis.
    `coords`: "index" 0, 1, 2 ..; "linspace" -1..1 over the rows and columns (frames keep their index); "fraction"
    index over the size.  `scale` multiplies the coordinates. `over`: rotate each head, or the heads laid side by side.
    """

    dims: tuple[int, int, int]
    theta: tuple[float, float, float] = (10_000.0, 10_000.0, 10_000.0)
    freqs: Literal["geometric", "pixel"] = "geometric"
    style: Literal["interleaved", "half", "half_axis"] = "interleaved"
    coords: Literal["index", "linspace", "fraction"] = "index"
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    over: Literal["head", "model"] = "head"

    def __post_init__(self) -> None:
        check_fields(self)
        if any(dim < 0 or dim % 2 for dim in self.dims):
            raise ValueError(f"Rope.dims are three even channel counts (frame, row, col), 0 for none; got {self.dims}.")
        if not sum(self.dims):
            raise ValueError("Rope.dims rotate nothing; leave this rope out of the config instead.")
        if min(self.theta) <= 0:
            raise ValueError(f"Rope.theta is the base of each axis's frequencies, above 0; got {self.theta}.")


@dataclass(frozen=True, kw_only=True)
class VideoDiTConfig:
    """Everything that defines a `HookedVideoDiT`. Invalid combinations raise `ValueError` at construction.

    Field names follow TransformerLens. Sizes `height`, `width`, `n_frames` are those of the latents the model was
    trained on, and defaults: clips of others run, too (with `abs_pos="learned_spatial"` of any length only). `period`
    is repeated `n_layers / len(period)` times.
    Positions come from `rope` and `abs_pos`; a configuration that leaves an axis without any is logged as a warning,
    unless `abs_pos="none"` says that it is meant.
    """

    model_name: str = "custom"
    d_model: int
    n_layers: int
    n_heads: int
    d_head: int
    d_mlp: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]
    n_frames: int
    height: int
    width: int
    period: tuple[BlockSpec, ...] = (BlockSpec(),)
    residual: Literal["pre", "normed"] = "pre"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    norm_affine: bool = False
    qk_norm: Literal["head_rms", "head_layer", "full_rms"] | None = None
    qk_norm_eps: float = 1e-6
    act_fn: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    modulation: Literal["mlp", "table"] = "mlp"
    rope: dict[str, Rope] = field(default_factory=dict)
    abs_pos: Literal["learned_spatial", "none"] | None = None
    noise_embed: Literal["sinusoidal", "fourier"] = "sinusoidal"
    noise_embed_dim: int = 256
    d_text: int = 0
    d_action: int = 0
    action_embed: Literal["mlp", "linear"] = "mlp"
    unpatch_order: Literal["pqc", "cpq"] = "pqc"

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "in_channels", "out_channels", "n_frames")
        for name in (*sizes, "height", "width", "noise_embed_dim"):
            most = MOST_LAYERS if name == "n_layers" else MOST
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}, more than any network has; at most {most} is read")
        if not self.period or self.n_layers % len(self.period):
            raise ValueError(f"n_layers is {self.n_layers}, no multiple of the period's {len(self.period)} blocks.")
        for name in ("d_text", "d_action"):
            if not 0 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} must not be negative, 0 for none, at most {MOST}; got {getattr(self, name)}.")
        for name in ("norm_eps", "qk_norm_eps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is added to a variance and must not be negative; got {getattr(self, name)}")
        if min(self.patch_size) < 1:
            raise ValueError(
                f"patch_size is (frames, rows, cols) of one patch, each at least 1; got {self.patch_size}."
            )
        patch_t, patch_h, patch_w = self.patch_size
        if patch_t != 1:
            raise ValueError(f"patch_size {self.patch_size}: noise is per frame, so a patch spans one frame (1, h, w).")
        if self.height % patch_h or self.width % patch_w:
            raise ValueError(f"Latents of {self.height}x{self.width} do not divide into {patch_h}x{patch_w} patches.")
        for what, size in (
            ("n_heads * d_head", self.n_heads * self.d_head),
            ("values of a patch", max(self.in_channels, self.out_channels) * patch_h * patch_w),
        ):
            if size > MOST:
                raise ValueError(f"{what}: {size} are more than any network has; at most {MOST} are read")
        axes = {block.axis for block in self.period}
        for axis, rope in self.rope.items():
            if axis not in get_args(Axis) or axis not in axes:
                raise ValueError(f"rope[{axis!r}] has no attention to rotate: the blocks attend over {sorted(axes)}.")
            room = self.d_head if rope.over == "head" else self.n_heads * self.d_head
            if sum(rope.dims) > room:
                raise ValueError(f"rope[{axis!r}].dims {rope.dims} need {sum(rope.dims)} channels; there are {room}.")
        if any(block.cross_attn for block in self.period) and not self.d_text:
            raise ValueError("A block with cross-attention needs d_text, the width of the text embedding.")
        if blind := self.unplaced_axes:
            logger.warning(
                "%s sees no positions along its %s: permuting them permutes the prediction. rope={'3d': Rope(...)} or "
                "abs_pos='learned_spatial' gives it some; abs_pos='none' says that this is meant",
                self.model_name,
                ", ".join(blind),
            )

    @property
    def unplaced_axes(self) -> list[str]:
        """Axes along which nothing tells one place from another, unless `abs_pos="none"` says that it is meant."""
        if self.abs_pos == "none":
            return []
        names = ("frames", "rows", "columns")
        placed = {name for name, size in zip(names, (self.n_frames, self.n_rows, self.n_cols), strict=True) if size < 2}
        if self.abs_pos == "learned_spatial":
            placed |= {"rows", "columns"}
        if any(block.causal_block for block in self.period):  # later frames see more
            placed.add("frames")
        for rope in self.rope.values():
            placed |= {name for name, dims in zip(names, rope.dims, strict=True) if dims}
        return [name for name in names if name not in placed]

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """One spec per layer."""
        return self.period * (self.n_layers // len(self.period))

    def __repr__(self) -> str:
        """What differs from the defaults, a line a field; `to_dict()` has everything."""
        lines = []
        for name, known in type(self).__dataclass_fields__.items():
            default = known.default if known.default_factory is MISSING else known.default_factory()
            if getattr(self, name) != default:
                lines.append(f"    {name}={getattr(self, name)!r},\n")
        return f"{type(self).__name__}(\n{''.join(lines)})"

    @property
    def n_rows(self) -> int:
        return self.height // self.patch_size[1]

    @property
    def n_cols(self) -> int:
        return self.width // self.patch_size[2]

    def _repr_html_(self) -> str:
        """What has no default, and what differs from it."""
        from vdinterp.plotting import settings

        return settings(self, self.model_name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VideoDiTConfig:
        """Rebuild a config from `to_dict` output, JSON lists included. Raises `ValueError` for fields that are unknown,
        missing or of another type."""
        return build(cls, data)
