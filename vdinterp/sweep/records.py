"""Records: JSON lines on disk that survive being killed at any moment."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


class Records:
    """An append-only file of JSON lines, each flushed to disk before `append` returns.

    A process that dies while writing leaves at most one line cut off; `read` drops it, and so it never joins the next.
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
        line = (json.dumps(record) + "\n").encode()
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
    """The JSON objects of whole lines."""
    try:
        lines = [json.loads(line) for line in text.decode("utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is no record of JSON lines ({error}); move it away to start over") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{path} is no record of JSON objects; move it away to start over")
    return lines
