"""Reports: one self-contained HTML page, with every table as CSV and everything as JSON beside it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
