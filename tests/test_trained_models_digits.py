"""What the bundled digit models are said to do, measured again on clips that nobody has looked at."""

from __future__ import annotations

import functools

import pytest
import torch

import vdinterp as vd
from vdinterp.training.digits import DIGIT_RECIPES, FIGURES_SEED
from vdinterp.training.evaluate import digit_figures, last_frame_error, relative_error

SEED, N = 52_017, 256


@functools.cache
def figures(name: str, n: int = N) -> dict:
    return digit_figures(vd.load(name), seed=SEED, n=n)


def test_tiny_induction_predicts_what_the_history_determines_and_nothing_else():
    found = figures("tiny-induction")
    assert found["predictable"] <= 0.20 and found["loop"] <= 0.20 and found["snippet"] <= 0.20
    assert 0.95 <= found["not_predictable"] <= 1.05


def test_tiny_induction_needs_one_matching_context_frame_only():
    one_off = figures("tiny-induction")["one_off"]
    assert [int(lag) for lag in one_off] == list(range(4, 11))
    assert max(one_off.values()) <= 0.35, one_off


def test_tiny_loop_predicts_loops_but_not_one_off_repeats():
    found = figures("tiny-loop", 64)
    assert found["loop"] <= 0.20
    assert sum(error > 0.7 for error in found["one_off"].values()) >= 5, found["one_off"]


def test_the_copied_frame_is_the_one_in_the_context():
    """Swap the frame that the last one repeats: the prediction follows the swap, although only that frame changed."""
    pipe = vd.load("tiny-induction")
    clips = vd.data.make_clips("one_off", 64, SEED)
    levels = torch.zeros(64, 16)
    levels[:, -1] = 0.95
    noise = torch.randn(clips.latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        guess = pipe.denoise(pipe.add_noise(clips.corrupt.latents, levels, noise), levels)[:, -1]
    rows = torch.arange(64)
    shown = clips.corrupt.latents[rows, clips.corrupt_frame]
    gone = clips.latents[rows, clips.corrupt_frame]
    to_shown, to_gone = ((guess - frame).square().mean((1, 2, 3)) for frame in (shown, gone))
    assert (to_shown < to_gone).float().mean() > 0.9


@pytest.mark.parametrize("name", ["tiny-induction", "tiny-loop"])
def test_the_recorded_figures_are_the_measured_ones(name):
    pipe = vd.load(name)
    recorded = pipe.meta["figures"]
    assert recorded["seed"] == FIGURES_SEED and recorded["clips"] >= 256
    again = {kind: vd.data.make_clips(kind, recorded["clips"], FIGURES_SEED) for kind in ("loop", "control")}
    again = {kind: relative_error(last_frame_error(pipe, clips, seed=FIGURES_SEED)) for kind, clips in again.items()}
    assert again["loop"] == pytest.approx(recorded["loop"], abs=0.005)
    assert again["control"] == pytest.approx(recorded["not_predictable"], abs=0.005)


def test_checkpoints_show_induction_appear():
    clips = vd.data.make_clips("one_off", 64, SEED)
    keep = DIGIT_RECIPES["tiny-induction"].keep
    errors = {
        step: relative_error(last_frame_error(vd.load("tiny-induction", checkpoint=step), clips)) for step in keep
    }
    assert 1200 in errors and errors[keep[1]] > 0.85 and errors[keep[-1]] <= 0.35
    final = relative_error(last_frame_error(vd.load("tiny-induction"), clips))
    assert errors[keep[-1]] == pytest.approx(final, abs=1e-6)


@pytest.mark.parametrize("name", ["tiny-induction", "tiny-loop"])
def test_a_bundle_says_what_it_is(name):
    meta = vd.load(name).meta
    assert "CC BY 4.0" in meta["license"] and "MIT" in meta["license"]
    assert meta["recipe"]["seed"] == DIGIT_RECIPES[name].seed and "held out" in meta["data"]
