"""A hook function of your own, during sampling.  Run: python examples/own_hook.py"""

from __future__ import annotations

import sys
from typing import Any

import torch

import vdinterp as vd

STEPS = 8


def fade_out(out: torch.Tensor, hook: Any) -> torch.Tensor:
    """Let the first block's attention speak early and fall silent towards the end. `hook.ctx` says where we are."""
    print(f"  step {hook.ctx['step']}: {hook.name}, last frame at noise level {int(hook.ctx['noise_levels'][0, -1])}")
    return out * (1 - hook.ctx["step"] / (STEPS - 1))


if __name__ == "__main__":
    pipe = vd.load(sys.argv[1] if len(sys.argv) > 1 else "tiny-crafter")
    clips = vd.studies.held_out_clips(pipe, n=4)
    truth = pipe.encode(clips.video)
    context, half = truth[:, : truth.shape[1] // 2], truth.shape[1] // 2
    same = {"steps": STEPS, "seed": 0, "cond": clips.action}  # actions, where the model takes them

    plain = pipe.sample(context, **same)
    faded = pipe.sample(context, interventions=[vd.Custom("blocks.0.attn.hook_out", fade_out)], **same)
    for name, sample in (("plain", plain), ("faded", faded)):
        error = (sample.latents[:, half:] - truth[:, half:]).square().mean()
        print(f"{name}: squared error of the generated latents {float(error):.3f}")
