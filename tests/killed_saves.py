"""Save over an older result, killed (SIGKILL) before the first thing done to the disk, before the second, and so on.

python killed_saves.py FOLDER save|report: prints a JSON list of what was loaded after each, until one got to its end.
"""

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from vdinterp import report
from vdinterp.results import Result

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run(Result):
    title = "Run"
    table: pd.DataFrame
    parts: dict
    values: torch.Tensor


def made(level: float, rows: int, *parts: str) -> Run:
    """A result of which every part tells the level."""
    table = pd.DataFrame({"level": [level] * rows})
    tables = {name: table.assign(part=name) for name in parts}
    return Run(table=table, parts=tables, values=torch.full((3, 3), level, dtype=torch.float64), meta={"level": level})


def level_of(found: Run) -> float:
    """The level that all parts tell; an error if they do not agree."""
    levels = {*found.table["level"], *found.values.flatten().tolist(), found.meta["level"]}
    levels |= {level for table in found.parts.values() for level in table["level"]}
    assert len(levels) == 1, f"a mixture of {levels}"
    return levels.pop()


def loaded(folder: Path) -> float:
    """The level that is in the folder, and after it was saved over once more, the folder is as new."""
    level = level_of(Run.load(folder))
    made(0.75, 2).save(folder)
    assert level_of(Run.load(folder)) == 0.75 and not (folder / ".saved").exists()
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "records" / "lines.jsonl").read_text() == "{}\n"
    return level


def killed_at(folder: Path, n: int, write: str) -> int:
    """Exit status of a process that saves, and is killed at its n-th event."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event in EVENTS and str(folder) in str(args[0]):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

    new = made(0.5, 7, "c", "d", "e")
    sys.addaudithook(hook)
    new.save(folder) if write == "save" else report.write(new, folder)
    os._exit(0)


def main(root: Path, write: str) -> None:
    os.fsync = lambda file: None  # slow, and nothing to a process that is killed
    found, status, n = [], -9, 0
    while status != 0:
        n += 1
        folder = root / str(n)
        (folder / "records").mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
        (folder / "records" / "lines.jsonl").write_text("{}\n")
        old = made(0.9, 16, "a", "b", "c")
        old.save(folder) if write == "save" else report.write(old, folder)
        status = killed_at(folder, n, write)
        assert status in (0, -9), status
        found.append(loaded(folder))
        shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
