"""Progress bars of long work: `tqdm.auto`, none for work that is over at once, none at all with TQDM_DISABLE=1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

DELAY = 1.0  # seconds that work takes before its bar appears


def bar(iterable: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> Any:
    """A bar over `iterable`, or one with `total=` to be moved by `.update()`; options as of tqdm.

    `disable` is passed only to switch a bar off: passed as False it would override the environment's TQDM_DISABLE.
    """
    from tqdm.auto import tqdm

    return tqdm(iterable, **{"delay": DELAY, **options, **({} if show else {"disable": True})})
