"""A hook of your own, during sampling: when does the head that scrolls the picture do its work?

Run: python examples/own_hook.py
"""

from __future__ import annotations

from typing import Any

import torch

import vdinterp as vd

STEPS, LAYER, HEAD = 8, 2, 0  # head 2.0 of tiny-crafter looks where a pixel comes from when the player walks


def silence(z: torch.Tensor, hook: Any) -> torch.Tensor:
    """One head's output [batch pos head d_head] set to zero: a hook gets a copy, and what it returns goes on."""
    visited.add(hook.ctx["step"])  # while sampling, `ctx` says the step and, a frame, the noise levels
    z[:, :, HEAD] = 0
    return z


visited: set[int] = set()


if __name__ == "__main__":
    pipe = vd.load("tiny-crafter")
    clips = vd.studies.held_out_clips(pipe, n=8)
    truth = pipe.encode(clips.pixels)
    half = truth.shape[1] // 2  # frames that are given; the model generates the others
    # `Custom` makes an intervention of a function; by name, at a hook. It acts at every step unless told otherwise.
    hook = vd.Custom(f"blocks.{LAYER}.attn.hook_z", silence)
    early, late = range(STEPS // 2), range(STEPS // 2, STEPS)  # step 0 is the noisiest
    for name, interventions, at_steps in (
        ("untouched", [], None),
        ("silent in the noisy half of the steps", [hook], early),
        ("silent in the other half", [hook], late),
    ):
        sample = pipe.sample(
            truth[:, :half],
            steps=STEPS,
            seed=0,  # the same noise every time, so that only the hook makes a difference
            cond=clips.action,  # a world model without its actions is another model
            interventions=interventions,
            at_steps=at_steps,
        )
        error = (sample.latents[:, half:] - truth[:, half:]).square().mean()
        steps = ", ".join(map(str, sorted(visited))) or "none"
        print(f"head {LAYER}.{HEAD} {name}: squared error of the generated latents {float(error):.2f} (steps {steps})")
        visited.clear()
    # Where the picture scrolls to is decided while it is still noise: taking the head away later costs little.
