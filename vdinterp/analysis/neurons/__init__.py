"""MLP neurons: which patches they fire for, what they write, and what is lost without them."""

from vdinterp.analysis.neurons.collect import top_patches
from vdinterp.analysis.neurons.directions import write_directions
from vdinterp.analysis.neurons.effects import NeuronEffects, ablation_effects
from vdinterp.analysis.neurons.result import NeuronResult

__all__ = ["NeuronEffects", "NeuronResult", "ablation_effects", "top_patches", "write_directions"]
