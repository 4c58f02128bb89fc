"""Keep the tables of README.md and the docs true: `python tools/readme_tables.py` rewrites them from the code.

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; a test compares the page with what this writes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from vdinterp import store

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": ["models"], "docs/models.md": ["figures"], "docs/hooks.md": ["hooks"]}  # and their tables


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub-flavoured Markdown."""
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    rows += [[str(cell).replace("|", r"\|") for cell in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def tables() -> dict[str, str]:
    """Every generated table by its marker's name."""
    from vdinterp.cli import models_table
    from vdinterp.pipeline import load

    models = models_table()
    models["model"] = [f"`{name}`" for name in models["model"]]
    hooks = load("tiny-crafter").model.describe_hooks()
    hooks["hook"] = [f"`{name}`" for name in hooks["hook"]]
    on_demand = hooks.pop("on demand")
    hooks["meaning"] = [
        f"{meaning} (computed on demand)" if lazy else meaning
        for meaning, lazy in zip(hooks["meaning"], on_demand, strict=True)
    ]
    return {
        "models": markdown(models),
        "figures": markdown(figures_table()),
        "hooks": markdown(hooks.drop(columns="layers")),
    }


def figures_table() -> pd.DataFrame:
    """What the bundled models were measured to do when they were trained, as stored beside their weights."""
    from vdinterp.pipeline import load

    rows: list[tuple[str, str, str]] = []
    for name in ("tiny-induction", "tiny-loop"):
        found = load(name).meta["figures"]
        errors = [f"{error:.2f}" for error in found["one_off"].values()]
        if name == "tiny-induction":
            rows.append((name, "error of a frame that the history determines", f"{found['predictable']:.2f}"))
            rows.append((name, "error of a frame that it does not", f"{found['not_predictable']:.2f}"))
        else:
            rows.append((name, "error on loops", f"{found['loop']:.2f}"))
        lags = list(found["one_off"])
        rows.append(
            (name, f"error where a pair came once before, {lags[0]} to {lags[-1]} frames ago", ", ".join(errors))
        )
    found, name = load("tiny-crafter").meta["figures"], "tiny-crafter"
    shifts = ", ".join(f"{found['shift'][kind]['accuracy']:.0%}" for kind in ("moved", "still", "blocked"))
    rollout, scroll = found["rollout"], found["heads"]["scroll"]
    masses = f"{scroll['implied']:.2f}; {scroll['opposite']:.3f}"
    rises = f"{scroll['rise']['moved']:.2f}; {scroll['rise']['still']:.2f}"
    rows += [
        (name, "codec: PSNR; cells that survive", f"{found['codec']['psnr']:.1f} dB; {found['codec']['cells']:.0%}"),
        (
            name,
            "error of the next frame; seeing only that frame",
            "{full:.3f}; {own_frame:.2f}".format(**found["level_0.9"]),
        ),
        (
            name,
            "error after a move; told another clip's action",
            "{true:.3f}; {shuffled:.2f}".format(**found["action_moved"]),
        ),
        (name, "picture scrolls as it should: after a move, no move, a wall", shifts),
        (name, "scroll head: attention on the cell the action implies; on the opposite one", masses),
        (name, "error that removing it adds: after a move; when nothing moves", rises),
        (name, "cells right 4 frames on; by copying", f"{rollout['plus_4']:.0%}; {rollout['copying']:.0%}"),
    ]
    return pd.DataFrame(rows, columns=["model", "measured", "result"])


def updated(text: str, page: str, tables: dict[str, str]) -> str:
    """The text of a page with every generated table as the code has it now. ValueError if a marker is missing."""
    for name in PAGES[page]:
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(\n<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page} lacks the markers <!-- {name}:begin --> and <!-- {name}:end -->")
        text = pattern.sub(lambda found, table=tables[name]: f"{found[1]}\n{table}\n{found[2]}", text)
    return text


def main() -> None:
    made = tables()
    for page in PAGES:
        path = ROOT / page
        store.write(path, updated(path.read_text(encoding="utf-8"), page, made))


if __name__ == "__main__":
    main()
