"""Forward passes that keep the gradient of a metric, for everything that estimates effects by gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from vdinterp.analysis.patching.judging import Pair, PatchMetric
from vdinterp.analysis.stimulus.contrast import Contrast
from vdinterp.conditions import Conditions
from vdinterp.gradient_state import of_activations_only
from vdinterp.models import ActivationCache
from vdinterp.sweep import Inputs


def leaf(activation: torch.Tensor, kept: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The activation as something that gradients can be taken of, kept under `name`."""
    if not activation.requires_grad:
        activation = activation.detach().requires_grad_()
    kept[name] = activation
    return activation


class GradientPass:
    """One forward pass of a run with the graph kept: activations by hook name, and the metric of every clip."""

    def __init__(
        self,
        pair: Contrast,
        inputs: Inputs,
        compare: Pair,
        metric: PatchMetric,
        names: Sequence[str],
        hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
    ) -> None:
        self.kept: dict[str, torch.Tensor] = {}
        keep = [(name, lambda x, hook: leaf(x, self.kept, hook.name)) for name in names]

        def run() -> torch.Tensor:
            with pair.model.hooks([*keep, *hooks]):
                return metric(pair.denoiser.denoise(*inputs), compare)

        self.value = of_activations_only(pair.model.parameters(), run)
        if self.value.shape != (inputs.n_clips,):
            raise ValueError(
                f"the metric gave {list(self.value.shape)}; one number a clip is needed, [{inputs.n_clips}]"
            )
        if not self.value.requires_grad:
            raise ValueError(
                "the metric does not depend on x0 by anything that has a gradient; exact patching needs none"
            )

    def gradients(self, of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradient of every clip's metric; clips do not depend on one another, so that of the sum. Zero where the
        metric does not depend on it."""
        ones = torch.ones_like(self.value)
        found = torch.autograd.grad(self.value, list(of), ones, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(of, found, strict=True)]


def untouched(
    pair: Contrast, clips: slice, level: Any, names: dict[str, Sequence[str]]
) -> tuple[dict[str, Inputs], Pair, dict[str, ActivationCache]]:
    """Both runs of some clips: inputs, what to compare with, and the activations `names` asks of each."""
    runs = pair.inputs(clips, level)
    x0, caches = {}, {}
    with torch.no_grad():
        for run, inputs in runs.items():
            if names.get(run):
                with pair.model.record(list(names[run])) as recording:
                    x0[run] = pair.denoiser.denoise(*inputs)
                caches[run] = recording[0]
            else:
                x0[run] = pair.denoiser.denoise(*inputs)
    like = x0["clean"]
    compare = Pair(
        clean=like,
        corrupted=x0["corrupted"],
        truth=pair.clean.latents[clips].to(like),
        region=pair.region[clips].to(like.device),
        variance=pair.variance,
    )
    return runs, compare, caches


def between(one: Inputs, other: Inputs, share: float) -> Inputs:
    """Inputs a share of the way from one run to the other."""

    def moved(start: torch.Tensor | None, end: torch.Tensor | None) -> torch.Tensor | None:
        return start if start is None or end is None else start + share * (end - start)

    cond = one.cond
    if isinstance(cond, Conditions) and isinstance(other.cond, Conditions):
        cond = replace(cond, actions=moved(cond.actions, other.cond.actions), text=moved(cond.text, other.cond.text))
    return one._replace(noisy=one.noisy + share * (other.noisy - one.noisy), cond=cond)


def batches(pair: Contrast) -> list[slice]:
    """Clips a pass."""
    return pair.clean.batches
