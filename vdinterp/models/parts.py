"""The residual stream's parts: what each component wrote, as it has been carried on to where it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from vdinterp.models.stream import Carry, held_in, of_tokens, places
from vdinterp.site import FINAL_LAYER, PATCH_EMBED, POS_EMBED, Site

if TYPE_CHECKING:
    from vdinterp.grid import TokenGrid
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

Part = tuple[str, Float[torch.Tensor, "batch pos d_model"]]
Slice = int | slice | tuple[int, ...] | Sequence[int] | torch.Tensor | None  # as TransformerLens's pos_slice


class StreamParts(Mapping[Any, Any]):
    """What a cache knows of the stream's parts, exactly linear with LayerNorm's scale held at what it was: `stream.py`
    says how they travel. Internals see activations with their batch axis, whatever `remove_batch_dim` shows.
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
        chosen = self._chosen(None if tokens is None else list(tokens))
        for name, part in self._parts(self._read_at(layer, False), chosen, neurons):
            yield name, self._shown(part)

    def carry(self, tokens: Any = slice(None)) -> Carry:
        """How parts of (some tokens of) the stream travel in this run: `cache.carry().enter(Site(3, "mlp"), part)`.

        Raises `ValueError` without a model, and as it is used `KeyError` for activations that were not kept.
        """
        frames = torch.arange(self.grid.n_tokens)[tokens] // self.grid.tokens_per_frame

        def run(site: Site) -> torch.Tensor:
            value, of_all = self._get(site), isinstance(tokens, slice) and tokens == slice(None)
            return value if of_all else value[:, tokens if site.what == "ln.scale" else frames]

        model = self._model("The stream")
        return Carry(model, held_in(run, model))

    def _parts(self, stop: Site, chosen: Any, neurons: bool = False) -> Iterator[Part]:
        """The parts of the stream that `stop` reads. Checked first against what hooks changed."""
        before = places(self._weights("The stream's parts"))
        before = before[: before.index(stop)]
        unseen = self.edited & self._unseen(before, stop, neurons)
        if unseen and not self._add_up(before, stop, neurons):
            raise ValueError(
                f"a hook changed {listed(unseen)} in this run (or the call was given it), which no part of the stream "
                "shows: its parts would not add up; run again without it, or take the streams themselves "
                "(accumulated_resid)"
            )
        yield from self._all_parts(before, stop, chosen, neurons)

    def _all_parts(self, before: list[Site], stop: Site, chosen: Any, neurons: bool) -> Iterator[Part]:
        carry, first = self.carry(chosen), self._get(PATCH_EMBED)
        yield "embed", carry.carry(first[:, chosen], None, stop)
        if POS_EMBED in carry.model.hook_dict:
            position = self._get(POS_EMBED).expand_as(first)
            yield "pos_embed", carry.carry(position[:, chosen], None, stop)
        for place in before:
            if carry.normed and (shift := carry.shift(place)) is not None:
                shift = of_tokens(torch.add, torch.zeros_like(first[:, chosen]), shift)
                yield f"{place.label}.shift", carry.carry(shift, place, stop)
            for name, part in self._parts_of(carry, place, chosen, neurons):
                yield name, carry.carry(part, place, stop)

    # What hooks changed

    def _unseen(self, before: list[Site], stop: Site, neurons: bool) -> set[str]:
        """The activations that parts are not made of, and that a hook must leave alone for them to add up."""
        layers = {place.layer for place in before} | {stop.layer} - {None}
        names: set[str] = {Site(layer, what="resid_pre") for layer in layers}
        names |= {Site(place.layer, what="resid_mid") for place in (*before, stop) if place.sublayer == "mlp"}
        names |= {Site(layer, what="resid_post") for layer in layers if layer != stop.layer}
        for place in before:
            if place.sublayer != "mlp" or neurons:
                names |= {place.at("result"), place.at("out"), place.added}
            if self._model("The stream's parts").cfg.residual == "normed":  # what is read is also what is carried on
                names |= {place.at("in"), place.at("ln.normalized")}
        return names

    def _add_up(self, before: list[Site], stop: Site, neurons: bool) -> bool:
        """Whether parts sum to the stream of every token all the same: a hook may have put back what was there."""
        own = "resid_mid" if stop.sublayer == "mlp" else "resid_pre"
        key = ("resid_post", -1) if stop == FINAL_LAYER else Site(stop.layer, what=own)
        if key not in self or PATCH_EMBED not in self:
            return False
        stream = self._get(key)
        missing = sum(part for _, part in self._all_parts(before, stop, slice(None), neurons)) - stream
        return bool((missing.norm(dim=-1) <= tolerance(stream.dtype, doubted=True) * stream.norm(dim=-1)).all())

    def _check_written(self, place: Site, by: str) -> None:
        """Raise `ValueError` where a hook changed what a sublayer adds to the stream after what it is made of."""
        if changed := self.edited & {place.at("result"), place.at("out"), place.added}:
            raise ValueError(
                f"a hook changed {listed(changed)} in this run (or the call was given it): {by} did not add what their "
                "weights make; run again without it"
            )

    # One sublayer

    def _parts_of(self, carry: Carry, place: Site, chosen: Any, neurons: bool) -> Iterator[Part]:
        """What a sublayer adds, after its gate: heads and bias, or MLP."""
        if place.sublayer == "mlp" and not neurons:
            yield place.component, self._get(place.added)[:, chosen]
            return
        module, of_mlp = carry.model.sublayer_at(place), place.sublayer == "mlp"
        made = self._get(place.at("post"))[:, chosen, :, None] if of_mlp else self._get(place.at("z"))[:, chosen]
        weight, bias = (module.W_out, module.b_out) if of_mlp else (module.W_O, module.b_O)
        for index in range(made.shape[2]):
            output = made[:, :, index] @ weight[index].detach().view(made.shape[-1], -1).to(made.device)
            yield f"{place.component}.{index}", carry.wrote(place, output)
        if bias is not None:
            rest = place.component if of_mlp else place.label
            yield f"{rest}.bias", carry.wrote(place, bias.detach().to(made.device).expand(*made.shape[:2], -1))

    # What is asked for

    def _read_at(self, layer: int | None, mlp_input: bool) -> Site:
        """The sublayer (or final layer) that reads the stream asked for; see `_checked`."""
        stop = self._checked(layer, mlp_input)
        if stop == self._model("A stream").cfg.n_layers:
            return FINAL_LAYER
        return Site(stop, "mlp" if mlp_input else "attn")

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


def tolerance(dtype: torch.dtype, doubted: bool = False) -> float:
    """How far parts may miss the whole by rounding, as a share of its size. `doubted`: where a hook may have changed
    something on the way, so that a small difference is not taken for rounding."""
    return max(1e-5 if doubted else 1e-3, 8 * torch.finfo(dtype).eps)
