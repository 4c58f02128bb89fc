"""Hook names, and hook functions that do what they should not."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

import vdinterp as vd
from fuzz import values, world
from fuzz.harness import Case

RETURNS: dict[str, Any] = {
    "another shape": lambda a: a[:, :1],
    "float64": lambda a: a.double(),
    "whole numbers": lambda a: a.long(),
    "complex": lambda a: a.to(torch.complex64),
    "a list": lambda a: a.tolist(),
    "an array": lambda a: a.detach().numpy(),
    "a pair": lambda a: (a, a),
    "a number": lambda a: 3.0,
    "True": lambda a: True,
    "nothing of it": lambda a: a[:0],
    "an axis more": lambda a: a[None],
    "a word": lambda a: "z",
    "on meta": lambda a: a.to("meta"),
}


def hooks() -> st.SearchStrategy[Case]:
    return _names() | _returns() | _functions()


def _names() -> st.SearchStrategy[Case]:
    model, given = world.pipe().model, (world.pair()[0], world.k(), world.action())
    look = lambda activation, hook: None  # noqa: E731
    doors: dict[str, Any] = {
        "run_with_hooks": lambda name: model.run_with_hooks(*given, fwd_hooks=[(name, look)]),
        "add_hook": lambda name: model.add_hook(name, look),
        "hooks": lambda name: model.hooks(fwd_hooks=[(name, look)]).__enter__(),
        "run_with_cache": lambda name: model.run_with_cache(*given, names=name),
        "resolve_names": lambda name: model.resolve_names(name),
        "add_caching_hooks": lambda name: model.add_caching_hooks(name),
    }

    @st.composite
    def draw(draw: Any) -> Case:
        door = draw(st.sampled_from(sorted(doors)))
        name = draw(values.HOOK_NAMES)
        may_be_none = name is None and door in ("run_with_cache", "add_caching_hooks")
        if may_be_none:
            name = "zz"
        return Case(f"{door}({name!r})", lambda: doors[door](name))

    return draw()


def _returns() -> st.SearchStrategy[Case]:
    model, given = world.pipe().model, (world.pair()[0], world.k(), world.action())

    @st.composite
    def draw(draw: Any) -> Case:
        what = draw(st.sampled_from(sorted(RETURNS)))
        site = draw(st.sampled_from(("z", "resid_post", "mlp.hook_post", "hook_cond", "pattern", "result")))
        custom = draw(st.booleans())

        def function(activation: torch.Tensor, hook: Any) -> Any:
            return RETURNS[what](activation)

        def call() -> Any:
            if custom:
                with model.intervene(vd.Custom(site, function)):
                    return model(*given)
            return model.run_with_hooks(*given, fwd_hooks=[(site, function)])

        return Case(f"a hook on {site} returns {what}{' (Custom)' if custom else ''}", call, in_pass=True)

    return draw()


def _functions() -> st.SearchStrategy[Case]:
    model, given = world.pipe().model, (world.pair()[0], world.k(), world.action())
    functions = {
        "None": None,
        "a word": "zero",
        "a tensor": torch.zeros(3),
        "a number": 5,
        "no arguments": lambda: None,
        "one argument": lambda activation: None,
    }

    @st.composite
    def draw(draw: Any) -> Case:
        what = draw(st.sampled_from(sorted(functions)))
        door = draw(st.sampled_from(("run_with_hooks", "Custom", "add_hook")))

        def call() -> Any:
            if door == "Custom":
                with model.intervene(vd.Custom("z", functions[what])):
                    return model(*given)
            if door == "add_hook":
                model.add_hook("z", functions[what])
                return model(*given)
            return model.run_with_hooks(*given, fwd_hooks=[("z", functions[what])])

        return Case(f"{door} with {what} as function", call)

    return draw()
