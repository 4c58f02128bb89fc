"""What needs gradients gives the same numbers whatever the caller switched off, and leaves the caller's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from contrasts import given, small_pipe
from factories import inputs, tiny_model
from torch import nn

import vdinterp as vd
from vdinterp.analysis import edge_attribution, tuned_lens
from vdinterp.diffusion import ClassifierGuidance
from vdinterp.training.loop import fit


@contextmanager
def switched_off() -> Iterator[None]:
    torch.set_grad_enabled(False)  # as a notebook's first cell does
    try:
        yield
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


def attribute(pipe: vd.VideoDiffusion, **options: Any) -> torch.Tensor:
    run = {**given(n=2), "model": pipe, **options}
    result = vd.attribution_patch(**run, sample=1, sweep_options={"progress": False})
    return torch.tensor(result.table["value"].to_list())


def edges(pipe: vd.VideoDiffusion) -> torch.Tensor:
    return edge_attribution(**{**given(n=2), "model": pipe}).per_clip


def lens(pipe: vd.VideoDiffusion) -> torch.Tensor:
    action = torch.eye(3)[torch.zeros(2, 4, dtype=torch.long)]
    video = torch.rand(2, 4, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    clips = vd.data.Clips(kind="noise", video=video, action=action)
    return tuned_lens(vd.NoisedClips(pipe, clips, noise_levels=(0.5,)), steps=2).weight


def cached(pipe: vd.VideoDiffusion) -> torch.Tensor:
    run = inputs(pipe.model)
    pred, cache = pipe.model.run_with_cache(**run, incl_bwd=True, loss=lambda pred: pred.square().sum())
    assert pred.requires_grad == (torch.is_grad_enabled())
    pipe.model.zero_grad()  # as TransformerLens's, this is the user's own backward pass
    names = [name for name in cache if name.endswith("_grad")]
    return torch.cat([cache[name].flatten() for name in sorted(names)])


def guided(pipe: vd.VideoDiffusion) -> torch.Tensor:
    weight = nn.Parameter(torch.ones(()))
    guidance = ClassifierGuidance(lambda x, k: -(weight * x).square().sum((1, 2, 3, 4)))
    sampled = pipe.sample(torch.zeros(1, 1, 1, 4, 6), steps=2, guidance=guidance).latents
    assert weight.grad is None
    return sampled


WORK: dict[str, Callable[[vd.VideoDiffusion], torch.Tensor]] = {
    "atp": attribute,
    "atp*": lambda pipe: attribute(pipe, site="q", method="atp*"),
    "integrated gradients": lambda pipe: attribute(pipe, method="integrated_gradients", n_steps=2),
    "edges": edges,
    "tuned lens": lens,
    "cached gradients": cached,
    "classifier guidance": guided,
}


@pytest.mark.parametrize("work", WORK)
def test_the_callers_gradient_state_changes_nothing(work: str) -> None:
    pipe = small_pipe()
    wanted = WORK[work](pipe)
    assert wanted.abs().max() > 0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pipe.model.parameters())
    with switched_off():
        torch.testing.assert_close(WORK[work](pipe), wanted)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pipe.model.parameters())
    pipe.model.requires_grad_(False)
    torch.testing.assert_close(WORK[work](pipe), wanted)
    assert not any(parameter.requires_grad for parameter in pipe.model.parameters()) and torch.is_grad_enabled()
    pipe.model.requires_grad_(True)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        WORK[work](pipe)


def test_training_is_of_the_callers_state_neither(tmp_path: Path) -> None:
    def train(out: Path) -> nn.Module:
        module = nn.Linear(2, 1)
        nn.init.ones_(module.weight), nn.init.zeros_(module.bias)
        return fit(module, lambda step: module(torch.ones(1, 2)).square().sum(), steps=2, lr=0.1, out_dir=out)

    wanted = train(tmp_path / "on").weight
    with switched_off():
        assert torch.equal(train(tmp_path / "off").weight, wanted)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        train(tmp_path / "never")
    module = nn.Linear(2, 1)
    with pytest.raises(KeyboardInterrupt):
        fit(module, lambda step: _interrupt(), steps=2, lr=0.1, out_dir=tmp_path / "cut")
    assert not module.training


def _interrupt() -> Any:
    raise KeyboardInterrupt


def test_what_has_no_gradient_is_named() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="loss does not depend"):
        model.run_with_cache(**inputs(model), incl_bwd=True, loss=lambda pred: torch.ones(()))
    guidance = ClassifierGuidance(lambda x, k: torch.zeros(len(x)))
    with pytest.raises(ValueError, match="log_prob does not depend"):
        guidance.gradient(torch.zeros(2, 1, 1, 4, 6), torch.zeros(2, 1, dtype=torch.long))


def test_a_metric_of_other_arguments_is_refused_at_once() -> None:
    for metric in (lambda x0: x0, lambda x0, pair, more: x0, 5):
        for patching in (vd.activation_patch, vd.attribution_patch, edge_attribution):
            with pytest.raises(ValueError, match=r"metric"):
                patching(**given(n=2), metric=metric)
