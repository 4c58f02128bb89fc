"""The picture at the top of README.md, measured on the bundled models: python tools/readme_picture.py"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from plotly.colors import sample_colorscale

import vdinterp as vd
from vdinterp.data import crafter
from vdinterp.plotting._filmstrip import to_rgb
from vdinterp.plotting.attention import COLORSCALE

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "overview.png"
WIDTH, HEIGHT, EDGE = 1280, 586, 28
INK, SOFT, ACCENT = (31, 36, 48), (91, 98, 114), (0, 114, 178)
LEVEL = 0.9


class Canvas:
    """A white picture, and what is put on it at a place (left, top)."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, at: tuple[int, int], text: str, size: int = 16, color: tuple = INK, anchor: str = "la") -> None:
        self.pen.text(at, text, fill=color, font=ImageFont.load_default(size), anchor=anchor)

    def frame(self, at: tuple[int, int], frame: torch.Tensor, enlarge: int, mark: Sequence[int] = ()) -> None:
        """`[channel height width]` in [0, 1]; `mark`: a square around (row, col, size) of its pixels."""
        pixels = to_rgb(frame[None], "frame")[0].repeat(enlarge, 0).repeat(enlarge, 1)
        self.image.paste(Image.fromarray(pixels), at)
        if mark:
            row, col, size = (enlarge * one for one in mark)
            box = (at[0] + col, at[1] + row, at[0] + col + size - 1, at[1] + row + size - 1)
            self.pen.rectangle(box, outline=(255, 255, 255), width=4)
            self.pen.rectangle(box, outline=(0, 200, 255), width=2)


def main() -> None:
    canvas = Canvas()
    _scroll(canvas)
    _induction(canvas)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    canvas.image.quantize(255, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


def _scroll(canvas: Canvas) -> None:
    """A world model after a move: its next frame, that without the head it needs most, where this head looks."""
    pipe, everything = vd.load("tiny-crafter"), vd.data.sample_clips("crafter", n_frames=8)
    clips = everything[crafter.moved(everything)[:, -1].nonzero()[:, 0]][:32]
    noised = vd.NoisedClips(pipe, clips, noise_levels=(LEVEL,))
    heads = vd.analysis.head_table(noised, implied=crafter.implied(clips)).to_frame()
    effect = heads.pivot(index="layer", columns="head", values="effect").to_numpy()
    layer, head = (int(one) for one in np.unravel_index(effect.argmax(), effect.shape))
    mean = vd.Ablate(("z", layer), heads=[head], mode="mean", reference=noised.means(LEVEL))
    with torch.no_grad():
        intact, without = (pipe.decode(noised.x0(LEVEL, *change))[:, 0] for change in ((), (mean,)))
    harm = (without - clips.pixels[:, -1]).square().mean((1, 2, 3))
    good = (intact - clips.pixels[:, -1]).square().mean((1, 2, 3))
    shown = int((harm - 20 * good).argmax())
    step = crafter.implied(clips)[shown, -1].tolist()
    way = {(0, 1): "right", (0, -1): "left", (1, 0): "down", (-1, 0): "up"}[step[0], step[1]]
    before = clips.pixels[shown, -2]
    query = (noised.n_frames - 1, 3 - step[0], 4 - step[1] if step[1] else 2)
    looks = noised.cache(LEVEL, ["rot_q", "rot_k"], slice(shown, shown + 1))["pattern", layer]
    row = looks.rows([noised.grid.index(*query)])[0, head, 0].reshape(noised.grid.shape)[-2].numpy()
    canvas.text((EDGE, 18), "Which head moves the picture when the player walks?", 24)
    canvas.text(
        (EDGE, 50),
        f'tiny-crafter, a world model: next frame from noise, after the action "{way}". Removed: head '
        f"{layer}.{head}, at its mean over clips.",
        15,
        SOFT,
    )
    marked = (8 * query[1], 8 * query[2], 8)
    pictures = [
        ("the frame before", before, ()),
        ("what the model makes of noise", intact[shown], marked),
        (f"without head {layer}.{head}", without[shown], ()),
        (f"where {layer}.{head} looks from the square", _overlaid(before, row), ()),
    ]
    for index, (title, picture, mark) in enumerate(pictures):
        at = (EDGE + 236 * index, 104)
        canvas.text((at[0], 82), title, 14)
        canvas.frame(at, picture, 3, mark)
    _heat(canvas, (EDGE + 4 * 236 + 24, 104), effect)


def _overlaid(frame: torch.Tensor, attention: np.ndarray) -> torch.Tensor:
    """A frame with attention `[row col]` laid over it, the largest in full colour."""
    share = attention / attention.max()
    colors = sample_colorscale(COLORSCALE, share.ravel(), colortype="tuple")  # red, green, blue in 0 .. 1
    color = torch.tensor(colors).view(*share.shape, 3).permute(2, 0, 1).repeat_interleave(8, 1).repeat_interleave(8, 2)
    weight = torch.tensor(0.15 + 0.8 * share).float().repeat_interleave(8, 0).repeat_interleave(8, 1)
    return frame * (1 - weight) + color * weight


def _heat(canvas: Canvas, at: tuple[int, int], effect: np.ndarray) -> None:
    """Rise of the error without each head, layers down and heads across."""
    canvas.text((at[0], at[1] - 22), "rise of the error without it", 14)
    cell = 42
    for (layer, head), value in np.ndenumerate(effect):
        share = max(0.0, float(value)) / float(effect.max())
        fill = tuple(round(255 + share * (part - 255)) for part in (178, 24, 43))
        ink = (255, 255, 255) if share > 0.5 else INK
        left, top = at[0] + 40 + (cell + 20) * head, at[1] + cell * layer
        canvas.pen.rectangle((left, top, left + cell + 18, top + cell - 2), fill=fill)
        canvas.text((left + 30, top + 20), f"{round(float(value), 2) + 0.0:.2f}", 14, ink, "mm")
        if not head:
            canvas.text((left - 8, top + 20), f"L{layer}", 13, SOFT, "rm")


def _induction(canvas: Canvas) -> None:
    """A clip in which a pair comes back, what the model guesses of its last frame, and where a head looks for it."""
    pipe, clips = vd.load("tiny-induction"), vd.data.make_clips("one_off", 8, lag=8)
    noised = vd.NoisedClips(pipe, clips, noise_levels=(0.95,))
    found = noised.cache(0.95, ["rot_q", "rot_k"], slice(0, 1))["pattern", 3].frame_mass()[0, 3, -1].tolist()
    guess = pipe.decode(noised.x0(0.95))[0, -1]
    top = 312
    canvas.text((EDGE, top), "How does it know what comes next?", 24)
    canvas.text(
        (EDGE, top + 32),
        "tiny-induction denoises the last frame, given as noise. A came before, followed by B: head "
        "3.3 looks at what came after A.",
        15,
        SOFT,
    )
    match = int(clips.labels["match"][0, -1]) if "match" in clips.labels else 0
    names = {match - 1: "A", match: "B", noised.n_frames - 2: "A", noised.n_frames - 1: "guess: B"}
    for frame in range(noised.n_frames):
        left = EDGE + 77 * frame
        last = frame == noised.n_frames - 1
        canvas.text((left + 32, top + 62), names.get(frame, ""), 16, ACCENT, "ma")
        canvas.frame((left, top + 84), guess if last else clips.pixels[0, frame], 8)
        height = round(70 * found[frame])
        canvas.pen.rectangle((left, top + 232 - height, left + 63, top + 232), fill=ACCENT)
        canvas.text(
            (left + 32, top + 228 - height), f"{found[frame]:.2f}" if found[frame] >= 0.005 else "", 13, INK, "mb"
        )
    canvas.text((EDGE, top + 242), "share of the last frame's attention that goes to each frame", 14, SOFT)


if __name__ == "__main__":
    main()
