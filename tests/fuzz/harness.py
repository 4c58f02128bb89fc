"""What became of one call with something wrong in it, and the table of many."""

from __future__ import annotations

import contextlib
import io
import linecache
import resource
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

import vdinterp

PACKAGE = str(Path(vdinterp.__file__).parent)
SECONDS = 10.0  # a call that takes longer hangs
GROWTH = 6 * 2**30  # bytes of address space above what is there at the start
LONGEST = 700  # characters of one sentence
OUTCOMES = ("named", "late", "raw", "silent", "hang", "memory", "fine")


@dataclass(frozen=True)
class Case:
    """One call. `wrong` says what is wrong with it; `refused` whether it must be refused (else it may also work).

    `in_pass`: the mistake can only show inside a forward pass. `check`: asserts what is right about what came back.
    """

    wrong: str
    call: Callable[[], Any]
    refused: bool = True
    in_pass: bool = False
    check: Callable[[Any], None] = lambda result: None


@dataclass
class Tally:
    """Outcomes by door, and the first cases of each that should not be."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def add(self, door: str, case: Case, outcome: str, detail: str) -> None:
        self.counts.setdefault(door, Counter())[outcome] += 1
        if outcome not in ("named", "fine"):
            self.failures.setdefault(door, []).append(f"{outcome}: {case.wrong}: {detail}")

    @property
    def total(self) -> Counter[str]:
        return sum(self.counts.values(), Counter())

    @property
    def named_share(self) -> float:
        """Of the calls that were wrong: how many were refused by name before compute."""
        wrong = sum(count for outcome, count in self.total.items() if outcome != "fine")
        return self.total["named"] / max(1, wrong)

    def table(self) -> str:
        rows = [
            ("door", *OUTCOMES),
            *((door, *(str(found[o]) for o in OUTCOMES)) for door, found in self.counts.items()),
        ]
        rows.append(("all", *(str(self.total[o]) for o in OUTCOMES)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


class Hang(BaseException):
    """Raised by the clock; a BaseException so that nothing on the way takes it for an error of its own."""


class Watch:
    """Counts forward passes, and notices hooks that were left on the model."""

    def __init__(self, model: Any) -> None:
        from vdinterp.models.components import Block

        self.model, self.passes = model, 0
        plain = Block.forward

        def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return plain(block, *args, **kwargs)

        Block.forward = forward  # type: ignore[method-assign]

    def judge(self, case: Case) -> tuple[str, str]:
        """What became of a call, one of `OUTCOMES`, and the last line of what it said."""
        self.passes = 0
        try:
            with _clock(), _quiet(), warnings.catch_warnings(record=True):
                result = case.call()
        except Hang:
            return "hang", f"more than {SECONDS:g} s"
        except BaseException as error:
            outcome = self._of_error(case, error)
        else:
            try:
                case.check(result)
                outcome = ("silent", f"accepted, gave {_short(result)}") if case.refused else ("fine", "")
            except Exception as error:  # also where what came back is not even of the right kind
                outcome = "silent", _short(error)
        if self.model.has_live_hooks:
            self.model.reset_hooks()
            return "silent", "left hooks on the model"
        return outcome

    def _of_error(self, case: Case, error: BaseException) -> tuple[str, str]:
        said = f"{type(error).__name__}: {_short(error)}"
        ours = _raised_by_us(error)
        if (isinstance(error, MemoryError) and not ours) or "allocate memory" in str(error):
            return "memory", said
        if not ours or isinstance(error, AssertionError):
            return "raw", said
        if not 10 <= len(str(error)) <= LONGEST:
            return "raw", f"{said} ({len(str(error))} characters)"
        return ("late" if self.passes and not case.in_pass else "named"), said


def run(doors: dict[str, st.SearchStrategy[Case]], examples: int, number: int, watch: Watch) -> Tally:
    """Draw `examples` cases a door, always the same for one `number`, and judge them."""
    tally = Tally()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH, hard))
    try:
        for door, cases in doors.items():
            _judge_all(door, cases, examples, number, watch, tally)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return tally


def _judge_all(
    door: str, cases: st.SearchStrategy[Case], examples: int, number: int, watch: Watch, tally: Tally
) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def judge(case: Case) -> None:
        tally.add(door, case, *watch.judge(case))

    judge()


def _raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` of the package itself said this, or Python about the arguments of a public function."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    if isinstance(error, TypeError) and "argument" in str(error) and not last.filename.startswith(PACKAGE):
        return len(frames) <= 3  # the call itself did not fit: an unknown or a missing argument
    if isinstance(error, SystemExit):
        return True
    if not last.filename.startswith(PACKAGE):
        return False
    lines = (linecache.getline(last.filename, last.lineno - back) for back in range(6) if (last.lineno or 0) > back)
    return any("raise " in line for line in lines)


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _short(value: Any) -> str:
    try:
        return " ".join(str(value).split())[:160]
    except Exception as error:  # even its text cannot be made
        return f"{type(value).__name__} ({type(error).__name__} on printing it)"
