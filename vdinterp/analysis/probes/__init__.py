"""Linear probes: what can be read off an activation, and off the input alone. `vd.probes.fit(noised, labels)`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
