"""Studies: whole experiments on a model, each of which reads like a method section.

`run("ablations", pipe)` runs one. A study of your own is a function `(bench, **settings) -> Result` under the decorator
`@study("name")`; it gets resuming, progress and the report for nothing (see `examples/own_study.py`).
"""

import lazy_loader

from vdinterp.studies import _ablations, _heads  # noqa: F401  # the bundled studies enter the registry

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
