"""Crafter clips: pixels, ground truth and how they hang together."""

from __future__ import annotations

import pytest
import torch

import vdinterp.data.crafter as game
from vdinterp.data import make_clips, sample_clips
from vdinterp.data.crafter import Trajectories
from vdinterp.data.crafter_edit import facing, with_facing


@pytest.fixture(scope="module")
def played() -> Trajectories:
    pytest.importorskip("crafter")
    return game.collect(game.TEST_WORLDS[:1], progress=False)


def test_play_is_repeatable(played):
    again = game.collect(game.TEST_WORLDS[:1], progress=False)
    for name in ("cells", "patches", "actions", "positions", "semantic", "world"):
        assert torch.equal(getattr(played, name), getattr(again, name)), name


def test_frames_are_stored_losslessly(played):
    frames = torch.from_numpy(game.play(game.TEST_WORLDS[0], starts=1, steps=3)["frames"])
    video = played.video(torch.tensor([0]), torch.arange(4)[None])
    assert torch.equal((video * 255).round().to(torch.uint8)[0], frames[0].permute(0, 3, 1, 2))


def test_a_step_scrolls_the_picture_by_one_cell(played):
    """What the displacement says is seen in the picture: still things are where it says."""
    clip, frame = game.ends(played, "moved").unbind(-1)
    before, after = played.semantic[clip, frame - 1], played.semantic[clip, frame]
    agree = []
    for old, new, (dr, dc) in zip(before, after, played.displacement[clip, frame].tolist(), strict=True):
        shifted = torch.full_like(old, 99)
        rows, cols = old.shape
        shifted[max(0, -dr) : rows - max(0, dr), max(0, -dc) : cols - max(0, dc)] = old[
            max(0, dr) : rows + min(0, dr), max(0, dc) : cols + min(0, dc)
        ]
        known = (shifted < 13) & (new < 13)  # materials; creatures walk about
        agree.append((shifted == new)[known].float().mean())
    assert torch.stack(agree).mean() > 0.995


def test_blocked_moves_are_moves_that_did_not_move(played):
    clip, frame = game.ends(played, "blocked").unbind(-1)
    assert len(clip) > 5
    assert (played.positions[clip, frame] == played.positions[clip, frame - 1]).all()
    ahead = torch.tensor([game.ROWS // 2, game.COLS // 2]) + played.implied[clip, frame]
    facing = played.semantic[clip, frame - 1, ahead[:, 0], ahead[:, 1]]
    free = [game.SEMANTIC.index(name) for name in ("grass", "sand", "path")]
    assert torch.isin(facing, torch.tensor(free)).float().mean() < 0.05  # a creature may have stepped in or away


def test_the_player_stands_in_the_middle(played):
    middle = played.semantic[:, :, game.ROWS // 2, game.COLS // 2]
    assert (middle == game.SEMANTIC.index("player")).all()


def test_clips_depend_on_seed_and_index_only():
    pytest.importorskip("crafter")
    worlds = game.TEST_WORLDS[:1]
    three = make_clips("crafter", 3, seed=5, n_frames=4, worlds=worlds)
    two = make_clips("crafter", 2, seed=5, n_frames=4, worlds=worlds)
    other = make_clips("crafter", 3, seed=6, n_frames=4, worlds=worlds)
    assert three.video.shape == (3, 4, 3, 56, 72)
    assert torch.equal(three.video[:2], two.video) and torch.equal(three.action[:2], two.action)
    assert not torch.equal(three.video, other.video)
    assert three.action[:, 0].sum() == 0 and (three.action[:, 1:].sum(-1) == 1).all()


@pytest.mark.parametrize("last", ["moved", "blocked", "still"])
def test_the_last_step_is_what_was_asked_for(last):
    pytest.importorskip("crafter")
    clips = make_clips("crafter", 6, seed=1, n_frames=3, worlds=game.TEST_WORLDS[:1], last=last)
    moved, blocked = game.moved(clips)[:, -1], game.blocked(clips)[:, -1]
    expected = {"moved": (True, False), "blocked": (False, True), "still": (False, False)}[last]
    assert moved.eq(expected[0]).all() and blocked.eq(expected[1]).all()


def test_sample_clips_need_no_game():
    clips = sample_clips("crafter", n=5, n_frames=6)
    assert clips.video.shape == (5, 6, 3, 56, 72)
    assert torch.equal(clips.video, sample_clips("crafter").video[:5, :6])
    assert (clips.labels["semantic_map"][:, :, game.ROWS // 2, game.COLS // 2] == game.SEMANTIC.index("player")).all()
    assert game.moved(clips).any() and game.blocked(clips).any()
    assert not (game.moved(clips) & game.blocked(clips)).any()
    patches = game.vocabulary()
    assert torch.equal(game.paint(game.nearest_patch(clips.video, patches).to(torch.uint8), patches), clips.video)


def test_cells_are_scored_by_their_nearest_patch():
    patches = game.vocabulary()
    cells = torch.randint(len(patches), (2, 3, 7, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    video = game.paint(cells, patches)
    assert torch.equal(game.nearest_patch(video, patches), cells.long())
    noisy = (video + 0.02 * torch.randn(video.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert (game.nearest_patch(noisy, patches) == cells).float().mean() > 0.95


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: make_clips("crafter", 1, n_frames=1), "n_frames"),
        (lambda: make_clips("crafter", 1, worlds=()), "worlds"),
        (lambda: make_clips("crafter", 1, worlds=[1.5]), "worlds 1.5: whole numbers"),
        (lambda: make_clips("crafter", 1, last="jumped"), "blocked"),
        (lambda: sample_clips("crafted"), "crafter"),
        (lambda: sample_clips("crafter", n=10**6), "clips"),
        (lambda: sample_clips("crafter", n_frames=1000), "frames"),
        (lambda: game.cut(torch.rand(3, 57, 72)), "57x72"),
    ],
)
def test_bad_input_says_what_would_work(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_what_the_last_step_leads_to() -> None:
    clips = sample_clips("crafter", n_frames=8)
    names = [game.SEMANTIC[index] for index in facing(clips).tolist()]
    moved, blocked = game.moved(clips)[:, -1].tolist(), game.blocked(clips)[:, -1].tolist()
    assert {name for name, went in zip(names, moved, strict=True) if went} <= {"grass", "sand", "path"}
    assert not {name for name, stays in zip(names, blocked, strict=True) if stays} & {"grass", "sand"}


def test_another_material_in_the_way() -> None:
    clips = sample_clips("crafter", n_frames=8)
    clips = clips[game.moved(clips)[:, -1].nonzero()[:12, 0]]
    changed = with_facing(clips, "stone")
    assert (facing(changed) == game.SEMANTIC.index("stone")).all()
    assert torch.equal(changed.video[:, -1], clips.video[:, -1]) and torch.equal(changed.action, clips.action)
    differs = game.cut(changed.video).ne(game.cut(clips.video)).any(-1)
    assert (differs[:, -2].flatten(1).sum(-1) == 1).all(), "one cell of the frame before"
    assert (differs.flatten(2).sum(-1) <= 1).all() and differs[:, 0].any(), "and the same one in earlier frames"
    assert torch.equal(changed.labels["semantic_map"] != clips.labels["semantic_map"], differs)
    again = with_facing(changed, "stone")
    assert torch.equal(again.video, changed.video)


def test_only_moves_lead_somewhere() -> None:
    clips = sample_clips("crafter", n_frames=8)
    still = clips[(game.implied(clips)[:, -1] == 0).all(-1).nonzero()[:2, 0]]
    with pytest.raises(ValueError, match="has to be a move"):
        with_facing(still, "stone")
    with pytest.raises(ValueError, match="unknown material 'rock'; there are outside, water"):
        with_facing(clips, "rock")
