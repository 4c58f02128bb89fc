"""The explorer as a page of its own: every row inside, quantised and deflated, and the same script as in a notebook."""

from __future__ import annotations

import base64
import html
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vdinterp.explorer.encoding import quantised
from vdinterp.plotting.page import offline_page

if TYPE_CHECKING:
    from vdinterp.explorer.explorer import AttentionExplorer
    from vdinterp.models import AttentionPattern

FOLDER = Path(__file__).parent
LEVELS = (255, 127, 63, 31)
SMALLEST_SHARE = 1 / 1032  # of its input is the least that deflate can make
ROWS_AT_A_TIME = 2**22  # times the number of keys: probabilities computed at a time

STYLE = """
body { margin: 0; color: #1f2430; background: #ffffff;
  font: 16px/1.6 "Inter", "Helvetica Neue", "Segoe UI", Arial, sans-serif; }
.page { max-width: 1320px; margin: 0 auto; padding: 32px 28px 48px; }
header { border-bottom: 2px solid #1f2430; margin-bottom: 22px; padding-bottom: 12px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
header p { margin: 0; color: #5b6272; font-size: .9rem; }
@media (max-width: 760px) { .page { padding: 20px 12px; } }
"""


def render(explorer: AttentionExplorer, layers: Sequence[int], heads: Sequence[int], max_bytes: int) -> str:
    """The page of some layers and heads, at the finest quantisation that fits; ValueError if none does."""
    blocks = len(explorer.patterns) * len(layers) * len(heads)
    least = int(blocks * explorer.grid.n_tokens**2 * SMALLEST_SHARE)
    if least > max_bytes:
        raise ValueError(_too_large(f"more than {least:,}", max_bytes))
    size = 0
    for levels in LEVELS:
        data: dict[str, Any] = {
            "info": explorer.info(layers, heads, levels, "row"),
            "image": base64.b64encode(explorer.sheet[0]).decode(),
            "blocks": [],
        }
        size = len(_page(explorer, data).encode())
        for block in _blocks(explorer, layers, heads, levels):
            data["blocks"].append(base64.b64encode(block).decode())
            size += len(data["blocks"][-1]) + len('"", ')
            if size > max_bytes and levels != LEVELS[-1]:
                break
        if size <= max_bytes:
            return _page(explorer, data)
    raise ValueError(_too_large(f"{size:,}", max_bytes))


def _too_large(size: str, max_bytes: int) -> str:
    return (
        f"The page would take {size} bytes, {max_bytes:,} are allowed: choose fewer layers=, heads= or passes, or "
        "allow more with max_bytes=. In a notebook there is no such limit."
    )


def _blocks(explorer: AttentionExplorer, layers: Sequence[int], heads: Sequence[int], levels: int) -> Iterator[bytes]:
    for patterns in explorer.patterns.values():
        for layer in layers:
            for head in heads:
                yield deflated(patterns[layer].heads([head]), levels)


@torch.no_grad()
def deflated(pattern: AttentionPattern, levels: int) -> bytes:
    """One head of one clip: the maximum of every row (float32, little endian), then all rows (uint8), as zlib data."""
    n_tokens = pattern.n_queries
    packed, maxima = zlib.compressobj(9, strategy=zlib.Z_FILTERED), []
    rows: list[bytes] = []
    step = max(1, ROWS_AT_A_TIME // n_tokens)
    for start in range(0, n_tokens, step):
        values = pattern.rows(range(start, min(start + step, n_tokens)))[0, 0].cpu().numpy()
        levelled, largest = quantised(values, levels)
        rows.append(levelled.tobytes())
        maxima.append(largest)
    head = packed.compress(np.concatenate(maxima).astype("<f4").tobytes())
    return head + b"".join(packed.compress(part) for part in rows) + packed.flush()


def _page(explorer: AttentionExplorer, data: dict[str, Any]) -> str:
    n_frames, n_rows, n_cols = explorer.grid.shape
    layers, heads = len(data["info"]["layers"]), len(data["info"]["heads"])
    about = (
        f"{n_frames} frames of {n_rows} x {n_cols} patches, {layers} of {explorer.n_layers} layers, {heads} of "
        f"{explorer.n_heads} heads, {explorer.n_passes}"
    )
    body = (
        f'<div class="page">\n<header><h1>Attention explorer</h1><p>{about} &middot; vdinterp {version("vdinterp")}'
        '</p></header>\n<main id="explorer"></main>\n</div>'
    )
    return offline_page(
        title="Attention explorer",
        style=STYLE + script("explorer.css"),
        body=body,
        data_id="explorer-data",
        data=data,
        script=f"{front_end()}\nopenPage();\n",
    )


def front_end() -> str:
    """The module that a page and a notebook run."""
    return script("sources.js") + script("explorer.js")


def script(name: str) -> str:
    """The text of a file that lies beside this one."""
    return (FOLDER / name).read_text(encoding="utf-8")


def framed(page: str) -> str:
    """A page as a frame inside another, which keeps their styles and scripts apart."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" title="Attention explorer" '
        'style="width: 100%; height: 640px; border: 0;"></iframe>'
    )
