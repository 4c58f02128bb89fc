"""Recipes `tiny-induction` and `tiny-loop`: one small pixel-space network, two mixtures of clips.

Both learn to denoise any frames of a clip given its clean ones. Loops, snippets and controls together make an induction
circuit the shortest way down; loops alone only ask for the period.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int

from vdinterp.data.digits import make_digit_clips
from vdinterp.diffusion import DiffusionConfig, make_schedule, target
from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.models.config import BlockSpec, Rope, Sublayer
from vdinterp.pipeline import VideoDiffusion, load_bundle, save_bundle
from vdinterp.training.evaluate import digit_figures
from vdinterp.training.loop import fit, kept_at, step_generator
from vdinterp.vae import IdentityVAE, LatentStats

N_FRAMES, BATCH = 16, 32
DIFFUSION = DiffusionConfig(objective="v", schedule="cosine", n_levels=1000)
OPTIMIZER = {"lr": 2e-3, "warmup": 200, "decay_from": 0.75, "betas": (0.9, 0.99), "weight_decay": 0.02, "ema": 0.999}
SAVE_EVERY = 200
FIGURES_SEED = 1001  # nobody looks at these clips while building
LICENCE = (
    "Weights: MIT. Training images: UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0, "
    "via scikit-learn."
)


Stage = tuple[int, dict[str, float]]


@dataclass(frozen=True)
class DigitRecipe:
    """`rounds`: each with a learning-rate schedule of its own, each of stages (steps, share of each source of clips).

    `keep`: steps of the checkpoints, counted over all rounds. `seed`: that of the bundled weights. `clips`: the kind
    that studies show the model.
    """

    rounds: tuple[tuple[Stage, ...], ...]
    keep: tuple[int, ...]
    seed: int = 0
    clips: str = "snippet"

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for stages in self.rounds for stage in stages)

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.stages)

    def shortened(self, steps: int | None) -> DigitRecipe:
        """The same recipe in `steps` steps, stages and checkpoints in proportion."""
        if steps is None or steps == self.steps:
            return self
        done, ends, rounds = 0, [0], []
        for stages in self.rounds:
            shorter = []
            for length, mix in stages:
                done += length
                ends.append(round(done * steps / self.steps))
                shorter.append((ends[-1] - ends[-2], mix))
            rounds.append(tuple(shorter))
        keep = tuple(sorted({round(step * steps / self.steps) for step in self.keep}))
        return replace(self, rounds=tuple(rounds), keep=keep)

    def mixture(self, step: int) -> dict[str, float]:
        for steps, mix in self.stages:
            if step < steps:
                return mix
            step -= steps
        return self.stages[-1][1]


# What a mixture draws from. Sparse snippets repeat after few other frames and often only once: with dense ones alone a
# repeat at a short lag nearly always comes with a second, longer match, and the circuit learns to wait for that.
SOURCES: dict[str, dict[str, Any]] = {
    "loop": {"kind": "loop"},
    "snippet": {"kind": "snippet"},
    "sparse snippet": {"kind": "snippet", "filler": 0.5},
    "control": {"kind": "control"},
}
MOSTLY_SNIPPETS = {"loop": 0.15, "snippet": 0.35, "sparse snippet": 0.35, "control": 0.15}

DIGIT_RECIPES = {
    "tiny-induction": DigitRecipe(
        rounds=(
            ((2500, {"loop": 0.5, "snippet": 0.4, "control": 0.1}), (2400, MOSTLY_SNIPPETS)),
            ((3000, MOSTLY_SNIPPETS),),
        ),
        keep=(0, 500, 1200, 1400, 1600, 1800, 2000, 2200, 2500, 3200, 4900, 7900),
        seed=1,
    ),
    "tiny-loop": DigitRecipe(rounds=(((2500, {"loop": 1.0}),),), keep=(), clips="loop"),
}


def digit_config(name: str) -> VideoDiTConfig:
    """The network of both recipes: 0.54 M parameters, 64 tokens (16 frames of 2 x 2 patches)."""
    return VideoDiTConfig(
        model_name=name,
        d_model=96,
        n_layers=4,
        n_heads=4,
        d_head=24,
        d_mlp=384,
        in_channels=1,
        out_channels=1,
        patch_size=(1, 4, 4),
        n_frames=N_FRAMES,
        height=8,
        width=8,
        period=(BlockSpec(attn=Sublayer(mod=(0, 1, 2)), mlp=Sublayer(mod=(3, 4, 5))),),
        residual="pre",
        qk_norm="head_rms",
        modulation="table",
        rope={"3d": Rope(dims=(8, 8, 8), theta=(100.0, 100.0, 100.0))},
    )


def draw_levels(
    generator: torch.Generator, batch: int, n_frames: int, n_levels: int
) -> Int[torch.Tensor, "batch frame"]:
    """Noise levels of a training batch, -1 on the frames that stay clean; at least one frame of each clip is noisy.

    70 %: each frame is noisy with a probability that is drawn per clip from 5-65 %, at level sqrt(u) (more often high
    than low). 30 %: one frame, any, at a level from [.5, 1]: prediction from an entirely clean clip.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    noisy = uniform(batch, n_frames) < 0.05 + 0.6 * uniform(batch, 1)
    level = uniform(batch, n_frames).sqrt()
    one = torch.nn.functional.one_hot(torch.randint(n_frames, (batch,), generator=generator), n_frames).bool()
    single = uniform(batch, 1) < 0.3
    level = torch.where(single, 0.5 + 0.5 * uniform(batch, 1), level)
    noisy = torch.where(single | ~noisy.any(1, keepdim=True), one, noisy)
    return torch.where(noisy, (level * n_levels).long().clamp(max=n_levels - 1), -1)


def draw_latents(
    generator: torch.Generator, mixture: dict[str, float], batch: int, seed: int, start: int, n_frames: int = N_FRAMES
) -> Float[torch.Tensor, "batch frame channel height width"]:
    """Clips of the training images, each from a source drawn from `mixture`, from clip `start` of `seed` on."""
    drawn = torch.multinomial(torch.tensor(list(mixture.values())), batch, replacement=True, generator=generator)
    counts = torch.bincount(drawn, minlength=len(mixture)).tolist()
    starts = [start + sum(counts[:i]) for i in range(len(counts))]
    parts = [
        make_digit_clips(seed=seed, n=count, split="train", start=first, n_frames=n_frames, **SOURCES[name]).latents
        for name, count, first in zip(mixture, counts, starts, strict=True)
        if count
    ]
    return torch.cat(parts)


def digit_loss(model: HookedVideoDiT, recipe: DigitRecipe, seed: int) -> Callable[[int], torch.Tensor]:
    """`loss_at(step)`: mean squared error of the predicted velocity over the noisy frames of a fresh batch."""
    schedule = make_schedule(DIFFUSION)

    def loss_at(step: int) -> torch.Tensor:
        generator = step_generator(seed, step)
        clean = draw_latents(generator, recipe.mixture(step), BATCH, seed, start=step * BATCH)
        k = draw_levels(generator, BATCH, N_FRAMES, DIFFUSION.n_levels)
        noise = torch.randn(clean.shape, generator=generator)
        pred = model(schedule.add_noise(clean, noise, k), schedule.timestep(k))
        wanted = target(DIFFUSION.objective, clean, noise, schedule.alpha_bar(k))
        return (pred - wanted)[k >= 0].square().mean()

    return loss_at


def train_digits(
    name: str, *, steps: int | None, out: Path, seed: int | None = None, resume: bool = True
) -> VideoDiffusion:
    """Train `tiny-induction` or `tiny-loop` and write model, checkpoints and figures to `out`."""
    recipe = DIGIT_RECIPES[name].shortened(steps)
    seed = recipe.seed if seed is None else seed
    first, kept = 0, {}
    with torch.random.fork_rng(devices=[]):  # puts the global generator back: only the initial weights depend on it
        torch.manual_seed(seed)
        model = HookedVideoDiT(digit_config(name))
        loss_at = digit_loss(model, recipe, seed)
        for number, stages in enumerate(recipe.rounds):
            if not sum(length for length, _ in stages):
                continue  # a smoke run may be shorter than its rounds
            steps_here, state = sum(length for length, _ in stages), out / "training" / f"round-{number}"
            here = [step for step in recipe.keep if first < step <= first + steps_here or step == first == 0]
            fit(
                model,
                lambda step, first=first: loss_at(first + step),
                steps=steps_here,
                **OPTIMIZER,
                out_dir=state,
                keep=[step - first for step in here],
                save_every=SAVE_EVERY,
                seed=seed,
                desc=f"{name}, round {number + 1} of {len(recipe.rounds)}",
                resume=resume,
            )
            kept |= {step: kept_at(state, step - first) for step in here}
            first += steps_here
        pipe = VideoDiffusion(
            model, IdentityVAE(1), DIFFUSION, LatentStats(mean=(0.5,), std=(0.5,)), _meta(name, recipe, seed)
        )
        pipe.to(torch.float16).to(torch.float32)  # half the file; what is stored is what is judged
        pipe.meta["figures"] = digit_figures(pipe, seed=FIGURES_SEED, n=256 if steps is None else 16)
        save_bundle(out, pipe, checkpoints=kept)
        return load_bundle(out)


def _meta(name: str, recipe: DigitRecipe, seed: int) -> dict:
    return {
        "clips": recipe.clips,
        "data": "UCI handwritten digits, 8x8: images 0-1436 for training, 1437-1796 held out (vdinterp.data.digits)",
        "recipe": {
            "rounds": [[{"steps": n, "mixture": mix} for n, mix in stages] for stages in recipe.rounds],
            "batch": BATCH,
            "optimizer": "AdamW, one schedule a round",
            **{key: list(value) if isinstance(value, tuple) else value for key, value in OPTIMIZER.items()},
            "noise": draw_levels.__doc__,
            "seed": seed,
        },
        "license": LICENCE,
    }
