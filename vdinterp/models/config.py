"""The architecture of a video diffusion transformer, as data.

Published families are one block with different settings: a `VideoDiTConfig` says which. Converters in
`vdinterp.models.loading` write these; the model reads them and contains no `if family ==`.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field
from dataclasses import fields as fields_of
from typing import Any, Literal, get_args, get_type_hints

Axis = Literal["3d", "space", "time"]


def _check_literals(instance: Any) -> None:
    """Raise if a field annotated `Literal[...]` (or `Literal[...] | None`) holds anything else."""
    for name, hint in get_type_hints(type(instance)).items():
        options = [choice for part in (hint, *get_args(hint)) for choice in get_args(part) if isinstance(choice, str)]
        if not options:
            continue
        value = getattr(instance, name)
        optional = type(None) in get_args(hint)
        if value not in options and not (value is None and optional):
            raise ValueError(f"{type(instance).__name__}.{name} is {value!r}; choose one of {options}.")


@dataclass(frozen=True)
class Sublayer:
    """How one residual update meets the stream.

    `norm`: "mod" (AdaLN: normalise, then shift and scale by the condition), "plain" (an affine norm), "none".
    `mod`: positions of (shift, scale, gate) among the block's modulation slots; -1 leaves that one out.
    """

    norm: Literal["mod", "plain", "none"] = "mod"
    mod: tuple[int, int, int] | None = (0, 1, 2)

    def __post_init__(self) -> None:
        _check_literals(self)
        if self.norm == "mod" and self.mod is None:
            raise ValueError("Sublayer(norm='mod') needs mod=(shift, scale, gate) slots, e.g. (0, 1, 2).")
        if self.mod is not None and (len(self.mod) != 3 or min(self.mod) < -1):
            raise ValueError(f"Sublayer.mod is three slots (shift, scale, gate), -1 for none; got {self.mod}.")


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
        _check_literals(self)
        if self.causal_block < 0:
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
        _check_literals(self)
        if len(self.dims) != 3 or any(dim < 0 or dim % 2 for dim in self.dims):
            raise ValueError(f"Rope.dims are three even channel counts (frame, row, col), 0 for none; got {self.dims}.")
        if not sum(self.dims):
            raise ValueError("Rope.dims rotate nothing; leave this rope out of the config instead.")
        for name in ("theta", "scale"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"Rope.{name} has one number an axis (frame, row, col); got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class VideoDiTConfig:
    """Everything that defines a `HookedVideoDiT`. Invalid combinations raise `ValueError` at construction.

    Field names follow TransformerLens. Sizes `height`, `width`, `n_frames` are those of the latents the model was
    trained on; shorter clips run as they are. `period` is repeated `n_layers / len(period)` times.
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
    abs_pos: Literal["learned_spatial"] | None = None
    noise_embed: Literal["sinusoidal", "fourier"] = "sinusoidal"
    noise_embed_dim: int = 256
    d_text: int = 0
    d_action: int = 0
    action_embed: Literal["mlp", "linear"] = "mlp"
    unpatch_order: Literal["pqc", "cpq"] = "pqc"

    def __post_init__(self) -> None:
        _check_literals(self)
        sizes = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "in_channels", "out_channels", "n_frames")
        for name in (*sizes, "height", "width", "noise_embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not self.period or self.n_layers % len(self.period):
            raise ValueError(f"n_layers is {self.n_layers}, no multiple of the period's {len(self.period)} blocks.")
        for name in ("d_text", "d_action"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, 0 for none; got {getattr(self, name)}.")
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise ValueError(
                f"patch_size is (frames, rows, cols) of one patch, each at least 1; got {self.patch_size}."
            )
        patch_t, patch_h, patch_w = self.patch_size
        if patch_t != 1:
            raise ValueError(f"patch_size {self.patch_size}: noise is per frame, so a patch spans one frame (1, h, w).")
        if self.height % patch_h or self.width % patch_w:
            raise ValueError(f"Latents of {self.height}x{self.width} do not divide into {patch_h}x{patch_w} patches.")
        axes = {block.axis for block in self.period}
        for axis, rope in self.rope.items():
            if axis not in get_args(Axis) or axis not in axes:
                raise ValueError(f"rope[{axis!r}] has no attention to rotate: the blocks attend over {sorted(axes)}.")
            room = self.d_head if rope.over == "head" else self.n_heads * self.d_head
            if sum(rope.dims) > room:
                raise ValueError(f"rope[{axis!r}].dims {rope.dims} need {sum(rope.dims)} channels; there are {room}.")
        if any(block.cross_attn for block in self.period) and not self.d_text:
            raise ValueError("A block with cross-attention needs d_text, the width of the text embedding.")

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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VideoDiTConfig:
        """Rebuild a config from `to_dict` output, JSON lists included. Raises `ValueError` for unknown fields."""
        fields = dict(data)
        if "period" in fields:
            fields["period"] = tuple(_block_from(block) for block in fields["period"])
        if "rope" in fields:
            fields["rope"] = {axis: _build(Rope, rope) for axis, rope in fields["rope"].items()}
        return _build(cls, fields)


def _block_from(data: dict[str, Any]) -> BlockSpec:
    parts = {
        name: _build(Sublayer, value) if name in ("attn", "cross_attn", "mlp") and value is not None else value
        for name, value in data.items()
    }
    return _build(BlockSpec, parts)


def _build(kind: type[Any], data: dict[str, Any]) -> Any:
    """One of the dataclasses here from plain data, whose lists become tuples."""
    known = {field.name: field for field in fields_of(kind)}
    required = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    for what, names in (("unknown", data.keys() - known.keys()), ("missing", required - data.keys())):
        if names:
            raise ValueError(f"{kind.__name__}: {what} {', '.join(sorted(names))}.")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
