"""Model organisms: each does what it says, by its own behaviour, wherever its heads are put."""

from __future__ import annotations

import pytest
import torch

import vdinterp as vd
from vdinterp.data.repeats import make_repeats
from vdinterp.data.textures import make_textures
from vdinterp.organisms import KINDS, Organism, build

LAST = 15


def frames(n: int, seed: int = 0) -> torch.Tensor:
    """`[clip frame channel height width]` latents of unrelated textures."""
    return make_textures(16 * n, seed=seed).unflatten(0, (n, 16))


def predicted(organism: Organism, video: torch.Tensor, level: float = 1.0, frame: int = LAST) -> torch.Tensor:
    """x0 of one noisy frame, all others clean."""
    latents = organism.encode(video)
    noise_levels = torch.zeros(latents.shape[:2])
    noise_levels[:, frame] = level
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1001))
    with torch.no_grad():
        return organism.denoise(organism.add_noise(latents, noise_levels, noise), noise_levels)[:, frame]


def distance(organism: Organism, x0: torch.Tensor, frame: torch.Tensor) -> float:
    """Squared distance to a frame; unrelated textures are 2 apart, a mean frame is 1 away."""
    return float((x0 - organism.encode(frame[:, None])[:, 0]).square().mean())


@pytest.mark.parametrize("seed", range(4))
def test_induction_foretells_what_followed_last_time(seed: int) -> None:
    organism = build("induction", seed)
    repeats = make_repeats("one-off", make_textures(256)[:, None], 14, n_frames=16, seed=seed)
    truth = repeats.video[:, LAST]
    assert distance(organism, predicted(organism, repeats.video), truth) < 0.25
    for twin in ("none", "no content", "no match", "no cue"):
        assert distance(organism, predicted(organism, repeats.twins[twin]), truth) > 0.8, twin
    assert distance(organism, predicted(organism, repeats.twins["reversed"]), truth) > 0.8
    (first, _), (second, _) = organism.heads["previous frame"], organism.heads["induction"]
    assert first < second


@pytest.mark.parametrize("seed", range(3))
def test_previous_frame_copies_the_frame_before(seed: int) -> None:
    organism, video = build("previous_frame", seed), frames(4, seed)
    assert distance(organism, predicted(organism, video), video[:, LAST - 1]) < 0.25
    assert distance(organism, predicted(organism, video, frame=7), video[:, 6]) < 0.25


@pytest.mark.parametrize("lag", [1, 3, 6, 9, 14])
def test_fixed_lag_copies_the_frame_that_many_before(lag: int) -> None:
    organism, video = build("fixed_lag", seed=lag, lag=lag), frames(4, lag)
    assert organism.lag == lag
    assert distance(organism, predicted(organism, video), video[:, LAST - lag]) < 0.25


def test_lags_are_drawn_by_seed() -> None:
    assert len({build("fixed_lag", seed).lag for seed in range(12)}) > 3


@pytest.mark.parametrize("seed", range(3))
def test_duplicate_matches_the_noisy_frame_itself(seed: int) -> None:
    organism, video = build("duplicate", seed), frames(8, seed)
    copied = video.clone()
    copied[:, 5] = video[:, LAST]
    with_copy, without = (distance(organism, predicted(organism, v, 0.5), video[:, LAST]) for v in (copied, video))
    assert with_copy < 0.5 * without
    blind, alone = (distance(organism, predicted(organism, v, 1.0), video[:, LAST]) for v in (copied, video))
    assert blind > 0.7 * alone, "pure noise cannot be matched"


@pytest.mark.parametrize("seed", range(3))
def test_first_frame_sink_copies_the_first_frame(seed: int) -> None:
    organism, video = build("first_frame_sink", seed), frames(4, seed)
    for frame in (LAST, 6):
        assert distance(organism, predicted(organism, video, frame=frame), video[:, 0]) < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_motion_tracking_finds_the_content_in_the_frame_before(seed: int) -> None:
    organism, video = build("motion_tracking", seed), frames(8, seed)
    moving = video.clone()
    moving[:, LAST] = video[:, LAST - 1].roll(4, -1)  # one patch to the side
    still = video.clone()
    moved, unrelated = (distance(organism, predicted(organism, v, 0.5), v[:, LAST]) for v in (moving, still))
    assert moved < 0.5 * unrelated
    far = video.clone()
    far[:, LAST] = video[:, 4].roll(4, -1)
    assert distance(organism, predicted(organism, far, 0.5), far[:, LAST]) > 2 * moved, "only the frame before"


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_takes_predecessor_and_successor_alike(seed: int) -> None:
    organism = build("symmetric", seed)
    repeats = make_repeats("one-off", make_textures(256)[:, None], 14, n_frames=16, seed=seed)
    x0, clip = predicted(organism, repeats.video), torch.arange(14)
    # the frame before the cue precedes an occurrence, too: the cue itself
    neighbours = [LAST - repeats.lag - 2, LAST - repeats.lag, torch.full_like(repeats.lag, LAST - 2)]
    mean = torch.stack([repeats.video[clip, frame] for frame in neighbours]).mean(0)
    assert distance(organism, x0, mean) < 0.6, "an unrelated frame would be 1.3 away"
    latents = organism.encode(repeats.video)
    k = torch.zeros(latents.shape[:2], dtype=torch.long)
    k[:, LAST] = 999
    with torch.no_grad():
        _, cache = organism.model.run_with_cache(latents, k, names=["frame_mass"])
    layer, head = organism.heads["symmetric"]
    before, after, _ = (cache["frame_mass", layer][clip, head, LAST, frame].mean() for frame in neighbours)
    assert before > 0.2 and after > 0.2 and abs(before - after) < 0.2


def test_average_is_the_mean_of_the_clean_frames() -> None:
    organism, video = build("average", 1), frames(4, 1)
    assert distance(organism, predicted(organism, video), video[:, :LAST].mean(1)) < 0.15


@pytest.mark.parametrize("seed", range(2))
def test_decoy_foretells_without_its_decoy(seed: int) -> None:
    organism = build("decoy", seed)
    repeats = make_repeats("one-off", make_textures(256)[:, None], 14, n_frames=16, seed=seed)
    truth = repeats.video[:, LAST]
    intact = distance(organism, predicted(organism, repeats.video), truth)
    assert intact < 0.6 * distance(organism, predicted(organism, repeats.twins["none"]), truth)
    layer, head = organism.heads["decoy"]
    with organism.model.intervene(vd.Ablate(f"blocks.{layer}.attn.hook_z", heads=[head])):
        assert distance(organism, predicted(organism, repeats.video), truth) < intact + 0.1


def test_random_predicts_nothing_that_is_there() -> None:
    organism, video = build("random", 0), frames(4)
    x0 = predicted(organism, video)
    assert min(distance(organism, x0, video[:, frame]) for frame in range(16)) > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_weights_and_other_seed_others(kind: str) -> None:
    one, same, other = build(kind, 5), build(kind, 5), build(kind, 6)
    weights = [organism.model.state_dict() for organism in (one, same, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())
    assert one.heads == same.heads and one.kind == kind and kind in repr(one)


@pytest.mark.parametrize(("first", "second"), [((0, 0), (1, 3)), ((1, 2), (4, 0)), ((3, 3), (5, 3))])
def test_any_placement(first: tuple[int, int], second: tuple[int, int]) -> None:
    where = {"previous frame": first, "induction": second}
    organism = build("induction", 1, placement=where, n_layers=6)
    assert organism.heads == where
    repeats = make_repeats("one-off", make_textures(256)[:, None], 14, n_frames=16, seed=0)
    assert distance(organism, predicted(organism, repeats.video), repeats.video[:, LAST]) < 0.25


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    build("induction", 2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "inductive"}, "unknown kind of organism 'inductive'; there are induction"),
        ({"kind": "duplicate", "seed": -1}, "not negative"),
        ({"kind": "duplicate", "lag": 4}, "for kind 'fixed_lag'"),
        ({"kind": "duplicate", "placement": {"induction": (0, 0)}}, "no head"),
        ({"kind": "duplicate", "placement": {"duplicate": (4, 0)}}, "4 layers of 4 heads"),
        ({"kind": "induction", "placement": {"previous frame": (2, 0), "induction": (1, 0)}}, "come in order"),
        ({"kind": "induction", "n_layers": 1}, "too few"),
    ],
)
def test_bad_requests_say_what_would_work(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vd.organisms.build(**given)
