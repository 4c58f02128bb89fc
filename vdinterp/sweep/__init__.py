"""Sweeps: many interventions on the same inputs, each run only from where it changes something.

`run(pipe, cases, trials, metrics)` does it; `analysis.activation_patch` and the others build cases and trials.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
