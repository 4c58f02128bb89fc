"""A model's identity: equal for equal weights wherever they are, another after any edit, made once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from factories import tiny_model

import vdinterp as vd
from vdinterp.models import HookedVideoDiT, identity


@pytest.fixture
def hashed(monkeypatch) -> list[int]:
    """Bytes that went into hashes of weights."""
    count = [0]
    real = identity.hashlib.sha256

    class Counting:
        def __init__(self, start: bytes = b"") -> None:
            self.inner = real(start)

        def update(self, block: Any) -> None:
            count[0] += len(block) if isinstance(block, memoryview) else 0
            self.inner.update(block)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    monkeypatch.setattr(identity.hashlib, "sha256", Counting)
    return count


def bytes_of(model: HookedVideoDiT) -> int:
    return sum(value.nbytes for value in model.state_dict().values())


@pytest.mark.parametrize("kind", ["causal", "cross"])
def test_equal_weights_are_one_model_and_are_read_once(kind: str, hashed: list[int]) -> None:
    model = tiny_model(kind)
    first = model.identity
    assert hashed[0] == bytes_of(model)
    assert model.identity == first and hashed[0] == bytes_of(model), "the second time nothing is read"
    other = HookedVideoDiT(model.cfg)
    assert other.identity != first
    other.load_state_dict(model.state_dict())
    assert copy.deepcopy(model).identity == other.identity == first
    assert copy.deepcopy(model).double().identity != first, "other numbers come of it"


def swap_rows(weight: torch.nn.Parameter) -> None:
    weight.data[[0, 1]] = weight.data[[1, 0]]


def tiny_step(weight: torch.nn.Parameter) -> None:
    weight.data[3, 3] = torch.nextafter(weight.data[3, 3], torch.tensor(9.0))


def in_place(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight[0, 0] += 1


@pytest.mark.parametrize("edit", [in_place, swap_rows, tiny_step])
def test_an_edit_is_seen_and_only_what_was_edited_is_read_anew(edit: Callable, hashed: list[int]) -> None:
    model = tiny_model()
    first, weight = model.identity, model.blocks[1].mlp.fc1.weight
    before, kept = hashed[0], weight.detach().clone()
    edit(weight)
    assert model.identity != first
    assert hashed[0] - before == weight.nbytes
    weight.data.copy_(kept)
    assert model.identity == first


class Scaled(torch.nn.Module):
    """An adapter without a tensor of its own."""

    def __init__(self, base: torch.nn.Module, factor: float) -> None:
        super().__init__()
        self.base, self.factor = base, factor


def test_what_stands_in_a_layers_place_counts() -> None:
    model, found = tiny_model(), []
    plain = model.blocks[0].mlp.fc1
    for layer in (plain, Scaled(plain, 1.0), Scaled(plain, 2.0)):
        model.blocks[0].mlp.fc1 = layer
        found.append(model.identity)
    assert len(set(found)) == 3


@pytest.mark.filterwarnings("ignore")
def test_offloaded_weights_are_the_same_model(tmp_path) -> None:
    model = tiny_model("causal")
    first = model.identity
    spread: dict[str, Any] = {name: "disk" if name == "blocks" else "cpu" for name, _ in model.named_children()}
    assert cpu_offload(copy.deepcopy(model), torch.device("cpu")).identity == first
    assert disk_offload(copy.deepcopy(model), tmp_path / "all", torch.device("cpu")).identity == first
    assert dispatch_model(copy.deepcopy(model), spread, offload_dir=str(tmp_path / "some")).identity == first
    with torch.device("meta"):
        empty = HookedVideoDiT(model.cfg)
    with pytest.raises(ValueError, match="meta device and holds no values"):
        _ = empty.identity


def test_a_pipeline_is_its_weights_and_its_process() -> None:
    model = tiny_model()
    one, other = vd.VideoDiffusion(model, None, vd.DiffusionConfig()), vd.DiffusionConfig(n_levels=500)
    assert one.identity == vd.VideoDiffusion(copy.deepcopy(model), None, vd.DiffusionConfig()).identity
    assert one.identity not in (vd.VideoDiffusion(model, None, other).identity, model.identity)
