"""A sample of the bad input that `make fuzz` tries by the thousand: named before compute, and never worse than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fuzz", "--examples", "25", "--seed", "3", "--json", str(found)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.exists(), done.stderr[-2000:]
    counts = json.loads(found.read_text())["counts"]
    assert len(counts) >= 11 and all(sum(door.values()) >= 20 for door in counts.values()), "doors were left out"
    assert done.returncode == 0, done.stdout[-6000:]
