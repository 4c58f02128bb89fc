"""Peak resident memory of a block of code, above what the process held before."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

INTERVAL = 0.002  # seconds between looks


class PeakMemory:
    """`with PeakMemory() as peak: ...`, then `peak.mib`. Looks every 2 ms, so shorter peaks escape it."""

    def __enter__(self) -> PeakMemory:
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        return (self._most - self._before) / 2**20
