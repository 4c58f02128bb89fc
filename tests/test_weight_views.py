"""Weights are those that the forward pass applies, or an error names the layer; their products; caches know theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import inputs, tiny_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import vdinterp as vd
from vdinterp.models import ActivationCache
from vdinterp.models.weights import check_saves
from vdinterp.pipeline.bundle import save_bundle


class Adapter(nn.Module):
    """A low-rank adapter as libraries put it there: the base layer's weight is still what `.weight` shows."""

    def __init__(self, base: nn.Linear, size: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator) * size)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Eighth(nn.Linear):
    """A quantised layer: what is stored are integers."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.weight = nn.Parameter((base.weight.detach() * 10).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.float().t() / 10


def offload(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.empty(layer.weight.shape, device="meta"))


def own_forward(layer: Any) -> None:
    plain = layer.forward
    layer.forward = lambda x: 1.1 * plain(x)


def pruned_then_edited(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)
    layer.weight_orig.data *= 2  # `.weight` still shows what it was in the last pass


def dynamic(layer: nn.Linear) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8)[0]


REFUSED: dict[str, Callable[[Any], Any]] = {
    "adapter": lambda layer: Adapter(layer, 1.0),
    "quantised": Eighth,
    "quantised while running": dynamic,
    "hook": lambda layer: layer.register_forward_hook(lambda module, given, out: out * 2) and None,
    "hook before": lambda layer: layer.register_forward_pre_hook(lambda module, given: (given[0] + 1,)) and None,
    "another forward": own_forward,
    "offloaded": offload,
}
RIGHT: dict[str, Callable[[Any], Any]] = {
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()) and None,
    "weight norm": lambda layer: parametrizations.weight_norm(layer) and None,
    "pruned": pruned_then_edited,
    "looked at": lambda layer: layer.register_forward_hook(lambda module, given, out: None) and None,
    "fresh adapter": lambda layer: Adapter(layer, 0.0),
}


def changed(how: Callable[[Any], Any], owner: nn.Module, name: str) -> None:
    if isinstance(layer := how(getattr(owner, name)), nn.Module):
        setattr(owner, name, layer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("how", REFUSED)
def test_what_is_applied_is_not_what_is_stored(how: str) -> None:
    model = tiny_model()
    cache = model.run_with_cache(**inputs(model))[1]
    cache.weights = None  # as a cache that was made of tensors
    changed(REFUSED[how], model.blocks[1].attn, "proj")
    changed(REFUSED[how], model.blocks[0].mlp, "fc2")
    attn, mlp = "blocks.1.attn.proj", "blocks.0.mlp.fc2"
    for read, layer in (
        (lambda: model.W_O, attn),
        (lambda: model.blocks[1].attn.b_O, attn),
        (lambda: model.W_out, mlp),
        (lambda: model.OV, attn),
        (lambda: cache.head_results(1), attn),
        (lambda: cache.decompose_resid(), attn),
        (lambda: cache.stack_neuron_results(), mlp),
        (lambda: vd.circuits.ov(model, 1, 0, 0.5), attn),
        (lambda: check_saves(model), mlp),
    ):
        with pytest.raises(ValueError, match=layer):
            read()
    assert model.W_Q.shape == (2, 2, 20, 12), "what is plain is read as ever"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", RIGHT)
def test_what_is_applied_is_read(how: str) -> None:
    model = tiny_model()
    for owner, name in ((model.blocks[0].attn, "proj"), (model.blocks[0].attn, "qkv"), (model.blocks[0].mlp, "fc1")):
        changed(RIGHT[how], owner, name)
    attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
    with torch.no_grad():
        fused = torch.cat([weight.transpose(1, 2).flatten(0, 1) for weight in (attn.W_Q, attn.W_K, attn.W_V)]).T
        shown = [attn.W_O.flatten(0, 1), fused, mlp.W_in]
        for layer, weight in zip((attn.proj, attn.qkv, mlp.fc1), shown, strict=True):
            size = weight.shape[0]
            torch.testing.assert_close(weight, layer(torch.eye(size)) - layer(torch.zeros(1, size)), atol=1e-5, rtol=0)
        cache = model.run_with_cache(**inputs(model))[1]
        torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1], atol=1e-4, rtol=0)


def test_patch_embedding_and_final_layer() -> None:
    pipe = vd.VideoDiffusion(tiny_model(), None, vd.DiffusionConfig())
    model = pipe.model
    cache = model.run_with_cache(**inputs(model))[1]
    cache.weights = None
    whole = copy.deepcopy(model)
    model.patch_embed.proj.register_forward_hook(lambda module, given, out: out * 2)
    with pytest.raises(ValueError, match=r"patch_embed\.proj"):
        vd.circuits.copying(pipe, 0.5)
    model.final.linear = Adapter(model.final.linear, 1.0)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"final\.linear is a Adapter"):
        vd.direct_attribution(model, cache)
    assert whole.patch_embed.weight.shape == (20, 2, 2, 2)


def test_only_what_loads_again_is_saved(tmp_path: Path) -> None:
    pipe = vd.VideoDiffusion(tiny_model(abs_pos="learned_spatial"), None, vd.DiffusionConfig())
    save_bundle(tmp_path / "plain", pipe)
    changed(REFUSED["adapter"], pipe.model.blocks[0].mlp, "fc1")
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc1\.\w+.*merge_and_unload"):
        save_bundle(tmp_path / "adapted", pipe)
    assert not (tmp_path / "adapted").exists()


def test_products_of_weights() -> None:
    model = tiny_model()
    torch.testing.assert_close(model.OV[1, 0].AB, model.W_V[1, 0] @ model.W_O[1, 0])
    torch.testing.assert_close(model.QK[0, 1].AB, model.W_Q[0, 1] @ model.W_K[0, 1].T)
    assert model.all_head_labels == ["0.0", "0.1", "1.0", "1.1"]
    for mode, other in (("Q", model.QK[1, 1].AB), ("K", model.QK[1, 1].AB.T), ("V", model.OV[1, 1].AB)):
        scores, sender = model.all_composition_scores(mode), model.OV[0, 1].AB  # type: ignore[arg-type]
        wanted = (sender @ other).norm() / sender.norm() / other.norm()
        torch.testing.assert_close(scores[0, 1, 1, 1], wanted)
        assert scores.shape == (2, 2, 2, 2) and not scores[1].any() and not scores[:, :, 0].any()
    normed = tiny_model("table")
    assert normed.all_composition_scores("V").shape == (2, 2, 2, 2)
    for read in (lambda: normed.QK, lambda: normed.all_composition_scores("K"), lambda: tiny_model("cross").QK):
        with pytest.raises(ValueError, match="qk_activations"):
            read()
    with pytest.raises(ValueError, match="choose 'Q', 'K' or 'V'"):
        model.all_composition_scores("q")  # type: ignore[arg-type]
    circuit = vd.circuits.ov(model, 0, 1, 0.5)
    torch.testing.assert_close(circuit.AB, circuit.A @ circuit.B)
    torch.testing.assert_close(circuit.svd()[1], torch.linalg.svdvals(circuit.AB)[:12], atol=1e-5, rtol=1e-4)
    assert circuit.eigenvalues.shape == (12,)


def test_default_composition_takes_what_weights_determine(caplog: pytest.LogCaptureFixture) -> None:
    assert set(vd.circuits.composition(tiny_model(), 0.5).table["part"]) == {"q", "k", "v"} and not caplog.text
    assert set(vd.circuits.composition(tiny_model("table"), 0.5).table["part"]) == {"v"}
    assert "V-composition alone" in caplog.text
    with pytest.raises(ValueError, match=r"parts=\('v',\)"):
        vd.circuits.composition(tiny_model("table"), 0.5, parts=("q",))


@torch.no_grad()
def test_a_cache_knows_its_weights(tmp_path: Path) -> None:
    model, other = tiny_model(), tiny_model(seed=5)
    _, cache = model.run_with_cache(**inputs(model))
    heads = cache.head_results(0)
    cache.save(tmp_path / "run")
    assert torch.equal(ActivationCache.load(tmp_path / "run", copy.deepcopy(model)).head_results(0), heads)
    with pytest.raises(ValueError, match="other weights than those that this cache was made with"):
        ActivationCache.load(tmp_path / "run", other)
    loaded = ActivationCache.load(tmp_path / "run")
    loaded.model = other  # its patterns need no weights
    assert torch.equal(loaded["pattern", 0].materialize(), cache["pattern", 0].materialize())
    model.load_state_dict(other.state_dict())  # another checkpoint in the same model
    with model.record() as recording:
        model(**inputs(model))
    for stale in (loaded, cache, cache[:1], cache.to("cpu")):
        for use in (
            lambda stale=stale: stale.head_results(0),
            lambda stale=stale: stale["result", 0],
            lambda stale=stale: stale.decompose_resid(),
            lambda stale=stale: stale.get_neuron_results(0),
            lambda stale=stale: vd.lens(stale.model, stale),
            lambda stale=stale: vd.direct_attribution(stale.model, stale),
        ):
            with pytest.raises(ValueError, match="other weights"):
                use()
    assert recording[0].head_results(0).shape == heads.shape
    model.blocks[1].mlp.fc1.weight.data[3, 4] += 1.0  # one value, behind autograd's back
    with pytest.raises(ValueError, match="other weights"):
        recording[0].head_results(0)


class Same(nn.Module):
    """A module of the user's with the tensors of an MLP, and another nonlinearity."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x).relu())


class Plus(nn.Module):
    """A linear layer's tensors, and something besides."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t() + self.bias + 1


def test_what_tensors_do_not_say_is_not_saved(tmp_path: Path) -> None:
    """Names and shapes of all tensors are those of the plain model; what is computed with them is not."""

    def own(model: Any) -> None:
        model.blocks[0].forward = lambda x, given, known: x

    for change, says in (
        (lambda model: setattr(model.blocks[1], "mlp", Same(model.blocks[1].mlp)), r"blocks\.1\.mlp has a Same in its"),
        (lambda model: setattr(model.final, "linear", Plus(model.final.linear)), r"final\.linear is a Plus that comp"),
        (own, r"blocks\.0 has a forward of its own"),
    ):
        model = tiny_model()
        change(model)
        with pytest.raises(ValueError, match=says):
            save_bundle(tmp_path / "changed", vd.VideoDiffusion(model, None, vd.DiffusionConfig()))
    assert not (tmp_path / "changed").exists()
