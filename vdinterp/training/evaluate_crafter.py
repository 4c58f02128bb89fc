"""What `tiny-crafter` can do, in figures, on worlds it was not trained on.

Unless said otherwise the history of each clip is clean, only its last frame is noisy, and errors are mean squared
errors of the x0 estimate over the variance of the (normalised) latents: 0 is perfect, 1 is what the mean frame would
get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int

from vdinterp.analysis import NoisedClips
from vdinterp.data import crafter as game
from vdinterp.data.clips import Clips
from vdinterp.diffusion import levels
from vdinterp.interventions import Ablate, MaskAttention
from vdinterp.models import HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.site import Site

Hooks = Sequence[tuple[str, Callable]]
SHIFTS = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
_FREE = [game.SEMANTIC.index(name) for name in ("grass", "sand", "path")]
_BATCH = 32


def held_out(played: game.Trajectories, last: str, n: int, seed: int, n_frames: int = 8) -> Clips:
    """`n` clips drawn without replacement whose last step was `last` ("any", "moved", "blocked", "still")."""
    places = game.ends(played, last)
    places = places[places[:, 1] >= n_frames - 1]
    if len(places) < n:
        raise ValueError(f"only {len(places)} clips end in {last!r}, {n} were asked for: play more worlds")
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:n]
    clip, end = places[order].unbind(-1)
    return game.as_clips(played, clip, end - n_frames + 1, n_frames)


@dataclass
class Bench:
    """A pipeline, in batches small enough for any machine. `patches` are those that cells are scored against."""

    pipe: VideoDiffusion
    patches: torch.Tensor

    @property
    def model(self) -> HookedVideoDiT:
        return self.pipe.model

    @torch.no_grad()
    def encode(self, clips: Clips) -> Float[torch.Tensor, "batch frame channel height width"]:
        return torch.cat([self.pipe.encode(video) for video in clips.pixels.split(_BATCH)])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> Float[torch.Tensor, "batch frame channel height width"]:
        return torch.cat([self.pipe.decode(part) for part in latents.split(_BATCH)])

    def cells(self, video: torch.Tensor) -> Int[torch.Tensor, "batch frame row col"]:
        return torch.cat([game.nearest_patch(part, self.patches) for part in video.split(_BATCH)])

    @torch.no_grad()
    def last_x0(
        self, latents: torch.Tensor, actions: torch.Tensor, level: float, seed: int, hooks: Hooks | None = None
    ) -> Float[torch.Tensor, "batch channel height width"]:
        """x0 of the last frame, noised to `level`, everything before it clean."""
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        noised = NoisedClips(self.pipe, latents, level, cond=actions, noise=noise, batch=_BATCH)
        with self.model.hooks(fwd_hooks=hooks or []):
            return noised.x0(level)[:, 0]

    @torch.no_grad()
    def roll_out(
        self, latents: torch.Tensor, actions: torch.Tensor, n_context: int, steps: int, seed: int
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Frames after the first `n_context`, one after the other by DDIM, each from the ones before it."""
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        ladder = levels(steps, self.pipe.diffusion.n_levels).tolist()
        done = []
        for known, fresh, action in zip(latents.split(_BATCH), noise.split(_BATCH), actions.split(_BATCH), strict=True):
            frames = known[:, :n_context]
            for t in range(n_context, latents.shape[1]):
                x = torch.cat([frames, fresh[:, t : t + 1]], 1)
                for now, then in zip(ladder[:0:-1], ladder[-2::-1], strict=True):
                    noise_levels = torch.zeros(x.shape[:2])
                    noise_levels[:, -1] = self.pipe.schedule.level(torch.tensor(now))
                    x0 = self.pipe.denoise(x, noise_levels, action[:, : t + 1])[:, -1]
                    a, b = (self.pipe.schedule.alpha_bar(torch.tensor(level)) for level in (now, then))
                    eps = (x[:, -1] - a.sqrt() * x0) / (1 - a).sqrt()
                    x = torch.cat([frames, (b.sqrt() * x0 + (1 - b).sqrt() * eps)[:, None]], 1)
                frames = x
            done.append(frames)
        return torch.cat(done)


def scrolled(
    frame: torch.Tensor, shift: Int[torch.Tensor, "batch 2"]
) -> tuple[torch.Tensor, Bool[torch.Tensor, "batch row col"]]:
    """`frame` [batch channel row col] as seen after steps of `shift`, and which of its cells were in view before.

    Cells that come into view hold 0, the mean of normalised latents."""
    moved, seen = torch.zeros_like(frame), torch.zeros(len(frame), *frame.shape[-2:], dtype=torch.bool)
    rows, cols = frame.shape[-2:]
    for i, (dr, dc) in enumerate(shift.tolist()):
        to = (slice(max(0, -dr), rows - max(0, dr)), slice(max(0, -dc), cols - max(0, dc)))
        source = (slice(max(0, dr), rows + min(0, dr)), slice(max(0, dc), cols + min(0, dc)))
        moved[i][:, to[0], to[1]] = frame[i][:, source[0], source[1]]
        seen[i][to] = True
    return moved, seen


def best_shift(x0: torch.Tensor, before: torch.Tensor) -> Int[torch.Tensor, " batch"]:
    """Which of `SHIFTS` of the frame `before` matches `x0` best, over the cells that all five leave in view and that do
    not hold the player in any of them. Chance is .2."""
    middle = _middle(x0.shape[-2:])
    errors = [
        ((x0 - scrolled(before, torch.tensor([shift] * len(x0)))[0]).square().sum(1) * middle).sum((-2, -1))
        for shift in SHIFTS
    ]
    return torch.stack(errors).argmin(0)


def distinguishable(cells: Int[torch.Tensor, "batch row col"], at_least: int = 3) -> Bool[torch.Tensor, " batch"]:
    """Whether each two of the five shifts of a frame differ in `at_least` of the compared cells: on a bare meadow no
    answer is wrong."""
    middle = _middle(cells.shape[-2:])
    views = [scrolled(cells[:, None], torch.tensor([shift] * len(cells)))[0][:, 0] for shift in SHIFTS]
    enough = torch.ones(len(cells), dtype=torch.bool)
    for i, one in enumerate(views):
        for other in views[:i]:
            enough &= ((one != other) & middle).sum((-2, -1)) >= at_least
    return enough


def _middle(size: tuple[int, int] | torch.Size) -> Bool[torch.Tensor, "row col"]:
    mask = torch.zeros(*size, dtype=torch.bool)
    mask[1:-1, 1:-1] = True
    for dr, dc in SHIFTS:
        mask[size[0] // 2 + dr, size[1] // 2 + dc] = False
    return mask


def free_cell_actions(clips: Clips, seed: int) -> tuple[Clips, torch.Tensor]:
    """The clips in which at least one neighbour of the player is free before the last step, with the last action
    replaced by a random move to such a neighbour; and the indices of those clips."""
    assert clips.action is not None
    before = clips.labels["semantic_map"][:, -2]
    row, col = game.ROWS // 2, game.COLS // 2
    free = torch.stack(
        [torch.isin(before[:, row + dr, col + dc], torch.tensor(_FREE)) for dr, dc in game.MOVES.values()], -1
    )
    kept = free.any(-1).nonzero()[:, 0]
    choice = torch.multinomial(free[kept].float(), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    chosen = torch.tensor(list(game.MOVES))[choice]
    picked = clips[kept]
    assert picked.action is not None
    action = picked.action.clone()
    action[:, -1] = torch.nn.functional.one_hot(chosen, action.shape[-1]).float()
    return Clips(kind="crafter", video=picked.pixels, action=action, labels=picked.labels), kept


def shift_accuracy(bench: Bench, clips: Clips, expected: torch.Tensor, seed: int) -> tuple[float | None, int]:
    """Share of clips whose x0 from pure noise matches the `expected` (row, col) shift best, and of how many clips:
    those whose shifts can be told apart (None if there are none)."""
    latents = bench.encode(clips)
    ok = distinguishable(bench.cells(clips.pixels[:, -2:-1])[:, 0])
    assert clips.action is not None
    if not ok.any():
        return None, 0
    x0 = bench.last_x0(latents[ok], clips.action[ok], 1.0, seed)
    found = torch.tensor(SHIFTS)[best_shift(x0, latents[ok][:, -2])]
    return (found == expected[ok]).all(-1).float().mean().item(), int(ok.sum())


def relative_error(x0: torch.Tensor, truth: torch.Tensor, variance: torch.Tensor) -> Float[torch.Tensor, " batch"]:
    """Squared error of each clip over the variance of the latents."""
    return (x0 - truth).square().mean((1, 2, 3)) / variance


def head_masses(
    bench: Bench, clips: Clips, shift: torch.Tensor, level: float, seed: int
) -> Float[torch.Tensor, "layer head"]:
    """Mean attention of the last frame's tokens to the token at (one frame earlier, own cell + `shift` [batch 2]),
    over the queries for which that cell is in view. Chance is one over the number of tokens."""
    model, latents = bench.model, bench.encode(clips)
    n_frames, rows, cols = latents.shape[1], *latents.shape[-2:]
    key, inside = _source(n_frames, rows, cols, shift)
    total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    assert clips.action is not None
    for at in torch.arange(len(clips)).split(_BATCH):
        picked: dict[int | None, torch.Tensor] = {}

        def look(pattern: torch.Tensor, hook, at: torch.Tensor = at, picked: dict = picked) -> None:
            rows_of = pattern[:, :, -rows * cols :]
            mass = rows_of.gather(-1, key[at, None, :, None].expand(-1, rows_of.shape[1], -1, 1))[..., 0]
            picked[Site.parse(hook.name).layer] = (mass * inside[at, None]).sum((0, 2))

        hooks = [(Site(i, "attn", "pattern"), look) for i in range(model.cfg.n_layers)]
        bench.last_x0(latents[at], clips.action[at], level, seed, hooks)
        total += torch.stack([picked[i] for i in range(model.cfg.n_layers)])
    return total / inside.sum()


def _source(n_frames: int, rows: int, cols: int, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each clip and cell of the last frame: the token one frame earlier at the cell + `shift`, and whether it is
    in view."""
    cell = torch.arange(rows * cols)
    row, col = cell // cols + shift[:, :1], cell % cols + shift[:, 1:]
    inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    return (n_frames - 2) * rows * cols + torch.where(inside, row * cols + col, 0), inside


def cut_effect(
    bench: Bench, layer: int, heads: list[int], clips: Clips, shift: torch.Tensor, level: float, seed: int
) -> float:
    """How much the relative error rises when `heads` of `layer` may not attend from the last frame's cells to the
    cell + `shift` [batch 2] one frame earlier, and attend to the rest as before."""
    latents = bench.encode(clips)
    key, inside = _source(latents.shape[1], latents.shape[-2], latents.shape[-1], shift)
    variance, done = latent_variance(latents), []
    assert clips.action is not None
    for at in torch.arange(len(clips)).split(_BATCH):

        def cut(scores: torch.Tensor, hook, at: torch.Tensor = at) -> torch.Tensor:
            scores = scores.clone()
            batch, cell = inside[at].nonzero().unbind(-1)
            query = scores.shape[2] - inside.shape[1] + cell
            for head in heads:
                scores[batch, head, query, key[at][batch, cell]] = -torch.inf
            return scores

        name = Site(layer, "attn", "attn_scores")
        errors = [
            relative_error(bench.last_x0(latents[at], clips.action[at], level, seed, hooks), latents[at, -1], variance)
            for hooks in ([(name, cut)], None)
        ]
        done.append(errors[0] - errors[1])
    return torch.cat(done).mean().item()


def ablation_effects(
    bench: Bench, head: tuple[int, int], sets: dict[str, Clips], reference: Clips, level: float, seed: int
) -> dict[str, float]:
    """How much the relative error rises in each set of clips when a head's output is replaced, at every token, by its
    mean over the clips, frames and cells of `reference` at the same noise level."""
    layer, index = head
    name = Site(layer, "attn", "z")
    seen: list[torch.Tensor] = []
    assert reference.action is not None
    watch = [(name, lambda z, hook: seen.append(z))]
    bench.last_x0(bench.encode(reference), reference.action, level, seed + 1, watch)
    replaced = Ablate(name, "mean", {name: torch.cat(seen)}, heads=[index]).hooks(bench.model)
    rises = {}
    for key, clips in sets.items():
        latents = bench.encode(clips)
        variance = latent_variance(latents)
        assert clips.action is not None
        errors = [
            relative_error(bench.last_x0(latents, clips.action, level, seed, hooks), latents[:, -1], variance).mean()
            for hooks in (replaced, None)
        ]
        rises[key] = (errors[0] - errors[1]).item()
    return rises


def latent_variance(latents: torch.Tensor) -> torch.Tensor:
    return latents.var((0, 1, 3, 4)).mean()


def codec_figures(bench: Bench, clips: Clips) -> dict[str, float]:
    """PSNR (dB, peak 1) of the round trip, and share of cells whose nearest patch stays the same."""
    decoded = bench.decode(bench.encode(clips))
    mse = (decoded - clips.pixels).square().mean()
    same = bench.cells(decoded) == bench.cells(clips.pixels)
    return {"psnr": (-10 * mse.log10()).item(), "cells": same.float().mean().item()}


def rollout_figures(bench: Bench, clips: Clips, *, steps: int = 10, ahead: int = 4, seed: int = 0) -> dict[str, float]:
    """Share of cells right, `ahead` frames after the context, and what copying the last context frame gets."""
    latents = bench.encode(clips)
    n_context = latents.shape[1] - ahead
    assert clips.action is not None
    rolled = bench.roll_out(latents, clips.action, n_context, steps, seed)
    truth = bench.cells(clips.pixels[:, n_context - 1 :])
    cells = bench.cells(bench.decode(rolled[:, n_context:]))
    right = [(cells[:, i] == truth[:, i + 1]).float().mean().item() for i in range(ahead)]
    return {
        **{f"plus_{i + 1}": value for i, value in enumerate(right)},
        "copying": (truth[:, 0] == truth[:, -1]).float().mean().item(),
    }


def crafter_figures(
    pipe: VideoDiffusion, played: game.Trajectories, n: int = 256, seed: int = 0, rollout: bool = True
) -> dict:
    """All figures, on `n` clips of each kind from `played`; see the module's docstring for units."""
    bench = Bench(pipe, played.patches)
    sets = {last: held_out(played, last, n, seed + i) for i, last in enumerate(("any", "moved", "blocked", "still"))}
    natural, moved = sets["any"], sets["moved"]
    result: dict = {"n": n, "seed": seed, "codec": codec_figures(bench, natural)}
    latents, variance = bench.encode(natural), latent_variance(bench.encode(natural))
    assert natural.action is not None and moved.action is not None
    own = MaskAttention("own_frame").hooks(bench.model)
    oracle, _ = scrolled(latents[:, -2], game.displacement(natural)[:, -1])
    result["oracle_scroll"] = relative_error(oracle, latents[:, -1], variance).mean().item()
    for level in (0.9, 0.6):
        full, alone = (
            relative_error(bench.last_x0(latents, natural.action, level, seed, hooks), latents[:, -1], variance).mean()
            for hooks in (None, own)
        )
        result[f"level_{level}"] = {"full": full.item(), "own_frame": alone.item(), "ratio": (alone / full).item()}
    there = bench.encode(moved)
    wrong = moved.action.clone()
    wrong[:, -1] = moved.action[torch.randperm(n, generator=torch.Generator().manual_seed(seed)), -1]
    right_error, wrong_error = (
        relative_error(bench.last_x0(there, action, 0.9, seed), there[:, -1], variance).mean()
        for action in (moved.action, wrong)
    )
    ratio = (wrong_error / right_error).item()
    result["action_moved"] = {"true": right_error.item(), "shuffled": wrong_error.item(), "ratio": ratio}
    shifts = {last: shift_accuracy(bench, sets[last], game.displacement(sets[last])[:, -1], seed) for last in sets}
    forced, _ = free_cell_actions(natural, seed)
    shifts["forced_free"] = shift_accuracy(bench, forced, game.implied(forced)[:, -1], seed)
    result["shift"] = {key: {"accuracy": accuracy, "n": count} for key, (accuracy, count) in shifts.items()}
    result["heads"] = head_figures(bench, sets, seed)
    if rollout:
        result["rollout"] = rollout_figures(bench, natural, seed=seed)
    return result


def head_figures(bench: Bench, sets: dict[str, Clips], seed: int, level: float = 0.9) -> dict:
    """The head that looks most where the action implies, and what its removal costs; likewise the best same-cell
    head."""
    moved = sets["moved"]
    shift = game.implied(moved)[:, -1]
    masses = head_masses(bench, moved, shift, level, seed)
    opposite = head_masses(bench, moved, -shift, level, seed)
    blocked = sets["blocked"]
    same = head_masses(bench, blocked, torch.zeros_like(shift[: len(blocked)]), level, seed)
    few = {key: sets[key] for key in ("moved", "blocked", "still")}
    found, rises = {}, {}
    for name, table in (("scroll", masses), ("copy", same)):
        layer, head = divmod(int(table.argmax()), table.shape[1])
        if (layer, head) not in rises:  # one head may do both
            rises[layer, head] = ablation_effects(bench, (layer, head), few, sets["any"], level, seed)
        found[name] = {
            "layer": layer,
            "head": head,
            "implied": masses[layer, head].item(),
            "opposite": opposite[layer, head].item(),
            "same_cell_when_blocked": same[layer, head].item(),
            "rise": rises[layer, head],
        }
    layer, head = found["scroll"]["layer"], found["scroll"]["head"]
    still = torch.zeros_like(shift)
    some = game.implied(blocked)[:, -1]  # where a move would have gone
    found["cut"] = {
        "moved_implied": cut_effect(bench, layer, [head], moved, shift, level, seed),
        "moved_opposite": cut_effect(bench, layer, [head], moved, -shift, level, seed),
        "moved_same_cell": cut_effect(bench, layer, [head], moved, still, level, seed),
        "blocked_implied": cut_effect(bench, layer, [head], blocked, some, level, seed),
        "blocked_same_cell": cut_effect(bench, layer, [head], blocked, still, level, seed),
    }
    found["implied_mass"] = masses.tolist()
    found["same_cell_mass_when_blocked"] = same.tolist()
    return found
