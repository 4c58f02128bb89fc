"""What a neuron writes: its output weights, carried through to the x0 of its own patch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float

from vdinterp.analysis.stimulus.latents import pictures_of
from vdinterp.analysis.stimulus.noised_clips import NoisedClips
from vdinterp.diffusion import split_prediction
from vdinterp.models import HookedVideoDiT
from vdinterp.models.stream import Carry, modulations
from vdinterp.pipeline import VideoDiffusion
from vdinterp.site import FINAL_LAYER, Site

INSIDE = {"pqc": "neuron (p q channel) -> neuron channel p q", "cpq": "neuron (channel p q) -> neuron channel p q"}

Means = Mapping[Site, torch.Tensor]  # gates, scales and LayerNorm scales


@torch.no_grad()
def write_directions(
    source: VideoDiffusion | NoisedClips, layer: int, level: float
) -> Float[torch.Tensor, "neuron channel patch_h patch_w"]:
    """What one unit of a neuron's activation adds to the x0 of its own patch by itself, in normalised latents.

    >>> vd.neurons.write_directions(pipe, layer=2, level=0.9)[113]

    The neuron's row of W_out, times the MLP's gate, the final layer's `1 + scale` and its linear map, times what one
    unit of the prediction is in x0 (under velocity or noise prediction that turns its sign). In DFoT's `normed` stream
    also the centring and `1 + scale` of every sublayer on the way. Exactly linear with all this held.

    Args:
        source: a pipeline: LayerNorm's own scale is taken as 1, the modulation is that of a frame without action. So
            sizes compare within a layer, not with x0. Or NoisedClips: all at their mean over the target frames at this
            level, in true units.
        layer: of the MLP; negative counts from the end.
        level: noise level in (0, 1] of the frame; one of the clips' for NoisedClips.

    Misleads: later layers read the neuron, too, and may undo, move or amplify what it writes; the mean over frames is
    no single frame.

    Raises ValueError for a level or layer that there is not, or a layer without MLP.
    """
    if not isinstance(source, (VideoDiffusion, NoisedClips)):
        raise ValueError(f"source is {type(source).__name__}; give a pipeline (vd.load(..)) or NoisedClips")
    pipe = source if isinstance(source, VideoDiffusion) else source.pipe
    if isinstance(source, NoisedClips) and level not in source.levels:
        raise ValueError(f"level {level}: these clips are noised at {', '.join(f'{one:g}' for one in source.levels)}")
    if not isinstance(level, Real) or isinstance(level, bool) or not 0 < level <= 1:
        raise ValueError(f"level {level}: noise levels are in (0, 1]")
    layer = layers_with_mlp(pipe.model, [layer])[0]
    if isinstance(source, VideoDiffusion):
        return directions(pipe, layer, level, _held_without_clips(pipe, level))
    held = HeldMean(source)
    for cache in source.caches(level, held.names):
        held.update(cache)
    return directions(pipe, layer, level, held.means)


def layers_with_mlp(model: HookedVideoDiT, layers: Any = None) -> list[int]:
    """The chosen layers (None: all that have an MLP), in order. Raises `ValueError` for one that has none."""
    n, having = model.cfg.n_layers, [i for i, block in enumerate(model.cfg.blocks) if block.mlp is not None]
    if layers is None and having:
        return having
    for layer in layers or ():
        if not isinstance(layer, int) or not -n <= layer < n or layer % n not in having:
            raise ValueError(f"no MLP in layer {layer!r}: {model.cfg.model_name} has MLPs in layers {having}")
    if not layers:
        raise ValueError(f"layers={layers!r}: {model.cfg.model_name} has MLPs in layers {having}; name some, or None")
    return sorted({layer % n for layer in layers})


class HeldMean:
    """Running means over target frames of what stands between neurons and the prediction."""

    def __init__(self, noised: NoisedClips) -> None:
        self.names = _names(noised.model)
        self._frames, self._tokens = noised.target, noised.target_tokens
        self._sums: dict[Site, torch.Tensor] = {}
        self._counts: dict[Site, int] = {}

    def update(self, cache: Mapping[str, torch.Tensor]) -> None:
        """Take in the activations of one batch."""
        for name in self.names:
            chosen = self._tokens.to(cache[name].device) if name.what == "ln.scale" else self._frames
            values = cache[name][:, chosen].double().flatten(0, 1)
            self._sums[name] = self._sums.get(name, 0.0) + values.sum(0).cpu()
            self._counts[name] = self._counts.get(name, 0) + len(values)

    @property
    def means(self) -> dict[Site, torch.Tensor]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def directions(
    pipe: VideoDiffusion, layer: int, level: float, held: Means
) -> Float[torch.Tensor, "neuron channel patch_h patch_w"]:
    """`write_directions` of a layer with everything between held; what is not in `held` counts as 1."""
    model, place = pipe.model, Site(layer, "mlp")
    carry = Carry(model, held.get, _double)
    written = carry.wrote(place, _double(model.sublayer_at(place).W_out))
    found = carry.enter(FINAL_LAYER, carry.carry(written, place, FINAL_LAYER))
    values = found @ _double(model.final.weights[0]).T
    signal, sigma = pipe.schedule.coefficients(pipe.schedule.k(level))
    x0, _ = split_prediction(pipe.diffusion.objective, values, torch.zeros_like(values), signal.cpu(), sigma.cpu())
    _, patch_h, patch_w = model.cfg.patch_size
    return rearrange(x0, INSIDE[model.cfg.unpatch_order], p=patch_h, q=patch_w).float()


def _names(model: HookedVideoDiT) -> list[Site]:
    """The hooks that `directions` may need."""
    mlps = [Site(layer, "mlp") for layer in layers_with_mlp(model)]
    passed = dict.fromkeys([place for mlp in mlps for place in Carry(model, {}.get).way(mlp, FINAL_LAYER)])
    wanted = [place.at(what) for place in [*passed, FINAL_LAYER] for what in ("mod.scale", "ln.scale")]
    return [site for site in [*wanted, *(mlp.at("mod.gate") for mlp in mlps)] if site in model.hook_dict]


def _held_without_clips(pipe: VideoDiffusion, level: float) -> dict[Site, torch.Tensor]:
    """Gates and scales of a frame at a noise level, without action; they do not depend on what it shows."""
    known = modulations(pipe.model, pipe.timestep(torch.tensor([level])))
    return {site: _double(value[0]) for site, value in known.items()}


def _double(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().double().cpu()


@torch.no_grad()
def pixel_map(noised: NoisedClips) -> Float[torch.Tensor, "channel patch_h patch_w pixel_channel pixel_h pixel_w"]:
    """What one unit of each latent of a patch changes in the pixels of that patch: the decoder, linearised.

    Around a frame of the clips' mean colour, at its middle patch, by half a standard deviation either way. Multiply a
    direction by it for pixels in [0, 1] per unit of activation. Misleads: a decoder is not linear, and reaches beyond
    the patch.
    """
    pipe, cfg = noised.pipe, noised.model.cfg
    _, patch_h, patch_w = cfg.patch_size
    row, col = cfg.n_rows // 2, cfg.n_cols // 2
    mean = noised.latents.mean((0, 1, 3, 4))
    base = mean[:, None, None].expand(cfg.in_channels, cfg.height, cfg.width)[None, None]
    step = 0.5 * (float(noised.latents.std()) or 1.0)
    found = []
    for channel in range(cfg.in_channels):
        for place in range(patch_h * patch_w):
            change = torch.zeros_like(base)
            change[0, 0, channel, row * patch_h + place // patch_w, col * patch_w + place % patch_w] = step
            both = torch.cat([base + change, base - change])
            up, down = pictures_of(pipe, both.to(pipe.dtype))[:, 0]
            found.append(_cell((up - down) / (2 * step), row, col, cfg.n_rows, cfg.n_cols))
    return torch.stack(found).unflatten(0, (cfg.in_channels, patch_h, patch_w))


def _cell(frame: Float[torch.Tensor, "channel height width"], row: int, col: int, n_rows: int, n_cols: int) -> Any:
    """The pixels of one patch of a frame."""
    height, width = frame.shape[1] // n_rows, frame.shape[2] // n_cols
    return frame[:, row * height : (row + 1) * height, col * width : (col + 1) * width]
