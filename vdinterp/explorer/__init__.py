"""The attention explorer: where a patch of a clip attends, to click through, in a notebook or on a page of its own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
