"""Weights with all that stands around them folded in: centring, AdaLN, rotation, and what the stream goes through."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped

from vdinterp.models import HookedVideoDiT
from vdinterp.models.components.rope import rotate
from vdinterp.models.stream import Carry, modulations
from vdinterp.site import Site

Part = Literal["q", "k", "v"]
Side = Literal["key", "query"]
PER_HEAD = {"q": ("W_Q", "b_Q"), "k": ("W_K", "b_K"), "v": ("W_V", "b_V")}


class FoldedWeights:
    """Weights of the self-attentions of a model, folded at the noise levels of a key's and of a query's frame.

    `noise_level` (the key's) and `query_level` (default: the same) are shares, 0 clean. All is float64 on the CPU.
    Matrices act on row vectors from the right, as in TransformerLens.
    Raises ValueError for anything but a model that knows its noise levels, and for levels that are no single share.
    """

    def __init__(self, model: HookedVideoDiT, noise_level: Any, query_level: Any = None) -> None:
        check_model(model)
        given = {"noise_level": noise_level, "query_level": noise_level if query_level is None else query_level}
        key, query = (_timestep(model, level, name) for name, level in given.items())
        self.model = model
        self.meta = {"model": model.cfg.model_name, **{name: float(level) for name, level in given.items()}}
        self.sides: dict[Side, Carry] = {"key": _carry(model, key)}
        self.sides["query"] = self.sides["key"] if torch.equal(key, query) else _carry(model, query)

    def read(self, layer: int, part: Part) -> Float[torch.Tensor, "head d_model d_head"]:
        """W_Q, W_K or W_V, reading the stream over LayerNorm's scale."""
        weight = _double(getattr(self.model.sublayer(layer), PER_HEAD[part][0]))
        return self._side(part).read(Site(layer, "attn"), weight)

    def constant(self, layer: int, part: Part) -> Float[torch.Tensor, "head d_head"]:
        """What queries, keys or values hold whatever the stream: the shift through the weight, and the bias."""
        weight, bias = (getattr(self.model.sublayer(layer), name) for name in PER_HEAD[part])
        shift = self._side(part).shift(Site(layer, "attn"))
        given = torch.zeros(self.model.cfg.d_model, dtype=torch.double) if shift is None else shift
        found = torch.einsum("d, h d e -> h e", given, _double(weight))
        return found if bias is None else found + _double(bias)

    def write(self, layer: int, side: Side = "query") -> Float[torch.Tensor, "head d_head d_model"]:
        """W_O with the gate of the frame that is written to."""
        return self.sides[side].wrote(Site(layer, "attn"), _double(self.model.sublayer(layer).W_O))

    def _side(self, part: Part) -> Carry:
        return self.sides["query" if part == "q" else "key"]


def _carry(model: HookedVideoDiT, timestep: Shaped[torch.Tensor, " level"]) -> Carry:
    """How the stream travels at one timestep, over LayerNorm's scale and without an action, float64."""
    known = {site: _double(value[0]) for site, value in modulations(model, timestep).items()}
    return Carry(model, known.get, _double)


def rotation(
    model: HookedVideoDiT, layer: int, displacement: tuple[int, int, int]
) -> Float[torch.Tensor, "d_head d_head"]:
    """`R` with `rotated q . rotated k = q R k` for a key that far (frames, rows, cols) from its query; float64."""
    axis = model.cfg.blocks[layer].axis
    rope = model.cfg.rope.get(axis)
    eye = torch.eye(model.cfg.d_head, dtype=torch.double)
    if rope is None:
        return eye
    table: Any = model.rope[axis]
    # coordinates are evenly spaced, whatever their kind
    steps = [float(at[1] - at[0]) if len(at) > 1 else 0.0 for at in table.coordinates(model.grid())]
    rates = zip(table.frequencies(), steps, displacement, strict=True)
    angles = torch.cat([rate.double() * step * moved for rate, step, moved in rates]).view(1, 1, 1, -1)
    turned = rotate(eye[None, :, None], rope, (angles.cos(), angles.sin()))  # every key channel, moved
    return turned[0, :, 0].T


# What is asked for, checked


def check_model(model: Any) -> None:
    if not isinstance(model, HookedVideoDiT):
        raise ValueError(f"a model is needed (of a pipeline: pipe.model), got {type(model).__name__}")


def check_head(model: HookedVideoDiT, layer: int, head: int) -> None:
    cfg = model.cfg
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (layer, head))
    if not (whole and 0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
        raise ValueError(
            f"head {layer}.{head}: {cfg.model_name} has layers 0..{cfg.n_layers - 1} of {cfg.n_heads} heads"
        )


def _timestep(model: HookedVideoDiT, level: Any, name: str) -> Shaped[torch.Tensor, " level"]:
    """What the network is fed at one noise level, `[1]`."""
    found = model.timestep(level, name).flatten()
    if len(found) != 1:
        raise ValueError(f"{name} holds {len(found)} numbers; one share of noise is needed")
    return found


def unseen(model: HookedVideoDiT, layer: int, displacement: Any) -> str:
    """Why no query of a layer sees a key at this displacement; empty if some does. ValueError for what is none."""
    if len(displacement) != 3 or not all(isinstance(step, Integral) for step in displacement):
        raise ValueError(f"displacement {displacement!r}: three whole numbers are needed (frames, rows, cols)")
    spec, shape = model.cfg.blocks[layer], model.grid().shape
    if any(abs(step) >= size for step, size in zip(displacement, shape, strict=True)):
        return f"clips are {shape} (frames, rows, cols) of tokens"
    if (spec.axis == "space" and displacement[0]) or (spec.axis == "time" and any(displacement[1:])):
        return f"layer {layer} attends over {spec.axis} only"
    if spec.causal_block and displacement[0] >= spec.causal_block:
        return f"layer {layer} is causal, in blocks of {spec.causal_block}"
    return ""


def check_displacement(model: HookedVideoDiT, layer: int, displacement: Any) -> None:
    if reason := unseen(model, layer, displacement):
        raise ValueError(f"no key lies {tuple(displacement)} (frames, rows, cols) from its query: {reason}")


def _double(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().double().cpu()
