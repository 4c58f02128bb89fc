"""Keep the tables of README.md true: `python tools/readme_tables.py` rewrites them from the code.

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; a test compares the page with what this writes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

README = Path(__file__).parent.parent / "README.md"


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
    return {"models": markdown(models), "hooks": markdown(hooks.drop(columns="layers"))}


def updated(text: str) -> str:
    """`text` with every generated table as the code has it now. ValueError if a marker is missing."""
    for name, table in tables().items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(\n<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md lacks the markers <!-- {name}:begin --> and <!-- {name}:end -->")
        text = pattern.sub(lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", text)
    return text


def main() -> None:
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
