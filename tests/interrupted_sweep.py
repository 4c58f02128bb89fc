"""A sweep of 500 trials in a process of its own, to be killed: `python tests/interrupted_sweep.py OUT [ENGINE]`.

Writes OUT/table.csv when it gets to its end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from contrasts import given

import vdinterp as vd
from vdinterp.analysis import Contrast
from vdinterp.analysis.patching.judging import Judge, recovered
from vdinterp.interventions import Patch, Steer
from vdinterp.sweep import SweepResult, Trial


def trials(n: int = 500) -> list[Trial]:
    """Patches of one head and token, and pushes along one channel, all different."""
    made = []
    for index in range(n):
        layer, head, token = index % 2, index // 2 % 2, index // 4 % 24
        if index % 5:
            one: Any = Patch(("z", layer), "clean", heads=[head], tokens=[token])
        else:
            one = Steer(("resid_pre", layer), torch.eye(20)[index % 20], strength=1 + index / 100)
        made.append(
            Trial(interventions=(one, Steer(("mlp_out", 1), torch.ones(20), index / 1000)), label={"trial": index})
        )
    return made


def run(out: str | Path | None, n: int = 500, **options: Any) -> SweepResult:
    pair = Contrast(**given(n=4))
    options = {"trials_per_pass": 2, "progress": False, **options}
    return vd.sweep.run(pair.denoiser, pair.cases(), trials(n), {"recovered": Judge(recovered)}, out=out, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    print("running", flush=True)
    run(folder, engine=sys.argv[2] if len(sys.argv) > 2 else "inline").table.to_csv(folder / "table.csv", index=False)
