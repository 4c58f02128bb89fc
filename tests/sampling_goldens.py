"""The reference sampler's recorded runs: settings, model and a noise source that replays its random draws."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from vdinterp.diffusion import HistoryGuidance
from vdinterp.models import HookedVideoDiT

HERE = Path(__file__).parent / "goldens"

GUIDANCE = {
    "conditional": lambda: HistoryGuidance.conditional(),
    "vanilla": lambda guidance_scale: HistoryGuidance.vanilla(guidance_scale),
    "stabilized_conditional": lambda stabilization_level: HistoryGuidance.stabilized_conditional(stabilization_level),
    "stabilized_vanilla": lambda guidance_scale, stabilization_level: HistoryGuidance.stabilized_vanilla(
        guidance_scale, stabilization_level
    ),
    "fractional": lambda guidance_scale, freq_scale: HistoryGuidance.fractional(guidance_scale, freq_scale),
    "temporal": lambda hist_subsequences, hist_weights: HistoryGuidance.temporal(hist_subsequences, hist_weights),
    "interp": lambda guidance_scale: HistoryGuidance.vanilla(guidance_scale),
}


def load_tensors() -> dict[str, torch.Tensor]:
    return load_file(HERE / "dfot_sampling_golden.safetensors")


def load_settings() -> dict:
    return json.loads((HERE / "dfot_sampling_golden.json").read_text())


def load_model() -> HookedVideoDiT:
    """The network that made the trajectories: the one of dfot_golden."""
    config = json.loads((HERE / "dfot_golden.json").read_text())
    tensors = load_file(HERE / "dfot_golden.safetensors")
    weights = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    return HookedVideoDiT.from_state_dict("dfot", config, weights)


class Replay:
    """Gives back the reference's draws in the reference's order.

    It drew once for the history (all branches stacked, or only the masked one in its two-branch shortcut), then once
    for a purpose that no golden uses, unless it took the shortcut, then once for the (here unused) ancestral noise.
    """

    def __init__(self, initial: torch.Tensor, tape: list[torch.Tensor], n_steps: int, n_branches: int) -> None:
        self._initial, self.tape, self.n_branches = initial, tape, n_branches
        self.per_step, rest = divmod(len(tape), n_steps)
        assert rest == 0

    def initial(self, shape):
        assert tuple(shape) == tuple(self._initial.shape)
        return self._initial

    def history(self, step, branch, shape):
        draw = self.tape[self.per_step * step]
        clips = shape[0]
        if len(draw) == clips and self.n_branches > 1:
            assert branch == 0, "only the masked branch of the shortcut has noisy history"
            return draw
        assert len(draw) == clips * self.n_branches
        return draw.unflatten(0, (clips, self.n_branches))[:, branch]

    def ancestral(self, step, shape):
        raise AssertionError("no golden is stochastic")


def replay(tensors: dict[str, torch.Tensor], settings: dict, name: str) -> Replay:
    tape = [tensors[key] for key in sorted(tensors) if key.startswith(f"samp.{name}.tape.")]
    n_steps = len(tensors[f"samp.{name}.from"])
    return Replay(tensors[f"samp.{name}.init_noise"], tape, n_steps, settings[name]["nfe"])
