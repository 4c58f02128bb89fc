"""How often the induction search is right about organisms and untrained networks, and what it says of trained ones:
the tables of docs/induction.md.

python tools/induction_census.py                       # half an hour of one core; resumes where it stopped
python tools/induction_census.py --shard 1/2           # half of them, to run two at a time into the same folder
python tools/induction_census.py --trained my/network  # and a bundle of yours; may be given again
python tools/induction_census.py --table               # rewrite the tables of docs/induction.md from what is recorded
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path

import pandas as pd
from readme_tables import markdown

import vdinterp as vd
from vdinterp import store
from vdinterp.analysis.induction import VERDICTS
from vdinterp.analysis.induction.controls import untrained
from vdinterp.organisms import KINDS
from vdinterp.pipeline import VideoDiffusion
from vdinterp.store import Records

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "induction.md"
INDUCTION = ("induction", "half_induction", "long_cue")  # kinds that have a head called so
NUMBERS = dict.fromkeys((*KINDS, "untrained"), 16)
SETTINGS = {"noise_levels": (0.4, 0.8, 0.95), "n_per_lag": 8, "designs": ()}  # a lighter search than the default
# Other training seeds of tiny-induction's recipe, and those of the package; searched as by default.
TRAINED = ("tiny-induction", *(str(folder) for folder in sorted((ROOT / "tests" / "trained").glob("seed-*"))))
REPEATS = 4  # searches of each trained network after the first


def build(kind: str, seed: int) -> VideoDiffusion:
    """An organism of 3 to 6 layers and 3 to 5 heads, or a network of `tiny-induction`'s shape with random weights."""
    if kind == "untrained":
        return untrained(vd.load("tiny-induction"), seed)
    return vd.organisms.build(kind, seed, n_layers=3 + seed % 4, n_heads=3 + seed % 3)


def census(out: Path, shard: tuple[int, int], trained: list[str]) -> None:
    """Search every network that is not recorded yet."""
    every = [(kind, seed) for kind, number in NUMBERS.items() for seed in range(number)]
    every += [(network, 0) for network in trained]
    every.sort(key=lambda one: one[1])  # a part of the run has all kinds
    for kind, seed in every[shard[0] - 1 :: shard[1]]:
        if any(one["kind"] == Path(kind).name and one["seed"] == seed for one in recorded(out)):
            continue
        start = time.process_time()
        pipe = vd.load(kind) if kind in trained else build(kind, seed)
        options = {"repeats": REPEATS} if kind in trained else {**SETTINGS, "repeats": 0}
        found = vd.find_induction(pipe, seed=seed, verdict_only=True, progress=False, **options)  # type: ignore[arg-type]
        planted = getattr(pipe, "heads", {}).get("induction")
        Records(out / f"census-{shard[0]}-of-{shard[1]}.jsonl").append(
            {
                "kind": Path(kind).name,
                "seed": seed,
                "verdict": found.verdict,
                "heads": [list(head) for head in found.heads],
                "trained": kind in trained,
                "planted": None if planted is None else list(planted),
                "reason": found.reason,
                "carried": None if pd.isna(found.carried) else found.carried,
                "judged": found.judged.to_dict("records"),
                "again": found.again.to_dict("records"),
                "seconds": round(time.process_time() - start, 1),
            }
        )


def recorded(out: Path) -> list[dict]:
    """What is known, each network and seed once, whichever shards it came from."""
    lines = [line for file in sorted(out.glob("census-*.jsonl")) for line in Records(file).read()]
    return list({(line["kind"], line["seed"]): line for line in lines}.values())


def table(records: list[dict]) -> pd.DataFrame:
    """One row a kind: how many, how often each verdict, and how often exactly the planted head is named."""
    rows = []
    for kind in NUMBERS:
        mine = [one for one in records if one["kind"] == kind]
        if mine:
            named = sum(one["heads"] == [one["planted"]] for one in mine) if kind in INDUCTION else ""
            counts = {verdict: sum(one["verdict"] == verdict for one in mine) or "" for verdict in VERDICTS}
            rows.append({"planted": kind, "n": len(mine), **counts, "exactly the planted head": named})
    return pd.DataFrame(rows)


def trained_table(records: list[dict]) -> pd.DataFrame:
    """One row a trained network: searches, how often each verdict, the heads named and how often; and of the first
    search what they carry, and the least and the most that is lost without one of them."""
    rows = []
    for one in records:
        if one.get("trained"):
            verdicts = Counter(search["verdict"] for search in one["again"])
            heads = Counter(search["heads"].replace(" ", ", ") for search in one["again"])
            losses = [head["lost"] for head in one["judged"] if head["named"]]
            rows.append(
                {
                    "network": one["kind"],
                    "searches": len(one["again"]),
                    "verdict": ", ".join(f"{verdict} {n}" for verdict, n in verdicts.most_common()),
                    "heads": "; ".join(f"{named} ({n})" for named, n in heads.most_common()),
                    "carried": "-" if one["carried"] is None else f"{one['carried']:.2f}",
                    "lost without one of them": f"{min(losses):.3f} to {max(losses):.3f}" if losses else "-",
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/census"))
    parser.add_argument("--shard", default="1/1")
    parser.add_argument("--trained", action="append", default=[], metavar="BUNDLE")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.table:
        first, n = map(int, given.shard.split("/"))
        census(given.out, (first, n), [*TRAINED, *given.trained])
    found = recorded(given.out)
    shown = {"census": table(found), "trained": trained_table(found)}
    text = DOCS.read_text(encoding="utf-8")
    for name, rows in shown.items():
        print(rows.to_string(index=False))
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(\n<!-- {name}:end -->)", re.DOTALL)
        text = pattern.sub(lambda m, rows=rows: f"{m[1]}\n{markdown(rows)}\n{m[2]}", text)
    if given.table:
        store.write(DOCS, text)


if __name__ == "__main__":
    main()
