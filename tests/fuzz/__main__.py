"""`python -m fuzz --examples 1000 --seed 5`: the table by door, and every kind of case that should not be."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch

LEAST_NAMED = 0.98
NEVER = ("silent", "hang", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=900, help="calls a door")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--door", action="append", help="only this one; may be given again")
    parser.add_argument("--failures", type=int, default=12, help="how many to print a door")
    parser.add_argument("--json", type=Path, help="also write counts and failures there")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("vdinterp").setLevel(logging.CRITICAL)

    from fuzz import world
    from fuzz.doors import DOORS
    from fuzz.harness import Watch, run

    doors = {name: cases for name, cases in DOORS.items() if not chosen.door or name in chosen.door}
    tally = run(doors, chosen.examples, chosen.seed, Watch(world.pipe().model))
    print(tally.table())
    print(f"\nnamed before compute: {tally.named_share:.2%} of what was wrong, seed {chosen.seed}")
    for door, failures in tally.failures.items():
        print(f"\n{door}:")
        for line in sorted(set(failures))[: chosen.failures]:
            print(f"  {line}")
    if chosen.json:
        found = {
            "counts": tally.counts,
            "failures": {door: sorted(set(lines)) for door, lines in tally.failures.items()},
        }
        chosen.json.write_text(json.dumps(found, indent=1))
    return int(tally.named_share < LEAST_NAMED or any(tally.total[outcome] for outcome in NEVER))


if __name__ == "__main__":
    sys.exit(main())
