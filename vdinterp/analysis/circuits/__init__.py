"""Circuits of a denoiser, from weights: what a head moves (OV), what it looks for (QK), and how heads compose.

>>> circuit = vd.circuits.ov(model, layer=2, head=1, noise_level=0.9)
>>> circuit.matrix.svd(), circuit.eigenvalue_score

After Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". What a denoiser adds: AdaLN makes every
circuit depend on the noise levels of the two frames, rotation makes QK depend on the displacement. Both are folded in;
what an action adds to the modulation is not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
