"""Statistics of attention: equal to dense sums on random patterns, right on planted ones, silent on controls."""

from __future__ import annotations

import math

import planted
import pytest
import torch

import vdinterp as vd
from vdinterp.analysis import (
    NoisedClips,
    chunk_mass,
    correspondence,
    displacement_kernel,
    frame_mass,
    head_table,
    patch_crossing,
    scroll_heads,
    synopsis,
)
from vdinterp.analysis.stream._patch_crossing import CROSSING, PARTS
from vdinterp.data.tracks import cell_tracks
from vdinterp.results import Result

LEVELS = (0.5, 0.9)
GRID = vd.TokenGrid(planted.N_FRAMES, planted.N_ROWS, planted.N_COLS)
FRAME = GRID.frame_of()
LAST = FRAME == planted.N_FRAMES - 1


def noised(kind: str = "3d", **options) -> NoisedClips:
    return NoisedClips(planted.pipe(kind), planted.clips(), **{"noise_levels": LEVELS, "batch": 2, **options})


def dense(given: NoisedClips, level: float) -> torch.Tensor:
    """Every whole pattern, as the model itself computes it: `[clip layer head query key]`."""
    parts = []
    for cache in given.caches(level, ["pattern"]):
        parts.append(torch.stack([cache[f"blocks.{i}.attn.hook_pattern"] for i in range(2)], 1))
    return torch.cat(parts)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def given() -> NoisedClips:
    return noised()


def test_noised_clips_are_clean_up_to_the_target_and_the_same_at_every_call(given) -> None:
    inputs = given.inputs(0.9, slice(0, 5))
    assert torch.equal(inputs.noisy[:, :3], given.latents[:, :3])
    assert torch.equal(inputs.noise_levels, torch.tensor([[0, 0, 0, 0.9]] * 5))
    assert torch.equal(given.inputs(0.9, slice(3, 5)).noisy, inputs.noisy[3:])
    assert given.target == [3] and int(given.target_tokens.sum()) == 12
    assert given.x0(0.9).shape == (5, 1, 1, 3, 4)
    assert given.x0_change(0.9).max() == 0
    error = (given.pipe.denoise(*inputs)[:, 3:] - given.latents[:, 3:]).square().mean((1, 2, 3, 4)) / given.variance
    close(given.x0_error(0.9), error)
    everything = noised(n_context=0)
    assert everything.inputs(0.5, slice(0, 1)).noise_levels.tolist() == [[0.5] * 4]
    assert "5 file clips of 4 frames, 3 of them clean" in repr(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_levels": ()}, "levels are noise levels"),
        ({"noise_levels": (0.5, 0.5)}, "each once"),
        ({"noise_levels": (1e-5,)}, "noise level 1e-05 is clean to"),
        ({"noise_levels": (1.5,)}, "in \\(0, 1\\]"),
        ({"n_context": 4}, "at least 5 are needed"),
        ({"n_context": -1}, "n_context must be a whole number in 0"),
        ({"batch": 0}, "batch must be a whole number in 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        noised(**options)


@pytest.mark.parametrize("kind", ["3d", "causal", "space_time"])
def test_frame_mass_and_chunks_equal_dense_sums(kind, tmp_path) -> None:
    given = noised(kind) if kind != "space_time" else noised(kind, n_context=3)
    found = frame_mass(given)
    if kind != "space_time":
        one = torch.nn.functional.one_hot(FRAME).float()
        for index, level in enumerate(LEVELS):
            expected = (dense(given, level) @ one).unflatten(3, (4, 12)).mean(4).mean(0)
            close(found.mass[index], expected)
        row = expected[:, :, 3]
        chunks = chunk_mass(given)
        for score, value in (("first", row[..., 0]), ("middle", row[..., 1:3].sum(-1)), ("current", row[..., 3])):
            close(torch.tensor(chunks.values(score, 0.9)), value)
    close(found.mass.sum(-1), torch.ones(2, 2, 2, 4))
    allowed = torch.ones(4, 4) if kind == "3d" else torch.ones(4, 4).tril()
    expected = allowed / allowed.sum(-1, keepdim=True)
    close(found.chance[0], torch.eye(4) if kind == "space_time" else expected)
    table = found.to_frame()
    assert len(table) == 2 * 2 * 2 * 4 * 4
    row = table[(table.level == 0.9) & (table.layer == 1) & (table["head"] == 0) & (table.query_frame == 3)]
    close(torch.tensor(row["value"].to_numpy()), found.mass[1, 1, 0, 3])
    saved = Result.load(found.save(tmp_path))
    assert torch.equal(saved.mass, found.mass) and len(found.plot()) == 2 and "own frame" in found.summary()


def test_a_planted_head_stays_in_its_frame_and_is_called_dummy() -> None:
    given = noised(batch=8)
    own = torch.arange(48).expand(5, -1)
    with given.model.hooks(planted.looking(given.model, {(0, 1): own, (1, 0): own % 12})):
        found, mass = chunk_mass(given), frame_mass(given)
    assert found.values("dummy", 0.9).tolist() == [[0, 1], [0, 0]]
    assert found.values("first", 0.9)[1, 0] == pytest.approx(1)
    close(mass.mass[1, 0, 1], torch.eye(4))
    rows = found.table[(found.table["score"] == "middle") & (found.table["level"] == 0.9)]
    assert rows["chance"].tolist() == [0.5] * 4  # two of four frames
    with pytest.raises(ValueError, match="overlap"):
        chunk_mass(given, n_first=3, n_current=2)


def test_kernels_equal_dense_means_and_separate_groups(given) -> None:
    groups = {"early": torch.tensor([True, True, False, False, False]), "all": torch.ones(5, dtype=torch.bool)}
    found = displacement_kernel(given, groups, radius=(3, 1, 1))
    assert found.kernel.shape == (2, 2, 2, 2, 7, 3, 3) and found.reach == (3, 1, 1)
    for index, level in enumerate(LEVELS):
        patterns = dense(given, level)
        for step in [(0, 0, 0), (-1, 0, 1), (-3, -1, 0)]:
            pairs = GRID.displaced(*step) & LAST[:, None]
            values = patterns[:, :, :, pairs].mean(-1)
            close(found.at(*step)[1, index], values.mean(0))
            close(found.at(*step)[0, index], values[:2].mean(0))
    assert found.at(1, 0, 0).abs().max() == 0  # no frame after the last
    close(found.chance[:, 2], torch.full((2, 3, 3), 1 / 48))  # one frame back
    table = found.to_frame()
    picked = table[(table["group"] == "all") & (table["level"] == 0.5) & (table["frame"] == -1) & (table["row"] == 0)]
    picked = picked[(picked["col"] == 1) & (picked["layer"] == 1)]
    close(torch.tensor(picked["value"].to_numpy()), found.at(-1, 0, 1)[1, 0, 1])
    assert len(found.plot()) == 2
    with pytest.raises(ValueError, match="outside the kernel's reach"):
        found.at(0, 2, 0)
    with pytest.raises(ValueError, match="0 clips"):
        displacement_kernel(given, {"nobody": torch.zeros(5, dtype=torch.bool)})


def test_synopsis_equals_dense_sums(given, tmp_path) -> None:
    regions = torch.randint(2, (5, 4, 3, 4), generator=torch.Generator().manual_seed(3))
    found = synopsis(given, regions, ["sky", "ground"])
    columns = torch.nn.functional.one_hot(regions.flatten(1)).float()
    mass = torch.einsum("clhqk,cks->clhqs", dense(given, 0.9), columns)
    expected = torch.einsum("cqr,clhqs->lhrs", columns, mass) / columns.sum((0, 1))[:, None]
    close(found.mass[1], expected)
    uniform = torch.einsum("cqr,cs->rs", columns, columns.mean(1)) / columns.sum((0, 1))[:, None]
    close(found.chance[0], uniform)
    assert Result.load(found.save(tmp_path)).regions == ("sky", "ground") and len(found.plot()) == 2
    for wrong, message in ((regions[:, :2], "clip frame row col"), (regions * 0, "nowhere: ground")):
        with pytest.raises(ValueError, match=message):
            synopsis(given, wrong, ["sky", "ground"])


SHIFT = torch.tensor([[0, 1], [0, -1], [1, 0], [0, 1], [0, 0]])


def test_scroll_heads_are_found_and_what_they_follow() -> None:
    given = noised(batch=8)
    actual = SHIFT.clone()
    actual[3] = 0  # clip 3 is blocked, clip 4 stays
    heads = {
        (0, 0): planted.displaced(SHIFT),  # where the action leads
        (0, 1): planted.displaced(actual),  # where it did lead
        (1, 0): planted.displaced(-SHIFT),
        (1, 1): planted.displaced(SHIFT * 0),
    }
    with given.model.hooks(planted.looking(given.model, heads)):
        found = scroll_heads(given, SHIFT, actual)
    rows = found.table[found.table["level"] == 0.9]
    assert rows["follows"].tolist() == ["action", "outcome", "nothing", "nothing"]
    assert rows["moved, implied"].tolist() == pytest.approx([1, 1, 0, 0], abs=1e-5)
    assert rows["blocked, same cell"].tolist() == pytest.approx([0, 1, 0, 1], abs=1e-5)
    assert rows["stayed, same cell"].tolist() == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert "follows the **outcome**" in found.summary() and len(found.plot()) == 2
    with pytest.raises(ValueError, match="no clip moved"):
        scroll_heads(given, SHIFT, actual * 0)
    with pytest.raises(ValueError, match="implied must be integers"):
        scroll_heads(given, SHIFT[:2], actual)


def test_the_head_table_names_planted_roles_and_measures_effects() -> None:
    match = torch.full((5, 4), -1)
    match[:, 3] = torch.tensor([0, 1, 0, 1, -1])
    pipe = planted.pipe()
    given = NoisedClips(pipe, planted.clips(labels={"match": match}), noise_levels=(0.9,), batch=8)
    implied = torch.zeros(5, 4, 2, dtype=torch.long)
    implied[:, 3] = SHIFT
    zero = SHIFT * 0
    to_match = torch.where(
        LAST & (match[:, 3:] >= 0), GRID.cell_of() + 12 * match[:, 3:].clamp(min=0), torch.arange(48)
    )
    heads = {
        (0, 0): planted.displaced(SHIFT), (0, 1): to_match, (1, 0): planted.displaced(zero, 0),
        (1, 1): planted.displaced(zero),
    }  # fmt: skip
    with given.model.hooks(planted.looking(given.model, heads)):
        found = head_table(given, implied=implied)
    assert found.table["role"].tolist() == ["scroll", "match, same place", "own token", "previous, same place"]
    close(torch.tensor(found.table["score"].to_numpy()), torch.ones(4))
    assert found.table["chance"].tolist() == pytest.approx([1 / 48] * 4)
    plain = head_table(given)
    assert "scroll" not in plain.table and "`implied=`" in plain.summary() and (plain.table["role"] == "mixed").any()

    # the effect is that of putting the mean in by hand
    z = torch.cat([cache["z", 1] for cache in given.caches(0.9, ["z"])])
    mean = z[:, :, 1].mean((0, 1))

    def replace(value: torch.Tensor, hook) -> torch.Tensor:
        value[:, :, 1] = mean
        return value

    intact = given.x0_error(0.9)
    with given.model.hooks([("blocks.1.attn.hook_z", replace)]):
        close(plain.effects[0, 1, 1], given.x0_error(0.9) - intact)
    row = plain.table[(plain.table["layer"] == 1) & (plain.table["head"] == 1)].iloc[0]
    assert row["effect"] == pytest.approx(float(plain.effects[0, 1, 1].mean()))
    assert row["low"] <= row["effect"] <= row["high"]
    with pytest.raises(ValueError, match="implied must be"):
        head_table(given, implied=SHIFT)
    with pytest.raises(ValueError, match="same model"):
        head_table(given, reference=noised())


def test_tracks_follow_the_world_and_correspondence_finds_a_planted_tracker() -> None:
    clips = vd.data.sample_clips("crafter", n=6)
    grid = vd.TokenGrid(8, 7, 9)
    tracks = cell_tracks(clips, grid)
    patches = vd.data.crafter.nearest_patch(clips.video[:, :8], vd.data.crafter.vocabulary()).flatten(2)
    seen = tracks >= 0
    shown = patches.gather(2, tracks.clamp(min=0).transpose(1, 2)).transpose(1, 2)
    same = shown == shown[:, :, -1:]
    assert seen[:, :, -1].float().mean() > 0.9 and (same | ~seen).float().mean() > 0.99
    moved = vd.data.crafter.moved(clips)[:, 1:8].any(1)
    still = torch.arange(63)[:, None].expand(-1, 8)
    assert moved.any() and all((tracks[i] != still).any() for i in moved.nonzero()[:, 0])

    given = noised(batch=8)
    cells = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(20)])
    cells = cells.view(5, 4, 12)  # where point p is in frame t
    cells[:, 3] = torch.arange(12)
    wanted = cells.transpose(1, 2).clone()
    wanted[:, 0, 1] = -1
    tracker = torch.arange(48).expand(5, -1).clone()
    tracker[:, LAST] = 24 + cells[:, 2]  # follows every point into frame 2
    with given.model.hooks(planted.looking(given.model, {(0, 0): tracker, (1, 1): torch.arange(48).expand(5, -1)})):
        only = wanted.clone()
        only[:, :, :2] = -1
        found = correspondence(given, only)
        blank = correspondence(given, torch.where(torch.arange(4) == 3, wanted, -1))
    for score in ("accuracy", "confidence", "cross-frame mass", "harmonic mean"):
        assert found.values(score, 0.9)[0, 0] == pytest.approx(1, abs=1e-4)
    assert found.values("cross-frame mass", 0.9)[1, 1] == pytest.approx(0, abs=1e-4)
    assert found.values("harmonic mean", 0.9)[1, 1] < 0.01
    assert math.isnan(blank.values("accuracy", 0.9)[0, 0])  # nothing to follow
    rows = correspondence(given, wanted)
    pattern = dense(given, 0.9)[:, 0, 0, LAST].unflatten(-1, (4, 12)).argmax(-1)  # clip point frame
    seen = wanted[:, :, :3] >= 0
    right = (pattern[:, :, :3] == wanted[:, :, :3]) & seen
    expected = (right.sum((1, 2)) / seen.sum((1, 2))).mean()
    assert rows.values("accuracy", 0.9)[0, 0] == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="only the layers \\[1\\] see other frames"):
        correspondence(noised("space_time"), wanted)
    with pytest.raises(ValueError, match="tracks must be"):
        correspondence(given, wanted[:2])
    with pytest.raises(ValueError, match="do not say where things are"):
        correspondence(given)


def test_objects_are_tracked_where_their_centre_is_seen() -> None:
    clips = vd.data.make_clips("occlusion", 3, n_frames=8)
    tracks = cell_tracks(clips, vd.TokenGrid(8, 8, 8))
    assert tracks.shape == (3, 2, 8) and (tracks[:, 0] == -1).any() and (tracks[:, 1] >= 0).all()
    row, col = clips.labels["position"][0, 0, 0].tolist()
    assert tracks[0, 0, 0] == int((row + 0.5) / 4) * 8 + int((col + 0.5) / 4)


def test_patch_crossing_adds_up_and_sees_who_crosses(given, tmp_path) -> None:
    found = patch_crossing(given)
    patterns = dense(given, 0.9)[:, :, :, LAST]
    cell, at = GRID.cell_of(), GRID.cell_of()[LAST]
    other = at[:, None] != cell
    crossing = found.pick("attention mass")
    crossing = crossing[crossing["level"] == 0.9]["value"]
    close(torch.tensor(crossing.to_numpy()), (patterns * other).sum(-1).mean((0, 2, 3)))
    for quantity in ("attention mass", "value-weighted share"):
        parts = sum(found.pick(quantity, part)["value"].to_numpy() for part in PARTS)
        close(torch.tensor(parts), torch.ones(4))
    assert set(CROSSING) < set(PARTS) and "when no layer may look" in found.summary()
    effect = found.pick("causal effect")
    assert effect["layer"].tolist() == ["0", "1", "all"] * 2 and (effect["value"] > 0).all()
    expected = given.x0_change(0.9, vd.MaskAttention("same_position", layers=[1])).mean()
    assert effect["value"].iloc[4] == pytest.approx(float(expected))
    assert len(found.plot()) == 5 and isinstance(Result.load(found.save(tmp_path)), type(found))
    with pytest.raises(KeyError, match="no 'mass'"):
        found.pick("mass")

    stays = NoisedClips(given.pipe, given.clips, noise_levels=(0.9,), batch=8)
    own = torch.arange(48).expand(5, -1)
    everywhere = {(layer, head): own for layer in range(2) for head in range(2)}
    with given.model.hooks(planted.looking(given.model, everywhere)):
        nothing = patch_crossing(stays)
    assert nothing.table[nothing.table["part"] == "crossing"]["value"].abs().max() < 1e-4


def test_over_time_only_nothing_crosses() -> None:
    from vdinterp.models import BlockSpec, Rope

    time = planted.pipe(period=(BlockSpec(axis="time"),), rope={"time": Rope(dims=(4, 0, 0))})
    with pytest.raises(ValueError, match="attends over time only"):
        patch_crossing(NoisedClips(time, planted.clips(), noise_levels=(0.9,)))


def test_chance_is_that_of_each_layer_and_its_mask() -> None:
    for kind, expected in (("space_time", [1 / 12, 0.0]), ("causal", [1 / 48, 1 / 48])):
        found = displacement_kernel(noised(kind), radius=(0, 1, 0))
        close(found.chance[:, 0, 2, 0], torch.tensor(expected))  # one row down, in the own frame
    early = displacement_kernel(noised("causal"), frames=[1], radius=(0, 0, 0))
    close(early.chance.flatten(), torch.full((2,), 1 / 24))  # sees two frames


def test_what_cannot_be_measured_is_refused_or_said(caplog) -> None:
    grey = planted.clips(1)
    grey = vd.data.Clips(kind="file", video=grey.video * 0 + 0.5)
    with pytest.raises(ValueError, match="every frame is the same"):
        head_table(NoisedClips(planted.pipe(), grey, noise_levels=(0.9,)))
    one = NoisedClips(planted.pipe(), planted.clips(1), noise_levels=(0.9,))
    assert 0 < one.x0_error(0.9).item() < 1e3  # one clip with one noised frame has a unit, too
    with pytest.raises(ValueError, match="takes a pipeline and clips"):
        NoisedClips(planted.pipe().model, planted.clips())  # type: ignore[arg-type]
    silent = NoisedClips(planted.pipe("table"), planted.clips())
    assert "takes actions and runs without" in caplog.text
    assert silent.meta()["actions"] == "none: the model ran without" and "actions" not in one.meta()
    with pytest.raises(ValueError, match="steps smaller than the picture"):
        scroll_heads(one, torch.tensor([[3, 0]]), torch.tensor([[3, 0]]))


def test_correspondence_leaves_out_what_a_mask_hides() -> None:
    given = noised("causal", n_context=1)
    tracks = torch.arange(12).view(1, 12, 1).expand(5, -1, 4).clone()
    future = tracks.clone()
    future[:, :, 2:] = -1  # frame 1 cannot see these
    one, other = (correspondence(given, points, frame=1) for points in (tracks, future))
    close(torch.tensor(one.values("accuracy", 0.9)), torch.tensor(other.values("accuracy", 0.9)))
    close(torch.tensor(one.table[one.table["score"] == "cross-frame mass"]["chance"].to_numpy()), torch.full((8,), 0.5))
    for frame, message in ((0, "sees no other frame"), (9, "the clips have 4 frames")):
        with pytest.raises(ValueError, match=message):
            correspondence(given, tracks, frame=frame)
    with pytest.raises(ValueError, match=r"tracks hold cells -2\.\.11"):
        correspondence(given, tracks.where(tracks > 0, -2))


def test_patch_crossing_without_adaln_gates() -> None:
    from vdinterp.models import BlockSpec, Sublayer

    plain = planted.pipe(period=(BlockSpec(attn=Sublayer("plain", None)),), norm_affine=True)
    found = patch_crossing(NoisedClips(plain, planted.clips(), noise_levels=(0.9,)))
    assert found.pick("value-weighted share")["value"].between(0, 1).all()
