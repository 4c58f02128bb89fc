"""Activation patching through the sweep engine, against a full forward pass a patch and against a restart a run.

The sweep is that of `transformer_lens.patching.get_act_patch_block_every`: `resid_pre`, `attn_out` and `mlp_out` over
layers and positions; `--site` takes one of them alone.

python benchmarks/patching.py                                 # d384, 12 layers, 1,280 tokens; then 20 denoising steps
python benchmarks/patching.py --layers 4 --positions 2 --rounds 1 --steps 5   # a quick look

Positions are a sample of the tokens; times are of one patch. Clean and corrupted run are needed once, whoever sweeps,
so they are a row of their own, shared by the patches of every way but the blocks alone: by those of a sweep of as many
positions as ours ran, and of a sweep of all tokens, where they hardly count. The bars are of the latter, at the
default size. Rows are of like length, and many rounds better than long ones: a busy machine slows long rows at other
times than short ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from plain import PlainBlock, PlainDiT, random_model
from timing import interleaved, report, write
from transformer_lens.hook_points import HookPoint
from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter

import vdinterp as vd
from vdinterp.analysis.patching.judging import Pair, recovered
from vdinterp.diffusion import DiffusionConfig
from vdinterp.interventions import Patch
from vdinterp.models import HookedVideoDiT
from vdinterp.models.hooks import HookedRootModule
from vdinterp.pipeline import VideoDiffusion

AGREE = 1e-4
UNTOUCHED, OURS = "untouched runs, once a sweep", "ours"
EXPLICIT, FUSED, NNSIGHT = "a  TransformerLens loop, explicit", "b  TransformerLens loop, fused", "c  nnsight loop"
BLOCKS, RESTART = "d  the necessary blocks alone", "restarting every run from the noise"
LEAST = {EXPLICIT: 3.0, FUSED: 1.8, RESTART: 1.8}  # ours has to be this many times as fast
MOST = {BLOCKS: 1.15}  # and to take at most this many times as long
SITES = ("resid_pre", "attn_out", "mlp_out")
Places = Sequence[tuple[Any, ...]]  # (site, layer, token), or (step, layer)


class LensBlock(PlainBlock):
    """The plain block with TransformerLens's hook points, its attention explicit as there, or fused."""

    point = HookPoint

    def __init__(self, width: int, n_heads: int, explicit: bool) -> None:
        super().__init__(width, n_heads)
        self.explicit = explicit
        self.hook_q, self.hook_k, self.hook_v, self.hook_z = HookPoint(), HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()

    def _weighted(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if not self.explicit:
            return self.hook_z(super()._weighted(q, k, v))
        scores = self.hook_attn_scores(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
        return self.hook_z(self.hook_pattern(scores.softmax(-1)) @ v)


class LensDiT(PlainDiT, HookedRootModule):
    """The whole network as one would write it for TransformerLens."""

    def __init__(self, ours: HookedVideoDiT, explicit: bool) -> None:
        super().__init__(ours.cfg, partial(LensBlock, explicit=explicit))
        self.copy_from(ours)
        self.setup()


class OneInput:
    """What `generic_activation_patch` asks of a model, for a network whose input is no tokens."""

    def __init__(self, network: LensDiT, *inputs: torch.Tensor) -> None:
        self.network, self.inputs = network, inputs
        self.cfg = SimpleNamespace(device=inputs[0].device)

    def run_with_hooks(self, _: torch.Tensor, fwd_hooks: list[Any]) -> torch.Tensor:
        return self.network.run_with_hooks(*self.inputs, fwd_hooks=fwd_hooks)


@dataclass
class Task:
    """Clean and corrupted latents that differ in some tokens; what a patch recovers is judged on the last frame."""

    ours: HookedVideoDiT
    clean: torch.Tensor
    corrupted: torch.Tensor
    levels: torch.Tensor
    tokens: list[int]
    sites: Sequence[str]

    @classmethod
    def random(cls, width: int, layers: int, n_positions: int, device: str, sites: Sequence[str]) -> Task:
        torch.manual_seed(0)
        ours = vd.VideoDiffusion(random_model(width, layers), None, vd.DiffusionConfig()).model
        grid, side = ours.grid(), ours.cfg.height
        tokens = torch.linspace(0, grid.n_tokens - 1, n_positions).long().tolist()
        corrupted, other = torch.randn(2, 1, grid.n_frames, 4, side, side)
        differs = torch.zeros(grid.n_tokens, dtype=torch.bool)
        differs[tokens] = True
        pixels = differs.view(grid.shape).repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1)
        levels = torch.randint(0, 1000, (1, grid.n_frames))
        clean, corrupted, levels = (
            given.to(device) for given in (torch.where(pixels, other, corrupted), corrupted, levels)
        )
        return cls(ours.to(device), clean, corrupted, levels, tokens, sites)

    @property
    def region(self) -> torch.Tensor:
        where = torch.zeros(self.clean.shape[1], *self.clean.shape[3:], dtype=torch.bool)
        where[-1] = True
        return where

    def pair(self) -> Pair:
        clean, corrupted = self.ours(self.clean, self.levels), self.ours(self.corrupted, self.levels)
        return Pair(clean, corrupted, self.clean, self.region.to(clean.device)[None, :, None], 1.0)

    def untouched(self) -> None:
        for latents in (self.clean, self.corrupted):
            self.ours.run_with_cache(latents, self.levels, names=list(SITES))

    def by_sweep(self, tokens: Sequence[int], trials_per_pass: Any) -> dict[tuple[Any, ...], float]:
        found = {}
        for site in self.sites:
            result = vd.activation_patch(
                self.ours,
                self.clean,
                self.corrupted,
                self.ours.schedule.level(self.levels),
                site=site,
                over=("layer", "region"),
                regions={str(token): [token] for token in tokens},
                region=self.region,
                sweep_options={"trials_per_pass": trials_per_pass, "progress": False},
            )
            for layer in range(self.ours.cfg.n_layers):
                found |= {(site, layer, token): float(result.values[layer, i]) for i, token in enumerate(tokens)}
        return found


Way = Callable[[Places], dict[tuple[Any, ...], float]]


def lens_loop(task: Task, pair: Pair, explicit: bool) -> Way:
    """TransformerLens's own loop over patches, each a full forward pass."""
    network = LensDiT(task.ours, explicit).eval().to(task.clean.device)
    cache: Any = network.run_with_cache(task.clean, task.levels, names_filter=lambda name: name.endswith(SITES))[1]
    model: Any = OneInput(network, task.corrupted, task.levels)

    def run(places: Places) -> dict[tuple[Any, ...], float]:
        found = {}
        for site in task.sites:
            here = [place for place in places if place[0] == site]
            index = pd.DataFrame([place[1:] for place in here], columns=["layer", "pos"])
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                effects = generic_activation_patch(
                    model,
                    torch.zeros(1, 1, dtype=torch.long),
                    cache,
                    lambda pred: recovered(pred, pair)[0],
                    layer_pos_patch_setter,
                    site,
                    index_df=index,
                )
            found |= dict(zip(here, effects.tolist(), strict=True))
        return found

    return run


def nnsight_loop(task: Task, pair: Pair) -> Way | None:
    """One trace a patch over the plain network, or None where nnsight is not installed."""
    try:
        from nnsight import NNsight
    except ImportError:
        return None
    plain = PlainDiT(task.ours.cfg).eval()
    plain.copy_from(task.ours)
    traced: Any = NNsight(plain.to(task.clean.device))
    cache = task.ours.run_with_cache(task.clean, task.levels, names=list(SITES))[1]
    latents, levels = task.corrupted, task.levels

    def run(places: Places) -> dict[tuple[Any, ...], float]:
        effects = []
        for site, layer, token in places:
            other = cache[site, layer][:, token]
            with traced.trace(latents, levels):
                getattr(traced.blocks[layer], f"hook_{site}").output[:, token] = other
                pred = traced.output.save()
            effects.append(recovered(pred, pair)[0])
        return dict(zip(places, torch.stack(effects).tolist(), strict=True))

    return run


def blocks_alone(task: Task) -> Callable[[Places], None]:
    """The blocks that a patch changes (the first from its patched sublayer on), called one after the other; nothing is
    patched or judged."""
    model, grid = task.ours, task.ours.grid()
    cache = model.run_with_cache(task.corrupted, task.levels, names=[*SITES, "hook_cond"])[1]
    n_known = {"resid_pre": 0, "attn_out": 1, "mlp_out": 2}
    table, blocks = model.rope["3d"](grid, like=cache["resid_pre", 0]), list(model.blocks)

    def run(places: Places) -> None:
        for site, layer, _ in places:
            x = cache["resid_pre", layer]
            known = {name: cache[f"{name}_out", layer] for name in ("attn", "mlp")[: n_known[site]]}
            for block in blocks[layer:]:
                x = block(x, cache["hook_cond"], grid, None, table, None, known)
                known = {}

    return run


def layer_by_position(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The sweep over layers and positions: rows of the table, and ratios of ours to the others."""
    sites = SITES if args.site is None else (args.site,)
    task = Task.random(args.width, args.layers, args.positions, args.device, sites)
    pair = task.pair()
    loops = {EXPLICIT: lens_loop(task, pair, True), FUSED: lens_loop(task, pair, False)}
    nnsight = nnsight_loop(task, pair)
    if nnsight is None:
        print('nnsight is not installed, so its row is left out: pip install "vdinterp[bench]"', file=sys.stderr)
    else:
        loops[NNSIGHT] = nnsight
    positions = task.tokens[: args.loop_positions]
    sample = [(site, layer, token) for site in sites for layer in range(args.layers) for token in positions]

    some = sorted({0, args.layers // 2, args.layers - 1})
    few = [(site, layer, task.tokens[0]) for site in sites for layer in some]
    found: dict[str, dict[Any, float]] = {name: run(few) for name, run in loops.items()}
    found[OURS] = task.by_sweep(task.tokens[:1], 1)
    check(found)
    alone = blocks_alone(task)
    rows: dict[str, Callable[[], object]] = {
        UNTOUCHED: task.untouched,
        OURS: keeping(found, OURS, lambda: task.by_sweep(task.tokens, args.trials_per_pass)),
        **{name: keeping(found, name, partial(run, sample)) for name, run in loops.items()},
        BLOCKS: lambda: alone(sample),
    }
    times = interleaved(synchronised(rows, args.device), args.rounds, 0)
    difference = check(found)

    n_tokens, n_patches = task.ours.grid().n_tokens, len(sites) * args.layers * args.positions
    print(f"d{args.width}, {args.layers} layers, {n_tokens:,} tokens on {args.device}, {args.threads} thread(s), ")
    print(f"{', '.join(sites)}; {args.rounds} rounds; times are of one patch. {compared(difference, found[OURS])}")
    table = []
    for n_positions in (args.positions, n_tokens):
        print(f"\nin a sweep of {n_positions:,} positions:\n")
        several = by_patch(times, n_patches, len(sample), len(sites) * args.layers * n_positions, len(sites))
        table += [{**row, "positions": n_positions} for row in report(several, OURS, "/ ours")]
    return table, {row["row"]: row["over_base"] for row in table if row["positions"] == n_tokens}


def trajectories(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A patch at one step of a trajectory: resumed there, or run from the noise."""
    torch.manual_seed(0)
    width, layers, steps = args.trajectory_width, args.trajectory_layers, args.steps
    model = random_model(width, layers, side=16).to(args.device)
    pipe = VideoDiffusion(model, None, DiffusionConfig())
    clean, corrupted, noise = torch.randn(3, 1, 5, 4, 16, 16)
    n_context, site = 4, "attn_out"
    setting: dict[str, Any] = {"n_frames": 5, "steps": steps, "noise": noise}

    def untouched() -> tuple[Any, Any]:
        first = pipe.sample(clean[:, :n_context], record=[site], **setting)
        return first, pipe.sample(corrupted[:, :n_context], **setting)

    runs = untouched()
    where = torch.zeros(1, 5, 1, 16, 16, dtype=torch.bool, device=args.device)
    where[:, n_context:] = True
    pair = Pair(runs[0].latents, runs[1].latents, clean.to(args.device), where, 1.0)

    def sweep(trials_per_pass: Any) -> dict[tuple[int, int], float]:
        result = vd.activation_patch(
            pipe,
            clean,
            corrupted,
            steps=steps,
            n_context=n_context,
            noise=noise,
            site=site,
            over=("step", "layer"),
            sweep_options={"trials_per_pass": trials_per_pass, "progress": False},
        )
        return {(s, layer): float(result.values[s, layer]) for s in range(steps) for layer in range(layers)}

    def restart(places: Places) -> dict[tuple[int, int], float]:
        effects = []
        for step, layer in places:
            patch = Patch(f"blocks.{layer}.hook_{site}", runs[0].record[step], steps=[step])
            latents = pipe.sample(corrupted[:, :n_context], interventions=[patch], **setting).latents
            effects.append(recovered(latents, pair)[0])
        return dict(zip(places, torch.stack(effects).tolist(), strict=True))

    every = max(1, steps // args.loop_steps)
    sample = [(step, layer) for step in range(every // 2, steps, every) for layer in range(layers)]
    found: dict[str, dict[Any, float]] = {OURS: sweep(1), RESTART: restart(sample[:: max(1, layers - 1)])}
    check(found)
    rows: dict[str, Callable[[], object]] = {
        UNTOUCHED: untouched,
        OURS: keeping(found, OURS, lambda: sweep(args.trials_per_pass)),
        RESTART: keeping(found, RESTART, partial(restart, sample)),
    }
    times = interleaved(synchronised(rows, args.device), args.rounds, 0)
    difference = check(found)

    n_patches = steps * layers
    print(
        f"\nd{width}, {layers} layers, {model.grid().n_tokens:,} tokens, {steps} denoising steps, {n_patches} patches"
    )
    print(f"of one layer at one step each; times are of one patch. {compared(difference, found[OURS])}\n")
    table = report(by_patch(times, n_patches, len(sample), n_patches), OURS, "/ ours")
    table = [{**row, "steps": steps} for row in table]
    return table, {row["row"]: row["over_base"] for row in table}


def by_patch(
    times: Mapping[str, list[float]], n_ours: int, n_loop: int, n_patches: int, n_sweeps: int = 1
) -> dict[str, list[float]]:
    """Seconds a patch, in a sweep of `n_patches`, of ways timed with `n_ours` (as `n_sweeps` sweeps, which make the
    untouched runs anew) and with `n_loop` patches."""
    once = times[UNTOUCHED]
    made = [n_sweeps * seconds for seconds in once]
    found = {OURS: [(a - b) / n_ours + b / n_patches for a, b in zip(times[OURS], made, strict=True)]}
    for name in times.keys() - {UNTOUCHED, OURS}:
        share = 0 if name == BLOCKS else 1 / n_patches
        found[name] = [a / n_loop + b * share for a, b in zip(times[name], once, strict=True)]
    return {name: found[name] for name in times if name in found}


def keeping(found: dict[str, Any], name: str, run: Callable[[], Any]) -> Callable[[], None]:
    """`run`, whose effects are kept, to be compared when all is timed."""

    def row() -> None:
        found[name] = run()

    return row


def check(found: Mapping[str, Mapping[Any, float]]) -> float:
    """The largest difference of effects from ours; exits if they are not the same numbers."""
    difference = max(
        abs(effect - found[OURS][place]) for name in found if name != OURS for place, effect in found[name].items()
    )
    if not difference <= AGREE:
        raise SystemExit(f"Effects differ by {difference:.1e}; there is nothing to compare.")
    return difference


def compared(difference: float, effects: Mapping[Any, float]) -> str:
    low, high = min(effects.values()), max(effects.values())
    return f"Effects from {low:.3f} to {high:.3f},\nlargest difference {difference:.1e}"


def synchronised(rows: Mapping[str, Callable[[], object]], device: str) -> dict[str, Callable[[], object]]:
    """Rows that end when the device has done its work."""

    def row(run: Callable[[], object]) -> None:
        run()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    return {name: partial(row, run) for name, run in rows.items()}


def judge(ratios: Mapping[str, float]) -> None:
    """Print which bars are met."""
    print()
    for name, ratio in ratios.items():
        if name in LEAST:
            met = "met" if ratio >= LEAST[name] else "MISSED"
            print(f"{name:36}ours is {ratio:.2f} times as fast, at least {LEAST[name]}: {met}")
        if name in MOST:
            met = "met" if 1 / ratio <= MOST[name] else "MISSED"
            print(f"{name:36}ours takes {1 / ratio:.2f} times as long, at most {MOST[name]}: {met}")


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--site", choices=SITES, help="one site alone (default: all three)")
    parser.add_argument("--positions", type=int, default=2, help="tokens that ours patches (default 2)")
    parser.add_argument("--loop-positions", type=int, default=1, help="tokens that the loops patch (default 1)")
    parser.add_argument("--trajectory-width", type=int, default=192)
    parser.add_argument("--trajectory-layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="denoising steps; 0 leaves trajectories out")
    parser.add_argument("--loop-steps", type=int, default=2, help="steps that are restarted for (default 2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials-per-pass", default=1, type=lambda given: given if given == "auto" else int(given))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/patching.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    table, ratios = layer_by_position(args)
    if args.steps:
        more, others = trajectories(args)
        table, ratios = table + more, ratios | others
    judge(ratios)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    write(args.out, {"settings": settings, "torch": torch.__version__}, table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
