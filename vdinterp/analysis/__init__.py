"""From tensors to numbers: scores of generated clips with their intervals, and statistics of attention and streams."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
