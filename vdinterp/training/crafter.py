"""The recipe of `tiny-crafter`: play, codec, world model, as one resumable command.

Everything is a function of `seed`; a killed run continues where it last saved.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int

from vdinterp.conditions import Conditions
from vdinterp.data import crafter as game
from vdinterp.diffusion import DiffusionConfig, make_schedule
from vdinterp.models import HookedVideoDiT
from vdinterp.models.config import Rope, VideoDiTConfig
from vdinterp.pipeline import VideoDiffusion, save_bundle
from vdinterp.training.codec import train_codec
from vdinterp.training.evaluate_crafter import crafter_figures
from vdinterp.training.loop import fit, kept_at, step_generator
from vdinterp.vae import LatentStats, TinyConvCodec

FIGURES_SEED = 5001  # nobody looks at these clips while building
DIFFUSION = DiffusionConfig(objective="v", schedule="cosine", n_levels=1000)


@dataclass(frozen=True)
class Stage:
    """`steps` updates on clips of `frames` frames; `blocked` of them end in a blocked move (None: as often as in
    play)."""

    steps: int
    frames: int
    batch: int
    blocked: float | None = None
    high: bool = False


@dataclass(frozen=True)
class Recipe:
    """All settings of a run; stored beside the weights."""

    seed: int = 1
    residual: Literal["pre", "normed"] = "normed"
    d_model: int = 96
    n_layers: int = 4
    n_heads: int = 3
    codec_steps: int = 1500
    codec_batch: int = 256
    # Each round has a learning rate schedule of its own and starts from the averaged weights of the one before. After
    # the first, the model scrolls but runs through walls; after the second, one head both scrolls and copies.
    rounds: tuple[tuple[Stage, ...], ...] = (
        (Stage(800, 2, 24), Stage(1800, 2, 24, 0.35), Stage(1600, 8, 8, 0.12)),
        (Stage(2400, 2, 24, 0.5, high=True), Stage(900, 8, 8, 0.3)),
        (Stage(2000, 8, 8, 0.4, high=True),),
        (Stage(1600, 8, 8, 0.15),),
    )
    lr: float = 2e-3
    single_frame: float = 0.1  # share of batches made of single frames
    drop_action: float = 0.1  # share of clips without actions
    train_worlds: tuple[int, ...] = game.TRAIN_WORLDS
    test_worlds: tuple[int, ...] = game.TEST_WORLDS

    keep: tuple[int, ...] = ()  # steps of which checkpoints are stored

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for stages in self.rounds for stage in stages)

    def shortened(self, steps: int) -> Recipe:
        """The same recipe in about `steps` updates, a few worlds and a brief codec: to see that everything runs."""
        share = steps / self.steps
        rounds = tuple(
            tuple(dataclasses.replace(stage, steps=max(1, round(stage.steps * share))) for stage in stages)
            for stages in self.rounds
        )
        few: dict[str, Any] = dict(train_worlds=self.train_worlds[:2], test_worlds=self.test_worlds[:2])
        few["keep"] = ()
        return dataclasses.replace(self, rounds=rounds, codec_steps=max(1, round(self.codec_steps * share)), **few)


def config(recipe: Recipe) -> VideoDiTConfig:
    """The architecture: one token a cell of the game."""
    d_head = recipe.d_model // recipe.n_heads
    space = d_head * 3 // 8 // 2 * 2
    return VideoDiTConfig(
        model_name="tiny-crafter",
        d_model=recipe.d_model,
        n_layers=recipe.n_layers,
        n_heads=recipe.n_heads,
        d_head=d_head,
        d_mlp=4 * recipe.d_model,
        in_channels=8,
        out_channels=8,
        patch_size=(1, 1, 1),
        n_frames=max(stage.frames for stage in recipe.stages),
        height=game.ROWS,
        width=game.COLS,
        residual=recipe.residual,
        qk_norm="head_rms",
        # Neighbouring cells turn by 2 rad at the fastest, so that a head can tell one displacement from the next.
        rope={"3d": Rope(dims=(d_head - 2 * space, space, space), theta=(10.0, 10.0, 10.0), scale=(1.0, 2.0, 2.0))},
        # Without a table of positions the model cannot know which cell the player stands in, and ignores walls.
        abs_pos="learned_spatial",
        d_action=len(game.ACTIONS),
    )


class CrafterBatches:
    """Noised training clips, each a function of `(seed, step)`.

    The codec sees one cell at a time, so latents are looked up: `codes[patch]` is the normalised latent of a patch.
    """

    def __init__(self, played: game.Trajectories, codes: Float[torch.Tensor, "patch channel"], recipe: Recipe) -> None:
        self.played, self.codes, self.recipe = played, codes, recipe
        self.blocked_ends = game.ends(played, "blocked")
        self.other_ends = (~played.blocked).index_fill(1, torch.tensor([0]), False).nonzero()
        self.schedule = make_schedule(DIFFUSION)

    def stage(self, step: int) -> Stage:
        for stage in self.recipe.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.recipe.stages[-1]

    def draw(
        self, stage: Stage, frames: int, generator: torch.Generator
    ) -> tuple[Float[torch.Tensor, "batch frame channel height width"], Float[torch.Tensor, "batch frame _"]]:
        """Latents and one-hot actions of a batch of clips."""
        batch = stage.batch * stage.frames // frames if frames == 1 else stage.batch
        share = stage.blocked
        if share is None:
            share = len(self.blocked_ends) / (len(self.blocked_ends) + len(self.other_ends))
        want = torch.rand(batch, generator=generator) < share
        ends = torch.where(
            want[:, None],
            self._pick(self.blocked_ends, frames, batch, generator),
            self._pick(self.other_ends, frames, batch, generator),
        )
        clip, last = ends.unbind(-1)
        at = last[:, None] + torch.arange(1 - frames, 1)
        latents = self.codes[self.played.cells[clip[:, None], at].long()].permute(0, 1, 4, 2, 3)
        return latents, game.one_hot(self.played.actions[clip[:, None], at], drop_first=frames > 1)

    def _pick(self, ends: torch.Tensor, frames: int, batch: int, generator: torch.Generator) -> torch.Tensor:
        possible = ends[ends[:, 1] >= frames - 1]
        return possible[torch.randint(len(possible), (batch,), generator=generator)]

    def levels(
        self, batch: int, frames: int, generator: torch.Generator, high: bool = False
    ) -> Int[torch.Tensor, "batch frame"]:
        """Noise levels, -1 for a clean frame. Of clips: half have only the last frame noisy; a quarter a noisy end of
        any length at one level, as in sampling several frames at once; a quarter a level of its own for every
        frame."""
        k = torch.randint(DIFFUSION.n_levels, (batch, frames), generator=generator)
        if high:
            k = ((k + 0.5) * DIFFUSION.n_levels).sqrt().long()
        if frames == 1:
            return k
        kind = torch.rand(batch, 1, generator=generator)
        context = torch.randint(1, frames, (batch, 1), generator=generator)
        index = torch.arange(frames)
        last_only = torch.where(index == frames - 1, k, -1)
        joint = torch.where(index >= context, k[:, -1:], -1)
        return torch.where(kind < 0.5, last_only, torch.where(kind < 0.75, joint, k))

    def loss(self, model: HookedVideoDiT, step: int) -> torch.Tensor:
        """Mean squared error of the predicted velocity on the noisy frames."""
        generator = step_generator(self.recipe.seed, step)
        stage = self.stage(step)
        single = torch.rand((), generator=generator) < self.recipe.single_frame
        latents, actions = self.draw(stage, 1 if single else stage.frames, generator)
        k = self.levels(len(latents), latents.shape[1], generator, stage.high)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.schedule.add_noise(latents, noise, k)
        drop = torch.rand(len(latents), generator=generator) < self.recipe.drop_action
        pred = model(noisy, self.schedule.timestep(k), cond=Conditions(actions=actions, dropped=drop))
        signal, sigma = (c[..., None, None, None] for c in self.schedule.coefficients(k))
        error = (pred - (signal * noise - sigma * latents)).square().mean((2, 3, 4))
        wanted = k >= 0
        return (error * wanted).sum() / wanted.sum()


def codec_batches(played: game.Trajectories, batch: int):
    """Draws single cells, rare ones more often than they occur (by the square root of how often they do)."""
    weights = torch.bincount(played.cells.flatten().long(), minlength=len(played.patches)).float().sqrt()
    cells = played.patches.permute(0, 3, 1, 2).float() / 255

    def frames_at(generator: torch.Generator) -> Float[torch.Tensor, "batch frame channel height width"]:
        return cells[torch.multinomial(weights, batch, replacement=True, generator=generator)][:, None]

    return frames_at


@torch.no_grad()
def latent_codes(
    codec: TinyConvCodec, played: game.Trajectories
) -> tuple[Float[torch.Tensor, "patch channel"], LatentStats]:
    """Normalised latent of every patch, and the statistics over all frames of `played`."""
    cells = played.patches.permute(0, 3, 1, 2).float()[:, None] / 255
    raw = codec.encode(cells)[:, 0, :, 0, 0]
    share = torch.bincount(played.cells.flatten().long(), minlength=len(raw)).double()
    share = share / share.sum()
    mean = (share[:, None] * raw).sum(0)
    std = (share[:, None] * (raw - mean).square()).sum(0).sqrt()
    stats = LatentStats(tuple(mean.tolist()), tuple(std.tolist()))
    return stats.normalize(raw[:, None, :, None, None])[:, 0, :, 0, 0], stats


def train_crafter(
    name: str = "tiny-crafter",
    *,
    steps: int | None = None,
    out: str | Path,
    seed: int | None = None,
    resume: bool = True,
    recipe: Recipe | None = None,
) -> VideoDiffusion:
    """Runs the whole recipe, or what is left of it, and writes model, codec, checkpoints and figures to `out`.

    `steps` shortens every stage alike, and the play and the codec with them. Needs the extra `crafter`.
    """
    recipe = recipe or Recipe()
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    full = steps is None
    if steps is not None:
        recipe = recipe.shortened(steps)
    out, state = Path(out), Path(out) / "training"
    state.mkdir(parents=True, exist_ok=True)
    played = game.collect(recipe.train_worlds, state / f"play-{len(recipe.train_worlds)}.safetensors")
    with torch.random.fork_rng(devices=[]):  # the global generator is put back: only the initial weights depend on it
        torch.manual_seed(recipe.seed)
        codec = TinyConvCodec()
        model = HookedVideoDiT(config(recipe))
    frames_at = codec_batches(played, recipe.codec_batch)
    train_codec(codec, frames_at, steps=recipe.codec_steps, out_dir=state / "codec", seed=recipe.seed, resume=resume)
    codes, stats = latent_codes(codec, played)
    batches = CrafterBatches(played, codes, recipe)
    first, kept = 0, {}
    for number, stages in enumerate(recipe.rounds):
        steps_here = sum(stage.steps for stage in stages)
        folder = state / f"model-{number}"
        fit(
            model,
            lambda step, first=first: batches.loss(model, first + step),
            steps=steps_here,
            lr=recipe.lr,
            warmup=min(200, steps_here),
            out_dir=folder,
            keep=[step - first for step in recipe.keep if first <= step < first + steps_here],
            seed=recipe.seed,
            desc=f"{name}, round {number + 1} of {len(recipe.rounds)}",
            resume=resume,
        )
        here = [step for step in recipe.keep if first <= step < first + steps_here]
        kept |= {step: kept_at(folder, step - first) for step in here}
        first += steps_here
    pipe = VideoDiffusion(model, codec, DIFFUSION, stats, meta=_meta(name, recipe))
    pipe.to(torch.float16).to(torch.float32)  # half the file; what is stored is what is judged
    held_out = game.collect(recipe.test_worlds, state / f"held-out-{len(recipe.test_worlds)}.safetensors")
    pipe.meta["figures"] = crafter_figures(pipe, held_out, n=256 if full else 4, seed=FIGURES_SEED, rollout=full)
    save_bundle(out, pipe, checkpoints=kept)
    return pipe


def _meta(name: str, recipe: Recipe) -> dict[str, Any]:
    worlds = f"{len(recipe.train_worlds)} worlds for training, {len(recipe.test_worlds)} others held out"
    return {
        "name": name,
        "clips": "crafter",
        "data": (
            f"Play of the game Crafter (PyPI crafter 1.8.3, MIT): {worlds}; {game.STARTS} starts of {game.STEPS} "
            "steps in each; size=(72, 72), the top 56 rows (vdinterp.data.crafter)"
        ),
        "actions": list(game.ACTIONS),
        "recipe": {
            **dataclasses.asdict(recipe),
            "optimizer": "AdamW, one schedule a round; betas .9 .99, weight decay .02, EMA .999, warmup 200, "
            "linear decay over the last quarter",
            "noise": CrafterBatches.levels.__doc__,
        },
        "license": "MIT (weights; the game Crafter and its textures are MIT as well)",
    }
