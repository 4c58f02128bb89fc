"""What hooks leave behind and whom they reach: not the live pass, not another call, not another thread."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from factories import KINDS, inputs, tiny_model
from torch.utils.checkpoint import checkpoint

from vdinterp import Ablate, Between, DiffusionConfig, VideoDiffusion
from vdinterp.models import HookedVideoDiT
from vdinterp.models.components import Given

Z = "blocks.0.attn.hook_z"


def tiny_pipe(model: HookedVideoDiT) -> VideoDiffusion:
    return VideoDiffusion(model, None, DiffusionConfig())


# Storage


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_hook_only_looks_at_is_its_own(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    bare, clean = model.run_with_cache(**given)
    store: dict[str, torch.Tensor] = {}

    def save(activation: torch.Tensor, hook: Any) -> None:
        store[hook.name] = activation

    def same(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        store[hook.name] = activation
        return activation

    def spoil(activation: torch.Tensor, hook: Any) -> None:
        for tensor in store.values():
            tensor.zero_()

    eager = [name for name, point in model.hook_dict.items() if not point.lazy]
    for look in (save, same):
        store.clear()
        with model.hooks([(eager, look), (eager, spoil)]):
            pred, cache = model.run_with_cache(**given)
        spoil(pred, None)
        assert torch.equal(pred, bare)
        assert all(torch.equal(cache[name], clean[name]) for name in clean)


def test_what_a_hook_keeps_has_gradients_and_is_its_own() -> None:
    model = tiny_model()
    given = inputs(model)
    kept: list[torch.Tensor] = []

    def keep(z: torch.Tensor, hook: Any) -> None:
        z.retain_grad()
        kept.append(z)

    def spoil(z: torch.Tensor, hook: Any) -> None:
        kept[0].detach().zero_()

    with model.hooks([(Z, keep), (Z, spoil), ("blocks.1.attn.hook_z", spoil)]):
        pred = model(**given)
    pred.sum().backward()
    assert torch.equal(pred, model(**given)) and kept[0].grad is not None and kept[0].grad.abs().max() > 0


@torch.no_grad()
def test_edits_that_leave_no_version_count() -> None:
    model = tiny_model()
    given = inputs(model)
    wanted = model.run_with_hooks(**given, fwd_hooks=[("z", lambda z, hook: z * 0)])
    edits: tuple[Any, ...] = (lambda z, hook: (z.data.zero_(), None)[1], lambda z, hook: z.numpy().fill(0))
    for edit in edits:
        assert torch.equal(model.run_with_hooks(**given, fwd_hooks=[("z", edit)]), wanted)
    with model.hooks([("blocks.0.attn.hook_pattern", lambda p, hook: (p.data.mul_(2), None)[1])]):
        _, cache = model.run_with_cache(**given)
    with pytest.raises(ValueError, match="A hook changed"):
        cache["pattern", 0]


# Calls


@torch.no_grad()
def test_caching_hooks_are_of_one_call() -> None:
    model = tiny_model()
    given, other = inputs(model, seed=1), inputs(model, seed=2)
    _, clean = model.run_with_cache(**given, names="z")
    cache = model.add_caching_hooks("z")
    again = model.add_caching_hooks("z")
    model(**given)
    with pytest.raises(ValueError, match="of another call"):
        model(**other)
    assert torch.equal(cache[Z], clean[Z]) and torch.equal(again[Z], clean[Z]) and cache[Z] is not again[Z]
    cache.clear(), again.clear()
    model(**other)
    assert len(cache) == 2 and not torch.equal(cache[Z], clean[Z])
    model.reset_hooks()

    cache, forward, _ = model.get_caching_hooks("z")
    with model.hooks(forward):
        model(**given)
        with pytest.raises(ValueError, match="of another call"):
            model(**other)
    assert torch.equal(cache[Z], clean[Z])


@torch.no_grad()
def test_a_hook_that_calls_the_model() -> None:
    model = tiny_model()
    given, other = inputs(model, seed=1), inputs(model, seed=2)
    clean, inner = model.run_with_cache(**given)[1], model.run_with_cache(**other)[1]
    inside: list[bool] = []

    def calls(z: torch.Tensor, hook: Any) -> None:
        if not inside:
            inside.append(True)
            model(**other)
            inside.pop()

    def equal(one: Any, two: Any) -> bool:
        return len(one) == len(two) and all(torch.equal(one[name], two[name]) for name in two)

    with model.hooks([(Z, calls)]):
        assert equal(model.run_with_cache(**given)[1], clean)
        with model.record() as recording:
            model(**given)
            model.forward(**given)
    assert [equal(cache, wanted) for cache, wanted in zip(recording.values(), [clean, inner] * 2, strict=True)] == [
        True
    ] * 4


def test_gradients_of_a_call_that_a_hook_makes_are_its_own() -> None:
    model = tiny_model()
    given, other = inputs(model, seed=1), inputs(model, seed=2)
    square = lambda pred: pred.square().sum()  # noqa: E731
    inside: list[torch.Tensor] = []

    def adds(out: torch.Tensor, hook: Any) -> torch.Tensor:
        if not inside:
            inside.append(out)
            return out + 0 * model(**other).sum()
        return out

    _, clean = model.run_with_cache(**given, incl_bwd=True, loss=square)
    with model.hooks([("blocks.1.hook_attn_out", adds)]):
        _, cache = model.run_with_cache(**given, incl_bwd=True, loss=square)
    for name in (Z, f"{Z}_grad", "hook_noise_embed_grad", "hook_pred_grad", "blocks.1.attn.hook_rot_q_grad"):
        torch.testing.assert_close(cache[name], clean[name], atol=1e-6, rtol=1e-4)


def test_a_hook_that_calls_the_model_in_the_backward_pass() -> None:
    model = tiny_model()
    given = inputs(model)
    wanted = model.run_with_cache(**given, names="z")[1]
    found: list[torch.Tensor] = []

    def calls(grad: torch.Tensor, hook: Any) -> None:
        found.append(model.run_with_cache(**given, names="z")[1][Z])

    with model.hooks(bwd_hooks=[("hook_pred", calls)]):
        model(**given).sum().backward()
    assert torch.equal(found[0], wanted[Z])


@torch.no_grad()
def test_a_block_called_by_itself_is_no_call() -> None:
    model = tiny_model()
    with pytest.warns(UserWarning, match="never fired"), model.record("resid_post") as recording:
        x = torch.randn(2, 18, 20)
        grid = model.grid()
        model.blocks[0](x, Given(torch.randn(2, 3, 20), grid, None, {"3d": model.rope["3d"](grid, x)}, None, None))
    assert not recording


# Threads


def together(*works: Callable[[], None]) -> None:
    """Run at once on a thread each; raise what any of them raised."""
    failed: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait()
            with torch.no_grad():
                work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@torch.no_grad()
def test_threads_have_hooks_of_their_own() -> None:
    model = tiny_model("space_time")
    given = inputs(model)
    scaled = [Ablate("z", "scaled", factor=factor) for factor in (0.0, 0.5, 2.0)]
    bare = model(**given)
    wanted = []
    for ablation in scaled:
        with model.intervene(ablation):
            wanted.append(model.run_with_cache(**given, names="resid_post"))

    def hooked(which: int) -> None:
        for _ in range(4):
            with model.intervene(scaled[which]):
                pred, cache = model.run_with_cache(**given, names="resid_post")
            assert torch.equal(pred, wanted[which][0])
            assert torch.equal(cache["resid_post", 0], wanted[which][1]["resid_post", 0])

    def untouched() -> None:
        for _ in range(12):
            assert torch.equal(model(**given), bare)

    together(lambda: hooked(0), lambda: hooked(1), lambda: hooked(2), untouched)
    assert not model.has_live_hooks

    model.add_hook("z", lambda z, hook: z * 0.5)  # an added hook is the model's, for every thread

    def added() -> None:
        assert torch.equal(model(**given), wanted[1][0])

    together(added, added)
    model.reset_hooks()


def test_threads_may_sample_at_once() -> None:
    pipe = tiny_pipe(tiny_model())
    contexts = [torch.randn(1, 1, 2, 4, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    early = [Ablate("z", steps=[0], noise_levels=Between(0.6, 1)), None, Ablate("z", steps=[1])]

    def sample(i: int) -> torch.Tensor:
        acting = [] if early[i] is None else [early[i]]
        return pipe.sample(contexts[i], steps=2, seed=i, interventions=acting, record=["z"]).latents

    wanted = [sample(i) for i in range(3)]

    def check(i: int) -> None:
        for _ in range(2):
            assert torch.equal(sample(i), wanted[i])

    together(*(lambda i=i: check(i) for i in range(3)))


@torch.no_grad()
def test_the_context_is_a_threads_own() -> None:
    model = tiny_model()
    point = model.hook_dict[Z]
    model.set_hook_ctx(step=1)
    point.ctx["mine"] = 5
    with model.hook_ctx(step=2, partition="frame"):
        assert point.ctx["step"] == 2
        with model.hook_ctx(step=3):
            assert point.ctx["step"] == 3
        together(lambda: pytest.fail("seen") if dict(point.ctx) else None)
    assert dict(point.ctx) == {"step": 1, "mine": 5}
    model.clear_hook_ctx("step")
    assert dict(point.ctx) == {"mine": 5}
    model.reset_hooks()
    assert not dict(point.ctx)


@torch.no_grad()
def test_copies_are_made_without_a_blocks_hooks() -> None:
    model = tiny_model()
    given = inputs(model)
    bare = model(**given)
    with model.intervene(Ablate("z")):
        model(**given)
        twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert all(torch.equal(twin(**given), bare) for twin in twins)
    with twins[0].intervene(Ablate("z")):
        assert not torch.equal(twins[0](**given), bare) and torch.equal(model(**given), bare)


def test_blocks_in_an_exit_stack_and_by_hand() -> None:
    model = tiny_model()
    with ExitStack() as stack:
        assert stack.enter_context(model.hooks([(Z, lambda z, hook: None)])) is model
        assert model.has_live_hooks
        model(**inputs(model))
    assert not model.has_live_hooks
    block = model.intervene(Ablate("z"))
    assert block.__exit__ is not None  # looking is not entering
    block.__enter__()
    assert model.has_live_hooks and Z in model.list_hooks()
    model(**inputs(model))
    block.__exit__(None, None, None)
    assert not model.has_live_hooks and not model.list_hooks()
    with model.hooks([(Z, lambda z, hook: None)]):
        model(**inputs(model))
        model.reset_hooks()
        assert not model.has_live_hooks


# What hooks return, and whether they are any


def test_what_is_no_hook_is_refused_at_once() -> None:
    model = tiny_model()
    given = inputs(model)
    for name in (None, 5, -1, 1.5, b"z", [None], [5]):
        with pytest.raises(ValueError, match="is no hook name"):
            model.add_hook(name, lambda z, hook: None)
        with pytest.raises(ValueError, match="is no hook name"):
            model.resolve_names(name)
    for function in (5, "z", None, lambda z: z, lambda z, hook, more: z, lambda z, point: z):
        with pytest.raises(ValueError, match=r"a hook is a function \(activation, hook\)"):
            model.add_hook(Z, function)
        with pytest.raises(ValueError, match=r"a hook is a function \(activation, hook\)"):
            model.run_with_hooks(**given, fwd_hooks=[(Z, function)])
    with pytest.raises(ValueError, match="list of pairs"):
        model.run_with_hooks(**given, fwd_hooks=(Z, lambda z, hook: z))
    assert not model.has_live_hooks

    for change, message in (
        (lambda z, hook: z.to("meta"), "a tensor on meta"),
        (lambda z, hook: z.long(), "int64"),
        (lambda z, hook: z + 0j, "complex64"),
    ):
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(**given, fwd_hooks=[(Z, change)])


@torch.no_grad()
def test_nan_is_said_once_and_of_the_hook_that_made_it() -> None:
    model = tiny_model()
    given = inputs(model)
    look, double = (lambda z, hook: None), (lambda z, hook: z * 2)
    broken = [(Z, lambda z, hook: z / 0 * 0), ("blocks.1.attn.hook_z", double), ("blocks.1.hook_resid_post", look)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with model.hooks(broken):
            model(**given), model(**given)
        with pytest.raises(ValueError, match="latents hold NaN"):  # the caller's own
            model.run_with_hooks(**dict(given, latents=given["latents"] * torch.nan), fwd_hooks=[(Z, double)])
    assert [str(one.message) for one in said] == [f"The hook on {Z} returned NaN, which the network went on with"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_needs_the_hooks_in_the_backward_pass(reentrant: bool) -> None:
    def saving(run: Any, x: torch.Tensor, given: Given, known: Any) -> torch.Tensor:
        # The reentrant kind follows only tensors that it is handed one by one.
        return checkpoint(
            lambda x, cond: run(x, replace(given, cond=cond), known), x, given.cond, use_reentrant=reentrant
        )

    def gradient(checkpointed: bool, inside: bool = True, elsewhere: bool = False) -> torch.Tensor:
        model = tiny_model()
        given = inputs(model)
        latents = given["latents"].requires_grad_()
        for block in model.blocks if checkpointed else ():
            block.forward = partial(saving, block.forward)
        with model.hooks([(Z, lambda z, hook: torch.where(z > 0, z * 3, z))]):
            loss = model(**given).square().sum()
            if elsewhere:  # as on a GPU, whose backward pass has a thread of its own
                worker = threading.Thread(target=loss.backward)
                worker.start(), worker.join()
            elif inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert latents.grad is not None
        return latents.grad

    torch.testing.assert_close(gradient(True), gradient(False))
    torch.testing.assert_close(gradient(True, elsewhere=True), gradient(False))
    with pytest.warns(UserWarning, match="under activation checkpointing"):
        try:
            gradient(True, inside=False)
        except RuntimeError:  # PyTorch may notice, too
            assert not reentrant
