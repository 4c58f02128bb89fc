"""The algebra of the residual stream: how what is written at one place arrives at another.

The only file that knows. All of it is exactly linear in the part that is carried, once LayerNorm's scale and AdaLN's
modulation are held: at what a run had (a cache, or a pass while it runs), at means, or at what the weights say of a
noise level (LayerNorm's own scale then counts as 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped

from vdinterp.models.components.modulation import by_frame
from vdinterp.site import FINAL_LAYER, Site

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

Part = Float[torch.Tensor, "*stack pos d_model"]
Reading = Float[torch.Tensor, "*head d_model _"]
Held = Callable[[Site], torch.Tensor | None]
"""What a run had at a sublayer's "mod.shift", "mod.scale", "mod.gate" and "ln.scale": `[batch frame d_model]`, one
value a token, or what broadcasts to these. None where there is none."""


class Carry:
    """How a part of the stream travels between sublayers, with what `held` says.

    A sublayer is named by its `Site(3, "mlp")`, the final layer by `FINAL_LAYER`. In the usual stream
    (`residual="pre"`) what is written stays as it is. In DFoT's (`"normed"`) every sublayer on the way centres,
    rescales and modulates it, and adds a shift, which is a part of its own. `own` says in which precision the model's
    weights join in.
    """

    def __init__(
        self, model: HookedVideoDiT, held: Held, own: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach
    ) -> None:
        self.model, self.held, self.own = model, held, own
        self.normed = model.cfg.residual == "normed"
        self.places = places(model)

    # At one sublayer

    def normalized(self, place: Site, part: Part) -> Part:
        """A part through a sublayer's norm: parts sum to its `ln.hook_normalized`."""
        norm = self.model.sublayer_at(place).ln
        return part if norm is None else self._over_scale(place, _centred(norm, part))

    def enter(self, place: Site, part: Part) -> Part:
        """A part as it stands at a sublayer's entrance: with `shift`, parts sum to its `hook_in`."""
        return self._times(self.normalized(place, part), self._gain(place))

    def shift(self, place: Site) -> torch.Tensor | None:
        """What an entrance adds whatever the stream holds: AdaLN's shift, and the norm's own bias through the scale."""
        norm, found = self.model.sublayer_at(place).ln, self.held(place.at("mod.shift"))
        if norm is None or norm.bias is None:
            return found
        scale = self.held(place.at("mod.scale"))
        bias = self.own(norm.bias) if scale is None else self.own(norm.bias) * (1 + scale)
        return bias if found is None else found + bias

    def wrote(self, place: Site, output: Part) -> Part:
        """What a sublayer adds to the stream for an output of its: times the gate."""
        return self._times(output, self.held(place.at("mod.gate")))

    def read(self, place: Site, reading: Reading) -> Reading:
        """A matrix that reads a sublayer's input, as one that reads the stream: `enter`, transposed."""
        norm, rows = self.model.sublayer_at(place).ln, self._times(reading.mT, self._gain(place))
        return (rows if norm is None else self._over_scale(place, _centred(norm, rows))).mT

    def entered(self, place: Site, stream: Part) -> Part:
        """What a whole stream becomes at a sublayer's entrance, with its own LayerNorm statistics, as in a lens."""
        norm = self.model.sublayer_at(place).ln
        shift, scale = self.held(place.at("mod.shift")), self.held(place.at("mod.scale"))
        stream = self._times(stream if norm is None else norm.unhooked(stream), None if scale is None else 1 + scale)
        return stream if shift is None else of_tokens(torch.add, stream, shift)

    # From one to another

    def way(self, start: Site | None, stop: Site) -> list[Site]:
        """The sublayers whose entrances change what `start` wrote (None: the embedding) before `stop` reads."""
        order = self.places
        return order[0 if start is None else order.index(start) + 1 : order.index(stop)] if self.normed else []

    def carry(self, part: Part, start: Site | None, stop: Site) -> Part:
        """What `start` wrote, as it is in the stream that `stop` reads."""
        for place in self.way(start, stop):
            part = self.enter(place, part)
        return part

    def carry_back(self, reading: Reading, start: Site | None, stop: Site) -> Reading:
        """A matrix that reads the stream at `stop`, as one that reads what `start` wrote to it."""
        for place in reversed(self.way(start, stop)):
            reading = self.read(place, reading)
        return reading

    def after(self, place: Site, stream: Part, added: Part) -> Part:
        """The stream after a sublayer, from that before it and what it adds; statistics anew."""
        return (self.entered(place, stream) if self.normed else stream) + added

    # Details

    def _gain(self, place: Site) -> torch.Tensor | None:
        """What is multiplied behind the norm: its own weight, and `1 + scale`."""
        weight, scale = getattr(self.model.sublayer_at(place).ln, "weight", None), self.held(place.at("mod.scale"))
        gain = None if scale is None else 1 + scale
        return gain if weight is None else self.own(weight) if gain is None else self.own(weight) * gain

    def _over_scale(self, place: Site, part: Part) -> Part:
        scale = self.held(place.at("ln.scale"))
        return part if scale is None else part / scale

    @staticmethod
    def _times(part: Part, value: torch.Tensor | None) -> Part:
        return part if value is None else of_tokens(torch.mul, part, value)


def held_in(run: Callable[[Site], torch.Tensor], model: HookedVideoDiT) -> Held:
    """What a run's activations hold, by `run(site)`."""
    return lambda site: run(site) if site in model.hook_dict else None


def of_tokens(function: Callable[..., torch.Tensor], part: Part, value: torch.Tensor) -> Part:
    """`function(part, value)`, with what is `[batch frame d_model]` for every token of its frame."""
    is_wide = value.ndim < 2 or value.shape[-2] in (1, part.shape[-2])
    return function(part, value) if is_wide else by_frame(function, part, value)


def places(model: HookedVideoDiT) -> list[Site]:
    """All sublayers in the order in which they act, then the final layer."""
    blocks = enumerate(model.cfg.blocks)
    return [*(Site(layer, name) for layer, block in blocks for name in block.sublayers), FINAL_LAYER]


def _centred(norm: Any, part: torch.Tensor) -> torch.Tensor:
    return part - part.mean(-1, keepdim=True) if norm.kind == "layer" else part


@torch.no_grad()
def modulations(
    model: HookedVideoDiT,
    timesteps: Shaped[torch.Tensor, " level"],
    actions: Float[torch.Tensor, "level d_action"] | None = None,
) -> dict[Site, Float[torch.Tensor, "level d_model"]]:
    """Shift, scale and gate of every sublayer for frames at some noise levels, as the network is told them. From
    weights: nothing else is run."""
    network: Any = model
    condition = network.noise_embed(timesteps[:, None].to(model.device))
    if actions is not None:
        condition = condition + network.action_embed(actions[:, None].to(condition), None)
    shared = network.shared_modulation(condition) if network.shared_modulation is not None else None
    slots: list[tuple[torch.Tensor, ...]] = [block.modulation(condition, shared) for block in network.blocks]
    found = {}
    for place in places(model):
        mod = network.sublayer_at(place).mod
        own = network.final.slots(condition) if place.layer is None else slots[place.layer]
        for part, slot in ({} if mod is None else mod.slots).items():
            if slot >= 0:
                found[place.at(f"mod.{part}")] = own[slot][:, 0]
    return found
