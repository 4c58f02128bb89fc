"""How stopped sweeps are run and what they leave, for tests of sweeps."""

from __future__ import annotations

import json
from pathlib import Path

SCRIPT = Path(__file__).parent / "interrupted_sweep.py"


def outcomes(folder: Path) -> list[str]:
    """The ids of every recorded outcome, in order."""
    text = "".join(file.read_text() for file in sorted(folder.glob("ledger*.jsonl")))
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [name for line in lines for name in line.get("made", {})]
