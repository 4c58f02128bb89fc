"""Models that accelerate spreads over devices or offloads: what is read of them is right, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    add_hook_to_module,
    attach_execution_device_hook,
    remove_hook_from_submodules,
)
from factories import inputs, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

import vdinterp as vd
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import save_bundle

HERE = torch.device("cpu")


def partly(model: HookedVideoDiT, folder: Path) -> HookedVideoDiT:
    owners = {name.partition(".")[0] for name, _ in model.named_parameters()}
    places: dict[str, Any] = {name: "disk" if name == "blocks" else "cpu" for name in owners}
    return dispatch_model(model, places, offload_dir=str(folder))


OFFLOADED: dict[str, Callable[[HookedVideoDiT, Path], Any]] = {
    "dispatched": partly,
    "on disk": lambda model, folder: disk_offload(model, folder, HERE),
    "in memory": lambda model, folder: cpu_offload(model, HERE),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", OFFLOADED)
@pytest.mark.parametrize("kind", ["3d", "table", "cross"])
def test_an_offloaded_model_runs_and_what_needs_its_weights_is_refused(kind: str, how: str, tmp_path: Path) -> None:
    whole = tiny_model(kind)
    model, given = OFFLOADED[how](copy.deepcopy(whole), tmp_path / "weights"), inputs(whole)
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig())
    assert any(parameter.is_meta for parameter in model.parameters())
    assert pipe.device == model.device == HERE and pipe.dtype == torch.float32
    with torch.no_grad():
        wanted, plain = whole.run_with_cache(**given)
        found, cache = model.run_with_cache(**given)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        for name in ("z", "resid_post"):
            torch.testing.assert_close(cache[name, 1], plain[name, 1], atol=1e-5, rtol=0)
        mass = [each["pattern", 1].materialize() for each in (cache, plain)]
        torch.testing.assert_close(*mass, atol=1e-5, rtol=0)
        for read in (
            lambda: model.W_Q,
            lambda: model.blocks[1].attn.W_O,
            lambda: model.b_out,
            lambda: cache.head_results(1),
            lambda: cache.stack_head_results(),
            lambda: model.run_with_cache(**given, names=["result"]),
            lambda: vd.circuits.ov(model, 1, 0, 0.5),
            lambda: save_bundle(tmp_path / "saved", pipe),
            lambda: pipe.to("cpu"),
            lambda: pipe.to(torch.float64),
        ):
            with pytest.raises(ValueError, match=r"accelerate's hooks.*remove_hook_from_submodules"):
                read()
        torch.testing.assert_close(model(**given), wanted, atol=1e-5, rtol=0)
        remove_hook_from_submodules(model)
        assert torch.equal(model.W_Q, whole.W_Q)
        assert pipe.to(torch.float64).dtype == torch.float64
    assert vd.load(save_bundle(tmp_path / "saved", pipe)).identity == pipe.identity


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HookedVideoDiT, dict[str, torch.Tensor]]]:
    """A model whose second block and final layer lie on a second device, as accelerate spreads them.

    Devices that are not here hold no values, so tensors are fake: they know where they are, and raise where they meet.
    What would look at values is left out.
    """
    given = inputs(tiny_model())
    for check, answer in (
        ("vdinterp.models.checks._seen", False),
        ("vdinterp.models.cache.same_weights", True),
        ("vdinterp.models.components.linear._check_runs", None),
    ):
        monkeypatch.setattr(check, lambda *args, answer=answer: answer)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: (q @ k.mT).softmax(-1) @ v)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = HookedVideoDiT(tiny_model().cfg)
        for name, module in model.named_modules():
            away = name.startswith(("blocks.1", "final"))
            for key, parameter in list(module.named_parameters(recurse=False)):
                placed = torch.empty(parameter.shape, device="lazy:1" if away else "lazy:0")
                setattr(module, key, torch.nn.Parameter(placed))
        for part in (model.blocks[1], model.final):
            add_hook_to_module(part, AlignDevicesHook("lazy:1"))
            attach_execution_device_hook(part, "lazy:1")
        add_hook_to_module(model, AlignDevicesHook("lazy:0", io_same_device=True))
        yield model, {key: torch.empty(value.shape, dtype=value.dtype) for key, value in given.items()}


@torch.no_grad()
def test_blocks_on_two_devices(two_devices: tuple[HookedVideoDiT, dict[str, torch.Tensor]]) -> None:
    model, given = two_devices
    first = torch.device("lazy:0")
    assert model.blocks[1].attn.W_O.device != first == model.blocks[0].attn.W_O.device
    assert model.device == first and model(**given).device == HERE, "the prediction is where the inputs were"
    cache = model.run_with_cache(**given)[1]
    result = model.run_with_cache(**given, names=["result"])[1]["result", 1]
    assert {value.device for value in cache.values()} == {first}, "a cache is in one place"
    weights = [model.W_Q, model.b_out, model.OV.A]
    made = [result, cache.head_results(1), cache.decompose_resid(), cache.stack_head_results()]
    assert {each.device for each in [*weights, *made, cache["pattern", 1].frame_mass()]} == {first}
