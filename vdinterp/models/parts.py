"""The residual stream's parts: what each component wrote, as it has been carried on to where it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

if TYPE_CHECKING:
    from vdinterp.grid import TokenGrid
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

Part = tuple[str, Float[torch.Tensor, "batch pos d_model"]]
CARRIED = (  # what a hook may change without any part of the stream showing it
    ".hook_resid_pre", ".hook_resid_mid", ".hook_resid_post", ".hook_out", ".hook_attn_out", ".hook_cross_attn_out",
    ".hook_mlp_out", ".hook_in", ".ln.hook_normalized",
)  # fmt: skip
Slice = int | slice | tuple[int, ...] | Sequence[int] | torch.Tensor | None  # as TransformerLens's pos_slice


class StreamParts(Mapping[Any, Any]):
    """What a cache knows of the stream's parts. All of it is exactly linear: LayerNorm's scale is held at what it was.

    In the usual stream a component's output stays as it was written. In DFoT's (`residual="normed"`) every later
    sublayer centres, rescales and modulates what is carried, and adds a shift, which is a part of its own.
    Internals see activations with their batch axis, whatever `remove_batch_dim` shows.
    """

    model: HookedVideoDiT | None
    grid: TokenGrid
    edited: set[str]
    _model: Callable[[str], HookedVideoDiT]
    _weights: Callable[[str], HookedVideoDiT]  # the same, once they are known to be the run's
    _get: Callable[[Any], torch.Tensor]
    _shown: Callable[..., Any]

    def stream_parts(
        self, layer: int | None = None, tokens: Sequence[int] | None = None, neurons: bool = False
    ) -> Iterator[Part]:
        """The parts of `get_full_resid_decomposition`, one after the other. `tokens`: only these. `neurons`: every MLP
        neuron (`mlp.1.17`) and the MLP's bias (`mlp.1.bias`) for themselves.

        Raises `ValueError` if a hook changed the stream where no part shows it.
        """
        stop = self._checked(layer)
        chosen = self._chosen(None if tokens is None else list(tokens))
        for name, part in self._parts(stop, False, chosen, neurons):
            yield name, self._shown(part)

    def _parts(self, stop: int, mlp_input: bool, chosen: Any, neurons: bool = False) -> Iterator[Part]:
        """The parts of the stream before block `stop`, or before its MLP. Checked first against what hooks changed."""
        model = self._weights("The stream's parts")
        sites = self._sites(stop, mlp_input)
        unseen = self.edited & self._unseen(sites, stop, mlp_input, neurons)
        if unseen and not self._add_up(stop, mlp_input, sites, neurons):
            raise ValueError(
                f"a hook changed {listed(unseen)} in this run, which no part of the stream shows: its parts "
                "would not add up; run again without it, or take the streams themselves (accumulated_resid)"
            )
        yield from self._all_parts(model, sites, chosen, neurons)

    def _all_parts(self, model: HookedVideoDiT, sites: list[str], chosen: Any, neurons: bool) -> Iterator[Part]:
        first = self._get("hook_patch_embed")
        yield "embed", self._carried(first[:, chosen], 0, sites, chosen)
        if "hook_pos_embed" in model.hook_dict:
            position = self._get("hook_pos_embed").expand_as(first)
            yield "pos_embed", self._carried(position[:, chosen], 0, sites, chosen)
        for index, site in enumerate(sites):
            if model.cfg.residual == "normed" and (shift := self._shift(site, chosen)) is not None:
                yield f"{_name(site)}.shift", self._carried(shift, index + 1, sites, chosen)
            for name, part in self._parts_of(site, chosen, neurons):
                yield name, self._carried(part, index + 1, sites, chosen)

    # What hooks changed

    def _unseen(self, sites: list[str], stop: int, mlp_input: bool, neurons: bool) -> set[str]:
        """The activations that parts are not made of, and that a hook must leave alone for them to add up."""
        model = self._model("The stream's parts")
        names = {f"blocks.{layer}.hook_resid_{at}" for layer in range(stop) for at in ("pre", "mid", "post")}
        names |= {f"blocks.{stop}.hook_resid_pre", *([f"blocks.{stop}.hook_resid_mid"] if mlp_input else [])}
        for site in sites:
            _, layer, name = site.split(".")
            if name != "mlp" or neurons:
                names |= {f"{site}.hook_result", f"{site}.hook_out", f"blocks.{layer}.hook_{name}_out"}
            if model.cfg.residual == "normed":  # what the sublayer reads is also what is carried on
                names |= {f"{site}.hook_in", f"{site}.ln.hook_normalized"}
        return names

    def _add_up(self, stop: int, mlp_input: bool, sites: list[str], neurons: bool) -> bool:
        """Whether parts sum to the stream all the same: a hook may have put back what was there."""
        key = ("resid_mid", stop) if mlp_input else ("resid_pre", stop)
        key = ("resid_post", -1) if stop == self._model("The stream").cfg.n_layers else key
        if key not in self:
            return False
        stream, model = self._get(key), self._model("The stream's parts")
        total = sum(part for _, part in self._all_parts(model, sites, slice(None), neurons))
        return bool((total - stream).norm() <= tolerance(stream.dtype) * stream.norm())

    # One sublayer

    def _parts_of(self, site: str, chosen: Any, neurons: bool) -> Iterator[Part]:
        """What a sublayer adds, after its gate: heads and bias, or MLP."""
        _, layer, name = site.split(".")
        module = self._model("A sublayer's output").sublayer(int(layer), name)
        gate = self._gate(site, chosen)
        if name != "mlp":
            z, prefix = self._get(f"{site}.hook_z")[:, chosen], "cross." if name == "cross_attn" else ""
            weight, bias = module.W_O.detach(), module.b_O
            for head in range(module.n_heads):
                yield f"{prefix}{layer}.{head}", z[:, :, head] @ weight[head] * gate
            if bias is not None:
                yield f"{_name(site)}.bias", (bias.detach() * gate).expand(len(z), z.shape[1], -1)
        elif neurons:
            post, weight, bias = self._get(f"{site}.hook_post")[:, chosen], module.W_out.detach(), module.b_out
            for neuron in range(post.shape[-1]):
                yield f"mlp.{layer}.{neuron}", post[..., neuron, None] * weight[neuron] * gate
            if bias is not None:
                yield f"mlp.{layer}.bias", (bias.detach() * gate).expand(len(post), post.shape[1], -1)
        else:
            yield f"mlp.{layer}", self._get(f"blocks.{layer}.hook_mlp_out")[:, chosen]

    def _gate(self, site: str, chosen: Any) -> torch.Tensor:
        """`[batch pos d_model]`, or 1."""
        name = f"{site}.mod.hook_gate"
        return self._by_token(self._get(name), chosen) if self._modulates(name) else torch.ones(())

    def _shift(self, site: str, chosen: Any) -> torch.Tensor | None:
        """What a sublayer's entrance adds to every token: its shift, and the norm's own bias through the scale."""
        ln = getattr(self._norm_of(site), "bias", None)
        found, name = None, f"{site}.mod.hook_shift"
        if self._modulates(name):
            found = self._by_token(self._get(name), chosen)
        if ln is not None:
            bias = ln.detach() * self._scale(site, chosen)
            found = bias if found is None else found + bias
        return found

    def _scale(self, site: str, chosen: Any) -> torch.Tensor:
        name = f"{site}.mod.hook_scale"
        return 1 + self._by_token(self._get(name), chosen) if self._modulates(name) else torch.ones(())

    def _modulates(self, name: str) -> bool:
        """Whether the model has this modulation; where it has and the cache has not, reading it says so."""
        return name in self._model("The modulation").hook_dict

    def _norm_of(self, site: str) -> Any:
        model = self._model("A norm")
        return (model.final if site == "final" else model.sublayer(int(site.split(".")[1]), site.split(".")[2])).ln

    def normalized_part(self, site: str, part: torch.Tensor, chosen: Any = slice(None)) -> torch.Tensor:
        """A part of the stream through a sublayer's norm with its scale held: parts sum to `ln.hook_normalized`."""
        norm = self._norm_of(site)
        if norm is None:
            return part
        if norm.kind == "layer":
            part = part - part.mean(-1, keepdim=True)
        return part / self._get(f"{site}.ln.hook_scale")[:, chosen]

    def entered_part(self, site: str, part: torch.Tensor, chosen: Any = slice(None)) -> torch.Tensor:
        """A part of the stream as it stands at a sublayer's entrance (`final`: the final layer's), without shift."""
        weight = getattr(self._norm_of(site), "weight", None)
        part = self.normalized_part(site, part, chosen)
        return (part if weight is None else part * weight.detach()) * self._scale(site, chosen)

    def entrance_shift(self, site: str, chosen: Any = slice(None)) -> torch.Tensor | None:
        """What an entrance adds to every token, whatever the stream holds."""
        return self._shift(site, chosen)

    def _carried(self, part: torch.Tensor, start: int, sites: Sequence[str], chosen: Any) -> torch.Tensor:
        if self._model("A part").cfg.residual == "normed":
            for site in sites[start:]:
                part = self.entered_part(site, part, chosen)
        return part

    def _by_token(self, values: torch.Tensor, chosen: Any) -> torch.Tensor:
        """`[batch frame d_model]` for every (chosen) token."""
        return values.repeat_interleave(self.grid.tokens_per_frame, dim=1)[:, chosen]

    # What is asked for

    def _sites(self, stop: int, mlp_input: bool = False) -> list[str]:
        """All sublayers before a block, or before its MLP, in order."""
        blocks = self._model("The stream's parts").cfg.blocks
        sites = [f"blocks.{layer}.{name}" for layer in range(stop) for name in blocks[layer].sublayers]
        own = blocks[stop].sublayers if mlp_input else ()
        return sites + [f"blocks.{stop}.{name}" for name in own if name != "mlp"]

    def _checked(self, layer: int | None, mlp_input: bool = False) -> int:
        """A layer, as TransformerLens counts them here: None, -1 and `n_layers` are the end of the stream."""
        cfg = self._model("A stream").cfg
        stop = cfg.n_layers if layer is None or layer == -1 else layer
        if isinstance(stop, bool) or not isinstance(stop, int) or not 0 <= stop <= cfg.n_layers:
            raise KeyError(
                f"No layer {layer}: there is the stream before blocks 0..{cfg.n_layers - 1}, and all of it: "
                f"{cfg.n_layers}, None or -1."
            )
        if mlp_input and (stop == cfg.n_layers or cfg.blocks[stop].mlp is None):
            raise ValueError(f"mlp_input=True, layer={layer}: give the layer of a block that has an MLP")
        return stop

    def _chosen(self, pos_slice: Slice) -> Any:
        """Tokens as an index that keeps the axis. Raises `ValueError` for tokens that the clip does not have."""
        if pos_slice is None:
            return slice(None)
        if isinstance(pos_slice, slice):
            return pos_slice
        if isinstance(pos_slice, tuple):  # TransformerLens's way to write a slice
            return slice(*pos_slice)
        tokens, n = np.atleast_1d(np.asarray(pos_slice)), self.grid.n_tokens
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or any(not -n <= token < n for token in tokens):
            raise ValueError(
                f"pos_slice {pos_slice!r}: a token, a slice or a list of tokens 0..{n - 1} is needed; of whole frames: "
                "cache.grid.tokens(frames=[..])"
            )
        return torch.from_numpy(tokens.astype(np.int64) % n)


def listed(names: set[str], most: int = 3) -> str:
    """Some names for an error, and how many more there are."""
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def is_head(name: str) -> bool:
    """Whether a part is a head's: `1.0` or `cross.1.0`."""
    return name.removeprefix("cross.").replace(".", "", 1).isdigit()


def tolerance(dtype: torch.dtype) -> float:
    """How far parts may miss the whole by rounding, as a share of its size."""
    return max(1e-3, 8 * torch.finfo(dtype).eps)


def _name(site: str) -> str:
    """`1.attn` of `blocks.1.attn`."""
    return site.removeprefix("blocks.")
