"""Hook points: their names, that they are inert, and that every silent failure of the class below speaks up here."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from factories import KINDS, inputs, tiny_model
from torch import nn
from transformer_lens.hook_points import HookPoint as TransformerLensHookPoint

from vdinterp.models import HookedVideoDiT
from vdinterp.models.hook_names import match_alias
from vdinterp.models.hooks import HookedRootModule
from vdinterp.models.scopes import Scopes

NAMES = Path(__file__).parent / "hook_names"


def identity(activation: torch.Tensor, hook: object) -> torch.Tensor:
    return activation


def zeroed(activation: torch.Tensor, hook: object) -> None:
    activation.zero_()


def raised(activation: torch.Tensor, hook: object) -> None:
    activation.add_(1)


def eager_points(model: HookedVideoDiT) -> list[str]:
    return [name for name, point in model.hook_dict.items() if not point.lazy]


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_names(kind: str) -> None:
    """Names are a promise to users; if one changes on purpose, change the file with it."""
    assert tiny_model(kind).hook_names == (NAMES / f"{kind}.txt").read_text().splitlines()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_are_inert(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    bare = model(**given)
    hooked = model.run_with_hooks(**given, fwd_hooks=[(eager_points(model), identity)])
    cached, _ = model.run_with_cache(**given)
    results, _ = model.run_with_cache(**given, names="result")
    assert torch.equal(hooked, bare) and torch.equal(cached, bare) and torch.equal(results, bare)
    explicit = model.run_with_hooks(**given, fwd_hooks=[(model.hook_names, identity)])
    everything, _ = model.run_with_cache(**given, names=model.hook_names)
    assert torch.equal(explicit, everything)
    torch.testing.assert_close(explicit, bare, atol=1e-5, rtol=0)
    assert bare.std() > 1e-2  # not a model whose gates hide everything


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_matters(kind: str) -> None:
    """Changing any one activation changes the prediction: no hook is decoration."""
    model = tiny_model(kind)
    given = inputs(model)
    bare = model(**given)
    for name in model.hook_names:
        if model.hook_dict[name].read_only:
            continue  # a statistic
        if name.endswith("hook_mask"):
            edit = lambda mask, hook: mask & torch.ones_like(mask).tril()  # noqa: E731
        else:
            edit = lambda x, hook: x * 1.5 + torch.linspace(0, 1, x.shape[-1])  # noqa: E731
        changed = model.run_with_hooks(**given, fwd_hooks=[(name, edit)])
        if name.endswith("hook_mask") and kind == "space_time" and ".1." in name:
            continue  # one place over time is causal already: tril() changes nothing there
        assert not torch.allclose(changed, bare, atol=1e-6), name


def test_hooks_work_in_inference_mode() -> None:
    def zero(z: torch.Tensor, hook: object) -> None:
        z.mul_(0)

    model = tiny_model()
    given = inputs(model)
    with torch.inference_mode():
        bare = model(**given)
        looked = model.run_with_hooks(**given, fwd_hooks=[("z", lambda z, hook: None)])
        edited = model.run_with_hooks(**given, fwd_hooks=[("z", zero)])
    assert torch.equal(looked, bare) and not torch.equal(edited, bare)


def test_hooks_go_away() -> None:
    model = tiny_model()
    given = inputs(model)

    def broken(activation: torch.Tensor, hook: object) -> None:
        raise RuntimeError("mine")

    def interrupted(activation: torch.Tensor, hook: object) -> None:
        raise KeyboardInterrupt

    for function, error in ((broken, RuntimeError), (interrupted, KeyboardInterrupt)):
        with pytest.raises(error):
            model.run_with_hooks(**given, fwd_hooks=[("z", function)])
        assert not model.has_live_hooks
        with pytest.raises(error), model.record("z"), model.hooks([("q", function)]):
            model(**given)
        assert not model.has_live_hooks and not model._forward_pre_hooks

    outer: list[str] = []
    with model.hooks([("blocks.0.attn.hook_z", lambda x, hook: outer.append(hook.name))]):
        with model.hooks([("blocks.1.attn.hook_z", identity)]):
            model(**given)
        assert model.blocks[0].attn.hook_z.is_hooked and not model.blocks[1].attn.hook_z.is_hooked
        model.run_with_cache(**given)
        model(**given)
    assert len(outer) == 3 and not model.has_live_hooks


def test_contexts_may_end_in_any_order_and_kept_hooks_stay() -> None:
    model = tiny_model()
    given = inputs(model)
    first, second = model.hooks([("blocks.0.attn.hook_z", identity)]), model.hooks([("blocks.1.attn.hook_z", identity)])
    first.__enter__()
    second.__enter__()
    model(**given)
    first.__exit__(None, None, None)
    assert model.blocks[1].attn.hook_z.is_hooked and not model.blocks[0].attn.hook_z.is_hooked
    second.__exit__(None, None, None)
    assert not model.has_live_hooks

    fired: list[str] = []
    with model.hooks([("blocks.0.attn.hook_z", lambda x, hook: fired.append(hook.name))], reset_hooks_end=False):
        pass
    model.run_with_cache(**given)
    model(**given)
    assert len(fired) == 2
    model.reset_hooks()
    assert not model.has_live_hooks


def test_names_are_looked_up_not_searched_for() -> None:
    model = tiny_model("cross")
    for alias in ("z", "attn.z", "hook_z", ".z", "mod.gate", "attn.mod.gate", "hook_pred", "pred", *model.hook_names):
        assert model.resolve_names(alias) == match_alias(alias, model.hook_names)
    assert model.resolve_names(["z", "attn.z", "q"]) == [
        *match_alias("z", model.hook_names),
        *match_alias("q", model.hook_names),
    ]


@torch.no_grad()
def test_a_hook_point_asks_for_open_blocks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python between layers is what hooks cost a small model."""
    model, asked = tiny_model(), []
    found = Scopes.of_thread
    with model.record() as recording:
        monkeypatch.setattr(Scopes, "of_thread", lambda self, opened: asked.append(1) or found(self, opened))
        model(**inputs(model))
    assert len(recording) == 1 and len(asked) <= 2 * len(model.hook_dict)
    asked.clear()
    model(**inputs(model))
    assert len(asked) == 1, "of the whole call, where none is open"


def test_aliases_and_predicates() -> None:
    model = tiny_model("cross")
    assert model.resolve_names("attn.z") == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    assert len(model.resolve_names("z")) == 4
    assert model.resolve_names("blocks.1.mlp.post") == ["blocks.1.mlp.hook_post"]
    assert model.resolve_names(lambda name: name.endswith("pred")) == ["hook_pred"]
    assert model.resolve_names(["pred", "hook_pred"]) == ["hook_pred"]


def test_context_reaches_hooks() -> None:
    model = tiny_model()
    seen: list[object] = []
    model.set_hook_ctx(step=4)
    model.run_with_hooks(**inputs(model), fwd_hooks=[("hook_pred", lambda x, hook: seen.append(hook.ctx["step"]))])
    model.clear_hook_ctx()
    model.run_with_hooks(**inputs(model), fwd_hooks=[("hook_pred", lambda x, hook: seen.append(hook.ctx.get("step")))])
    assert seen == [4, None]


# Gradients


def test_cached_gradients_are_autograds() -> None:
    model = tiny_model("normed")
    given = inputs(model)
    _, cache = model.run_with_cache(**given, incl_bwd=True, loss=lambda pred: pred.square().mean())
    kept: dict[str, torch.Tensor] = {}

    def capture(activation: torch.Tensor, hook: object) -> torch.Tensor:
        activation.retain_grad()
        kept[hook.name] = activation
        return activation

    with model.hooks([(eager_points(model), capture)]):
        model(**given).square().mean().backward()
    assert len(kept) == len(eager_points(model))
    for name, activation in kept.items():
        assert activation.grad is not None and activation.grad.abs().max() > 0, name
        torch.testing.assert_close(cache[f"{name}_grad"], activation.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(cache["z_grad", 1], kept["blocks.1.attn.hook_z"].grad)


def test_backward_hooks_look_and_change() -> None:
    model = tiny_model()
    given = inputs(model)
    given["latents"].requires_grad_()

    def gradient(bwd_hooks: list, fwd_hooks: list = []) -> torch.Tensor:  # noqa: B006
        given["latents"].grad = None
        with model.hooks(fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks):
            model(**given).sum().backward()
        assert given["latents"].grad is not None
        return given["latents"].grad.clone()

    bare = gradient([])
    site = "blocks.0.hook_resid_post"
    assert torch.equal(gradient([(site, lambda grad, hook: None)]), bare)
    assert gradient([(site, lambda grad, hook: grad * 0)]).abs().max() == 0
    assert gradient([(site, lambda grad, hook: (grad * 0,))]).abs().max() == 0
    assert gradient([(site, zeroed)]).abs().max() == 0
    # a backward hook that only looks leaves a forward hook's own factor in the gradient
    doubled = [(site, lambda x, hook: 2 * x)]
    assert torch.equal(gradient([(site, lambda grad, hook: None)], doubled), gradient([], doubled))

    with pytest.raises(ValueError, match="removed before any backward"):
        model.run_with_hooks(**given, bwd_hooks=[(site, identity)])
    with pytest.raises(ValueError, match="go together"):
        model.run_with_cache(**given, incl_bwd=True)
    with pytest.raises(ValueError, match="one number"):
        model.run_with_cache(**given, incl_bwd=True, loss=lambda pred: pred)


def test_inference_mode_first_then_training() -> None:
    model = tiny_model()
    with torch.inference_mode():
        model(**inputs(model))
    model(**inputs(model)).sum().backward()


# What TransformerLens's own class lets pass in silence, and ours does not


class Theirs(HookedRootModule):
    """Two hook points on TransformerLens's class as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.hook_a, self.hook_b = TransformerLensHookPoint(), TransformerLensHookPoint()
        self.setup()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.hook_b(self.hook_a(x)))


def test_a_mistyped_name() -> None:
    theirs, model = Theirs(), tiny_model()
    assert theirs.run_with_cache(torch.ones(1, 4), names_filter="hook_typo")[1] == {}  # silent
    for wrong in ("blocks.0.attn.hook_zz", "patern", lambda name: "typo" in name):
        with pytest.raises(KeyError):
            model.run_with_cache(**inputs(model), names=wrong)
        with pytest.raises(KeyError), model.hooks([(wrong, identity)]):
            pass
        with pytest.raises(KeyError):
            model.add_hook(wrong, identity)
        with pytest.raises(KeyError):
            model.add_caching_hooks(wrong)
        with pytest.raises(KeyError):
            model.get_caching_hooks(wrong)
    with pytest.raises(KeyError, match="'pattern'"):
        model.resolve_names("patern")
    with pytest.raises(KeyError, match=r"ln\.scale.*mod\.scale"):
        model.resolve_names("scale")
    with pytest.raises(KeyError, match="empty list"):
        model.resolve_names([])
    assert not model.has_live_hooks


def test_a_hook_that_never_fired() -> None:
    theirs, model = Theirs(), tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with theirs.hooks([("hook_a", identity)]):
            pass  # silent
    with (
        pytest.warns(UserWarning, match=r"never fired: blocks\.0\.attn\.hook_z"),
        model.hooks([("blocks.0.attn.hook_z", identity)]),
    ):
        pass
    with pytest.warns(UserWarning, match="never fired"), model.hooks(bwd_hooks=[("hook_pred", identity)]):
        model(**inputs(model))


def test_a_wrong_shaped_return() -> None:
    theirs, model = Theirs(), tiny_model()
    theirs.run_with_hooks(torch.ones(3, 4), fwd_hooks=[("hook_a", lambda x, hook: x[:1])])  # silent, broadcast
    given = inputs(model)
    for function, message in (
        (lambda x, hook: x[:1], "returned shape"),
        (lambda x, hook: x.mean(1, keepdim=True), "returned shape"),
        (lambda x, hook: 3.0, "returned float"),
        (lambda x, hook: x.double(), "float64"),
    ):
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(**given, fwd_hooks=[("blocks.0.hook_resid_post", function)])
    with pytest.raises(ValueError, match="does not broadcast"):
        wide = lambda mask, hook: mask.expand(7, 1, -1, -1)  # noqa: E731
        model.run_with_hooks(**given, fwd_hooks=[("mask", wide)])
    with pytest.raises(ValueError, match="without any key"):
        model.run_with_hooks(**given, fwd_hooks=[("mask", lambda mask, hook: mask & False)])


@torch.no_grad()
def test_shared_storage() -> None:
    theirs = Theirs()
    x = torch.ones(1, 4)
    with theirs.hooks([("hook_b", lambda a, hook: a.zero_())]):
        theirs(x)
    assert x.sum() == 0  # silent: the caller's own input

    for kind in KINDS:
        model = tiny_model(kind)
        given = inputs(model)
        before = {name: tensor.clone() for name, tensor in given.items()}
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        _, clean = model.run_with_cache(**given)
        edited = "blocks.1.hook_resid_pre"
        spoil = [(edited, zeroed)]
        with model.hooks(spoil):
            _, spoilt = model.run_with_cache(**given)
        assert torch.equal(spoilt["blocks.0.hook_resid_post"], clean["blocks.0.hook_resid_post"])
        assert spoilt[edited].abs().max() == 0  # the edit itself counts, and the cache shows it
        with model.hooks([(eager_points(model), raised)]):
            model(**given)
        assert all(torch.equal(given[name], before[name]) for name in given)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        pred, cache = model.run_with_cache(**given)
        kept = cache["hook_pred"].clone()
        pred.zero_()
        assert torch.equal(cache["hook_pred"], kept)


@torch.no_grad()
def test_several_calls() -> None:
    theirs = Theirs()
    cache, hooks, _ = theirs.get_caching_hooks()
    with theirs.hooks(hooks):
        theirs(torch.zeros(1, 4))
        theirs(torch.ones(1, 4))
    assert cache["hook_a"].sum() == 4  # silent: only the last call is left

    model = tiny_model()
    with model.record("resid_post") as recording:
        first = model(**inputs(model, seed=1))
        second = model(**inputs(model, seed=2))
        model.set_hook_ctx(step=9)
        model(**inputs(model, seed=1))
        model(**inputs(model, seed=2))
        model.clear_hook_ctx()
    assert list(recording) == [0, 1, 9, (9, 1)] and not torch.equal(first, second)
    assert torch.equal(recording[0]["resid_post", 1], recording[9]["resid_post", 1])
    assert torch.equal(recording[1]["resid_post", 1], recording[9, 1]["resid_post", 1])
    assert not torch.equal(recording[0]["resid_post", 1], recording[1]["resid_post", 1])
    with pytest.raises(KeyError, match="recorded are"):
        recording[5]


@torch.no_grad()
def test_recorders_see_what_is_passed_on() -> None:
    """Whichever is entered first, the cache holds what the network went on with."""
    model = tiny_model()
    given = inputs(model)
    zero = [("blocks.0.attn.hook_z", lambda z, hook: z * 0)]
    with model.record("z") as recording, model.hooks(zero):
        model(**given)
    assert recording[0]["z", 0].abs().max() == 0
    with model.hooks(zero), model.record("z") as recording:
        model(**given)
    assert recording[0]["z", 0].abs().max() == 0


def test_torch_compile() -> None:
    """Hooks added after a first compiled call fire, with a warning that the call runs uncompiled."""
    script = Path(__file__).parent / "run_compiled.py"
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0 and "recorded" in ran.stdout and "parts compiled" in ran.stdout, ran.stderr[-2000:]


def test_head_results_carry_the_gate() -> None:
    for kind in KINDS:
        model = tiny_model(kind)
        _, cache = model.run_with_cache(**inputs(model), names=lambda name: True)
        for layer in range(2):
            gate = cache["mod.gate", layer].repeat_interleave(cache.grid.tokens_per_frame, dim=1)
            total = cache.head_results(layer).sum(2) + gate * model.blocks[layer].attn.b_O
            torch.testing.assert_close(total, cache["attn_out", layer], atol=1e-5, rtol=0)
            ungated = cache.head_results(layer, gated=False)
            torch.testing.assert_close(ungated, cache["result", layer], atol=1e-5, rtol=0)
            assert (cache.head_results(layer) - ungated).abs().max() > 1e-2


def test_import_of_this_module_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = tiny_model()
        model.run_with_cache(**inputs(model))
    assert not caplog.records
