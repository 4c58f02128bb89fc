"""What attention statistics of all heads and layers cost over the plain fused forward pass; and the N x N way.

python benchmarks/attention_stats.py                # d384, 12 layers, 1,280 and 4,096 tokens
python benchmarks/attention_stats.py --rounds 3
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from memory import PeakMemory
from timing import interleaved, report, write
from torch import nn

from vdinterp.models import HookedVideoDiT, Rope, VideoDiTConfig

SIZES = {1280: (5, 32), 4096: (16, 32)}  # tokens: frames, height and width in latents (patches of 2 x 2)
ROWS = {"plain": None, "frame mass, riding along": "frame_mass", "frame mass, materialised": "pattern"}


def build(tokens: int, layers: int) -> tuple[HookedVideoDiT, torch.Tensor, torch.Tensor]:
    frames, side = SIZES[tokens]
    cfg = VideoDiTConfig(
        model_name="benchmark",
        d_model=384,
        n_layers=layers,
        n_heads=6,
        d_head=64,
        d_mlp=1536,
        in_channels=4,
        out_channels=4,
        patch_size=(1, 2, 2),
        n_frames=frames,
        height=side,
        width=side,
        rope={"3d": Rope(dims=(20, 22, 22))},
    )
    torch.manual_seed(0)
    model = HookedVideoDiT(cfg).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model, torch.randn(1, frames, 4, side, side), torch.randint(0, 1000, (1, frames))


@torch.inference_mode()
def run(model: HookedVideoDiT, latents: torch.Tensor, levels: torch.Tensor, what: str | None) -> list[torch.Tensor]:
    """One pass with the frame mass of all heads and layers: not at all, riding along, or from every whole pattern."""
    if what is None:
        return [model(latents, levels)]
    if what == "frame_mass":
        return [model.run_with_stats(latents, levels, stats=["frame_mass"])[1]["frame_mass"]]
    frames = nn.functional.one_hot(model.grid().frame_of()).float()
    kept: list[torch.Tensor] = []

    def reduce(pattern: torch.Tensor, hook: object) -> None:
        kept.append((pattern @ frames).unflatten(2, (model.cfg.n_frames, -1)).mean(3))

    model.run_with_hooks(latents, levels, fwd_hooks=[("pattern", reduce)])
    return [torch.stack(kept)]


def peak_mib(tokens: int, layers: int, row: str, threads: int) -> float:
    """Peak resident memory of one pass above what building the model took, in a process of its own."""
    command = [sys.executable, __file__, "--tokens", str(tokens), "--layers", str(layers), "--peak", row]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, choices=list(SIZES), action="append")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/attention_stats.json"))
    parser.add_argument("--peak", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak is not None:
        given = build(args.tokens[0], args.layers)
        with PeakMemory() as peak:
            run(*given, ROWS[args.peak])
        print(peak.mib)
        return 0
    tables = []
    for tokens in args.tokens or SIZES:
        given = build(tokens, args.layers)
        one, other = run(*given, "frame_mass")[0], run(*given, "pattern")[0]
        difference = (one - other).abs().max().item()
        rows = {name: partial(run, *given, what) for name, what in ROWS.items()}
        times = interleaved(rows, args.rounds, 1)
        print(f"\nd384, {args.layers} layers, {tokens:,} tokens, {args.threads} thread(s), {args.rounds} rounds;")
        print(f"largest difference of the two frame masses {difference:.1e}\n")
        table = report(times, "plain", "over")
        for row in table:
            row |= {"tokens": tokens, "peak_mib": peak_mib(tokens, args.layers, row["row"], args.threads)}
            print(f"{row['row']:36}peak memory {row['peak_mib']:8.1f} MiB above the model")
        tables += table
    settings = {"layers": args.layers, "rounds": args.rounds, "threads": args.threads}
    write(args.out, {"settings": settings, "torch": torch.__version__}, tables)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
