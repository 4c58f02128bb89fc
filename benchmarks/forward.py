"""What hooks cost: our forward pass against the same network in plain torch, and against nnsight over that.

python benchmarks/forward.py                         # d384, 12 layers, 1,280 tokens
python benchmarks/forward.py --rounds 5 --layers 4   # a quick look
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from plain import PlainDiT, random_model
from timing import interleaved, report, write

RESIDUALS = ["resid_pre", "resid_mid", "resid_post"]


def with_nnsight(plain: PlainDiT, latents: torch.Tensor, levels: torch.Tensor) -> Callable[[], int] | None:
    """The same residuals saved by nnsight over the plain network, or None where it is not installed."""
    try:
        from nnsight import NNsight
    except ImportError:
        return None
    traced = NNsight(plain)

    def run() -> int:
        saved = []
        with traced.trace(latents, levels):
            for block in traced.blocks:
                saved.append(block.hook_resid_pre.output.save())
                saved.append(block.hook_resid_mid.output.save())
                saved.append(block.hook_resid_post.output.save())
        return len(saved)

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/forward.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    ours = random_model(args.width, args.layers)
    plain = PlainDiT(ours.cfg).eval()
    plain.copy_from(ours)
    latents, levels = torch.randn(1, 5, 4, 32, 32), torch.randint(0, 1000, (1, 5))

    with torch.inference_mode():
        difference = (ours(latents, levels) - plain(latents, levels)).abs().max().item()
        if difference > 1e-4:
            raise SystemExit(f"The two networks differ by {difference:.1e}; there is nothing to compare.")
        rows: dict[str, Callable[[], object]] = {
            "a  ours, no hooks": lambda: ours(latents, levels),
            "b  plain torch": lambda: plain(latents, levels),
            "c  ours, residuals cached": lambda: ours.run_with_cache(latents, levels, names=RESIDUALS),
            "d  ours, everything cached": lambda: ours.run_with_cache(latents, levels),
        }
        nnsight = with_nnsight(plain, latents, levels)
        if nnsight is None:
            print('nnsight is not installed, so its row is left out: pip install "vdinterp[bench]"', file=sys.stderr)
        else:
            saved = nnsight()
            assert saved == 3 * args.layers, saved
            rows["e  nnsight over b, residuals saved"] = nnsight
        times = interleaved(rows, args.rounds, args.warmup)

    tokens = ours.grid().n_tokens
    print(f"d{args.width}, {args.layers} layers, {tokens:,} tokens, {args.threads} thread(s), {args.rounds} rounds;")
    print(f"same weights, largest difference of the outputs {difference:.1e}\n")
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    about = {"settings": {**settings, "tokens": tokens}, "torch": torch.__version__, "difference": difference}
    write(args.out, about, report(times, "b  plain torch", "over b"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
