"""Repeats: what comes back really does, twins lack exactly one thing, and nothing gives the answer away."""

from __future__ import annotations

import pytest
import torch

from vdinterp.data.digits import digit_images
from vdinterp.data.repeats import DESIGNS, MEANING, TWINS, Repeats, lags_of, make_repeats
from vdinterp.data.textures import make_textures

LAST = 15
POOL = make_textures(128)[:, None]


def made(design: str, n: int = 14, **options: object) -> Repeats:
    pool = POOL.expand(-1, 3, -1, -1, -1).clone() if design == "splice" else POOL
    if design == "splice":  # clips whose frames differ
        pool[:, 1], pool[:, 2] = pool[:, 0].flip(-1), pool[:, 0].flip(-2)
    return make_repeats(design, pool, n, n_frames=16, cells=(2, 2), **options)  # type: ignore[arg-type]


def same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`[clip]`: whether frames are equal."""
    return (one == other).flatten(1).all(1)


@pytest.mark.parametrize("design", DESIGNS)
def test_shapes_and_range(design: str) -> None:
    repeats = made(design)
    assert repeats.video.shape == (14, 16, 1, 8, 8)
    assert float(repeats.video.min()) >= 0 and float(repeats.video.max()) <= 1
    assert repeats.successor[:, LAST].sum() == 0, "the last frame is asked for, not given"
    assert repeats.successor.flatten(1).any(1).all()
    for twin in repeats.twins.values():
        assert torch.equal(twin[:, LAST], repeats.video[:, LAST])
        assert not same(twin, repeats.video).any()
    assert set(repeats.twins) <= set(TWINS) and design in MEANING and design in repr(repeats)


@pytest.mark.parametrize("design", ["one-off", "splice", "occlusion"])
def test_the_successor_shows_the_last_frame_and_comes_after_the_cue(design: str) -> None:
    repeats = made(design)
    clip, at = torch.arange(14), LAST - repeats.lag
    assert torch.equal(repeats.successor.long().argmax(1), at)
    assert same(repeats.video[clip, at], repeats.video[:, LAST]).all()
    assert same(repeats.video[clip, at - 1], repeats.video[:, LAST - 1]).all()


def test_one_off_gives_the_answer_nowhere_else() -> None:
    repeats = made("one-off")
    copies = torch.stack([same(repeats.video[:, f], repeats.video[:, LAST]) for f in range(LAST)], 1)
    assert torch.equal(copies, repeats.successor[:, :LAST])
    assert set(repeats.lag.tolist()) == set(lags_of(16)) == set(range(4, 11))


def test_twins_differ_in_one_thing() -> None:
    repeats, clip = made("one-off"), torch.arange(14)
    at = LAST - repeats.lag
    changed = {
        "none": [at - 1, at],
        "no content": [at],
        "no match": [at - 1],
        "no cue": [torch.full_like(at, LAST - 1)],
        "reversed": [at - 1, at],
    }
    for name, frames in changed.items():
        twin = repeats.twins[name]
        differs = torch.stack([~same(twin[:, f], repeats.video[:, f]) for f in range(16)], 1)
        wanted = torch.zeros_like(differs)
        for frame in frames:
            wanted[clip, frame] = True
        assert torch.equal(differs, wanted), name
    turned = repeats.twins["reversed"]
    assert same(turned[clip, at - 1], repeats.video[:, LAST]).all()
    assert same(turned[clip, at], repeats.video[:, LAST - 1]).all()


def test_foils_are_what_they_are_called() -> None:
    repeats, clip = made("one-off"), torch.arange(14)
    at = LAST - repeats.lag
    assert torch.equal(repeats.foils["before the match"], at - 2)
    assert torch.equal(repeats.foils["the match itself"], at - 1)
    texture = repeats.video[clip, repeats.foils["same texture"]]
    assert torch.equal(texture, repeats.video[:, LAST].flip(-2, -1))
    for frames in repeats.foils.values():
        assert not (frames == at).any()


def test_loops_and_cell_loops_repeat() -> None:
    loops = made("loop", 12)
    assert set(loops.lag.tolist()) == set(range(2, 8))
    for video, shuffled in zip(loops.video, loops.twins["shuffled"], strict=True):
        counts = [sorted(float(frame.sum()) for frame in clip) for clip in (video, shuffled)]
        assert counts[0] == counts[1], "the same frames"
    for video, period in zip(loops.video, loops.lag.tolist(), strict=True):
        assert torch.equal(video[period:], video[:-period])
    cells = made("cell loops")
    assert cells.successor.shape == (14, 16, 4)
    for video, successor in zip(cells.video, cells.successor, strict=True):
        for cell in range(4):
            row, col = 4 * (cell // 2), 4 * (cell % 2)
            part = video[:, :, row : row + 4, col : col + 4]
            again = (part == part[LAST]).flatten(1).all(1)
            assert torch.equal(again[:LAST], successor[:LAST, cell]) and again[:LAST].any()
    assert len({tuple(one.flatten().tolist()) for one in cells.successor}) > 1


def test_translated_moves_the_pair() -> None:
    repeats, clip = made("translated"), torch.arange(14)
    at = LAST - repeats.lag
    before, after = repeats.video[clip, at], repeats.video[:, LAST]
    moves = [(r, c) for r in (0, 4) for c in (0, 4) if r or c]
    hits = torch.stack([same(before.roll(move, (-2, -1)), after) for move in moves])
    assert hits.any(0).all() and not same(before, after).any()


def test_velocity_repeats_the_steps_with_another_picture() -> None:
    repeats = made("velocity")
    for video, lag in zip(repeats.video, repeats.lag.tolist(), strict=True):
        length = min(lag, 16 - lag)
        first, second = video[16 - lag - length : 16 - lag], video[16 - length :]
        rolls = [(r, c) for r in range(8) for c in range(8)]

        def step(one: torch.Tensor, other: torch.Tensor, rolls: list = rolls) -> tuple[int, int]:
            return next(move for move in rolls if torch.equal(one.roll(move, (-2, -1)), other))

        assert length > 1
        for index in range(length - 1):
            assert step(first[index], first[index + 1]) == step(second[index], second[index + 1])


def test_occlusion_covers_what_lies_between() -> None:
    repeats = made("occlusion")
    for video, lag in zip(repeats.video, repeats.lag.tolist(), strict=True):
        between = video[LAST - lag + 1 : LAST - 1]
        assert all(float(frame.max()) == float(frame.min()) for frame in between)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_clip_depends_on_seed_and_index_only(design: str) -> None:
    few, many, other = made(design, 3), made(design, 7), made(design, 3, seed=1)
    assert torch.equal(few.video, many.video[:3])
    assert not torch.equal(few.video, other.video)


@pytest.mark.parametrize("n_frames", [5, 6, 7, 8, 12, 16, 24])
def test_lags_leave_room(n_frames: int) -> None:
    lags = lags_of(n_frames)
    assert len(lags) >= 2 and min(lags) >= 2
    pool = make_textures(2 * n_frames + 4)[:, None]
    repeats = make_repeats("one-off", pool, len(lags), n_frames=n_frames, cells=(2, 2))
    assert int((n_frames - 1 - repeats.lag).min()) >= (2 if n_frames > 6 else 1)
    for name in ("loop", "velocity", "cell loops"):
        assert len(make_repeats(name, pool, 3, n_frames=n_frames, cells=(2, 2))) == 3


def test_digits_fit() -> None:
    repeats = make_repeats("one-off", digit_images()[:, None], 2, n_frames=16, cells=(2, 2))
    assert repeats.video.shape == (2, 16, 1, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"design": "palindrome"}, "unknown design 'palindrome'; there are one-off"),
        ({"n": 0}, "n must be"),
        ({"n_frames": 4}, "in 5.*too few for a repeat"),
        ({"pool": POOL[:20]}, "at least 36 clips"),
        ({"design": "splice"}, "one frame each"),
        ({"cells": (3, 2)}, "do not divide"),
        ({"cells": (2.0, 2)}, "cells must be a whole number"),
        ({"seed": True}, "seed must be"),
        ({"design": "translated", "cells": (1, 1)}, "several cells"),
    ],
)
def test_bad_requests(given: dict, message: str) -> None:
    options = {"design": "one-off", "pool": POOL, "n": 2, "n_frames": 16, "cells": (2, 2), **given}
    with pytest.raises(ValueError, match=message):
        make_repeats(options.pop("design"), options.pop("pool"), options.pop("n"), **options)
