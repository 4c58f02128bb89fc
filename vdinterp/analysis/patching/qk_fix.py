"""AtP*'s correction for queries and keys: the attention is recomputed, and only what follows is linearised.

Kramár et al. 2024 (arXiv 2403.00745), 3.1. For every way of choosing queries or keys this is
`sum over queries of d metric / d z . (z of the changed attention - z)`, which needs fused attention only: no pattern.
"""

from __future__ import annotations

import torch

from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.site import Site


def qk_effect(
    model: HookedVideoDiT,
    name: str,
    site: str,
    base: ActivationCache,
    source: ActivationCache,
    grad_z: torch.Tensor,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """`[batch]`: first-order effect of the source's queries (or keys) at the `chosen` tokens and heads of `name`."""
    place = Site.parse(name)
    attention = model.sublayer_at(place)
    rot_q, rot_k, values = (base[place.at(what)] for what in ("rot_q", "rot_k", "v"))
    other = source[place.at("rot_q" if site == "q" else "rot_k")]
    own = rot_q if site == "q" else rot_k
    mixed = torch.where(chosen.expand_as(own), other, own)
    changed = attention.pattern(mixed if site == "q" else rot_q, mixed if site == "k" else rot_k, base.grid)
    before = attention.pattern(rot_q, rot_k, base.grid)
    difference = (changed.weighted(values) - before.weighted(values)).transpose(1, 2)  # batch query head d_head
    return (difference * grad_z).flatten(1).sum(1)
