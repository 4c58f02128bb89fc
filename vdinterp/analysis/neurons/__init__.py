"""MLP neurons: which patches they fire for, what they write, and what is lost without them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
