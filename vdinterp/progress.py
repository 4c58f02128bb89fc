"""Progress bars: one place decides whether they are shown."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm


def bar(iterable: Any = None, *, shown: bool = True, **options: Any) -> tqdm:
    """`tqdm.auto`'s bar with its `options`; hidden unless `shown`, and with `TQDM_DISABLE` set (to other than 0)."""
    hidden = not shown or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(iterable, disable=hidden, **options)
