"""What `import vdinterp` costs, in fresh processes, against `import transformer_lens`.

Two rows for vdinterp: the bare import, which loads public names on first use, and the import with every one of them
used, which is what the limit of 1.15 is meant to guard. Prints one JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

CASES = {
    "transformer_lens": "import transformer_lens",
    "vdinterp": "import vdinterp",
    "vdinterp, every public name": "import vdinterp; [getattr(vdinterp, name) for name in vdinterp.__all__]",
}
TIMED = "import time; start = time.perf_counter(), time.process_time(); {}; print(time.perf_counter() - start[0], \
time.process_time() - start[1])"


def measure(statement: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of one statement in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement)], capture_output=True, text=True, check=True
    ).stdout.split()
    return float(done[-2]), float(done[-1])


def main(runs: int = 5) -> dict[str, dict[str, float]]:
    """Medians over `runs` rounds; the cases take turns, so that a slow moment of the machine meets all of them."""
    measure(CASES["transformer_lens"])  # fill the file cache
    rounds = [{name: measure(statement) for name, statement in CASES.items()} for _ in range(runs)]
    result = {}
    for name in CASES:
        ratios = [now[name][1] / now["transformer_lens"][1] for now in rounds]
        result[name] = {
            "wall_s": round(statistics.median(now[name][0] for now in rounds), 3),
            "cpu_s": round(statistics.median(now[name][1] for now in rounds), 3),
            "cpu_over_transformer_lens": round(statistics.median(ratios), 3),
        }
    return result


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
