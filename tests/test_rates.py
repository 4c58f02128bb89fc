"""Latent rate: VAEs that compress time, and models without a VAE, give the numbers of the same latents, and labels land
on the right tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from factories import tiny_model
from time_vae import StackingVAE

import vdinterp as vd
from vdinterp import analysis as a
from vdinterp.analysis import Contrast, NoisedClips
from vdinterp.analysis.stimulus.latents import say_no_pixels, visible
from vdinterp.cli import main
from vdinterp.data import Clips, write_video
from vdinterp.studies import held_out_clips, label_names, labels_of
from vdinterp.vae import IdentityVAE, LatentStats

N_LATENT, N_CLIPS = 6, 28  # of 2 x 3 tokens each; clips as many as a search needs
QUIET = {"sweep_options": {"progress": False}}


def pipes(rate: int, **settings: Any) -> tuple[vd.VideoDiffusion, vd.VideoDiffusion]:
    """One model with a VAE that makes a latent frame of `rate` video frames, and without any."""
    model = tiny_model("3d", in_channels=rate, out_channels=rate, n_frames=N_LATENT, **settings)
    for parameter in model.parameters():
        parameter.data *= 0.7
    given = (vd.DiffusionConfig(), LatentStats((0.5,), (0.5,)))
    return vd.VideoDiffusion(model, StackingVAE(rate), *given), vd.VideoDiffusion(model, None, *given)


def videos(rate: int, n: int = N_CLIPS, seed: int = 0) -> Clips:
    """Grey clips whose every token is lit or dark in every video frame, as `labels["lit"]` says."""
    generator = torch.Generator().manual_seed(seed)
    n_video = StackingVAE(rate).n_video(N_LATENT)
    lit = torch.randint(2, (n, n_video, 2, 3), generator=generator)
    pixels = lit.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, None].float()
    video = pixels * 0.6 + torch.rand(n, n_video, 1, 4, 6, generator=generator) * 0.4
    time = torch.arange(n_video).expand(n, -1)
    return Clips(kind="file", video=video, labels={"lit": lit, "time": time, "which": torch.arange(n) % 2})


class Both:
    """The same clips through the VAE, and as latents for the model without."""

    def __init__(self, rate: int) -> None:
        self.rate, (self.pipe, self.bare) = rate, pipes(rate)
        self.clips = videos(rate)
        latents = self.pipe.encode(self.clips.pixels)
        at_rate = {name: v if v.ndim == 1 else self.pipe.frame_map.by_frame(v) for name, v in self.clips.labels.items()}
        self.latents = Clips(kind="file", encoded=latents, labels=at_rate)

    def noised(self, n: int = 5, **options: Any) -> list[NoisedClips]:
        options = {"noise_levels": (0.4, 0.9), "batch": 3, **options}
        pairs = ((self.pipe, self.clips), (self.bare, self.latents))
        return [NoisedClips(pipe, clips[:n], **options) for pipe, clips in pairs]


@pytest.fixture(scope="module", params=[2, 4])
def both(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


def test_everything_is_counted_in_latent_frames(both: Both) -> None:
    one, other = both.noised(n_context=2)
    assert (one.n_frames, one.n_context, one.target) == (N_LATENT, 2, [2, 3, 4, 5]) == (
        other.n_frames, other.n_context, other.target)  # fmt: skip
    assert torch.equal(one.latents, other.latents) and torch.equal(one.noise, other.noise)
    assert one.video.shape[1] == 1 + (N_LATENT - 1) * both.rate and one.pictures.shape[1] == N_LATENT
    assert torch.equal(one.pictures[:, 2], both.clips.pixels[:5, 2 * both.rate])
    longer = replace(both.clips, video=both.clips.pixels.repeat(1, 2, 1, 1, 1), labels={})
    assert torch.equal(NoisedClips(both.pipe, longer[:5]).latents, one.latents)
    with pytest.raises(ValueError, match=f"the nearest that fit: {1 + both.rate} and {1 + 2 * both.rate}"):
        NoisedClips(both.pipe, Clips(kind="file", video=both.clips.pixels[:, : 2 + both.rate]))
    only = NoisedClips(both.bare, other.latents, noise_levels=0.9)
    assert only.clips.kind == "latents" and torch.equal(only.x0_error(0.9), both.noised()[0].x0_error(0.9))


def test_planted_labels_land_on_the_tokens_that_show_them(both: Both) -> None:
    one, other = both.noised(N_CLIPS)
    lit = one.labels("lit")
    assert torch.equal(lit, both.clips.labels["lit"][:, :: both.rate]) and torch.equal(lit, other.labels("lit"))
    newest = one.latents[:, :, -1].unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5))  # one number a token
    assert torch.equal(newest > 0, lit.bool())
    assert not torch.equal(newest[:, 1:] > 0, lit[:, :-1].bool())
    assert one.labels("time")[0].tolist() == [both.rate * frame for frame in range(N_LATENT)]
    assert one.by_frame(both.clips.labels["time"], "mean")[0, 1] == (1 + both.rate) / 2
    assert torch.equal(one.labels("which"), both.clips.labels["which"])
    assert one.frame_of(torch.tensor([-1, 0, 1, both.rate, both.rate + 1])).tolist() == [-1, 0, 1, 1, 2]
    found = labels_of(one, "lit", one.target)
    assert found.values.shape == (N_CLIPS, N_LATENT, 2, 3) and found.mask is not None and found.mask[:, :5].sum() == 0
    with pytest.raises(ValueError, match="have no label 'dark'; they have lit, time, which"):
        one.labels("dark")
    with pytest.raises(ValueError, match=f"or .*{1 + (N_LATENT - 1) * both.rate} .* of video frames"):
        one.by_frame(torch.zeros(N_CLIPS, 3))


def _contrast(function: Callable[..., Any], **options: Any) -> Callable[[NoisedClips], Any]:
    def run(noised: NoisedClips) -> Any:
        order = torch.arange(len(noised)).roll(1)
        corrupted = NoisedClips(noised.pipe, noised.clips[order], noised.levels[-1:], seed=noised.seed, batch=3)
        clean = NoisedClips(noised.pipe, noised.clips, noised.levels[-1:], seed=noised.seed, batch=3)
        return function(noised.pipe, clean, corrupted, **options)

    return run


ANALYSES: dict[str, Callable[[NoisedClips], Any]] = {
    "rope_reliance": a.rope_reliance, "sinks": a.sinks, "spatial_temporal": a.spatial_temporal,
    "frame_mass": a.frame_mass,
    "chunk_mass": a.chunk_mass, "displacement_kernel": lambda n: a.displacement_kernel(n, radius=(1, 1, 1)),
    "synopsis": lambda n: a.synopsis(n, n.labels("lit"), ["dark", "lit"]), "head_consensus": a.head_consensus,
    "step_redundancy": a.step_redundancy, "head_table": a.head_table, "massive_activations": a.massive_activations,
    "scroll_heads": lambda n: a.scroll_heads(n, *[torch.tensor([[0, 1]] * len(n))] * 2),
    "correspondence": lambda n: a.correspondence(n, tracks=torch.arange(6)[None, :, None].expand(len(n), -1, N_LATENT)),
    "patch_crossing": a.patch_crossing, "direct_effect": a.direct_effect, "lens_curve": a.lens_curve,
    "tuned_lens": lambda n: a.tuned_lens(n, steps=2), "lens": lambda n: a.lens(n.pipe, n.cache(0.9)),
    "direct_attribution": lambda n: a.direct_attribution(n.pipe, n.cache(0.9)),
    "activation_patch": _contrast(a.activation_patch, **QUIET),
    "path_patch": _contrast(a.path_patch, senders=["0.1"], **QUIET),
    "attribution_patch": _contrast(a.attribution_patch, sample=2, **QUIET),
    "edge_attribution": _contrast(a.edge_attribution), "modulation_atlas": lambda n: a.modulation_atlas(n.model),
    "faithfulness": lambda n: a.faithfulness(n.pipe, a.edge_attribution(n.pipe, n.latents, n.latents.roll(1, 0), 0.9),
                                             n.latents, 0.9, reference=n.latents.roll(1, 0), sizes=[1]),
    "neurons": lambda n: vd.neurons.top_patches(n, labels=n.labels("lit"), n_patches=3),
    "ablation_effects": lambda n: vd.neurons.ablation_effects(n, [(0, 1), (1, 2)], labels=n.labels("lit"), **QUIET),
    "probes": lambda n: vd.probes.fit(n, n.labels("lit"), folds=2),
    "circuits": lambda n: vd.circuits.copying(n.pipe, 0.9),
    "qk_activations": lambda n: vd.circuits.qk_activations(n.model, n.cache(0.9), 0, 0),
    "find_induction": lambda n: a.find_induction(n.pipe, n.clips, noise_levels=(0.9,), n_per_lag=16, designs=(),
                                                 repeats=0, progress=False),
    "induction_over_training": lambda n: a.induction_over_training(
        {0: n.pipe}, n.clips, noise_level=0.9, n_per_lag=16, repeats=0, progress=False),
}  # fmt: skip
MANY = ("find_induction", "induction_over_training", "probes")  # clips
OF_NUMBERS = {"bootstrap_mean", "deviation", "motion_error", "psnr", "sharpness", "ssim", "x0_error"}


def test_no_public_analysis_is_forgotten() -> None:
    public = {name for name in dir(a) if name.islower() and callable(getattr(a, name))} | {
        "neurons",
        "probes",
        "circuits",
    }
    assert public - OF_NUMBERS <= set(ANALYSES) | {"neurons", "probes", "circuits"}, public - set(ANALYSES)


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_gives_the_numbers_of_the_latents(both: Both, name: str) -> None:
    found, wanted = (ANALYSES[name](noised) for noised in both.noised(N_CLIPS if name in MANY else 5))
    compared = 0
    for part, value in vars(wanted).items():
        mine = getattr(found, part)
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(mine, value)
            compared += 1
        elif isinstance(value, torch.Tensor) and part not in ("frames", "pixel_map", "writes", "video"):
            torch.testing.assert_close(mine, value, equal_nan=True)
            compared += 1
    assert compared, vars(wanted).keys()


def test_studies_run_and_give_the_numbers_of_the_latents(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    say_no_pixels.cache_clear()
    options: dict[str, Any] = {"n_context": 3, "steps": 2, "batch": 3}
    one, other = (
        vd.studies.run("ablations", pipe, clips[:3], reference=clips[3:6], **options)
        for pipe, clips in ((both.pipe, both.clips), (both.bare, both.latents))
    )
    latents_only = one.table[one.table["metric"].isin(["x0 error", "motion error"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        latents_only[latents_only["variant"] != "VAE round trip"].reset_index(drop=True), other.table
    )
    assert set(one.table["metric"]) - set(other.table["metric"]) == {"sharpness", "PSNR", "SSIM"}
    assert one.round_trip == 60 and one.pick("PSNR", variant="all off", ablation="no MLP")["value"].notna().all()
    assert {len(clip) for strip in one.strips.values() for clip in strip.values()} == {N_LATENT}
    assert "no VAE: pictures show its latents in grey" in caplog.text
    assert other.sections() and one.sections() and "latents" in other.sections()[1].text + str(other.summary())
    heads = [
        vd.studies.run("heads", pipe, clips[:3]) for pipe, clips in ((both.pipe, both.clips), (both.bare, both.latents))
    ]
    pd.testing.assert_frame_equal(heads[0].to_frame(), heads[1].to_frame())


COMMANDS = {
    "heads": (), "lens": ("--steps", 1), "attribute": (), "neurons": (), "patch": ("--metric", "error"),
    "probe": ("--label", "lit"),
    "induction": ("--clips-per-lag", 16, "--repeats", 0, "--level", 0.9), "study": (),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_clips_and_latents(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(2)
    for name, pipe, clips in (("vae", both.pipe, both.clips), ("bare", both.bare, both.latents)):
        monkeypatch.setattr(vd, "load", lambda *_, pipe=pipe, **__: pipe)
        arguments = [
            command,
            *(["ablations"] if command == "study" else []),
            "mine",
            "--clips",
            clips.save(tmp_path / name),
        ]
        if command not in ("induction",):
            arguments += ["-n", 12 if command == "probe" else 4]
        arguments += [*COMMANDS[command], "--out", tmp_path / f"out-{name}"]
        outcome = CliRunner().invoke(main, [str(one) for one in arguments])
        assert outcome.exit_code == 0, outcome.output


def test_a_video_file_is_read_in_as_many_frames_as_latents_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    both = Both(2)
    film = write_video(tmp_path / "film.mp4", torch.rand(60, 3, 16, 16), fps=10)
    monkeypatch.setattr(vd, "load", lambda *_, **__: both.pipe)
    outcome = CliRunner().invoke(
        main, ["heads", "mine", "--video", str(film), "-n", "3", "--out", str(tmp_path / "out")]
    )
    assert outcome.exit_code == 0, outcome.output


def test_clips_of_the_models_own_kind_are_as_long_as_its_latents() -> None:
    pipe = pipes(2, height=8, width=8)[0]
    pipe.meta["clips"] = "loop"
    clips = held_out_clips(pipe, 3, n_context=4)
    assert clips.n_frames == 11 and NoisedClips(pipe, clips).n_frames == N_LATENT
    assert label_names(clips) == ["digit", "lag"] and labels_of(NoisedClips(pipe, clips), "lag", [5]).values.shape == (
        3,
        6,
    )


def test_actions_of_video_frames_are_those_of_latent_frames_side_by_side() -> None:
    (pipe, _), clips = pipes(2, d_action=6), videos(2, 3)
    action = torch.randn(3, 11, 3)
    noised = NoisedClips(pipe, replace(clips, action=action))
    assert noised.cond.actions is not None and noised.cond.actions.shape == (3, N_LATENT, 6)
    assert torch.equal(noised.cond.actions[:, 2], action[:, 3:5].flatten(1)) and not noised.cond.actions[:, 0, :3].any()
    assert torch.equal(NoisedClips(pipe, clips, cond=noised.cond).inputs(0.9).cond.actions, noised.cond.actions)
    narrow = pipes(2, d_action=3)[0]
    with pytest.raises(ValueError, match=r"one action a video frame.* 2 side by side are one"):
        NoisedClips(narrow, replace(clips, action=action))


def test_several_contexts_and_a_region(both: Both) -> None:
    one = both.noised(context=[0, 3, -1], region={"frames": [1, 2], "rows": [0]})[0]
    assert one.context == [0, 3, 5] and one.target == [1, 2, 4] and one.n_context == 3
    assert one.inputs(0.9).noise_levels[0].tolist() == pytest.approx([0, 0.9, 0.9, 0, 0.9, 0])
    mask = torch.tensor([True, False, False, True, False, True])
    assert both.noised(context=mask)[0].context == one.context
    x0 = one.pipe.denoise(*one.inputs(0.9))
    error = (x0 - one.latents)[:, 1:3, :, :2].square().mean((1, 2, 3, 4)) / one.variance
    torch.testing.assert_close(one.x0_error(0.9), error)
    assert one.meta()["context frames"] == [0, 3, 5]
    stacked = one.stacked(0.9, ("z", 1))
    assert len(stacked) == 5 and torch.equal(stacked, torch.cat([cache["z", 1] for cache in one.caches(0.9, ["z"])]))
    torch.testing.assert_close(one.means(0.9)["blocks.1.attn.hook_z"], stacked.mean((0, 1), keepdim=True))
    for options, message in [
        ({"context": [0], "n_context": 1}, "not both"),
        ({"context": list(range(6))}, "none is left"),
        ({"context": [9]}, "names frame 9"),
        ({"context": mask[:3]}, "give \\[frame\\] = \\[6\\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            both.noised(**options)


def test_an_error_is_never_nan_in_silence(both: Both) -> None:
    broken = pipes(both.rate)[0]
    broken.model.final.linear.bias.data[0] = torch.nan
    noised = NoisedClips(broken, both.clips[:3])
    for measure in (noised.x0_error, noised.x0_change):
        with pytest.raises(ValueError, match=r"predicts NaN or infinity at noise level 0\.9, first for clip 0"):
            measure(0.9)
    assert "is not a number" in noised.reliability.caution
    with pytest.raises(ValueError, match="clip 1, frame 0: NaN"):
        a.x0_error(
            torch.zeros(2, 1, 1, 2, 2), torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1, 1).expand(2, 1, 1, 2, 2), 1.0
        )


def test_a_contrast_is_two_of_them(both: Both) -> None:
    one, other = both.noised(noise_levels=(0.9,))
    twin = NoisedClips(both.pipe, both.clips[5:10], noise_levels=(0.9,), batch=3)
    pair = Contrast(both.pipe, one, twin)
    assert pair.clean is one and torch.equal(
        pair.inputs(slice(0, 2), 0.9)["corrupted"].noisy, twin.inputs(0.9).noisy[:2]
    )
    made = Contrast(both.pipe, both.clips[:5], both.clips[5:10], 0.9, batch=3)
    assert torch.equal(made.inputs(slice(0, 5), 0.9)["clean"].noisy, other.inputs(0.9).noisy)
    with pytest.raises(ValueError, match="another pipeline"):
        Contrast(both.bare, one, twin)


def test_channels_that_make_no_picture_are_shown_in_grey() -> None:
    """A study is not thrown away when its report cannot paint two channels."""
    assert torch.equal(visible(torch.ones(1, 2, 3, 4, 4)), torch.ones(1, 2, 3, 4, 4))
    two = torch.rand(1, 2, 2, 4, 4)
    assert torch.equal(visible(two), two.mean(2, keepdim=True))
    pipe = vd.VideoDiffusion(tiny_model("3d"), IdentityVAE(2), vd.DiffusionConfig())
    clips = vd.data.Clips(kind="file", video=torch.rand(2, 3, 2, 4, 6))
    noised = vd.NoisedClips(pipe, clips, noise_levels=(0.9,))
    assert tuple(noised.pictures.shape) == (2, 3, 1, 4, 6) and vd.lens(pipe, noised.cache(0.9)).sections()
