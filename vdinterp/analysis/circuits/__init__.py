"""Circuits of a denoiser, from weights: what a head moves (OV), what it looks for (QK), and how heads compose.

>>> circuit = vd.circuits.ov(model, layer=2, head=1, noise_level=900)
>>> circuit.matrix.svd(), circuit.eigenvalue_score

After Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". What a denoiser adds: AdaLN makes every
circuit depend on the noise levels of the two frames, rotation makes QK depend on the displacement. Both are folded in;
what an action adds to the modulation is not.
"""

from vdinterp.analysis.circuits.activations import QKActivations, qk_activations
from vdinterp.analysis.circuits.composition import CompositionScores, composition
from vdinterp.analysis.circuits.heads import OVCircuit, QKCircuit, ov, qk
from vdinterp.analysis.circuits.patches import CopyingScores, PatchCircuit, copying, eigenvalue_score, patch_circuit

__all__ = [
    "CompositionScores",
    "CopyingScores",
    "OVCircuit",
    "PatchCircuit",
    "QKActivations",
    "QKCircuit",
    "composition",
    "copying",
    "eigenvalue_score",
    "ov",
    "patch_circuit",
    "qk",
    "qk_activations",
]
