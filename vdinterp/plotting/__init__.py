"""Figures from plain arrays and tables. Nothing here knows a model, a cache or a result."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
