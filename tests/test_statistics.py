"""Statistics that ride along with a forward pass: equal to what the recorded pattern says, and without effect."""

from __future__ import annotations

import pytest
import torch
from factories import KINDS, inputs, tiny_model

import vdinterp as vd
from vdinterp.models import memory
from vdinterp.models.components.statistics import STATISTICS

NAMES = list(STATISTICS)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_equal_those_of_the_pattern(kind, masked) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    change = [vd.MaskAttention("own_frame", heads=[1], layers=[1])] if masked else []
    with model.intervene(*change):
        plain = model(**given)
        pred, cache = model.run_with_cache(**given, names=NAMES)
        _, kept = model.run_with_cache(**given, names=["rot_q", "rot_k"])
    assert len(cache) == len(NAMES) * model.cfg.n_layers
    torch.testing.assert_close(pred, plain, atol=1e-5, rtol=0)
    for layer in range(model.cfg.n_layers):
        for name in NAMES:
            expected = STATISTICS[name].compute(kept["pattern", layer], "frame")
            torch.testing.assert_close(cache[name, layer], expected, atol=1e-5, rtol=1e-5)
            assert cache[name, layer].shape == model.hook_shape(f"blocks.{layer}.attn.hook_{name}", batch=2)
    torch.testing.assert_close(cache.stack("frame_mass").sum(-1), torch.ones(2, 2, 2, 3))


@torch.no_grad()
def test_statistics_of_an_edited_and_recorded_pattern_and_of_half_precision() -> None:
    model = tiny_model()
    given = inputs(model)
    _, cache = model.run_with_cache(**given, names=["frame_mass", "pattern", "rot_q", "rot_k"])
    frames = torch.nn.functional.one_hot(model.grid().frame_of()).float()
    dense = (cache["blocks.0.attn.hook_pattern"] @ frames).unflatten(2, (3, -1)).mean(3)
    torch.testing.assert_close(cache["frame_mass", 0], dense, atol=1e-5, rtol=0)
    half = model.to(torch.bfloat16)
    given["latents"] = given["latents"].bfloat16()
    _, cache = half.run_with_cache(**given, names=["frame_mass", "rot_q", "rot_k"])
    assert cache["frame_mass", 0].dtype == torch.float32
    torch.testing.assert_close(cache["frame_mass", 0], cache["pattern", 0].frame_mass(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_run_with_stats_and_statistics_of_every_step() -> None:
    model = tiny_model("space_time")
    given = inputs(model)
    pred, stats = model.run_with_stats(**given, stats=["frame_mass", "sinks"])
    torch.testing.assert_close(pred, model(**given), atol=1e-5, rtol=0)
    assert set(stats) == {"frame_mass", "sinks"}
    assert stats["frame_mass"].shape == (2, 2, 2, 3, 3)  # layer batch head frame frame
    torch.testing.assert_close(stats["frame_mass"][0], torch.eye(3).expand(2, 2, 3, 3))  # spatial attention
    assert stats["sinks"].shape == (2, 2, 2, 18)
    pipe = vd.load("tiny-induction")
    clips = vd.data.make_clips("snippet", 2)
    sample = pipe.sample(clips.latents[:, :15], steps=3, record=["frame_mass"])
    assert list(sample.record) == [0, 1, 2]
    assert sample.record[1].stack("frame_mass").shape == (4, 2, 4, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["3d", "space_time", "causal"])
def test_the_cost_is_known_before_and_what_does_not_fit_is_refused(kind, monkeypatch) -> None:
    model = tiny_model(kind)
    needed = model.estimate_stats(NAMES, batch=2)
    _, stats = model.run_with_stats(**inputs(model), stats=NAMES)
    assert needed["result_bytes"] == sum(value.numel() * 4 for value in stats.values())
    assert needed["flops"] > 0 and model.estimate_stats(["frame_mass"])["flops"] == 0
    assert model.estimate_stats(["sinks"], batch=4)["flops"] == 4 * model.estimate_stats(["sinks"])["flops"]
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"entropy of all heads would take .* 1000 bytes are free"):
        model.run_with_stats(**inputs(model), stats=["sinks", "entropy"])


def test_a_statistic_cannot_be_changed() -> None:
    model = tiny_model()
    for function in (lambda x, hook: x * 2, lambda x, hook: x.mul_(2)):
        with pytest.raises(ValueError, match="is a statistic"):
            model.run_with_hooks(**inputs(model), fwd_hooks=[("frame_mass", function)])
    with pytest.raises(ValueError, match="is a statistic"), model.intervene(vd.Ablate("sinks")):
        pass
    with pytest.raises(KeyError, match="frame_mas'"):
        model.run_with_stats(**inputs(model), stats=["frame_mas"])
    with pytest.raises(ValueError, match="'z' is no statistic; there are frame_mass"):
        model.run_with_stats(**inputs(model), stats=["z"])


def test_statistics_of_a_pattern_that_a_hook_changed_are_refused() -> None:
    model = tiny_model()
    change = vd.Custom(("pattern", 0), lambda pattern, hook: pattern.flip(-1))
    for name in NAMES:
        with pytest.raises(ValueError, match=r"A hook changed blocks\.0\.attn\.hook_pattern"), model.intervene(change):
            model.run_with_stats(**inputs(model), stats=name)


def test_a_key_that_nobody_may_see_receives_nothing() -> None:
    model = tiny_model()
    allow = torch.ones(18, 18, dtype=torch.bool)
    allow[:, 3] = False
    with model.intervene(vd.MaskAttention(allow=allow)):
        _, stats = model.run_with_stats(**inputs(model), stats=["sinks"])
    assert stats["sinks"].isfinite().all() and (stats["sinks"][..., 3] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["3d", "space_time", "causal"])
def test_the_mass_on_any_partition_rides_along(kind, dtype) -> None:
    model = tiny_model(kind).to(dtype)
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs(model).items()}
    labels = torch.arange(18) % 5
    pred, stats = model.run_with_stats(**given, stats=["mass", "frame_mass"], partition=labels)
    _, cache = model.run_with_cache(**given, names=["rot_q", "rot_k"])
    assert stats["mass"].shape == (2, 2, 2, 18, 5) and stats["mass"].dtype == torch.float32
    for layer in range(2):
        torch.testing.assert_close(stats["mass"][layer], cache["pattern", layer].mass(labels), atol=1e-5, rtol=0)
        torch.testing.assert_close(stats["frame_mass"][layer], cache["pattern", layer].frame_mass(), atol=1e-5, rtol=0)
    torch.testing.assert_close(pred, model(**given), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)
    needed = model.estimate_stats(["mass"], batch=2, partition=labels)
    assert needed["result_bytes"] == stats["mass"].numel() * 4
    assert model.sublayer(0).partition == "frame"  # put back


@torch.no_grad()
def test_the_mass_on_a_partition_at_every_step_and_wrong_partitions() -> None:
    pipe = vd.load("tiny-induction")
    labels = pipe.model.grid().cell_of()
    with pipe.model.key_partition(labels):
        sample = pipe.sample(vd.data.make_clips("snippet", 2).latents[:, :15], steps=2, record=["mass"])
    assert sample.record[1].stack("mass").shape == (4, 2, 4, 64, 4)
    model = tiny_model()
    for wrong, message in ((torch.zeros(5, dtype=torch.long), r"\[18\]"), ("frames", "Unknown partition")):
        with pytest.raises(ValueError, match=message):
            model.run_with_stats(**inputs(model), stats=["mass"], partition=wrong)
    assert model.sublayer(0).partition == "frame"
