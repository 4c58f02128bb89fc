"""The shipped tiny-crafter does what its figures say, on the shipped clips of worlds it was not trained on."""

from __future__ import annotations

import pytest
import torch

import vdinterp.data.crafter as game
from vdinterp.data import Clips, sample_clips
from vdinterp.interventions import MaskAttention
from vdinterp.pipeline import load
from vdinterp.training import train
from vdinterp.training.evaluate_crafter import (
    Bench,
    ablation_effects,
    best_shift,
    codec_figures,
    cut_effect,
    distinguishable,
    free_cell_actions,
    head_masses,
    latent_variance,
    relative_error,
    scrolled,
    shift_accuracy,
)

SEED = 11


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(load("tiny-crafter"), game.vocabulary())


@pytest.fixture(scope="module")
def windows() -> Clips:
    """Clips of eight frames, two from each sample clip."""
    clips = sample_clips("crafter", n=64)
    parts = [
        Clips(
            kind="crafter",
            video=clips.video[:, at],
            action=torch.cat([torch.zeros_like(clips.action[:, :1]), clips.action[:, at][:, 1:]], 1),
            labels={name: value[:, at] for name, value in clips.labels.items()},
        )
        for at in (slice(0, 8), slice(4, 12))
    ]
    video, action = (torch.cat([getattr(part, name) for part in parts]) for name in ("video", "action"))
    labels = {name: torch.cat([part.labels[name] for part in parts]) for name in game.LABELS}
    return Clips(kind="crafter", video=video, action=action, labels=labels)


def test_codec(bench, windows):
    measured = codec_figures(bench, windows[:16])
    assert measured["psnr"] >= 37
    assert measured["cells"] >= 0.99


@torch.no_grad()
def test_the_history_is_used(bench, windows):
    clips = windows[:32]
    latents = bench.encode(clips)
    variance = latent_variance(latents)

    def error(level: float, hooks=None) -> float:
        x0 = bench.last_x0(latents, clips.action, level, SEED, hooks)
        return relative_error(x0, latents[:, -1], variance).mean().item()

    oracle, _ = scrolled(latents[:, -2], game.displacement(clips)[:, -1])
    full, alone = error(0.9), error(0.9, MaskAttention("own_frame").hooks(bench.model))
    assert full < relative_error(oracle, latents[:, -1], variance).mean()
    assert full < 0.15
    assert alone > 4 * full


def test_the_action_decides_where_the_picture_goes(bench, windows):
    moved = windows[game.moved(windows)[:, -1].nonzero()[:24, 0]]
    assert shift_accuracy(bench, moved, game.displacement(moved)[:, -1], SEED)[0] >= 0.9
    forced, _ = free_cell_actions(windows[:24], SEED)
    assert shift_accuracy(bench, forced, game.implied(forced)[:, -1], SEED)[0] >= 0.9


def test_nothing_moves_without_a_move_or_into_a_wall(bench, windows):
    walls = windows[game.blocked(windows)[:, -1].nonzero()[:24, 0]]
    assert shift_accuracy(bench, walls, game.displacement(walls)[:, -1], SEED)[0] >= 0.85
    still = ~game.moved(windows)[:, -1] & ~game.blocked(windows)[:, -1]
    stays = windows[still.nonzero()[:24, 0]]
    assert shift_accuracy(bench, stays, game.displacement(stays)[:, -1], SEED)[0] >= 0.95


def test_one_head_looks_where_the_action_implies_and_is_needed_there(bench, windows):
    moved = windows[game.moved(windows)[:, -1].nonzero()[:24, 0]]
    shift = game.implied(moved)[:, -1]
    masses = head_masses(bench, moved, shift, 0.9, SEED)
    layer, head = divmod(int(masses.argmax()), bench.model.cfg.n_heads)
    assert masses[layer, head] >= 0.5
    assert head_masses(bench, moved, -shift, 0.9, SEED)[layer, head] <= 0.05
    still = windows[(~game.moved(windows) & ~game.blocked(windows))[:, -1].nonzero()[:24, 0]]
    rise = ablation_effects(bench, (layer, head), {"moved": moved, "still": still}, windows[:24], 0.9, SEED)
    assert rise["moved"] >= 0.05
    assert rise["still"] < rise["moved"] / 3


def test_another_head_copies_from_the_same_cell_at_a_wall(bench, windows):
    walls = windows[game.blocked(windows)[:, -1].nonzero()[:24, 0]]
    same = head_masses(bench, walls, torch.zeros(len(walls), 2, dtype=torch.long), 0.9, SEED)
    scroll, copy = (bench.pipe.meta["figures"]["heads"][name] for name in ("scroll", "copy"))
    assert (scroll["layer"], scroll["head"]) != (copy["layer"], copy["head"])
    assert same[copy["layer"], copy["head"]] >= 0.5
    moved = windows[game.moved(windows)[:, -1].nonzero()[:24, 0]]
    shift = game.implied(moved)[:, -1]
    assert head_masses(bench, moved, shift, 0.9, SEED)[copy["layer"], copy["head"]] <= 0.1


def test_cutting_one_displacement_hurts_only_where_the_content_comes_from_there(bench, windows):
    """After a move the scroll head is needed for the cell a step away, and for no other."""
    scroll = bench.pipe.meta["figures"]["heads"]["scroll"]
    layer, head = scroll["layer"], scroll["head"]
    moved = windows[game.moved(windows)[:, -1].nonzero()[:24, 0]]
    implied = game.implied(moved)[:, -1]
    there, opposite, here = (
        cut_effect(bench, layer, [head], moved, shift, 0.9, SEED) for shift in (implied, -implied, 0 * implied)
    )
    assert there >= 0.05
    assert abs(here) < there / 3 and abs(opposite) < there / 3


def test_scrolling_a_frame():
    frame = torch.arange(63.0).view(1, 1, 7, 9)
    right, seen = scrolled(frame, torch.tensor([[0, 1]]))
    assert torch.equal(right[0, 0, :, :-1], frame[0, 0, :, 1:])
    assert seen[0, :, :-1].all() and not seen[0, :, -1].any()
    down, _ = scrolled(frame, torch.tensor([[1, 0]]))
    assert torch.equal(down[0, 0, :-1], frame[0, 0, 1:])


def test_the_matching_shift_is_found_and_meadows_are_left_out():
    frame = torch.randn(3, 8, 7, 9, generator=torch.Generator().manual_seed(0))
    for index, shift in enumerate([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)]):
        moved, _ = scrolled(frame, torch.tensor([shift] * 3))
        assert (best_shift(moved, frame) == index).all()
    cells = torch.stack([torch.zeros(7, 9, dtype=torch.long), torch.arange(63).view(7, 9)])
    assert distinguishable(cells).tolist() == [False, True]


def test_figures_are_stored_with_the_weights(bench):
    meta = bench.pipe.meta
    assert {"data", "recipe", "figures", "license"} <= set(meta)
    assert meta["figures"]["n"] >= 256
    assert meta["actions"] == list(game.ACTIONS)


def test_a_smoke_run_trains_stores_and_resumes(tmp_path):
    pytest.importorskip("crafter")
    pipe = train("tiny-crafter", steps=20, out=tmp_path)
    stored = load(tmp_path)
    assert stored.model.cfg == pipe.model.cfg
    for name, value in pipe.model.state_dict().items():
        assert torch.allclose(stored.model.state_dict()[name], value, atol=2e-3), name
    again = train("tiny-crafter", steps=20, out=tmp_path)
    for name, value in pipe.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
