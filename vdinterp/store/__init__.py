"""What is on disk: files that are whole, records that survive being killed, and content keys; for all who write."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
