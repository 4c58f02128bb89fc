"""Run by test_hooks.py in a process without the suite's shape checks, which torch.compile cannot trace through."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from factories import inputs, tiny_model


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    model = tiny_model()
    given = inputs(model)
    bare = model(**given)
    fired: list[str] = []
    zero = [("blocks.0.attn.hook_z", lambda z, hook: (fired.append(hook.name), z * 0)[1])]
    wanted = model.run_with_hooks(**given, fwd_hooks=zero)
    fired.clear()

    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(**given), bare)  # compiled before there is any hook
    for _ in range(2):
        with warnings.catch_warnings(record=True) as said, model.hooks(zero):
            warnings.simplefilter("always")
            assert torch.equal(compiled(**given), wanted)
        assert any("uncompiled" in str(warning.message) for warning in said)
        assert torch.equal(compiled(**given), bare)
    assert len(fired) == 2
    with warnings.catch_warnings(), model.record("z") as recording:
        warnings.simplefilter("ignore")
        compiled(**given)
        compiled(**given)
    assert list(recording) == [0, 1] and all(len(cache) == 2 for cache in recording.values())
    assert torch.equal(compiled(**given), bare)
    print("compiled, hooked, recorded")
    parts(bare, wanted)


def parts(bare: torch.Tensor, wanted: torch.Tensor) -> None:
    """Blocks or sublayers compiled by themselves: hooked calls run without, and say so."""

    def whole_block(model: Any) -> None:
        model.blocks[0].compile(backend="eager")

    def wrapped(model: Any) -> None:
        model.blocks[0] = torch.compile(model.blocks[0], backend="eager")

    def sublayer(model: Any) -> None:
        model.blocks[0].attn = torch.compile(model.blocks[0].attn, backend="eager")

    def method(model: Any) -> None:
        model.blocks[0].forward = torch.compile(model.blocks[0].forward, backend="eager")

    for compiling in (whole_block, wrapped, sublayer, method):
        model = tiny_model()
        given = inputs(model)
        _, clean = model.run_with_cache(**given)
        compiling(model)
        assert torch.equal(model(**given), bare)
        site = "blocks.0.attn.hook_z"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pred, cache = model.run_with_cache(**given)
            assert torch.equal(pred, bare) and all(torch.equal(cache[name], clean[name]) for name in clean)
            assert torch.equal(model.run_with_hooks(**given, fwd_hooks=[(site, lambda z, hook: z * 0)]), wanted)
            model.add_hook(site, lambda z, hook: z * 0)
            assert torch.equal(model(**given), wanted)
        assert sum("blocks.0" in str(warning.message) and "uncompiled" in str(warning.message) for warning in said) == 3
        model.reset_hooks()
        assert torch.equal(model(**given), bare)
    print("parts compiled, hooked")


if __name__ == "__main__":
    main()
