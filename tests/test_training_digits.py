"""The digit recipes: a smoke run end to end, resuming, what the batches hold."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import vdinterp as vd
from vdinterp.training import RECIPES, digits, train
from vdinterp.training.digits import DIGIT_RECIPES, digit_config, draw_latents, draw_levels
from vdinterp.training.evaluate import last_frame_error, relative_error
from vdinterp.training.loop import step_generator


def test_a_short_run_writes_a_model_that_loads_and_resumes_bitwise(tmp_path, monkeypatch):
    whole = train("tiny-induction", steps=20, out=tmp_path / "whole")
    meta = json.loads((tmp_path / "whole/model.json").read_text())
    assert meta["figures"]["clips"] == 16 and "CC BY 4.0" in meta["license"]
    assert len(list((tmp_path / "whole/checkpoints").glob("step-*.safetensors"))) >= 8

    real, calls = digits.digit_loss, []

    def dies_once(model, recipe, seed):
        loss_at = real(model, recipe, seed)

        def loss(step):
            calls.append(step)
            if len(calls) == 19:  # in the last round, after its first save
                raise KeyboardInterrupt
            return loss_at(step)

        return loss

    monkeypatch.setattr(digits, "digit_loss", dies_once)
    monkeypatch.setattr(digits, "SAVE_EVERY", 4)
    with pytest.raises(KeyboardInterrupt):
        train("tiny-induction", steps=20, out=tmp_path / "parts")
    parts = train("tiny-induction", steps=20, out=tmp_path / "parts")
    assert calls == [*range(19), 16, 17, 18, 19]  # the run went back to its last save, not to the start
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name
    assert whole.meta["figures"] == parts.meta["figures"]
    final = load_file(tmp_path / "whole/training/round-1/final.safetensors")
    assert any(
        not torch.equal(final[k], v)
        for k, v in load_file(tmp_path / "whole/training/round-0/checkpoints/step-00000.safetensors").items()
    )


def test_training_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train("tiny-loop", steps=1, out=tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_noise_levels_of_a_batch():
    k = draw_levels(step_generator(0, 0), 4000, 16, 1000)
    noisy = k >= 0
    assert k.min() == -1 and k.max() == 999 and noisy.any(1).all()
    alone = noisy.sum(1) == 1
    assert 0.3 < alone.float().mean() < 0.45  # 30 % on purpose, some by chance
    assert 0.2 < noisy[~alone].float().mean() < 0.5
    assert (k[noisy] >= 500).float().mean() > 0.7  # sqrt(u): three quarters lie above one half
    assert (noisy[alone].float().mean(0) > 0.03).all()  # any frame
    assert torch.equal(k, draw_levels(step_generator(0, 0), 4000, 16, 1000))


def test_clips_of_a_batch_follow_the_mixture_and_use_training_images_only():
    held_out = {frame.numpy().tobytes() for frame in vd.data.digits.digit_images()[1437:]}
    clips = draw_latents(step_generator(0, 3), {"loop": 0.5, "control": 0.5}, 200, seed=0, start=0)
    assert clips.shape == (200, 16, 1, 8, 8) and clips.min() == -1 and clips.max() == 1
    distinct = torch.tensor([len(clip.flatten(1).unique(dim=0)) for clip in clips])
    assert set(distinct.tolist()) == {2, 3, 4, 5, 6, 7, 16} and 70 < (distinct == 16).sum() < 130
    frames = {frame.numpy().tobytes() for frame in (clips.flatten(0, 1) + 1) / 2}
    assert not frames & held_out
    other = draw_latents(step_generator(0, 4), {"loop": 0.5, "control": 0.5}, 200, seed=0, start=200)
    assert not torch.equal(clips, other)


def test_recipes_are_the_ones_described():
    recipe = DIGIT_RECIPES["tiny-induction"]
    assert recipe.steps == recipe.keep[-1] and recipe.keep[0] == 0
    for stage in (*recipe.stages, *DIGIT_RECIPES["tiny-loop"].stages):
        assert sum(stage[1].values()) == pytest.approx(1)
    assert set(DIGIT_RECIPES["tiny-loop"].mixture(0)) == {"loop"}
    assert recipe.mixture(0) == recipe.stages[0][1] and recipe.mixture(recipe.steps - 1) == recipe.stages[-1][1]
    short = recipe.shortened(20)
    assert short.steps == 20 and short.keep[-1] == 20 and len(short.rounds) == len(recipe.rounds) == 2
    assert recipe.shortened(None) is recipe
    assert 500_000 < sum(p.numel() for p in vd.HookedVideoDiT(digit_config("x")).parameters()) < 600_000


class Constant(vd.VideoDiffusion):
    """Stands in for a pipeline whose estimate is known: the mean image, or the truth."""

    def __init__(self, clips, perfect):
        vars(self).update(vars(vd.load("tiny-induction")))
        self.clips, self.perfect = clips, perfect

    def add_noise(self, latents, noise_levels, noise):
        assert (noise_levels[:, :-1] == 0).all() and (noise_levels[:, -1] == 0.95).all()
        return latents

    def denoise(self, noisy, noise_levels, cond=None):
        mean = vd.data.digits.mean_frame() * 2 - 1
        return noisy if self.perfect else mean.expand_as(noisy)


def test_relative_error_is_1_for_the_mean_image_and_0_for_the_truth():
    clips = vd.data.make_clips("control", 70, 3)
    for perfect, expected in ((False, 1.0), (True, 0.0)):
        errors = last_frame_error(Constant(clips, perfect), clips)
        assert errors.shape == (70, 2) and relative_error(errors) == pytest.approx(expected, abs=1e-6)
    assert 0.2 < errors[:, 1].mean() < 0.4  # the spread of the digits around their mean, in [-1, 1] units
    with pytest.raises(ValueError, match="level"):
        last_frame_error(Constant(clips, True), clips, level=1.2)
    with pytest.raises(ValueError, match="no clips"):
        relative_error(errors[:0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "tiny-inducton"}, "did you mean 'tiny-induction'"),
        ({"name": "zzz"}, "tiny-crafter"),
        ({"name": "tiny-loop", "steps": 0}, "steps >= 1"),
        ({"name": "tiny-loop", "seed": -1}, "seed >= 0"),
    ],
)
def test_bad_input_says_what_would_work(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(out=tmp_path, **arguments)
    assert not list(tmp_path.iterdir()) and set(RECIPES) == {"tiny-induction", "tiny-loop", "tiny-crafter"}
