"""Interventions as JSON: what is read does what was written did; what cannot be written or read says so."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from factories import inputs, tiny_model

from vdinterp.interventions import (
    Ablate,
    Between,
    Custom,
    Freeze,
    Intervention,
    MaskAttention,
    Patch,
    RotateRope,
    SetCondition,
    SetNoiseLevel,
    Steer,
    TransferAttention,
    from_json,
    to_json,
)

MODEL = tiny_model("3d", d_action=3)
SITES = ["z", "rot_q", "rot_k", "resid_post"]
with torch.no_grad():
    CACHE = MODEL.run_with_cache(**inputs(MODEL, seed=4), names=SITES)[1]
EXAMPLES = [
    Ablate("z"),
    Ablate(("z", -1), "scaled", factor=0.25, heads=[1], frames=range(1, 3)),
    Ablate(["z", ("resid_post", 0)], "mean", reference=CACHE),
    Ablate("z", "resample", CACHE, tokens=[0, 5, 17]),
    Patch("resid_post", CACHE, subspace=torch.randn(2, 20, dtype=torch.float64), rows=(1,)),
    Patch("z", dict(CACHE), heads=(0,), cols=[2], channels=[3, 4]),
    Freeze("mod.gate", 1),
    Freeze("attn_scores", torch.tensor([0.0] * 17 + [-math.inf]), heads=[0], frames=[1], noise_levels=Between(0, 0.5)),
    Freeze("resid_post", torch.randn(20).bfloat16()),
    Steer("resid_post", torch.randn(20), 0.1, noise_levels=frozenset({0, 0.008})),
    MaskAttention("own_frame", layers=[1]),
    MaskAttention(cut=([2], (0, 1)), heads=[0]),
    MaskAttention(torch.rand(18, 18) > 0.5 * (1 - torch.eye(18))),
    TransferAttention(CACHE, layers=[0], heads=[1]),
    TransferAttention(CACHE, frames=[1]),
    RotateRope("frame", "permuted", seed=3),
    RotateRope("col", shift=-0.5, layers=[1], heads=[0]),
    SetNoiseLevel(0.125),
    SetNoiseLevel(torch.tensor([0.1, 0.2, 1]), frames=[1]),
    SetCondition(torch.eye(3), frames=[0]),
    SetCondition(None),
]


def same(one: Any, other: Any) -> bool:
    """Equal, types and tensors' dtypes included; a cache equals a mapping of the same tensors."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if hasattr(one, "items"):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@torch.no_grad()
def effect(*interventions: Intervention) -> torch.Tensor:
    given = inputs(MODEL)
    try:
        MODEL.set_hook_ctx(noise_levels=torch.tensor([[0, 0.008, 0.4], [1, 0.2, 0]]), step=2)
        with MODEL.intervene(*interventions):
            return MODEL(**given)
    finally:
        MODEL.clear_hook_ctx()


@pytest.mark.parametrize("one", EXAMPLES, ids=lambda one: type(one).__name__)
def test_round_trip(one: Intervention) -> None:
    (read,) = from_json(to_json([one]))
    assert type(read) is type(one)
    for field in fields(one):
        assert same(getattr(one, field.name), getattr(read, field.name)), field.name
    assert to_json([read]) == to_json([one])
    assert torch.equal(effect(read), effect(one))
    assert type(type(one).from_dict(one.to_dict())) is type(one)


def test_every_kind_has_an_example_and_lists_keep_their_order() -> None:
    from vdinterp.interventions.serialize import _KINDS

    assert {type(one).__name__ for one in EXAMPLES} == set(_KINDS)
    text = to_json(EXAMPLES)
    assert [type(one) for one in from_json(text)] == [type(one) for one in EXAMPLES]
    assert from_json("[]") == ()
    assert "NaN" not in text and "Infinity" not in text  # plain JSON for everyone


def test_names_of_runs_stay_names() -> None:
    named = [Patch("z", "clean", steps=range(3)), Ablate("z", "mean", "other"), TransferAttention("clean", tokens=[3])]
    read = from_json(to_json(named))
    assert read == tuple(named) and [one.run_names for one in read] == [("clean",), ("other",), ("clean",)]
    assert read[0].steps == range(3)


def test_what_holds_a_function_is_not_written() -> None:
    with pytest.raises(ValueError, match="Custom holds a function"):
        to_json([Custom("z", lambda x, hook: x)])
    with pytest.raises(ValueError, match=r"Ablate\.site is a function, which is not written to JSON; give names"):
        to_json([Ablate(lambda name: name.endswith("hook_z"))])

    class Own(Ablate):
        pass

    with pytest.raises(ValueError, match="Own is none of the library's kinds"):
        to_json([Own("z")])
    with pytest.raises(ValueError, match="give a list"):
        to_json(Ablate("z"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "These are no interventions"),
        ('{"kind": "Ablate"}', "written as a list"),
        ('["Ablate"]', "a mapping with its kind"),
        ('[{"site": "z"}]', "a mapping with its kind"),
        ('[{"kind": "Ablat", "site": "z"}]', "Unknown kind of intervention 'Ablat'. Did you mean 'Ablate'"),
        ('[{"kind": "os.system", "site": "ls"}]', "Unknown kind of intervention 'os.system'. There are Ablate"),
        ('[{"kind": "Custom", "site": "z", "function": "print"}]', "Unknown kind"),
        ('[{"kind": "Ablate", "site": "z", "head": [0]}]', "Ablate has no field 'head'. Did you mean 'heads'"),
        ('[{"kind": "Ablate"}]', "Ablate: missing site"),
        ('[{"kind": "Ablate", "site": "z", "mode": "median"}]', "median"),
        ('[{"kind": "MaskAttention", "cut": 5}]', "give two lists"),
        ('[{"kind": "Steer", "site": "z", "direction": [1.0], "strength": {}}]', "not written as to_json does"),
        ('[{"kind": "Freeze", "site": "z", "value": {"float": "one"}}]', "Freeze.value is not written as to_json does"),
        ('[{"kind": "Freeze", "site": "z", "value": {"pickle": "gASV"}}]', "with the keys pickle"),
        ('[{"kind": "Ablate", "site": "z", "frames": {"range": "all"}}]', "Ablate.frames is not written"),
        (
            '[{"kind": "Steer", "site": "z", "direction": {"tensor": "AAAA", "dtype": "float32", "shape": [3]}}]',
            "Steer.direction is not written",
        ),
        (
            '[{"kind": "Steer", "site": "z", "direction": {"tensor": "AAAA", "dtype": "object", "shape": [3]}}]',
            "Steer.direction is not written",
        ),
    ],
)
def test_what_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_a_kind_reads_its_own() -> None:
    data = Ablate("z").to_dict()
    assert json.loads(json.dumps(data)) == data == {"kind": "Ablate", "site": "z", "mode": "zero"}
    assert isinstance(Intervention.from_dict(data), Ablate)
    with pytest.raises(ValueError, match="This is Ablate, not Patch"):
        Patch.from_dict(data)
