"""Clips: the ground truth is true, twins differ in one frame, a clip depends on (seed, index) only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vdinterp.data import Clips, make_clips
from vdinterp.data.digits import (
    SPLITS,
    digit_images,
    digit_labels,
    find_matches,
    make_digit_clips,
    mean_frame,
    write_digits_asset,
)
from vdinterp.data.objects import make_object_clips
from vdinterp.studies.labels import label_names, labels_of

DIGITS = ("loop", "snippet", "one_off", "control")
OBJECTS = ("bounce", "occlusion")


def equal(a: Clips, b: Clips) -> bool:
    names = [name for name, value in vars(a).items() if isinstance(value, torch.Tensor)]
    pairs = [(getattr(a, name), getattr(b, name)) for name in names] + [(a.labels[n], b.labels[n]) for n in a.labels]
    return all(torch.equal(one, other) for one, other in pairs) and a.kind == b.kind and set(a.labels) == set(b.labels)


@pytest.mark.parametrize("kind", DIGITS + OBJECTS)
def test_a_clip_depends_on_seed_and_index_only(kind):
    many, few = make_clips(kind, 6, 3), make_clips(kind, 3, 3)
    assert equal(many[:3], few) and many.corrupt is not None and few.corrupt is not None
    assert equal(many.corrupt[:3], few.corrupt)
    make = make_digit_clips if kind in DIGITS else make_object_clips
    assert equal(make(kind, 2, 3, start=4), many[4:])
    assert not torch.equal(make_clips(kind, 3, 4).video, few.video)
    assert len({clip.numpy().tobytes() for clip in many.video}) == 6


@pytest.mark.parametrize("kind", DIGITS)
def test_repetition_is_what_the_pixels_show(kind):
    clips = make_clips(kind, 40, 5)
    assert clips.video.shape == (40, 16, 1, 8, 8) and clips.video.min() >= 0 and clips.video.max() <= 1
    assert torch.equal(clips.latents, clips.video * 2 - 1)
    for twin in (clips, clips.corrupt):
        for video, ids, match, lag, predictable in zip(
            twin.video,
            twin.labels["state_id"],
            twin.labels["match"],
            twin.labels["lag"],
            twin.labels["predictable"],
            strict=True,
        ):
            for t in range(16):
                j = int(match[t])
                earlier = [
                    u
                    for u in range(1, t)
                    if torch.equal(video[u], video[t]) and torch.equal(video[u - 1], video[t - 1])
                ]
                assert j == (max(earlier) if earlier else -1)
                assert lag[t] == (t - j if j >= 0 else 0)
                assert j >= 0 or not predictable[t]
                assert torch.equal(video[t], digit_images()[ids[t]])


def test_each_kind_has_the_repetition_it_promises():
    loops = make_clips("loop", 60, 1)
    assert set(loops.labels["period"].tolist()) == set(range(2, 8))
    for clip, period in zip(loops.video, loops.labels["period"].tolist(), strict=True):
        assert torch.equal(clip[period:], clip[:-period]) and len(clip[:period].flatten(1).unique(dim=0)) == period
    assert torch.equal(loops.labels["predictable"], torch.arange(16) > loops.labels["period"][:, None])
    assert torch.equal(loops.labels["match"] >= 0, loops.labels["predictable"])

    snippets = make_clips("snippet", 200, 1)
    assert 0.2 < snippets.labels["predictable"][:, -1].float().mean() < 0.7
    assert (
        snippets.labels["match"][~snippets.labels["predictable"]] >= 0
    ).any()  # chance repeats at the start of a snippet are not predictable

    one_off = make_clips("one_off", 60, 1)
    assert set(one_off.labels["lag"][:, -1].tolist()) == set(range(4, 11))
    assert (
        one_off.labels["predictable"].nonzero()[:, 1].unique().tolist() == [15]
        and one_off.labels["predictable"][:, 15].all()
    )
    assert all(len(set(ids)) == 14 for ids in one_off.labels["state_id"].tolist())

    control = make_clips("control", 20, 1)
    assert (
        not control.labels["predictable"].any()
        and (control.labels["match"] == -1).all()
        and (control.labels["lag"] == 0).all()
    )
    assert all(len(set(ids)) == 16 for ids in control.labels["state_id"].tolist())
    assert (one_off.labels["period"] == 0).all() and (control.labels["period"] == 0).all()


@pytest.mark.parametrize("kind", DIGITS + OBJECTS)
def test_the_twin_differs_in_exactly_the_frame_it_names(kind):
    clips = make_clips(kind, 30, 2)
    differs = (clips.video != clips.corrupt.video).flatten(2).any(-1)
    assert torch.equal(differs, torch.nn.functional.one_hot(clips.corrupt_frame, 16).bool())
    if kind == "one_off":
        assert (
            torch.equal(clips.corrupt_frame, clips.labels["match"][:, -1])
            and not clips.corrupt.labels["predictable"].any()
        )
    if kind in OBJECTS:
        moved = (clips.labels["position"] != clips.corrupt.labels["position"]).flatten(2).any(-1)
        assert torch.equal(moved, differs) and not clips.corrupt.labels["predictable"][differs].any()


def test_options_of_digit_clips():
    assert set(make_clips("one_off", 8, 0, lag=9).labels["lag"][:, -1].tolist()) == {9}
    assert set(make_clips("loop", 8, 0, period=3).labels["period"].tolist()) == {3}
    dense, sparse = (make_clips("snippet", 64, 0, filler=share) for share in (0.0, 0.7))
    once = [
        (clips.labels["state_id"][:, :, None] == clips.labels["state_id"][:, None]).sum(2) == 1
        for clips in (dense, sparse)
    ]
    assert once[0].float().mean() < 0.2 < 0.5 < once[1].float().mean()
    assert torch.equal(
        make_clips("snippet", 4, 0, filler=0.15).labels["state_id"], make_clips("snippet", 4, 0).labels["state_id"]
    )
    assert make_clips("snippet", 4, 0, n_frames=24).n_frames == 24
    for split, allowed in SPLITS.items():
        ids = make_clips("control", 50, 0, split=split).labels["state_id"]
        assert ids.min() >= allowed.start and ids.max() < allowed.stop
    assert not set(SPLITS["train"]) & set(SPLITS["held_out"])
    assert digit_images().shape == (1797, 1, 8, 8) and digit_labels().bincount().min() > 100
    assert len(digit_images().flatten(1).unique(dim=0)) == 1797  # so that equal frames mean equal ids
    assert torch.allclose(mean_frame(), digit_images()[:1437].mean(0))


def test_the_digits_are_those_of_scikit_learn(tmp_path):
    from safetensors.torch import load_file
    from sklearn.datasets import load_digits

    digits = load_digits()
    assert torch.equal(digit_images()[:, 0], torch.from_numpy(digits.images).float() / 16)
    assert digit_labels().tolist() == digits.target.tolist()
    write_digits_asset(tmp_path / "digits.safetensors")
    assert torch.equal(load_file(tmp_path / "digits.safetensors")["images"], (digit_images()[:, 0] * 16).byte())


def test_find_matches_on_a_worked_example():
    #                        0  1  2  3  4  5  6  7
    assert find_matches(np.array([7, 8, 9, 7, 8, 7, 8, 9])).tolist() == [-1, -1, -1, -1, 1, -1, 4, 2]


def test_bounce_reflects_at_the_walls_and_is_drawn_where_it_is():
    clips = make_clips("bounce", 20, 0, n_frames=24)
    assert clips.video.shape == (20, 24, 3, 32, 32) and clips.labels["position"].shape == (20, 24, 2, 2)
    assert torch.allclose(
        clips.labels["position"][:, :-1] + clips.labels["velocity"][:, :-1], clips.labels["position"][:, 1:], atol=1e-4
    )
    assert clips.labels["position"].min() >= 2.5 - 1e-4 and clips.labels["position"].max() <= 31 - 2.5 + 1e-4
    speed = clips.labels["velocity"].abs()
    turned = (clips.labels["velocity"][:, 1:] * clips.labels["velocity"][:, :-1] < 0).any()
    typical = speed.median(dim=1, keepdim=True).values
    assert turned and (speed <= typical + 1e-3).float().mean() > 0.95  # reflections only ever shorten a displacement
    check_drawing(clips)


def test_occlusion_hides_the_disc_behind_the_bar_and_shows_it_again():
    clips = make_clips("occlusion", 20, 0)
    assert (
        clips.labels["position"].shape == (20, 16, 2, 2) and (clips.labels["depth_order"] == torch.tensor([1, 0])).all()
    )
    assert (clips.labels["velocity"][:, :, 1] == 0).all() and (clips.labels["visible_fraction"][:, :, 1] == 1).all()
    disc = clips.labels["visible_fraction"][:, :, 0]
    assert (disc[:, [0, -1]] == 1).all() and (disc.min(dim=1).values < 0.5).all() and (disc == 0).any()
    check_drawing(clips)


def check_drawing(clips: Clips) -> None:
    """The nearest object is whole, and the pixels of its colour lie around its `position`."""
    row, col = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    checked = 0
    for clip in range(len(clips)):
        for t in range(clips.n_frames):
            full = clips.video[clip, t]
            nearest = int(clips.labels["depth_order"][clip, t].argmin())
            at_centre = clips.labels["position"][clip, t, nearest].round().long()
            colour = full[:, at_centre[0], at_centre[1]]
            painted = (full == colour[:, None, None]).all(0)
            assert clips.labels["visible_fraction"][clip, t, nearest] == 1
            centre = torch.stack([row[painted].mean(), col[painted].mean()])
            assert (centre - clips.labels["position"][clip, t, nearest]).abs().max() < 0.75
            checked += 1
    assert checked == len(clips) * clips.n_frames


def test_visible_fraction_equals_what_is_left_of_the_disc():
    clips = make_clips("occlusion", 10, 1)
    for clip in range(10):
        row, col = clips.labels["position"][clip, 0, 0].round().long().tolist()
        disc_colour = clips.video[clip, 0, :, row, col]
        counts = (clips.video[clip] == disc_colour[:, None, None]).all(1).flatten(1).sum(1)
        fraction = clips.labels["visible_fraction"][clip, :, 0]
        assert ((counts == 0) == (fraction == 0)).all()
        whole = counts[fraction == 1].float()
        assert torch.allclose(counts / whole.mean(), fraction, atol=0.2)  # a disc between pixels has a few more or less


def test_subsets_and_moving():
    clips = make_clips("loop", 6, 0)
    assert (
        equal(clips[2], clips[2:3])
        and equal(clips[-1], clips[5:6])
        and equal(clips[[0, 4]], clips[torch.tensor([0, 4])])
    )
    assert len(clips[clips.labels["period"] > 100]) == len(clips[[]]) == len(clips[:0]) == 0
    mask = [True, False, False, True, False, True]
    for given in (mask, torch.tensor(mask), np.array(mask), np.flatnonzero(mask), [0, 3, -1]):
        assert equal(clips[given], clips[[0, 3, 5]])
    assert torch.equal(clips[1].corrupt.video, clips.corrupt.video[1:2])
    assert equal(clips.to("cpu"), clips)
    for outside in (6, [0, 6]):
        with pytest.raises(IndexError, match="clip 6 of 6"):
            clips[outside]
    for given, message in (
        (True, "numbers of clips, a slice, or a boolean mask"),
        ([1.5], "numbers of clips"),
        (mask[:5], "one entry for each of 6, not 5"),
        ([[0, 1]], r"a list of clips, not \[1, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            clips[given]
    with pytest.raises(ValueError, match="describes 6 clips, video has 2"):
        Clips(kind="loop", video=clips.video[:2], labels={"match": clips.labels["match"]})
    with pytest.raises(ValueError, match="batch frame channel height width"):
        Clips(kind="loop", video=clips.video[0])
    with pytest.raises(ValueError, match=r"pipe\.encode"):
        _ = Clips(kind="crafter", video=clips.video).latents


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_clips("snipet", 4), "did you mean 'snippet'"),
        (lambda: make_clips("zzz", 4), "Known kinds: loop, snippet"),
        (lambda: make_clips("loop", 0), "n must be a whole number in 1"),
        (lambda: make_clips("loop", 4, -1), "seed must be"),
        (lambda: make_clips("loop", 4, split="test"), "train, held_out"),
        (lambda: make_clips("loop", 4, n_frames=3), "n_frames"),
        (lambda: make_clips("loop", 4, lag=3), "lag is for kind 'one_off'"),
        (lambda: make_clips("one_off", 4, period=3), "period is for kind 'loop'"),
        (lambda: make_clips("one_off", 4, lag=15), "2..14"),
        (lambda: make_clips("one_off", 4, lag=2.5), "lag must be a whole number"),
        (lambda: make_clips("loop", 4, period=True), "period must be a whole number"),
        (lambda: make_clips("loop", True), "n must be a whole number in 1..1000000, got True"),
        (lambda: make_clips("loop", 10**12), "got 1000000000000"),
        (lambda: make_clips("loop", 4, "0"), "seed must be a non-negative integer, got '0'"),
        (lambda: make_clips("loop", 4, n_frames=float("nan")), "n_frames must be a whole number in 6..347 .*got nan"),
        (lambda: make_clips("loop", 4, start=1.5), "start must be"),
        (lambda: make_clips("snippet", 4, filler=float("nan")), "filler must be a number"),
        (lambda: make_clips("bounce", 4, size=(32, 10**6)), "size must be"),
        (lambda: make_clips("bounce", 4, n_frames=10**6), "n_frames must be"),
        (lambda: make_clips("loop", 4, filler=0.3), "filler is for kind 'snippet'"),
        (lambda: make_clips("snippet", 4, filler=1.0), "filler=1 leaves no room"),
        (lambda: make_clips("bounce", 4, size=(8, 8)), "size must be a whole number in 16"),
        (lambda: make_clips("bounce", 4, n_objects=9), "1..4"),
        (lambda: make_digit_clips("bounce", 4), "unknown kind of digit clips"),
        (lambda: make_object_clips("loop", 4), "unknown kind of object clips"),
    ],
)
def test_bad_input_says_what_would_work(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def own_clips() -> Clips:
    """Latents with everything that may come with them."""
    draw = torch.Generator().manual_seed(0)
    encoded, video = torch.randn(4, 3, 2, 4, 6, generator=draw), torch.rand(4, 3, 3, 8, 8, generator=draw)
    twin = Clips(kind="mine", encoded=-encoded)
    labels = {"speed": torch.rand(4, 3, generator=draw), "side": torch.arange(4) % 2}
    return Clips(kind="mine", encoded=encoded, video=video, action=torch.eye(4)[:, None].expand(-1, 3, -1),
                 labels=labels, corrupt=twin, corrupt_frame=torch.zeros(4, dtype=torch.long))  # fmt: skip


def test_clips_come_back_from_a_file(tmp_path: Path) -> None:
    for clips in (own_clips(), make_clips("one_off", 3), make_clips("bounce", 2)):
        path = clips.save(tmp_path / "new" / "clips.safetensors")
        again = Clips.load(path)
        assert equal(again, clips) and again.kind == clips.kind and repr(again) == repr(clips)
        assert [file.name for file in path.parent.iterdir()] == ["clips.safetensors"]
    labels = Clips.load(own_clips().save(tmp_path / "x")).labels
    assert torch.equal(labels["side"], torch.tensor([0, 1, 0, 1]))


def test_files_of_ones_own(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    pixels = torch.randint(0, 256, (2, 3, 3, 4, 4), dtype=torch.uint8)
    save_file({"video": pixels, "action": torch.ones(2, 3, 5, dtype=torch.long)}, tmp_path / "a")
    clips = Clips.load(tmp_path / "a")
    assert torch.equal(clips.pixels, pixels.float() / 255) and clips.action is not None and clips.kind == "file"
    assert clips.action.dtype == torch.float32
    save_file({"latents": torch.ones(2, 3, 2, 4, 4, dtype=torch.float16)}, tmp_path / "b")
    clips = Clips.load(tmp_path / "b")
    assert clips.video is None and clips.latents.dtype == torch.float32 and clips.n_frames == 3 and len(clips) == 2
    with pytest.raises(ValueError, match="latents without pixels"):
        _ = clips.pixels
    for tensors, message in [
        ({"x": pixels}, "unknown tensors x: clips are `video`"),
        ({"action": torch.ones(2, 3, 5)}, "neither `video` nor `latents`"),
        ({"video": pixels.int()}, "video is torch.int32; give floating point in"),
        ({"latents": torch.full((1, 1, 1, 1, 1), torch.nan)}, "latents holds NaN"),
        ({"latents": torch.ones(2, 3, 2, 4)}, "encoded must be"),
        ({"video": pixels, "labels.a": torch.ones(3)}, "a describes 3 clips, video has 2"),
    ]:
        save_file(tensors, tmp_path / "c")
        with pytest.raises(ValueError, match=message):
            Clips.load(tmp_path / "c")
    with pytest.raises(ValueError, match="need a video"):
        Clips(kind="none")


def test_labels_of_ones_own_are_cut_with_the_clips() -> None:
    clips = own_clips()[[3, 1]]
    assert clips.labels["side"].tolist() == [1, 1]
    fields = "video [2, 3, 3, 8, 8], encoded [2, 3, 2, 4, 6], action, corrupt_frame, side, speed"
    assert repr(clips) == f"Clips('mine', {fields}, with corrupt twins)"
    speed = labels_of(own_clips(), "speed", [2])
    assert speed.names is None and speed.mask is not None and speed.mask[:, :, 0, 0].sum(0).tolist() == [0, 0, 4]
    assert label_names(own_clips()) == ["speed", "side"]
    with pytest.raises(ValueError, match="have no label 'weight'; they have speed, side"):
        labels_of(own_clips(), "weight", [2])
