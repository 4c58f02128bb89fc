"""Where commands write: tried before compute, and the report at the end."""

from __future__ import annotations

import shlex
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import click

FILES, FOLDERS = ("report.html", "report.json"), ("records",)  # what commands write into --out


def check_out(out: Path) -> None:
    """Raise ValueError unless files can be written into `out`, which need not exist. Leaves nothing behind."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        what = "is a file" if there == out else f"lies in {there}, which is a file"
        raise ValueError(f"--out {out} {what}; give a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(
            f"--out {out}: nothing can be written in {there} ({error.strerror}); give another folder"
        ) from error
    for name in FILES:
        if (out / name).is_dir():
            raise ValueError(f"--out {out}: {name} in it is a folder, where the report is written; give another folder")
    for name in FOLDERS:
        if (out / name).is_file():
            raise ValueError(f"--out {out}: {name} in it is a file, where a folder is needed; give another folder")


def write_report(content: Any, out: Path, **options: Any) -> None:
    """Write the report, with the command and the date in it, and say where it is."""
    import vdinterp as vd

    date = datetime.now().astimezone().isoformat(" ", "minutes")
    run = {"command": shlex.join(["vdinterp", *sys.argv[1:]]), "date": date}
    click.echo(f"\nReport: {vd.report.write(content, out, run=run, **options)}")
