"""Run by test_hooks.py in a process without the suite's shape checks, which torch.compile cannot trace through."""

from __future__ import annotations

import warnings

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


if __name__ == "__main__":
    main()
