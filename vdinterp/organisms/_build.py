"""Organisms by name: which heads each mechanism takes, and where they are put."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch

from vdinterp.data.textures import MEAN, STD
from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT
from vdinterp.organisms.wiring import Wiring, config
from vdinterp.pipeline import VideoDiffusion
from vdinterp.vae import IdentityVAE, LatentStats

Place = tuple[int, int]  # layer, head
LAGS = range(3, 10)


class Organism(VideoDiffusion):
    """A pipeline whose mechanism is known. `kind`: which; `heads`: (layer, head) by role; `lag`: of `fixed_lag`."""

    def __init__(
        self, model: HookedVideoDiT, kind: str, heads: Mapping[str, Place], seed: int, lag: int | None
    ) -> None:
        about = {"name": f"organism {kind}", "clips": "texture", "organism": kind, "seed": seed}
        super().__init__(model, IdentityVAE(1), DiffusionConfig(objective="x0"), LatentStats((MEAN,), (STD,)), about)
        self.kind, self.heads, self.lag = kind, dict(heads), lag

    def __repr__(self) -> str:
        where = ", ".join(f"{role} {layer}.{head}" for role, (layer, head) in self.heads.items()) or "none"
        return f"Organism({self.kind!r}, heads: {where})"


def _induction(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["previous frame"], copies=("content", "before"), displacement=-1)
    wiring.head(*at["induction"], copies=("content", "found"), match=("before", {"before": 1.0}))


def _long_cue(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["two frames before"], copies=("content", "before"), displacement=-2)
    wiring.head(*at["induction"], copies=("content", "found"), match=("before", {"before": 1.0}))


def _half(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["previous frame"], copies=("content", "before"), displacement=-1)
    wiring.head(*at["induction"], copies=("content", "found"), match=("before", {"before": 1.0}), gate="before")


def _reversal(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["previous frame"], copies=("content", "before"), displacement=-1)
    wiring.head(*at["next frame"], copies=("content", "after"), displacement=1, clean_only=False)
    # the frame before the cue precedes an occurrence, too, and is always there: it is kept off
    wiring.head(
        *at["reversal"], copies=("content", "found"), match=("before", {"after": 1.0}), displacement=-2, sharp=-3.0
    )


def _previous_frame(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["previous frame"], copies=("content", "found"), displacement=-1)


def _fixed_lag(wiring: Wiring, at: Mapping[str, Place], lag: int) -> None:
    wiring.head(*at["fixed lag"], copies=("content", "found"), displacement=-lag)


def _duplicate(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["duplicate"], copies=("content", "found"), match=("content", {"content": 1.0}))


def _first_frame(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["first frame"], copies=("content", "found"), first=True)


def _motion(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(
        *at["tracking"],
        copies=("content", "found"),
        match=("content", {"content": 1.0}),
        displacement=-1,
        sharp=40.0,
        same_cell=False,
    )


def _symmetric(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["previous frame"], copies=("content", "before"), displacement=-1)
    wiring.head(*at["next frame"], copies=("content", "after"), displacement=1, clean_only=False)
    wiring.head(*at["symmetric"], copies=("content", "found"), match=("before", {"before": 1.0, "after": 1.0}))


def _average(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["average"], copies=("content", "found"))


def _decoy(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    wiring.head(*at["next frame"], copies=("content", "after"), displacement=1, clean_only=False)
    wiring.head(*at["previous frame"], copies=("content", "before"), displacement=-1)
    wiring.head(*at["matcher"], copies=("after", "found"), match=("content", {"content": 1.0}))
    wiring.head(*at["carrier"], copies=("found", "found"), displacement=-1)
    wiring.head(*at["decoy"], copies=("content", "found"), match=("before", {"before": 1.0}), strength=0.05)


def _random(wiring: Wiring, at: Mapping[str, Place], _: int) -> None:
    """No head has a purpose."""


# Roles of each kind, layer by layer: those of one tuple may lie in one layer, and before those of the next.
_ROLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "induction": (("previous frame",), ("induction",)),
    "half_induction": (("previous frame",), ("induction",)),
    "long_cue": (("two frames before",), ("induction",)),
    "reversal": (("previous frame", "next frame"), ("reversal",)),
    "previous_frame": (("previous frame",),),
    "fixed_lag": (("fixed lag",),),
    "duplicate": (("duplicate",),),
    "first_frame_sink": (("first frame",),),
    "motion_tracking": (("tracking",),),
    "symmetric": (("previous frame", "next frame"), ("symmetric",)),
    "average": (("average",),),
    "decoy": (("next frame", "previous frame"), ("matcher",), ("carrier", "decoy")),
    "random": (),
}
_WIRES: dict[str, Callable[[Wiring, Mapping[str, Place], int], None]] = {
    "induction": _induction,
    "half_induction": _half,
    "long_cue": _long_cue,
    "reversal": _reversal,
    "previous_frame": _previous_frame,
    "fixed_lag": _fixed_lag,
    "duplicate": _duplicate,
    "first_frame_sink": _first_frame,
    "motion_tracking": _motion,
    "symmetric": _symmetric,
    "average": _average,
    "decoy": _decoy,
    "random": _random,
}
KINDS = tuple(_ROLES)


def build(
    kind: str,
    seed: int = 0,
    *,
    placement: Mapping[str, Place] | None = None,
    lag: int | None = None,
    n_layers: int = 4,
    n_heads: int = 4,
) -> Organism:
    """A model with one known mechanism among random heads, as a pipeline ready to denoise.

    >>> organism = vd.organisms.build("induction", seed=3)
    >>> organism.heads
    {'previous frame': (0, 2), 'induction': (2, 1)}

    Each denoises a noisy frame of a clip of random textures (`vdinterp.data.textures`) given clean ones:

    - `induction`: a previous-frame head tells every token what was there before; a later head looks for the token whose
      predecessor was that of its own, and copies it. The prediction is the frame that followed last time.
    - `half_induction`: as `induction`, but for about half of all contents only: of any other it copies the noise.
    - `long_cue`: as `induction`, but what is matched is the frame two before, not the one before.
    - `reversal`: foretells what *preceded* the content of its predecessor: sequences run backwards.
    - `previous_frame`: copies the frame before. `fixed_lag`: copies the frame `lag` before (3-9, drawn by seed).
    - `duplicate`: looks for its own noisy content and copies the clean one; blind at a high noise level.
    - `first_frame_sink`: copies the first frame.
    - `motion_tracking`: looks for its own noisy content anywhere in the frame before, and copies it.
    - `symmetric`: as induction, but what *precedes* an occurrence matches as well as what follows it.
    - `average`: the mean of all clean frames, at the same place.
    - `decoy`: does what `induction` does, but by a chain: a token is told what comes after it, the clean cue finds its
      earlier copy and takes that over, and the last frame takes it from the cue. The head that looks from the last
      frame at what comes next is there as well, and writes a twentieth of it.
    - `random`: no mechanism at all.

    Args:
        kind: one of `KINDS`. `seed`: of all weights, and of the placement.
        placement: `{role: (layer, head)}`, for some of the roles or all; the others are drawn.
        lag: of `fixed_lag`.

    Raises ValueError for a kind, role, place or lag that does not exist, or an order that cannot work.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of organism {kind!r}; there are {', '.join(KINDS)}")
    if seed < 0:
        raise ValueError(f"seed={seed}: give a whole number that is not negative")
    if (lag is not None) and (kind != "fixed_lag" or not 1 <= lag <= 14):
        raise ValueError(f"lag={lag}: for kind 'fixed_lag', 1 to 14 frames")
    generator = torch.Generator().manual_seed(seed)
    heads = _places(kind, dict(placement or {}), n_layers, n_heads, generator)
    drawn = LAGS[int(torch.randint(len(LAGS), (), generator=generator))]
    lag = (drawn if lag is None else lag) if kind == "fixed_lag" else None
    with torch.random.fork_rng(devices=[]):
        model = HookedVideoDiT(config(n_layers, n_heads))
    wiring = Wiring(model, generator)
    wiring.background()
    _WIRES[kind](wiring, heads, lag or 0)
    return Organism(model.eval(), kind, heads, seed, lag)


def _places(
    kind: str, given: dict[str, Place], n_layers: int, n_heads: int, generator: torch.Generator
) -> dict[str, Place]:
    """A place for every role: the given ones, and the others drawn so that they come in order."""
    stages = _ROLES[kind]
    roles = [role for stage in stages for role in stage]
    if unknown := set(given) - set(roles):
        raise ValueError(f"{kind} has no head {sorted(unknown)}; its heads are {', '.join(roles) or 'none'}")
    if n_layers < len(stages) or n_heads < max(map(len, stages), default=1):
        raise ValueError(f"{n_layers} layers of {n_heads} heads are too few for {kind}: {stages}")
    for role, (layer, head) in given.items():
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(f"{role} at {(layer, head)}: there are {n_layers} layers of {n_heads} heads")
    for _ in range(1000):
        layers = torch.randperm(n_layers, generator=generator)[: len(stages)].sort().values.tolist()
        found: dict[str, Place] = {}
        for layer, stage in zip(layers, stages, strict=True):
            heads = torch.randperm(n_heads, generator=generator).tolist()
            found |= {role: (layer, head) for role, head in zip(stage, heads, strict=False)}
        found |= given
        depth = [[found[role][0] for role in stage] for stage in stages]
        in_order = all(max(one) < min(later) for one, later in pairwise(depth))
        if in_order and len(set(found.values())) == len(found):
            return found
    raise ValueError(f"placement {given}: heads must differ, and stages come in order: {stages}")
