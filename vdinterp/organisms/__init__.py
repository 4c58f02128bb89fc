"""Model organisms: small transformers wired by hand, whose mechanism is known because somebody put it there.

A detector that is to be believed on a trained model has to name the planted head here, and to stay silent about all
other organisms.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
