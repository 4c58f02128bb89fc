"""A model that reads text, end to end: cross-attention to token embeddings, padding, guidance, sweeps, rollouts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from factories import inputs, tiny_model

import vdinterp as vd
from vdinterp.conditions import NO_CONDITION, Conditions, _say_without
from vdinterp.interventions import from_json, to_json
from vdinterp.sweep import Case, Inputs, Trajectory, Trial

PIPE = vd.VideoDiffusion(tiny_model("cross"), None, vd.DiffusionConfig())
GIVEN = inputs(PIPE.model)
NOISY, TEXT = GIVEN["latents"], GIVEN["cond"]
OTHER = inputs(PIPE.model, seed=8)["cond"]
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def distance(x0: torch.Tensor, moment: Any) -> torch.Tensor:
    return (x0 - moment.x0["base"]).square().mean((1, 2, 3, 4))


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    """Tokens that the mask hides are as if they were not there, whatever they hold."""
    one = {"names": ["cross_attn.pattern", "resid_post"]}
    for clip, n_tokens in ((0, 3), (1, 2)):
        noisy, own = NOISY[clip : clip + 1], slice(clip, clip + 1)
        short, short_cache = PIPE.run_with_cache(noisy, 0.6, Conditions(text=TEXT[own, :n_tokens]), **one)
        padded = Conditions(text=TEXT, text_mask=MASK)[own]
        found, cache = PIPE.run_with_cache(noisy, 0.6, padded, **one)
        torch.testing.assert_close(found, short, atol=2e-6, rtol=0)
        torch.testing.assert_close(cache["resid_post", -1], short_cache["resid_post", -1], atol=2e-6, rtol=0)
        name = "blocks.0.cross_attn.hook_pattern"
        assert bool((cache[name][..., n_tokens:] == 0).all()) and cache[name].shape[-1] == 4
        torch.testing.assert_close(cache[name][..., :n_tokens], short_cache[name], atol=2e-6, rtol=0)
        junk = Conditions(text=torch.where(MASK[..., None], TEXT, 1e3), text_mask=MASK)[own]
        torch.testing.assert_close(PIPE.denoise(noisy, 0.6, junk), found, atol=2e-6, rtol=0)
    alone = [PIPE.sample(NOISY[i : i + 1, :1], steps=2, first_index=i, cond=Conditions(text=TEXT[i : i + 1, : 3 - i]),
                         guidance=vd.ClassifierFreeGuidance(3.0)) for i in (0, 1)]  # fmt: skip
    both = PIPE.sample(NOISY[:, :1], steps=2, cond=Conditions(text=TEXT, text_mask=MASK),
                       guidance=vd.ClassifierFreeGuidance(3.0))  # fmt: skip
    torch.testing.assert_close(both.latents, torch.cat([one.latents for one in alone]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_guidance_is_text_against_none() -> None:
    """Branches are the text and zeros; the prediction is `w * with + (1 - w) * without`, in x0 as in v."""
    dropped = Conditions(text=TEXT).drop()
    assert torch.equal(PIPE.denoise(NOISY, 0.7, dropped), PIPE.denoise(NOISY, 0.7, Conditions(text=TEXT * 0)))
    context, same = NOISY[:, :1], {"steps": 1, "cond": TEXT, "noise": torch.randn_like(NOISY)}
    start = torch.cat([context, same["noise"][:, 1:]], 1)
    levels = torch.tensor([[0, 1.0, 1]] * 2)
    told, untold = (PIPE.denoise(start, levels, cond) for cond in (Conditions(text=TEXT), dropped))
    found = PIPE.sample(context, guidance=vd.ClassifierFreeGuidance(2.5), **same).latents
    torch.testing.assert_close(found[:, 1:], (2.5 * told - 1.5 * untold)[:, 1:], atol=1e-5, rtol=1e-5)
    some = Conditions(text=TEXT, dropped=torch.tensor([True, False]))
    half = PIPE.denoise(NOISY, 0.7, some)
    torch.testing.assert_close(half[0], PIPE.denoise(NOISY, 0.7, dropped)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(half[1], PIPE.denoise(NOISY, 0.7, TEXT)[1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_another_text_is_that_of_another_call() -> None:
    expected = PIPE.denoise(NOISY, 0.7, OTHER)
    for given in (OTHER, Conditions(text=OTHER)):
        assert torch.equal(PIPE.denoise(NOISY, 0.7, given), expected)
    for text, wanted in ((OTHER, expected), (None, PIPE.denoise(NOISY, 0.7, TEXT * 0)),
                         (OTHER[0], PIPE.denoise(NOISY, 0.7, OTHER[:1].expand(2, -1, -1)))):  # fmt: skip
        told = vd.SetCondition(text=text)
        assert to_json(from_json(to_json([told]))) == to_json([told])
        with PIPE.intervene(told):
            torch.testing.assert_close(PIPE.denoise(NOISY, 0.7, TEXT), wanted, atol=1e-6, rtol=0)
    same: dict[str, Any] = {"steps": 2, "guidance": vd.ClassifierFreeGuidance(2.0)}
    swapped = PIPE.sample(NOISY[:, :1], cond=TEXT, interventions=[vd.SetCondition(text=OTHER)], **same)
    wanted = PIPE.sample(NOISY[:, :1], cond=OTHER, **same)
    torch.testing.assert_close(swapped.latents, wanted.latents, atol=1e-4, rtol=1e-4)
    early = PIPE.sample(NOISY[:, :1], cond=TEXT, interventions=[vd.SetCondition(text=OTHER, steps=[0])], **same)
    assert not torch.allclose(early.latents, wanted.latents)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: vd.SetCondition(), "changes nothing"),
        (lambda: vd.SetCondition(text=TEXT, frames=[0]), "text is of whole clips"),
        (lambda: vd.SetCondition(text=TEXT, noise_levels=[0.5]), "text is of whole clips"),
        (lambda: vd.SetCondition(text="a red ball"), "text is str"),
        (lambda: vd.SetCondition(text=TEXT[0, 0]), r"text is \[5\]"),
        (lambda: vd.SetCondition(text=TEXT[..., :4]), "text of width 5"),
        (lambda: vd.SetCondition(None), "takes no actions"),
        (lambda: vd.SetCondition(text=TEXT[:, :3]), "2 clips of 3 tokens; this call has 2 clips of 4"),
    ],
)
def test_texts_that_cannot_be_told(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says), PIPE.intervene(make()):
        PIPE.denoise(NOISY, 0.7, TEXT)
    with pytest.raises(ValueError, match="takes no text"):
        vd.SetCondition(text=TEXT).hooks(tiny_model("3d"))


@torch.no_grad()
def test_longer_clips_keep_their_text() -> None:
    options: dict[str, Any] = {"steps": 2, "cond": Conditions(text=TEXT, text_mask=MASK), "seed": 3}
    rolled = PIPE.rollout(NOISY[:, :1], 5, overlap=2, **options).latents
    assert torch.equal(rolled[:, :3], PIPE.sample(NOISY[:, :1], **options).latents)
    told = {**options, "cond": Conditions(text=OTHER, text_mask=MASK)}
    assert not torch.allclose(rolled, PIPE.rollout(NOISY[:, :1], 5, overlap=2, **told).latents)
    ends = torch.cat([NOISY, NOISY[:, :2]], 1)
    filled = [PIPE.interpolate(ends, **given).latents for given in (options, told)]
    assert torch.equal(filled[0][:, [0, 4]], ends[:, [0, 4]]) and not torch.allclose(*filled)


@torch.no_grad()
def test_sweeps_over_texts_go_on_and_tell_them_apart(tmp_path: Any) -> None:
    trials = [
        Trial(interventions=(vd.Ablate(f"blocks.{layer}.cross_attn.hook_z"),), label={"layer": layer})
        for layer in (0, 1)
    ]
    trials += [Trial(interventions=(vd.SetCondition(text=OTHER),), label={"layer": -1})]

    def case(cond: Any) -> list[Case]:
        return [Case(runs={"base": Inputs(NOISY, torch.full((2, 3), 0.6), cond)}, base="base")]

    def run(cond: Any, at_once: Any = "auto") -> Any:
        return vd.sweep.run(
            PIPE, case(cond), trials, {"moved": distance}, out=tmp_path, progress=False, trials_per_pass=at_once
        ).table["value"].to_numpy()  # fmt: skip

    given = Conditions(text=TEXT, text_mask=MASK)
    found = run(given, 1)
    expected, intact = [], PIPE.denoise(NOISY, 0.6, given)
    for trial in trials:
        with PIPE.intervene(*trial.interventions):
            expected.append((PIPE.denoise(NOISY, 0.6, given) - intact).square().mean((1, 2, 3, 4)))
    assert found == pytest.approx(torch.cat(expected).numpy(), rel=1e-4)
    n_files = len(list(tmp_path.rglob("*")))
    assert (run(given) == found).all() and len(list(tmp_path.rglob("*"))) == n_files, "all of it was found"
    assert (run(Conditions(text=OTHER, text_mask=MASK)) != found).any(), "another text is another sweep"
    options = {"context": NOISY[:, :1], "steps": 2, "cond": given, "guidance": vd.ClassifierFreeGuidance(2.0)}
    walks = [Case(runs={"base": Trajectory(options=options)}, base="base")]
    walked = vd.sweep.run(PIPE, walks, trials, {"moved": distance}, progress=False).table
    assert len(walked) == 6 and (walked["value"] > 0).all()


def test_leaving_the_text_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    _say_without.cache_clear()
    with torch.no_grad(), caplog.at_level(logging.WARNING, "vdinterp"):
        for cond in (NO_CONDITION, TEXT, Conditions(text=TEXT)):
            PIPE.denoise(NOISY, 0.5, cond)
        assert not caplog.messages
        without = PIPE.denoise(NOISY, 0.5)
        PIPE.sample(NOISY[:, :1], steps=1)
    said = "tiny-cross takes text and runs without; give cond=.., or vd.NO_CONDITION if that is meant"
    assert caplog.messages == [said]
    with torch.no_grad():
        torch.testing.assert_close(without, PIPE.denoise(NOISY, 0.5, TEXT * 0), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="needs a condition"):
        PIPE.sample(NOISY[:, :1], steps=1, cond=NO_CONDITION, guidance=vd.ClassifierFreeGuidance(2.0))
