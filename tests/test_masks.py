"""Masks as rules: the same numbers as masks made whole, and nothing N x N on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import planted
import pytest
import torch
from factories import inputs, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import vdinterp as vd
from vdinterp import mask as module
from vdinterp.analysis.heads._sinks import sinks
from vdinterp.interventions import MaskAttention, TransferAttention
from vdinterp.mask import Mask
from vdinterp.models import BlockSpec, Rope, query_keys

FRAMES, PER_FRAME = 16, 64  # 1,024 tokens
N = FRAMES * PER_FRAME
RULES = {
    "own frame": lambda: MaskAttention("own_frame"),
    "same position": lambda: MaskAttention("same_position", heads=[1]),
    "cut": lambda: MaskAttention(cut=([2], [0, 1])),
    "hidden": lambda: MaskAttention(hidden=[7, 9], heads=[0]),
    "given": lambda: MaskAttention(torch.rand(18, 18) + torch.eye(18) > 0.4, layers=[1]),
    "at levels": lambda: MaskAttention("own_frame", noise_levels=[0.9]),
    "two": lambda: MaskAttention("own_frame", cut=None, hidden=[8], heads=[1]),
}
LEVELS = torch.tensor([[0, 0.1, 0.9], [0.9, 0, 0.5]])


@pytest.fixture
def as_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small, and few queries are taken at a time."""
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1_000)
    monkeypatch.setattr(module, "LEAST", 1)


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (kind, rule)
        for kind in ("3d", "causal", "space_time")
        for rule in (None, *RULES)
        if kind != "space_time" or rule not in ("hidden", "given", "two")  # of 3d attention only
    ],
)
def test_rules_are_the_mask(kind: str, rule: str | None, request: pytest.FixtureRequest) -> None:
    given = inputs(tiny_model(kind))
    torch.manual_seed(0)
    interventions = [] if rule is None else [RULES[rule]()]
    stats = ["frame_mass", "sinks", "entropy"]

    def run() -> tuple[torch.Tensor, Any, dict[str, torch.Tensor]]:
        model = tiny_model(kind)  # of its own: a model keeps its mask
        pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig())
        with model.intervene(*interventions), model.record(["rot_q", "rot_k", "z", *stats]) as recording:
            pred = pipe.denoise(given["latents"], LEVELS, cond=given.get("cond"))
        cache = recording[0]
        patterns = {f"pattern {layer}": cache["pattern", layer].materialize() for layer in range(2)}
        received = {f"received {layer}": cache["pattern", layer].received() for layer in range(2)}
        rows = {f"rows {layer}": cache["pattern", layer].rows([1, 7, 17]) for layer in range(2)}
        masses = {f"mass {layer}": cache["pattern", layer].mass() for layer in range(2)}
        return pred, cache, {**cache.tensors, **patterns, **received, **rows, **masses}

    pred, whole, expected = run()
    request.getfixturevalue("as_rules")
    again, rules, found = run()
    close(again, pred)
    made = {name for name in expected if name.endswith("hook_mask")}
    assert made == set(rules.masks) and not set(whole.masks)
    for name, value in expected.items():
        close(rules[name] if name in made else found[name], value)


@torch.no_grad()
def test_a_hook_of_ones_own_gets_the_mask_whole(as_rules: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, shapes = tiny_model("causal"), inputs(tiny_model("causal")), []
    look = [("mask", lambda mask, hook: shapes.append(mask.shape))]
    with model.intervene(MaskAttention("own_frame")):
        seen = model.run_with_hooks(**given, fwd_hooks=look)
    assert shapes == [(1, 1, 18, 18)] * 2
    with model.intervene(MaskAttention("own_frame")):
        close(model(**given), seen)
    monkeypatch.setattr("vdinterp.models.memory.available_memory", lambda device: 500)
    with pytest.raises(MemoryError, match=r"hook_mask, whole would take 324 bytes"):
        model.run_with_hooks(**given, fwd_hooks=look)


@torch.no_grad()
def test_rules_travel_with_the_attention_and_with_clips(as_rules: None, tmp_path: Any) -> None:
    model, given = tiny_model("causal"), inputs(tiny_model("causal"))
    model.set_hook_ctx(noise_levels=LEVELS)
    with model.intervene(MaskAttention("own_frame", heads=[1], noise_levels=[0.9])):
        pred, cache = model.run_with_cache(**given)
    model.clear_hook_ctx()
    assert ("mask", 0) in cache and cache["mask", 0].dtype == torch.bool
    with model.intervene(TransferAttention(cache), vd.interventions.Patch("v", cache)):
        close(model(**given), pred)
    close(cache[1:]["pattern", 1].materialize(), cache["pattern", 1].materialize()[1:])
    cache.save(tmp_path / "kept")
    close(
        vd.ActivationCache.load(tmp_path / "kept", model)["pattern", 1].materialize(),
        cache["pattern", 1].materialize(),
    )


def test_no_key_is_left() -> None:
    assert not Mask.by("apart", torch.ones(1, 4).bool(), torch.ones(1, 4).bool()).allowed().any()
    own = Mask.by("own", torch.arange(4)[None], torch.tensor([[-1, 1, -1, -1]])).whole()[0, 0, 0]
    assert own.tolist() == [[True, False, True, True], [True] * 4, [True, False, True, True], [True, False, True, True]]


class Largest(TorchDispatchMode):
    """The most bytes that any one tensor made inside the block holds."""

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor):
                self.nbytes = max(self.nbytes, one.untyped_storage().nbytes())
        return made


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[vd.VideoDiffusion]:
    """A clip of 1,024 tokens, with bounds as much smaller than the usual ones."""
    monkeypatch.setattr(module, "SMALL", 2**10)
    monkeypatch.setattr(module, "CHUNK_BYTES", 2**16)
    monkeypatch.setattr(query_keys, "CHUNK_BYTES", 2**17)
    sizes = {"n_frames": FRAMES, "height": 8, "width": 8, "n_layers": 1, "d_head": 16, "rope": {"3d": Rope((4, 6, 6))}}
    yield planted.pipe(period=(BlockSpec(causal_block=1),), **sizes)


@torch.no_grad()
def test_nothing_as_large_as_a_pattern_is_made(large: vd.VideoDiffusion) -> None:
    video = torch.rand(1, FRAMES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clips = vd.data.Clips(kind="file", video=video)
    noised = vd.NoisedClips(large, clips, n_context=8)
    noised.reliability  # noqa: B018  # of its own, before anything is counted
    model, given = large.model, inputs(large.model, batch=1)
    with Largest() as dense:
        model.run_with_hooks(**given, fwd_hooks=[("mask", lambda mask, hook: mask & True)])
    assert dense.nbytes >= N * N
    cases = {
        "causal": lambda: model(**given),
        "own frame": lambda: _under(model, MaskAttention("own_frame"), given),
        "same position": lambda: _under(model, MaskAttention("same_position", heads=[1]), given),
        "cut": lambda: _under(model, MaskAttention(cut=([3, 4], [0])), given),
        "hidden": lambda: _under(model, MaskAttention(hidden=[70]), given),
        "uniform": lambda: noised.uniform_pattern(0).frame_mass(),
        "received": lambda: noised.uniform_pattern(0).received(),
        "statistics": lambda: model.run_with_stats(**given, stats=["sinks", "entropy", "frame_mass"]),
        "sinks": lambda: sinks(noised),
    }
    for name, run in cases.items():
        with Largest() as counted:
            run()
        assert counted.nbytes < N * N, name


def _under(model: Any, intervention: Any, given: dict[str, Any]) -> torch.Tensor:
    with model.intervene(intervention):
        return model(**given)
