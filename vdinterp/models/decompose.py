"""Decomposition: the residual stream as a sum of what each component wrote, by TransformerLens's methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float

from vdinterp.models.parts import Part, Slice, StreamParts, is_head, listed
from vdinterp.site import FINAL_LAYER, Site

Stack = Float[torch.Tensor, "component batch pos d_model"]
Stacked = Any  # a Stack; with return_labels a Stack and the names of its components


@dataclass(frozen=True)
class _Reading:
    """Which sublayer reads the stream, some tokens of it, and what is done to each part there."""

    stop: Site
    chosen: Any
    finish: Callable[[torch.Tensor], torch.Tensor]


class Decomposition(StreamParts):
    """TransformerLens's names and meanings for a stream taken apart. What all methods share:

    `layer`: the stream before that block; None, -1 or `n_layers`: all of it, what the final layer reads (so -1 is not
    the last layer here, as it is in `cache["z", -1]`). `mlp_input`: before that block's MLP instead. `pos_slice`: only
    these tokens (a number, which drops the axis, a slice, a tuple as in `slice(*t)`, a list). `apply_ln`: parts go
    through the norm that stands there, its scale held, and sum to its `ln.hook_normalized` (before shift and scale).
    `return_labels`: also the names of the components. Parts are as they have been carried on to that place, gates
    included.

    Raises `KeyError` for layers that do not exist and activations that were not kept; `ValueError` for tokens that do
    not exist, for other weights than the run's, and where a hook changed the stream so that parts would not add up.
    """

    has_batch_dim: bool
    tensors: dict[str, torch.Tensor]
    _layer: Callable[[int], int]
    _result: Callable[[int, str], torch.Tensor]

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Slice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stacked:
        """The carried streams before blocks 0 .. `layer`. `incl_mid`: those between attention and MLP, too.

        `apply_ln`: through the final norm, each with its own statistics (as in a lens), where the whole stream is asked
        for; else through the norm before `layer`, its scale held.
        """
        stop = self._checked(layer, mlp_input)
        n_layers = self._model("An accumulated stream").cfg.n_layers
        found: list[tuple[str, Any]] = []
        for index in range(stop + 1):
            if index == n_layers:
                found.append(("final", ("resid_post", index - 1)))
                continue
            found.append((f"{index}.pre", ("resid_pre", index)))
            mid = (incl_mid and index < stop and ("resid_mid", index) in self) or (mlp_input and index == stop)
            found += [(f"{index}.mid", ("resid_mid", index))] * mid
        norm = apply_ln and stop == n_layers
        reading = self._reading(stop, mlp_input, pos_slice, apply_ln and not norm)
        own = self._norm(FINAL_LAYER).unhooked if norm else (lambda stream: stream)
        streams = [(name, own(self._get(key)[:, reading.chosen])) for name, key in found]
        return self._stacked(streams, reading, return_labels)

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Slice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stacked:
        """What sums to the stream before block `layer`, a part a sublayer.

        Parts: `embed` (patches), `pos_embed`, and of every earlier sublayer what it adds (`1.attn_out`, `1.mlp_out`)
        and, in a normed stream, its shift (`1.attn.shift`). `mode`: "attn" leaves out MLPs, "mlp" attentions, both all
        shifts; `incl_embeds=False` the embeddings. `get_full_resid_decomposition` goes on to single heads.
        """
        if mode not in ("all", "mlp", "attn"):
            raise ValueError(f"mode {mode!r}; choose 'all', 'mlp' or 'attn'")
        reading = self._reading(layer, mlp_input, pos_slice, apply_ln)
        parts: dict[str, torch.Tensor] = {}
        for name, part in self._parts(reading.stop, reading.chosen):
            of = _sublayer_of(name)
            embeds = not of.partition(".")[2]
            if (embeds and incl_embeds) or (not embeds and (mode == "all" or of.endswith(f"{mode}_out"))):
                parts[of] = parts[of] + part if of in parts else part
        return self._stacked(parts.items(), reading, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Slice = None,
        return_labels: bool = False,
        project_output_onto: torch.Tensor | None = None,
    ) -> Stacked:
        """As `decompose_resid`, head by head (`1.0`, `cross.1.0`, `1.attn.bias`) and neuron by neuron (`mlp.1.17`).

        Without `expand_neurons` an MLP is one part (`mlp.1`, bias included). `project_output_onto`: only what each part
        has along a direction `[d_model]`, or several `[d_model n]`. Without it this takes memory for all parts at once;
        `stream_parts` gives one after the other.
        """
        reading = self._reading(layer, mlp_input, pos_slice, apply_ln, project_output_onto)
        parts = self._parts(reading.stop, reading.chosen, expand_neurons)
        return self._stacked(parts, reading, return_labels)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Slice = None,
        apply_ln: bool = False,
    ) -> Stacked:
        """What the heads of all earlier blocks have in the stream before block `layer` (`1.0`, `cross.1.0`).

        `incl_remainder`: the rest of the stream as a last part. Raises `ValueError` before layer 0.
        """
        reading = self._reading(layer, False, pos_slice, apply_ln)
        parts = self._parts(reading.stop, reading.chosen)
        return self._some("head", is_head, parts, reading, incl_remainder, return_labels)

    def stack_neuron_results(
        self,
        layer: int | None = -1,
        pos_slice: Slice = None,
        neuron_slice: Slice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: torch.Tensor | None = None,
        mlp_input: bool = False,
    ) -> Stacked:
        """What MLP neurons of all earlier blocks have in the stream before block `layer` (`mlp.1.17`).

        `neuron_slice`: only these of each MLP. `project_output_onto` as in `get_full_resid_decomposition`. Raises
        `ValueError` before layer 0.
        """
        reading = self._reading(layer, mlp_input, pos_slice, apply_ln, project_output_onto)
        numbers = self._neurons(neuron_slice)[0]
        wanted = {str(number) for number in numbers.tolist()}
        parts = self._parts(reading.stop, reading.chosen, neurons=True)
        return self._some(
            "neuron",
            lambda name: name.startswith("mlp.") and name.split(".")[2] in wanted,
            parts,
            reading,
            incl_remainder,
            return_labels,
        )

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice = None,
        pos_slice: Slice = None,
        project_output_onto: torch.Tensor | None = None,
    ) -> Float[torch.Tensor, "..."]:
        """What each neuron of a layer's MLP adds to the stream, its gate included: `[batch pos neuron d_model]`.

        Takes `d_mlp * d_model` numbers a token; `project_output_onto` (`[d_model]` or `[d_model n]`) only those.
        """
        model = self._weights("What neurons write")
        place, chosen = Site(self._layer(layer), "mlp"), self._chosen(pos_slice)
        self._check_written(place, "neurons")
        numbers, flat = self._neurons(neuron_slice)
        post, weight = self._get(place.at("post"))[:, chosen][..., numbers], model.sublayer_at(place).W_out
        written = (post[..., None] * weight[numbers].detach().to(post.device)).movedim(2, 0)
        found = self.carry(chosen).wrote(place, written).movedim(0, 2)
        found = found if project_output_onto is None else found @ project_output_onto.to(found)
        found = found.squeeze(2) if flat else found
        return self._shown(found.squeeze(1) if isinstance(pos_slice, int) else found)

    def apply_ln_to_stack(
        self,
        residual_stack: Float[torch.Tensor, "component ... d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Slice = None,
        recompute_ln: bool = False,
    ) -> Float[torch.Tensor, "component ... d_model"]:
        """Streams, or parts of one, through the norm that stands before `layer`, with the run's own scale held.

        `pos_slice`: the tokens that the stack is of, if not all. `recompute_ln`: each with its own statistics, affine
        weights of the norm included, as a lens needs it. What comes out is before shift and scale:
        `cache.carry().enter(site, part)` has the scale too.
        """
        site = self._read_at(layer, mlp_input)
        if recompute_ln:
            norm = self._norm(site)
            return residual_stack if norm is None else norm.unhooked(residual_stack)
        flat = isinstance(pos_slice, int)
        stack = residual_stack.unsqueeze(-2) if flat else residual_stack
        stack = stack if self.has_batch_dim else stack.unsqueeze(1)
        stack = torch.stack([self._held_norm(site, part, self._chosen(pos_slice)) for part in stack])
        return self._shown(stack.squeeze(-2) if flat else stack, axis=1)

    def compute_head_results(self) -> None:
        """Keep every layer's `result` (head outputs after W_O, before the gate), which is computed on demand anyway."""
        for layer in range(self._weights("A head's result").cfg.n_layers):
            self.tensors[Site(layer, "attn", "result")] = self._result(layer, "attn")

    # Shared

    def _norm(self, site: Site) -> Any:
        return self._model("A norm").sublayer_at(site).ln

    def _held_norm(self, site: Site, part: torch.Tensor, chosen: Any) -> torch.Tensor:
        """A part through the norm of the run. Raises `ValueError` where a hook changed what comes out of it."""
        if changed := self.edited & {site.at("ln.normalized")}:
            raise ValueError(
                f"a hook changed {listed(changed)} in this run: parts that go through the norm would not add up "
                "to it; run again without it, or leave apply_ln out"
            )
        return self.carry(chosen).normalized(site, part)

    def _reading(
        self,
        layer: int | None,
        mlp_input: bool,
        pos_slice: Slice,
        apply_ln: bool = False,
        onto: torch.Tensor | None = None,
    ) -> _Reading:
        chosen, site, flat = self._chosen(pos_slice), self._read_at(layer, mlp_input), isinstance(pos_slice, int)

        def finish(part: torch.Tensor) -> torch.Tensor:
            part = self._held_norm(site, part, chosen) if apply_ln else part
            part = part.squeeze(1) if flat else part
            return self._shown(part if onto is None else part @ onto.to(part))

        return _Reading(site, chosen, finish)

    def _stacked(self, parts: Iterable[Part], reading: _Reading, return_labels: bool) -> Stacked:
        found = [(name, reading.finish(part)) for name, part in parts]
        if not found:
            raise ValueError("nothing is left of the stream: layer 0 holds the embeddings only")
        stack = torch.stack([part for _, part in found])
        return (stack, [name for name, _ in found]) if return_labels else stack

    def _some(
        self,
        what: str,
        chosen: Callable[[str], bool],
        parts: Iterable[Part],
        reading: _Reading,
        incl_remainder: bool,
        return_labels: bool,
    ) -> Stacked:
        """The chosen parts, and all others as one."""
        found, rest = [], None
        for name, part in parts:
            if chosen(name):
                found.append((name, part))
            else:
                rest = part if rest is None else rest + part
        if not found:
            raise ValueError(f"No {what} writes before layer {reading.stop.layer}.")
        if incl_remainder and rest is not None:
            found.append(("remainder", rest))
        return self._stacked(found, reading, return_labels)

    def _neurons(self, neuron_slice: Slice) -> tuple[torch.Tensor, bool]:
        """Neurons as numbers, and whether a single one was asked for without its axis."""
        n = self._model("Neurons").cfg.d_mlp
        index = slice(*neuron_slice) if isinstance(neuron_slice, tuple) else neuron_slice
        if index is None or isinstance(index, slice):
            return torch.arange(n)[slice(None) if index is None else index], False
        numbers = torch.atleast_1d(torch.as_tensor(index))
        if numbers.ndim != 1 or numbers.is_floating_point() or bool(((numbers < -n) | (numbers >= n)).any()):
            raise ValueError(f"neuron_slice {neuron_slice!r}: an MLP here has neurons 0..{n - 1}")
        return numbers % n, isinstance(neuron_slice, int)


def _sublayer_of(name: str) -> str:
    """What a part is of, once heads, neurons and biases of one sublayer are one."""
    if name.startswith("mlp."):
        return f"{name.split('.')[1]}.mlp_out"
    if is_head(name):
        return f"{name.split('.')[1]}.cross_attn_out" if name.startswith("cross.") else f"{name.split('.')[0]}.attn_out"
    return f"{name.removesuffix('.bias')}_out" if name.endswith(".bias") else name
