"""The algebra of the stream: the same identities for both kinds, whatever holds the values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import KINDS, inputs, tiny_model

from vdinterp.models.stream import Carry, held_in, modulations, of_tokens, places
from vdinterp.site import FINAL_LAYER, Site

EXACT: Any = {"atol": 1e-9, "rtol": 1e-9}  # of float64


def ran(kind: str) -> Any:
    """A cache in float64, where identities hold to more than a part in a billion."""
    model = tiny_model(kind).double()
    given = {name: x.double() if x.is_floating_point() else x for name, x in inputs(model).items()}
    with torch.no_grad():
        return model.run_with_cache(**given)[1]


def read_by(cache: Any, place: Site) -> torch.Tensor:
    """The stream that a sublayer reads."""
    if place == FINAL_LAYER:
        return cache["resid_post", -1]
    if place.sublayer == "mlp":
        return cache["resid_mid", place.layer]
    if place.sublayer == "attn":
        return cache["resid_pre", place.layer]
    carry, own = cache.carry(), Site(place.layer, "attn")
    return carry.after(own, cache["resid_pre", place.layer], cache[own.added])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_parts_sum_to_the_whole_wherever_it_is_read(kind: str) -> None:
    cache = ran(kind)
    for layer in range(3):
        for mlp_input in (False, True)[: 1 if layer == 2 else 2]:
            place = FINAL_LAYER if layer == 2 else Site(layer, "mlp" if mlp_input else "attn")
            for options in ({"expand_neurons": False}, {"expand_neurons": True}):
                whole = cache.get_full_resid_decomposition(layer, mlp_input, **options).sum(0)
                torch.testing.assert_close(whole, read_by(cache, place), **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_an_entrance_is_linear_with_its_scale_held_and_itself_with_its_own(kind: str) -> None:
    cache = ran(kind)
    carry, model = cache.carry(), cache.model
    tokens = torch.tensor([3, 16])
    for place in places(model):
        stream, entered = read_by(cache, place), cache[place.at("in")]
        torch.testing.assert_close(carry.entered(place, stream), entered, **EXACT)
        parts = torch.stack([0.3 * stream.roll(1, -1), stream - 0.3 * stream.roll(1, -1)])
        whole, shift = carry.enter(place, parts).sum(0), carry.shift(place)
        whole = whole if shift is None else of_tokens(torch.add, whole, shift)
        torch.testing.assert_close(whole, entered, **EXACT)
        some = cache.carry(tokens)
        torch.testing.assert_close(
            some.enter(place, parts[:, :, tokens]), carry.enter(place, parts)[:, :, tokens], **EXACT
        )
        if place != FINAL_LAYER:
            torch.testing.assert_close(carry.wrote(place, cache[place.at("out")]), cache[place.added], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_reading_is_carrying_turned_round(kind: str) -> None:
    """From weights at a noise level; and the same as a run at that level has, but for LayerNorm's scale."""
    model = tiny_model(kind).double()
    known = {site: value[0] for site, value in modulations(model, torch.tensor([300])).items()}
    carry = Carry(model, known.get)
    order = [None, *places(model)]
    part, reading = torch.randn(2, 4, 20, dtype=torch.double)
    for start in range(len(order) - 1):
        for stop in range(start + 1, len(order)):
            there = carry.carry(part, order[start], order[stop]) @ reading.T
            torch.testing.assert_close(there, part @ carry.carry_back(reading.T, order[start], order[stop]), **EXACT)
    for place in places(model):
        torch.testing.assert_close(carry.enter(place, part) @ reading.T, part @ carry.read(place, reading.T), **EXACT)
    given = inputs(model)
    latents, levels = given["latents"].double(), torch.full((2, 3), 300)
    cache = model.run_with_cache(
        latents, levels, torch.zeros_like(given["cond"]).double() if "cond" in given else None
    )[1]
    if not model.cfg.d_action:  # an embedded action of zeros is not none
        for site, value in known.items():
            torch.testing.assert_close(cache[site], value.expand_as(cache[site]), **EXACT)
    run = Carry(model, held_in(lambda site: cache[site] if site.what != "ln.scale" else torch.ones(()), model))
    if not model.cfg.d_action:
        whole = part[0].expand(2, 18, 20)
        torch.testing.assert_close(
            run.carry(whole, None, FINAL_LAYER)[0, 0], carry.carry(part[:1], None, FINAL_LAYER)[0], **EXACT
        )


def test_the_usual_stream_stays_as_it_is() -> None:
    part = torch.randn(2, 18, 20, dtype=torch.double)
    usual, normed = ran("3d").carry(), ran("normed").carry()
    last, first = Site(1, "mlp"), Site(0, "attn")
    assert usual.way(None, FINAL_LAYER) == [] and usual.carry(part, None, FINAL_LAYER) is part
    assert normed.way(first, last) == ["blocks.0.mlp", "blocks.1.attn"] and normed.way(last, FINAL_LAYER) == []
    assert normed.way(None, first) == [] and len(normed.way(None, FINAL_LAYER)) == 4
