"""How often the induction search is right about organisms and untrained networks: the confusion matrix of the docs.

python tools/induction_census.py                       # about 20 minutes of one core; resumes where it stopped
python tools/induction_census.py --shard 1/2           # half of them, to run two at a time into the same folder
python tools/induction_census.py --table               # rewrite the table of docs/induction.md from what is recorded
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import pandas as pd
from readme_tables import markdown

import vdinterp as vd
from vdinterp import store
from vdinterp.analysis.induction import VERDICTS
from vdinterp.analysis.induction.controls import untrained
from vdinterp.organisms import KINDS
from vdinterp.pipeline import VideoDiffusion
from vdinterp.sweep import Records

DOCS = Path(__file__).parent.parent / "docs" / "induction.md"
NUMBERS = {**dict.fromkeys(KINDS, 20), "induction": 80, "untrained": 20}
SETTINGS = {"levels": (0.4, 0.8, 0.95), "n_per_lag": 8, "designs": ()}  # a lighter search than the default


def build(kind: str, seed: int) -> VideoDiffusion:
    """An organism of 3 to 6 layers and 3 to 5 heads, or a network of `tiny-induction`'s shape with random weights."""
    if kind == "untrained":
        return untrained(vd.load("tiny-induction"), seed)
    return vd.organisms.build(kind, seed, n_layers=3 + seed % 4, n_heads=3 + seed % 3)


def census(out: Path, shard: tuple[int, int]) -> None:
    every = [(kind, seed) for kind, number in NUMBERS.items() for seed in range(number)]
    every.sort(key=lambda one: one[1])  # a part of the run has all kinds
    for kind, seed in every[shard[0] - 1 :: shard[1]]:
        if any(one["kind"] == kind and one["seed"] == seed for one in recorded(out)):
            continue
        start = time.perf_counter()
        pipe = build(kind, seed)
        found = vd.find_induction(pipe, seed=seed, progress=False, **SETTINGS)  # type: ignore[arg-type]
        planted = getattr(pipe, "heads", {}).get("induction")
        Records(out / f"census-{shard[0]}-of-{shard[1]}.jsonl").append(
            {
                "kind": kind, "seed": seed, "verdict": found.verdict, "heads": [list(head) for head in found.heads],
                "planted": None if planted is None else list(planted), "reason": found.reason,
                "seconds": round(time.perf_counter() - start, 1),
            }
        )  # fmt: skip


def recorded(out: Path) -> list[dict]:
    """What is known, each network once, whichever shards it came from."""
    lines = [line for file in sorted(out.glob("census-*.jsonl")) for line in Records(file).read()]
    return list({(line["kind"], line["seed"]): line for line in lines}.values())


def table(records: list[dict]) -> pd.DataFrame:
    """One row a kind: how many, how often each verdict, and how often exactly the planted head is named."""
    rows = []
    for kind in NUMBERS:
        mine = [one for one in records if one["kind"] == kind]
        if mine:
            named = sum(one["heads"] == [one["planted"]] for one in mine) if kind == "induction" else ""
            counts = {verdict: sum(one["verdict"] == verdict for one in mine) or "" for verdict in VERDICTS}
            rows.append({"planted": kind, "n": len(mine), **counts, "exactly the planted head": named})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/census"))
    parser.add_argument("--shard", default="1/1")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.table:
        first, n = map(int, given.shard.split("/"))
        census(given.out, (first, n))
    found = recorded(given.out)
    print(table(found).to_string(index=False))
    if given.table:
        text = DOCS.read_text(encoding="utf-8")
        pattern = re.compile(r"(<!-- census:begin -->\n).*?(\n<!-- census:end -->)", re.DOTALL)
        store.write(DOCS, pattern.sub(lambda m: f"{m[1]}\n{markdown(table(found))}\n{m[2]}", text))


if __name__ == "__main__":
    main()
