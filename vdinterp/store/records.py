"""Records: JSON lines on disk that survive being killed at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger("vdinterp")
SUM = "sum"  # the key of a line's checksum


class Records:
    """An append-only file of JSON lines, each with a checksum and flushed to disk before `append` returns.

    A process that dies while writing leaves at most one line cut off; `read` drops it, and so it never joins the next.
    A line that is not what was written (a bad disk, an editor, a file from before there were checksums) is left out as
    well, which is logged: what it recorded is computed again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> list[dict[str, Any]]:
        """The whole lines. A cut-off last one is taken off the file. Raises ValueError for a file that is no record."""
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            self._truncate(len(whole))
        return parse(whole, self.path)

    def append(self, record: dict[str, Any]) -> None:
        """Write one line. Raises OSError that says what is kept when it cannot be written (a full disk)."""
        line = _line(record)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "ab", buffering=0) as file:
                if file.write(line) != len(line):
                    raise OSError("the line could not be written whole")
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # read() takes a torn line off, too
                self._truncate(size)
            raise OSError(
                error.errno or 0,
                f"{self.path} could not be written ({error.strerror or error}): what was recorded before is kept; make "
                "room and run the same again, it continues there",
            ) from error

    def _truncate(self, size: int) -> None:
        if self.path.is_file():
            os.truncate(self.path, size)


def parse(text: bytes, path: Path) -> list[dict[str, Any]]:
    """The records of whole lines, without those that are damaged (which is logged). Raises ValueError if all are."""
    lines = text.split(b"\n")[:-1]
    found = [record for record in map(_record, lines) if record is not None]
    if lines and not found:
        raise ValueError(f"{path} is no record of JSON lines with checksums; move it away to start over")
    if len(found) < len(lines):
        log.warning(
            "%s: %d of %d lines are damaged or without a checksum; what they recorded is computed again",
            path,
            len(lines) - len(found),
            len(lines),
        )
    return found


def _line(record: dict[str, Any]) -> bytes:
    """How a record is written: the checksum of all the rest comes last."""
    assert SUM not in record
    text = json.dumps(record)
    checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f'{text[:-1]}{", " if record else ""}"{SUM}": "{checksum}"}}\n'.encode()


def _record(line: bytes) -> dict[str, Any] | None:
    """What `_line` was given; None if this is not what it gives."""
    try:
        record = json.loads(line)
        del record[SUM]
        return record if _line(record) == line + b"\n" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
