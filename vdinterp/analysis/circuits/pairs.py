"""Composition from weights: how much of what one head writes another one reads, at noise levels and a displacement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float

from vdinterp.analysis.circuits.weights import (
    FoldedWeights,
    Part,
    check_displacement,
    check_head,
    rotation,
)
from vdinterp.models import HookedVideoDiT
from vdinterp.models.weights import undetermined
from vdinterp.site import Site

__all__ = ["Composed", "Part", "check_part", "compose", "composition", "undetermined"]


def composition(
    model: HookedVideoDiT,
    sender: tuple[int, int],
    receiver: tuple[int, int],
    part: Part,
    *,
    noise_level: Any = 0,
    query_level: Any | None = None,
    displacement: tuple[int, int, int] = (0, 0, 0),
) -> dict[str, float]:
    """Q-, K- or V-composition of two heads (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

    `score = |W_OV M W| / (|W_OV| |M W|)` in Frobenius norms. `W_OV` is the sender's, as `vdinterp.circuits.ov` has it;
    `W` what the receiver reads: `W_K R^T W_Q^T` ("k"), `W_Q R W_K^T` ("q") or its own `W_OV` ("v"), with the rotation R
    of a displacement (key minus query, in frames, rows and columns); M what the stream goes through between the two:
    nothing, or in the `normed` kind the centring and `1 + scale` of every sublayer on the way. Modulation and centring
    at the entrances are folded in; LayerNorm's own scale cancels.

    Returns `score`, `baseline`, `beyond` (the difference) and `z`. 0 to 1; chance is the baseline: the root mean square
    of the score when the stream is rotated at random between the two, exactly `1 / sqrt(d_model)` whatever the ranks
    (the mean of `|A Q B|^2` over rotations Q is `|A|^2 |B|^2 / d_model`). `z`: how many standard deviations of these
    rotations `score^2` lies above its mean; heads of low rank scatter more.
    Misleads: it says what could be read, not what is; a large common direction makes everything compose. In the
    `normed` kind the scales on a long way leave few channels that are read at all, and scores fall with the distance.
    NaN where the sender's gate is zero.

    `noise_level`: of the key's frame, a share in [0, 1], `query_level`: of the query's (default the same).
    The sender writes into the key's frame for "k" and "v", into the query's for "q"; it reads one like the key's.

    Raises ValueError where weights do not determine it (qk-norm, rotation over all heads at once; "v" is always
    determined), for heads out of order, and for a displacement at which the receiver sees no key.
    """
    check_part(model, part)
    for head in (sender, receiver):
        check_head(model, *head)
    if sender[0] >= receiver[0]:
        raise ValueError(f"head {sender} does not write before {receiver} reads")
    if part != "v":
        check_displacement(model, receiver[0], displacement)
    folded = FoldedWeights(model, noise_level, query_level)
    found = compose(folded, sender[0], receiver[0], part, [displacement])
    score, z = (float(values[0, sender[1], receiver[1]]) for values in (found.score, found.z))
    return {"score": score, "baseline": found.baseline, "beyond": score - found.baseline, "z": z}


def check_part(model: HookedVideoDiT, part: Any) -> None:
    if part not in ("q", "k", "v"):
        raise ValueError(f"part {part!r}; choose 'q', 'k' or 'v'")
    if part != "v" and (reason := undetermined(model)):
        raise ValueError(
            f"{model.cfg.model_name}: {reason}; V-composition is determined: part 'v', or parts=('v',) of all pairs"
        )


class Composed(NamedTuple):
    """Composition of all heads of two layers, `[displacement sender receiver]`, and chance."""

    score: Float[torch.Tensor, "displacement sender receiver"]
    z: Float[torch.Tensor, "displacement sender receiver"]
    baseline: float


def compose(
    folded: FoldedWeights, start: int, stop: int, part: Part, displacements: Sequence[tuple[int, int, int]]
) -> Composed:
    """Composition of every head of layer `start` with every head of layer `stop`; "v" knows no displacement.

    No `d_model x d_model` matrix is made: `|A B|` of low-rank products is that of their triangular factors.
    """
    side = "query" if part == "q" else "key"
    writes = _triangle(folded.read(start, "v")) @ folded.write(start, side)  # head d_head d_model
    reads = folded.sides[side].carry_back(folded.read(stop, part), Site(start, "attn"), Site(stop, "attn"))
    far = _far(folded, stop, part, displacements)  # displacement head d_head d_head
    met = torch.einsum("s a d, r d b -> s r a b", writes, reads)
    product = (met @ far[:, None]).norm(dim=(-2, -1))  # displacement sender receiver
    sent, received = writes.mT, _triangle(reads) @ far
    norms = sent.norm(dim=(-2, -1))[:, None] * received.norm(dim=(-2, -1))[:, None]
    score = product / norms
    width = folded.model.cfg.d_model
    spread = [_concentration(sent, width)[:, None], _concentration(received, width)[:, None]]
    deviation = (2 * spread[0] * spread[1] / ((width - 1) * (width + 2))).sqrt()
    return Composed(score, (score**2 - 1 / width) / deviation, width**-0.5)


def _far(
    folded: FoldedWeights, layer: int, part: Part, displacements: Sequence[tuple[int, int, int]]
) -> Float[torch.Tensor, "displacement head d_head d_head"]:
    """What stands behind the weight that reads, up to a rotation at its other end: that leaves norms as they are."""
    if part == "v":
        return _triangle(folded.write(layer).mT).mT[None]
    other = _triangle(folded.read(layer, "q" if part == "k" else "k")).mT
    turned = [rotation(folded.model, layer, displacement) for displacement in displacements]
    return torch.stack([(turn.T if part == "k" else turn) @ other for turn in turned])


def _triangle(weight: torch.Tensor) -> torch.Tensor:
    """`T` with `|weight X| = |T X|` for every X."""
    return torch.linalg.qr(weight, mode="r").R


def _concentration(weight: torch.Tensor, width: int) -> torch.Tensor:
    """How unevenly a matrix weighs directions: sum of 4th powers of singular values over that of squares squared, less
    what it is if all are equal. The variance over rotations is a product of two of these."""
    gram = weight.mT @ weight
    return (gram.norm(dim=(-2, -1)) / weight.pow(2).sum((-2, -1))) ** 2 - 1 / width
