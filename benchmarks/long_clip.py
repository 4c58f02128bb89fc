"""One attention layer of a real clip: 32,760 tokens, 12 heads of 128 channels (Wan 2.1 at 480p, 81 frames).

python benchmarks/long_clip.py            # about 10 minutes on two cores
python benchmarks/long_clip.py --frames 5 # a shorter clip
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from memory import PeakMemory
from timing import write

from vdinterp.grid import TokenGrid
from vdinterp.models import AttentionPattern
from vdinterp.models.memory import readable

HEADS, D_HEAD, ROWS, COLS = 12, 128, 30, 52
LIMIT_MIB = 2048


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=21, help="latent frames (default 21: 81 frames of video)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/long_clip.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    grid = TokenGrid(args.frames, ROWS, COLS)
    torch.manual_seed(0)
    q, k = (torch.randn(1, 1, HEADS, grid.n_tokens, D_HEAD) for _ in range(2))
    pattern = AttentionPattern(q, k, D_HEAD**-0.5, None, grid)
    print(pattern)
    questions: dict[str, Callable[[], torch.Tensor]] = {
        "frame mass": pattern.frame_mass,
        "64 rows": lambda: pattern.rows(torch.linspace(0, grid.n_tokens - 1, 64).long()),
        "sinks": pattern.received,
    }
    table = []
    for name, ask in questions.items():
        start = time.perf_counter()
        with PeakMemory() as peak:
            found = ask()
        seconds = time.perf_counter() - start
        table.append({"row": name, "seconds": seconds, "peak_mib": peak.mib, "shape": list(found.shape)})
        print(
            f"{name:12}{seconds:8.1f} s   peak {peak.mib:7.0f} MiB above the inputs   {list(found.shape)}", flush=True
        )
    settings = {"tokens": grid.n_tokens, "heads": HEADS, "d_head": D_HEAD, "threads": args.threads}
    write(args.out, {"settings": settings, "dense_bytes": pattern.dense_bytes, "torch": torch.__version__}, table)
    print(f"the whole pattern would be {readable(pattern.dense_bytes)}")
    return int(any(row["peak_mib"] > LIMIT_MIB for row in table))


if __name__ == "__main__":
    raise SystemExit(main())
