"""What interventions and caches call the frames of a window: those of the user's clip; padding is none of them."""

from __future__ import annotations

from typing import Any

import planted
import pytest
import torch
from planted import N_COLS, N_FRAMES, N_ROWS

import vdinterp as vd
from vdinterp.interventions import Ablate, Custom, Freeze, Intervention, MaskAttention, SetCondition, SetNoiseLevel
from vdinterp.pipeline.windows import interpolation_plan

CELLS = N_ROWS * N_COLS
STEPS = 2
CONTEXT = torch.randn(2, 2, 1, N_ROWS, N_COLS, generator=torch.Generator().manual_seed(0))
ACTIONS = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1))
SHOWN = [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, -1]]  # of nine frames, two seen by each window


@pytest.fixture(scope="module")
def pipe() -> vd.VideoDiffusion:
    return planted.pipe(d_action=3)


def rollout(pipe: vd.VideoDiffusion, *interventions: Intervention, **options: Any) -> Any:
    options = {"overlap": 2, "steps": STEPS, "cond": ACTIONS, "interventions": interventions, **options}
    return pipe.rollout(CONTEXT, 9, **options)


def by_hand(shown: list[list[int]], frame: int) -> Custom:
    """The first layer's z of a frame set to 0 in every window, by counting calls."""
    calls: list[None] = []

    def edit(z: torch.Tensor, hook: Any) -> torch.Tensor:
        window = shown[len(calls) // STEPS]
        calls.append(None)
        for place, there in enumerate(window):
            if there == frame:
                z[:, place * CELLS : (place + 1) * CELLS] = 0
        return z

    return Custom(("z", 0), edit)


def test_frames_of_a_rollout_are_the_clips(pipe: vd.VideoDiffusion) -> None:
    plain = rollout(pipe).latents
    for frame, first in ((7, 6), (8, 8), (3, 2)):
        found = rollout(pipe, Ablate(("z", 0), frames=[frame])).latents
        assert torch.equal(found, rollout(pipe, by_hand(SHOWN, frame)).latents)
        assert torch.equal(found[:, :first], plain[:, :first]) and not torch.equal(found[:, first:], plain[:, first:])
    tokens = [7 * CELLS + 4, 8 * CELLS]
    both = rollout(pipe, Ablate(("z", 0), tokens=tokens)).latents
    each = rollout(pipe, *(Ablate(("z", 0), tokens=[token]) for token in tokens)).latents
    assert torch.equal(both, each) and not torch.equal(both, plain)


def test_caches_and_hooks_know_their_frames(pipe: vd.VideoDiffusion) -> None:
    seen: list[list[list[int]]] = []
    look = Custom("hook_pred", lambda pred, hook: seen.append(hook.ctx["frames"].tolist()) or pred)
    record = rollout(pipe, look, record="hook_cond").record
    assert seen == [[window] * 2 for window in SHOWN for _ in range(STEPS)]
    assert [record[index, 0].frames.tolist() for index in range(4)] == [[window] * 2 for window in SHOWN]
    assert record[3, 0][1:].frames.tolist() == [SHOWN[3]]
    cache = pipe.model.run_with_cache(torch.zeros(2, 4, 1, N_ROWS, N_COLS), torch.zeros(2, 4), vd.NO_CONDITION)[1]
    assert cache.frames.tolist() == [[0, 1, 2, 3]] * 2


def test_what_no_window_shows_is_refused_before_any_compute(pipe: vd.VideoDiffusion) -> None:
    ran = Custom("hook_patch_embed", lambda x, hook: pytest.fail("the model ran"))
    for frames in ([9], [7, 12]):
        with pytest.raises(ValueError, match=r"are outside these clips, whose frames are 0\.\.8"):
            rollout(pipe, ran, Ablate("z", frames=frames))
    with pytest.raises(ValueError, match=r"MaskAttention: cut: frames \[9\]"):
        rollout(pipe, ran, MaskAttention(cut=([8], [9])))
    with pytest.raises(ValueError, match="frames='everything': give the numbers"):
        Ablate("z", frames="everything")  # type: ignore[arg-type]


def test_padding_is_reached_only_by_name(pipe: vd.VideoDiffusion) -> None:
    def sample(*interventions: Intervention, n_frames: int = 3) -> Any:
        cond = ACTIONS[:, :n_frames]
        return pipe.sample(CONTEXT, n_frames, steps=1, cond=cond, interventions=interventions, record=["z"])

    with pytest.raises(ValueError, match=r"frames \[3\] are outside these clips, whose frames are 0\.\.2"):
        sample(Ablate("z", frames=[3]))
    with pytest.raises(ValueError, match="frames='padding', and no clip here is padded"):
        sample(Ablate("z", frames="padding"), n_frames=4)
    for frames, changed in (("padding", [3]), ([0, 2], [0, 2]), (None, [0, 1, 2, 3])):
        z = sample(Freeze(("z", 0), 7.5, frames=frames)).record[0]["z", 0]
        assert (z == 7.5).unflatten(1, (4, -1)).flatten(2).all(-1)[0].nonzero()[:, 0].tolist() == changed
    assert Intervention.from_dict(Ablate("z", frames="padding").to_dict()) == Ablate("z", frames="padding")


def test_windows_side_by_side(pipe: vd.VideoDiffusion) -> None:
    """Two gaps are filled in one batch; each window's frames are its own, a repeated last keyframe is padding."""
    latents = torch.randn(2, 7, 1, N_ROWS, N_COLS, generator=torch.Generator().manual_seed(2))
    known = [True, False, False, True, True, False, True]
    rounds = interpolation_plan(known, N_FRAMES)
    padded = [frames + [-1] * (N_FRAMES - len(frames)) for frames in rounds[0]]
    assert len(rounds) == 1 and len(padded) > 1 and any(-1 in frames for frames in padded)

    def filled(*interventions: Intervention) -> Any:
        options = {"cond": ACTIONS[:, :7], "interventions": interventions, "record": ["z"]}
        return pipe.interpolate(latents, known, steps=STEPS, **options)

    plain = filled()
    assert plain.record[0, 0].frames.tolist() == [frames for frames in padded for _ in range(2)]
    frame = 5
    window, place = next((w, frames.index(frame)) for w, frames in enumerate(padded) if frame in frames)

    def edit(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z[2 * window : 2 * window + 2, place * CELLS : (place + 1) * CELLS] = 0
        return z

    found = filled(Ablate(("z", 0), frames=[frame]))
    assert torch.equal(found.latents, filled(Custom(("z", 0), edit)).latents)
    assert torch.equal(found.latents[:, :3], plain.latents[:, :3])
    assert not torch.equal(found.latents[:, 5], plain.latents[:, 5])


def test_what_the_network_is_told_counts_the_clips_frames(pipe: vd.VideoDiffusion) -> None:
    other = ACTIONS.flip(1)
    assert torch.equal(rollout(pipe, SetCondition(other)).latents, rollout(pipe, cond=other).latents)
    some = ACTIONS.clone()
    some[:, 7] = other[:, 7]
    assert torch.equal(rollout(pipe, SetCondition(other, frames=[7])).latents, rollout(pipe, cond=some).latents)
    levels = torch.tensor([0, 1, 1, 0, 0, 0, 0, 1, 0])
    one = rollout(pipe, SetNoiseLevel(1, frames=[7])).latents
    assert torch.equal(rollout(pipe, SetNoiseLevel(levels, frames=[7])).latents, one)
    assert not torch.equal(rollout(pipe).latents, one)
    ran = Custom("hook_patch_embed", lambda x, hook: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="level is given for 4 frames; this clip has 9"):
        rollout(pipe, ran, SetNoiseLevel(levels[:4]))
    with pytest.raises(ValueError, match="action is given for 8 frames; this clip has 9"):
        rollout(pipe, ran, SetCondition(ACTIONS[:, :8]))


def test_cut_counts_the_clips_frames(pipe: vd.VideoDiffusion) -> None:
    plain, cut = rollout(pipe, record="rot_q"), rollout(pipe, MaskAttention(cut=([7], [6])), record=["rot_q", "rot_k"])
    for index in range(4):
        for step in range(STEPS):
            mass = cut.record[index, step]["pattern", 0].frame_mass()
            queries, keys = ([SHOWN[index].index(f)] if f in SHOWN[index] else [] for f in (7, 6))
            assert (mass[:, :, queries][..., keys] == 0).all()
            if not (queries and keys):
                assert (mass > 0).all()
    assert torch.equal(cut.latents[:, :6], plain.latents[:, :6]) and not torch.equal(cut.latents, plain.latents)


@pytest.mark.parametrize("at_once", [1, 3])
def test_trials_of_one_pass_see_their_own_frames(pipe: vd.VideoDiffusion, at_once: int) -> None:
    """Of a padded run, whose frames travel with every trial's clips."""
    options = {"context": CONTEXT, "n_frames": 3, "steps": STEPS, "cond": ACTIONS[:, :3]}
    case = vd.sweep.Case(runs={"base": vd.sweep.Trajectory(options=options)}, base="base")
    tried: list[Any] = [[0], [2], "padding"]
    trials = [
        vd.sweep.Trial(interventions=(Ablate(("z", 0), frames=frames),), label={"frames": str(frames)})
        for frames in tried
    ]
    metrics = {"last": lambda x0, moment: x0[:, -1].square().mean((1, 2, 3))}
    table = vd.sweep.run(pipe, [case], trials, metrics, trials_per_pass=at_once, progress=False).table
    for frames in tried:
        alone = pipe.sample(**options, interventions=[Ablate(("z", 0), frames=frames)]).latents
        found = torch.tensor(table[table["frames"] == str(frames)]["value"].to_numpy())
        torch.testing.assert_close(found.float(), alone[:, -1].square().mean((1, 2, 3)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"frames \[3\] are outside these clips, whose frames are 0\.\.2"):
        wrong = vd.sweep.Trial(interventions=(Ablate("z", frames=[3]),), label={"frames": "3"})
        vd.sweep.run(pipe, [case], [wrong], metrics, progress=False)
