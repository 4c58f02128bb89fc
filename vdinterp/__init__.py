"""vdinterp: mechanistic interpretability of video diffusion transformers.

The public names stand in `__init__.pyi`, here as in every package; each is imported on first use, so that
`import vdinterp` itself costs next to nothing.
"""

from typing import Any

import lazy_loader

_find, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _find(name)
    if name == "__version__":
        from importlib.metadata import version

        return version("vdinterp")
    raise AttributeError(f"module 'vdinterp' has no attribute {name!r}; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*_names(), "__version__"])
