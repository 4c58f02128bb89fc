"""Whether a model works on the clips is asked before anything is concluded, and said first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import tiny_model

import vdinterp as vd
from vdinterp.analysis import NoisedClips, frame_mass, head_table
from vdinterp.analysis.stimulus.reliability import Reliability
from vdinterp.data import Clips
from vdinterp.vae import IdentityVAE, LatentStats

SIZE = {"in_channels": 1, "out_channels": 1, "n_frames": 4}


def clips(n: int = 3, actions: bool = False) -> Clips:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(n, 4, 1, 4, 6, generator=generator)
    return Clips(kind="file", video=video, action=torch.eye(3)[torch.zeros(n, 4).long()] if actions else None)


def pipe(scale: float = 1.0, **settings: Any) -> vd.VideoDiffusion:
    model = tiny_model("3d", **{**SIZE, **settings})
    for parameter in model.final.parameters():
        parameter.data *= scale
    return vd.VideoDiffusion(model, IdentityVAE(1), vd.DiffusionConfig(), LatentStats((0.5,), (0.3,)))


def test_what_fails_and_why() -> None:
    good = Reliability(model="m", errors={"8 steps": 0.2}, still=0.5, round_trip=35.0)
    assert good.failures == [] and good.caution == "" and "caution" not in good.meta()
    worse = Reliability(model="m", errors={"8 steps": 0.6}, still=0.5)
    assert "worse than a still picture (0.500)" in worse.caution and "mean frame" not in worse.caution
    worst = Reliability(model="m", errors={"8 steps": 93.4}, still=0.285, round_trip=13.5)
    assert "worse than the mean frame (1) and than a still picture (0.285)" in worst.caution
    assert "13.5 dB" in worst.caution and "means nothing" in worst.caution
    assert "not a number" in Reliability(model="m", errors={"8 steps": float("nan")}).caution
    without = Reliability(model="m", errors={"8 steps": 0.2}, without="actions")
    assert without.failures == [] and "takes actions and ran without" in without.caution


def test_an_untrained_model_is_said_first_and_a_working_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = pipe(scale=30.0)
    noised = NoisedClips(wild, clips(), noise_levels=(0.9,))
    for result in (frame_mass(noised), head_table(noised)):
        first = result.summary().split("\n")[0]
        assert "fails on these clips, so what follows means nothing" in first and "noise level 0.9" in first
    truth = NoisedClips(wild, clips(), noise_levels=(0.9,))
    monkeypatch.setattr(wild, "denoise", lambda noisy, noise_levels, cond: truth.latents[: len(noisy)])
    assert truth.reliability.failures == [] and truth.meta()["x0 error of the untouched model"] == {
        "noise level 0.9": 0
    }
    assert frame_mass(truth).summary().startswith("At noise level")


def test_the_still_picture_is_the_last_given_frame() -> None:
    noised = NoisedClips(pipe(), clips(), noise_levels=(0.9,), n_context=2)
    wanted = (noised.latents[:, 1:2] - noised.latents[:, 2:]).square().mean() / noised.variance
    assert noised.reliability.still == pytest.approx(float(wanted), rel=1e-5)
    assert NoisedClips(pipe(), clips(), noise_levels=(0.9,), n_context=0).reliability.still is None


def test_actions_left_out_and_weights_are_said() -> None:
    acting = pipe(d_action=3)
    without, given = (
        NoisedClips(acting, clips(actions=actions), noise_levels=(0.9,)).meta() for actions in (False, True)
    )
    assert "ran without any" in without["caution"] and without["actions"].startswith("none")
    assert "ran without" not in given.get("caution", "") and "actions" not in given
    assert without["weights"] == given["weights"] and len(given["weights"]) == 12
    acting.model.final.linear.weight.data[0, 0] += 1
    assert NoisedClips(acting, clips(), noise_levels=(0.9,)).meta()["weights"] != given["weights"]


def test_a_codec_that_makes_other_pictures_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pipe()
    assert NoisedClips(model, clips()).reliability.round_trip is None, "pixels have no codec"
    monkeypatch.setattr("vdinterp.analysis.stimulus.reliability.IdentityVAE", type(None))
    assert NoisedClips(model, clips()).reliability.round_trip == pytest.approx(60, abs=1)
    monkeypatch.setattr(model, "decode", lambda latents: torch.zeros_like(latents))
    found = NoisedClips(model, clips()).reliability
    assert found.round_trip is not None and found.round_trip < 10 and "its codec alone" in found.caution


def test_flat_clips_have_no_errors_to_speak_of() -> None:
    flat = Clips(kind="file", video=torch.full((2, 4, 1, 4, 6), 0.5))
    assert NoisedClips(pipe(), flat).reliability.errors == {}


def test_one_clip_has_no_interval() -> None:
    table = head_table(NoisedClips(pipe(), clips(1), noise_levels=(0.9,))).table
    assert table[["low", "high"]].isna().all(axis=None) and table["effect"].notna().all()
    assert "One clip gives no intervals" in head_table(NoisedClips(pipe(), clips(1), noise_levels=(0.9,))).summary()


def test_patching_says_what_is_corrupted_and_whether_the_model_works() -> None:
    clean = clips()
    other = Clips(
        kind="file", video=torch.cat([clean.video[:, :2], clean.video[:, 2:3].flip(-1), clean.video[:, 3:]], 1)
    )
    result = vd.activation_patch(pipe(scale=30.0), clean, other, 0.9, sweep_options={"progress": False})
    assert result.meta["corrupted"] == "the clean clip with another content in frame 2"
    assert "means nothing" in result.summary().split("\n")[0] and "another content in frame 2" in result.summary()
    needed = vd.activation_patch(
        pipe(), clean, other, 0.9, direction="noising", sweep_options={"progress": False}
    )  # fmt: skip
    drawn: Any = next(iter(needed.plot().values())).data[0]
    torch.testing.assert_close(torch.tensor(drawn.z), 1 - needed.values)
    assert "needed: 1 - recovered" in drawn.colorbar.title.text.replace("<br>", " ")
