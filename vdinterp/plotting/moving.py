"""Moving pictures: clips side by side that play in step, as one animated image that a page can hold."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vdinterp.plotting._filmstrip import enlarge, to_rgb
from vdinterp.plotting.template import INK

SIDE = 132  # pixels of a frame's longer side, about
GAP, LINE, TEXT = 14, 15, 12  # pixels: between clips, of a line of text, of its letters
ACROSS = 7  # clips in a row


def moving_clips(clips: Mapping[str, Any], *, n_context: int = 0, fps: float = 3.0) -> str:
    """A `data:` address of an animated WebP: clips `[frame channel height width]` in [0, 1] of one size, each under its
    label, all at the same frame; it says which, and of the first `n_context` that they are given. It loops.

    Raises ValueError for no clips, and for clips of different sizes.
    """
    if not clips:
        raise ValueError("no clip to show")
    rows = {str(name): to_rgb(clip, str(name)) for name, clip in clips.items()}
    shapes = {name: row.shape for name, row in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"clips that play in step have one size (frame, height, width); got {shapes}")
    n_frames, height, width, _ = next(iter(rows.values())).shape
    factor = max(1, round(SIDE / max(height, width)))
    high, wide = height * factor, width * factor
    column = max(wide, 8 * TEXT)
    labels = {name: textwrap.wrap(name, max(6, round(column / (0.56 * TEXT)))) for name in rows}
    head = LINE * max(map(len, labels.values()))
    across = min(ACROSS, len(rows))
    size = (across * (column + GAP) - GAP, -(-len(rows) // across) * (head + high + GAP) + LINE)
    font: Any = ImageFont.load_default(TEXT)
    pictures = []
    for frame in range(n_frames):
        canvas = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(canvas)
        for index, (name, row) in enumerate(rows.items()):
            down, right = divmod(index, across)
            x, y = right * (column + GAP), down * (head + high + GAP)
            draw.multiline_text((x, y), "\n".join(labels[name]), fill=INK, font=font, spacing=LINE - TEXT)
            canvas.paste(Image.fromarray(enlarge(row[frame : frame + 1], factor)[0]), (x, y + head))
        which = f"frame {frame}" + ("" if not n_context else ", given" if frame < n_context else ", generated")
        draw.text((0, size[1] - LINE), which, fill=INK, font=font)
        pictures.append(canvas)
    buffer = io.BytesIO()
    durations = [round(1000 / fps)] * (n_frames - 1) + [round(2000 / fps)]  # the end stands a little longer
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=88, method=4
    )
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
