"""What to change where, as data.

An intervention is a frozen dataclass; `hooks(model)` checks it against a model and gives the hook functions that
carry it out. `model.intervene(...)` and `pipe.sample(..., interventions=[...])` apply them, in order: one sees what
those before it left. `to_json` writes them, `from_json` reads them.

Where: a site (a hook name, an alias, a key, a list) or `layers`; then `heads`, `frames`, `rows`, `cols`, `tokens`,
`channels`, `subspace` narrow it down (None: all of them), `noise_levels` takes only frames that are so noisy, and
`steps` only some denoising steps of a sampler.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
