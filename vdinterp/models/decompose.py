"""Decomposition: the residual stream as a sum of what each component wrote, as it has been carried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from jaxtyping import Float

if TYPE_CHECKING:
    from vdinterp.grid import TokenGrid
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

Part = tuple[str, Float[torch.Tensor, "batch pos d_model"]]
Stack = Float[torch.Tensor, "component batch pos d_model"]
Labelled = tuple[Stack, list[str]]


class Decomposition(Mapping[Any, Any]):
    """What a cache knows of the stream's parts. All of it is exactly linear: LayerNorm's scale is held at what it was.

    In the usual stream a component's output stays as it was written. In DFoT's (`residual="normed"`) every later
    sublayer centres, rescales and modulates what is carried, and adds a shift, which is a part of its own.
    """

    model: HookedVideoDiT | None
    grid: TokenGrid
    _model: Callable[[str], Any]

    @overload
    def accumulated_resid(
        self, layer: int | None = ..., incl_mid: bool = ..., return_labels: Literal[False] = ...
    ) -> Stack: ...

    @overload
    def accumulated_resid(
        self, layer: int | None = ..., incl_mid: bool = ..., *, return_labels: Literal[True]
    ) -> Labelled: ...

    def accumulated_resid(
        self, layer: int | None = None, incl_mid: bool = False, return_labels: bool = False
    ) -> Stack | Labelled:
        """The carried stream before blocks 0 .. `layer` (None: also the one that the final layer reads).

        `incl_mid`: those between attention and MLP, too. As in TransformerLens, with `return_labels` also their names.
        """
        model = self._model("An accumulated stream")
        last = model.cfg.n_layers if layer is None else self._checked(layer)
        found = []
        for index in range(last + 1):
            if index == model.cfg.n_layers:
                found.append(("final", self["resid_post", index - 1]))
                continue
            found.append((f"{index}.pre", self["resid_pre", index]))
            if incl_mid and index < last and ("resid_mid", index) in self:
                found.append((f"{index}.mid", self["resid_mid", index]))
        return _stacked(found, return_labels)

    @overload
    def decompose_resid(self, layer: int | None = ..., return_labels: Literal[False] = ...) -> Stack: ...

    @overload
    def decompose_resid(self, layer: int | None = ..., *, return_labels: Literal[True]) -> Labelled: ...

    def decompose_resid(self, layer: int | None = None, return_labels: bool = False) -> Stack | Labelled:
        """What sums to the stream before block `layer` (None: what the final layer reads), a part a sublayer.

        Parts: `embed` (patches), `pos_embed`, and of every earlier sublayer what it adds (`1.attn_out`, `1.mlp_out`)
        and, in a normed stream, its shift (`1.attn.shift`). `get_full_resid_decomposition` goes on to single heads.
        """
        parts: dict[str, torch.Tensor] = {}
        for name, part in self.stream_parts(layer):
            of = _sublayer_of(name)
            parts[of] = parts[of] + part if of in parts else part
        return _stacked(parts.items(), return_labels)

    @overload
    def get_full_resid_decomposition(
        self, layer: int | None = ..., expand_neurons: bool = ..., return_labels: Literal[False] = ...
    ) -> Stack: ...

    @overload
    def get_full_resid_decomposition(
        self, layer: int | None = ..., expand_neurons: bool = ..., *, return_labels: Literal[True]
    ) -> Labelled: ...

    def get_full_resid_decomposition(
        self, layer: int | None = None, expand_neurons: bool = True, return_labels: bool = False
    ) -> Stack | Labelled:
        """As `decompose_resid`, head by head (`1.0`, `cross.1.0`, `1.attn.bias`) and neuron by neuron (`mlp.1.17`).

        Without `expand_neurons` an MLP is one part (`mlp.1`, bias included). Takes memory for all parts at once;
        `stream_parts` gives one after the other.
        """
        return _stacked(self.stream_parts(layer, neurons=expand_neurons), return_labels)

    @overload
    def stack_head_results(
        self, layer: int | None = ..., tokens: Sequence[int] | None = ..., return_labels: Literal[False] = ...
    ) -> Stack: ...

    @overload
    def stack_head_results(
        self, layer: int | None = ..., tokens: Sequence[int] | None = ..., *, return_labels: Literal[True]
    ) -> Labelled: ...

    def stack_head_results(
        self, layer: int | None = None, tokens: Sequence[int] | None = None, return_labels: bool = False
    ) -> Stack | Labelled:
        """What the heads of all earlier blocks have in the stream before block `layer`, gates included. `tokens`: only
        these. Raises `ValueError` before layer 0."""
        heads = [(name, part) for name, part in self.stream_parts(layer, tokens) if is_head(name)]
        if not heads:
            raise ValueError("No head writes before layer 0.")
        return _stacked(heads, return_labels)

    def stream_parts(
        self, layer: int | None = None, tokens: Sequence[int] | None = None, neurons: bool = False
    ) -> Iterator[Part]:
        """The parts of `get_full_resid_decomposition`, one after the other. `tokens`: only these. `neurons`: every MLP
        neuron (`mlp.1.17`) and the MLP's bias (`mlp.1.bias`) for themselves."""
        model = self._model("The stream's parts")
        sites = self._sites(model.cfg.n_layers if layer is None else self._checked(layer))
        chosen = slice(None) if tokens is None else torch.as_tensor(list(tokens))
        first = self["hook_patch_embed"]
        yield "embed", self._carried(first[:, chosen], 0, sites, chosen)
        if model.cfg.abs_pos == "learned_spatial":
            position = self["hook_pos_embed"].expand_as(first)
            yield "pos_embed", self._carried(position[:, chosen], 0, sites, chosen)
        for index, site in enumerate(sites):
            if model.cfg.residual == "normed" and (shift := self._shift(site, chosen)) is not None:
                yield f"{_name(site)}.shift", self._carried(shift, index + 1, sites, chosen)
            for name, part in self._parts_of(site, chosen, neurons):
                yield name, self._carried(part, index + 1, sites, chosen)

    # One sublayer

    def _parts_of(self, site: str, chosen: Any, neurons: bool) -> Iterator[Part]:
        """What a sublayer adds, after its gate: heads and bias, or MLP."""
        _, layer, name = site.split(".")
        module = self._model("A sublayer's output").sublayer(int(layer), name)
        gate = self._gate(site, chosen)
        if name != "mlp":
            z, prefix = self[f"{site}.hook_z"][:, chosen], "cross." if name == "cross_attn" else ""
            for head in range(module.n_heads):
                yield f"{prefix}{layer}.{head}", z[:, :, head] @ module.W_O[head].detach() * gate
            if module.b_O is not None:
                yield f"{_name(site)}.bias", (module.b_O.detach() * gate).expand(len(z), z.shape[1], -1)
        elif neurons:
            post = self[f"{site}.hook_post"][:, chosen]
            for neuron in range(post.shape[-1]):
                yield f"mlp.{layer}.{neuron}", post[..., neuron, None] * module.W_out[neuron].detach() * gate
            if module.b_out is not None:
                yield f"mlp.{layer}.bias", (module.b_out.detach() * gate).expand(len(post), post.shape[1], -1)
        else:
            yield f"mlp.{layer}", self[f"blocks.{layer}.hook_mlp_out"][:, chosen]

    def _gate(self, site: str, chosen: Any) -> torch.Tensor:
        """`[batch pos d_model]`, or 1."""
        name = f"{site}.mod.hook_gate"
        return self._by_token(self[name], chosen) if name in self else torch.ones(())

    def _shift(self, site: str, chosen: Any) -> torch.Tensor | None:
        """What a sublayer's entrance adds to every token: its shift, and the norm's own bias through the scale."""
        ln = getattr(self._norm_of(site), "bias", None)
        found = None
        if f"{site}.mod.hook_shift" in self:
            found = self._by_token(self[f"{site}.mod.hook_shift"], chosen)
        if ln is not None:
            bias = ln.detach() * self._scale(site, chosen)
            found = bias if found is None else found + bias
        return found

    def _scale(self, site: str, chosen: Any) -> torch.Tensor:
        name = f"{site}.mod.hook_scale"
        return 1 + self._by_token(self[name], chosen) if name in self else torch.ones(())

    def _norm_of(self, site: str) -> Any:
        model = self._model("A norm")
        return (model.final if site == "final" else model.sublayer(int(site.split(".")[1]), site.split(".")[2])).ln

    def entered_part(self, site: str, part: torch.Tensor, chosen: Any = slice(None)) -> torch.Tensor:
        """A part of the stream as it stands at a sublayer's entrance (`final`: the final layer's), without shift."""
        norm = self._norm_of(site)
        if norm is not None:
            if norm.kind == "layer":
                part = part - part.mean(-1, keepdim=True)
            part = part / self[f"{site}.ln.hook_scale"][:, chosen]
            if norm.weight is not None:
                part = part * norm.weight.detach()
        return part * self._scale(site, chosen)

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

    def _sites(self, n_layers: int) -> list[str]:
        """All sublayers before a layer, in order."""
        blocks = self._model("The stream's parts").cfg.blocks
        return [f"blocks.{layer}.{name}" for layer in range(n_layers) for name in blocks[layer].sublayers]

    def _checked(self, layer: int) -> int:
        n_layers = self._model("A stream").cfg.n_layers
        if not -n_layers <= layer < n_layers:
            raise KeyError(f"No layer {layer}: there are {n_layers}, so 0..{n_layers - 1} or negative; None is all.")
        return layer % n_layers


def is_head(name: str) -> bool:
    """Whether a part is a head's: `1.0` or `cross.1.0`."""
    return name.removeprefix("cross.").replace(".", "", 1).isdigit()


def _stacked(parts: Iterable[Part], return_labels: bool) -> Stack | Labelled:
    names, tensors = zip(*parts, strict=True)
    stack = torch.stack(tensors)
    return (stack, list(names)) if return_labels else stack


def _sublayer_of(name: str) -> str:
    """What a part is of, once heads, neurons and biases of one sublayer are one."""
    if name.startswith("mlp."):
        return f"{name.split('.')[1]}.mlp_out"
    if is_head(name):
        return f"{name.split('.')[1]}.cross_attn_out" if name.startswith("cross.") else f"{name.split('.')[0]}.attn_out"
    return f"{name.removesuffix('.bias')}_out" if name.endswith(".bias") else name


def _name(site: str) -> str:
    """`1.attn` of `blocks.1.attn`."""
    return site.removeprefix("blocks.")
