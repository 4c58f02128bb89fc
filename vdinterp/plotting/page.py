"""A page of its own that works offline: data, style and script inside, nothing asked of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vdinterp import store


def offline_page(*, title: str, style: str, body: str, data_id: str, data: Any, script: str) -> str:
    """HTML with `body` (HTML), then `data` as JSON in the element `data_id`, then the module `script`."""
    packed = embedded_json(data)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="{data_id}">{packed}</script>\n'
        f'<script type="module">\n{script}</script>\n</body>\n</html>\n'
    )


def embedded_json(data: Any) -> str:
    """JSON that may stand inside a script element, whatever texts it holds.

    Such an element ends at a closing script tag and, after `<!--<script`, not even there: without a `<` no text can do
    either. In JSON it may as well be escaped.
    """
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def written(page: str, path: str | Path | None) -> str | Path:
    """The page itself, or with a path the path that it was written to."""
    if path is None:
        return page
    return store.write(path, page)
