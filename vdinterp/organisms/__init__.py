"""Model organisms: small transformers wired by hand, whose mechanism is known because somebody put it there.

A detector that is to be believed on a trained model has to name the planted head here, and to stay silent about all
other organisms.
"""

from vdinterp.organisms.build import KINDS, Organism, build

__all__ = ["KINDS", "Organism", "build"]
