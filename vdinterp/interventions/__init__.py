"""What to change where, as data.

An intervention is a frozen dataclass; `hooks(model)` checks it against a model and gives the hook functions that
carry it out. `model.intervene(...)` and `pipe.sample(..., interventions=[...])` apply them, in order: one sees what
those before it left. `to_json` writes them, `from_json` reads them.

Where: a site (a hook name, an alias, a key, a list) or `layers`; then `heads`, `frames`, `rows`, `cols`, `tokens`,
`channels`, `subspace` narrow it down (None: all of them), `noise_levels` takes only frames that are so noisy, and
`steps` only some denoising steps of a sampler.
"""

from vdinterp.interventions.attention import MaskAttention, TransferAttention
from vdinterp.interventions.base import (
    Acting,
    HookPair,
    Intervention,
    Pass,
    Run,
    Site,
    check_choice,
    check_interventions,
    hooks_of,
)
from vdinterp.interventions.condition import SetCondition, SetNoiseLevel
from vdinterp.interventions.replace import Ablate, Custom, Freeze, Patch, Steer
from vdinterp.interventions.rope import RotateRope
from vdinterp.interventions.serialize import from_json, to_json
from vdinterp.interventions.site import CHANNEL_AXES, SAMPLE_AXES, SiteIntervention
from vdinterp.interventions.stored import check_stored, fitted

__all__ = [
    "CHANNEL_AXES", "SAMPLE_AXES", "Ablate", "Acting", "Custom", "Freeze", "HookPair", "Intervention", "MaskAttention",
    "Pass", "Patch", "RotateRope", "Run", "SetCondition", "SetNoiseLevel", "Site", "SiteIntervention", "Steer",
    "TransferAttention", "check_choice", "check_interventions", "check_stored", "fitted", "from_json",
    "hooks_of", "to_json",
]  # fmt: skip
