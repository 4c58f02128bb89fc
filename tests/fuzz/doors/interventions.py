"""Interventions: made, put on a model, written and read as JSON."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import vdinterp as vd
from fuzz import values, world
from fuzz.harness import Case
from vdinterp.interventions import from_json, to_json

NAN = values.NAN


def _applied(make: Any) -> Any:
    def call() -> Any:
        with world.pipe().model.intervene(make()):
            return world.pipe().model(world.pair()[0], world.k(), world.action())

    return call


def interventions() -> st.SearchStrategy[Case]:
    """One argument of one intervention wrong; made, and applied to a pass where it could be made."""
    n_tokens = world.pipe().model.grid().n_tokens
    clean = dict(world.cache())
    allowed = torch.ones(n_tokens, n_tokens, dtype=torch.bool)
    holed = {name: tensor * NAN for name, tensor in clean.items()}
    sites = values.HOOK_NAMES
    axes = {name: values.INDICES for name in ("heads", "frames", "rows", "cols", "tokens", "channels")}
    whens = {
        "steps": values.of([], "01", [1.9], [True], [-1], [None], 3),
        "noise_levels": values.of([], "01", [1.9], [True], [-7], [None], 3, [949], range(500, 900)),
    }
    run = values.of(None, "", 5, [], {}, {"nose": torch.ones(1)}, holed, torch.ones(3))
    kinds: list[tuple[Any, dict[str, Any], dict[str, st.SearchStrategy]]] = [
        (
            vd.Ablate,
            {"site": "z"},
            {
                "site": sites,
                "mode": values.CHOICES.filter(lambda v: v is not None),
                "factor": values.NUMBERS.filter(lambda v: v is not None),
                **axes,
                **whens,
            },
        ),
        (vd.Ablate, {"site": "z", "mode": "mean", "reference": clean}, {"reference": run, "factor": values.of(0.5)}),
        (
            vd.Ablate,
            {"site": "z", "mode": "scaled", "factor": 0.5},
            {"factor": values.NUMBERS, "reference": values.of(clean)},
        ),
        (
            vd.Patch,
            {"site": "z", "source": clean},
            {
                "site": sites,
                "source": run,
                "subspace": values.of("x", torch.ones(2, 2), torch.zeros(1, 12), torch.full((1, 12), NAN), 5),
                **axes,
            },
        ),
        (
            vd.Freeze,
            {"site": "z", "value": 1.0},
            {
                "value": values.of(
                    None, NAN, "1", torch.ones(2, 2, 2, 2, 2), torch.full((12,), NAN), torch.ones(5), True
                ),
                **axes,
            },
        ),
        (
            vd.Steer,
            {"site": "resid_post", "direction": torch.ones(20)},
            {
                "direction": values.of(None, torch.ones(3), torch.full((20,), NAN), "x", [1.0] * 20, torch.zeros(0)),
                "strength": values.NUMBERS,
            },
        ),
        (
            vd.MaskAttention,
            {"allow": "own_frame"},
            {
                "allow": values.of(
                    "nonsense",
                    allowed[:2],
                    True,
                    5,
                    (1, 2),
                    allowed.long(),
                    torch.zeros(n_tokens, n_tokens),
                    ~allowed,
                    np.ones((n_tokens, n_tokens)),
                    torch.full((n_tokens, n_tokens), NAN),
                ),
                "cut": values.of(([0], [99]), ([0],), ([0], [0]), "01", 5, ([True], [1]), ([], [1]), (["0"], [1])),
                "layers": values.INDICES,
                "heads": values.INDICES,
            },
        ),
        (
            vd.TransferAttention,
            {"source": clean},
            {"source": run, "layers": values.INDICES, "heads": values.INDICES, "frames": values.INDICES},
        ),
        (
            vd.RotateRope,
            {"axis": "frame"},
            {
                "axis": values.CHOICES,
                "way": values.CHOICES,
                "shift": values.NUMBERS,
                "seed": values.SEEDS,
                "layers": values.INDICES,
            },
        ),
        (
            vd.SetNoiseLevel,
            {"level": 0.7},
            {
                "level": values.of(700, NAN, "0.7", None, 5000, -7, True, torch.full((4,), 700.0), torch.ones(2, 2, 2)),
                "frames": values.INDICES,
            },
        ),
        (
            vd.SetCondition,
            {"action": torch.eye(3)[0]},
            {"action": values.of("x", torch.ones(7), torch.full((3,), NAN), 5, [1.0, 0, 0]), "frames": values.INDICES},
        ),
        (
            vd.Custom,
            {"site": "z", "function": lambda activation, hook: None},
            {"site": sites, "function": values.of(None, "x", 5), **axes},
        ),
    ]
    places = [(kind, good, argument, wrong[argument]) for kind, good, wrong in kinds for argument in wrong]

    @st.composite
    def draw(draw: Any) -> Case:
        kind, good, argument, strategy = draw(st.sampled_from(places))
        value = draw(strategy)
        shown = f"{type(value).__name__}{list(value.shape)}" if hasattr(value, "shape") else repr(value)[:60]
        # Levels and steps of an intervention are only known to a sampler; a mapping with NaN is found when it is used.
        return Case(f"{kind.__name__}({argument}={shown})", _applied(lambda: kind(**{**good, argument: value})))

    return draw()


def json_texts() -> st.SearchStrategy[Case]:
    """JSON of an intervention with something in it changed."""
    examples = [
        vd.Ablate("z", heads=[0], frames=range(1, 3)),
        vd.Steer("resid_post", torch.ones(20), 0.5),
        vd.MaskAttention("own_frame", layers=[1]),
        vd.RotateRope("frame", "permuted", seed=3),
        vd.Freeze("z", torch.ones(12)),
        vd.SetNoiseLevel(0.7),
    ]
    texts = [to_json([example]) for example in examples]
    junk = st.sampled_from(
        (
            None,
            "x",
            -1,
            1.5,
            True,
            [],
            {},
            [None],
            {"tensor": "", "dtype": "float32", "shape": [96]},
            10**30,
            {"tensor": "AAAA", "dtype": "float32", "shape": [10**12]},
            {"tensor": "AAAA", "dtype": "nonsense", "shape": [1]},
            {"tensor": "!!", "dtype": "float32", "shape": [1]},
            {"range": [0, 10**18, 1]},
            {"range": [0, 1, 0]},
        )
    )

    @st.composite
    def draw(draw: Any) -> Case:
        text = draw(st.sampled_from(texts))
        how = draw(st.sampled_from(("value", "cut", "key", "whole", "kind")))
        data = json.loads(text)
        if how == "cut":
            spoilt = text[: draw(st.integers(0, len(text) - 1))]
        elif how == "whole":
            spoilt = draw(
                st.sampled_from(
                    ("", "5", "null", '"z"', "{}", "[5]", "[[]]", "[{}]", '[{"kind": 5}]', "NaN", "[" * 5000)
                )
            )
        else:
            item = copy.deepcopy(data[0])
            if how == "kind":
                item["kind"] = draw(
                    st.sampled_from(("nonsense", "Intervention", "os.system", None, 5, [], "SiteIntervention"))
                )
            elif how == "key":
                item["nose"] = draw(junk)
            else:
                key = draw(st.sampled_from([key for key in item if key != "kind"]))
                item[key] = draw(junk)
                if _may(key, item[key]):
                    item[key] = "\0"
            spoilt = json.dumps([item])

        def call() -> Any:
            made = from_json(spoilt)
            with world.pipe().model.intervene(*made):
                return world.pipe().model(world.pair()[0], world.k(), world.action())

        return Case(f"from_json {how}: {spoilt[:90]}", call)

    return draw()


def _may(key: str, value: Any) -> bool:
    """What a changed value may well be: nothing, where that means all; a number for a number."""
    return (
        value is None
        or (key in ("level", "value", "strength", "shift") and isinstance(value, int | float))
        or (key == "seed" and value == 10**30)
    )
