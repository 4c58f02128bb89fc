"""The ablation study on small random models: same noise, planted answers, resuming, bad input."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_studies import FAST, ROOT, keep, small_bench, small_clips, small_pipe

import vdinterp as vd
from vdinterp.conditions import Conditions
from vdinterp.data import Clips
from vdinterp.pipeline import save_bundle
from vdinterp.studies import (
    INTACT,
    AblationResult,
    Bench,
    Condition,
    StudyResult,
    held_out_clips,
    run,
    study,
)
from vdinterp.studies._ablations import no_adaln
from vdinterp.studies.clips import default_context, judged


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return run("ablations", small_pipe(), small_clips(), reference=small_clips(4, seed=1), **FAST)


def test_every_condition_of_the_five_ablations_is_there(result: StudyResult) -> None:
    table = result.to_frame()
    variants = {name: set(part["variant"]) for name, part in table.groupby("ablation")}
    assert variants["no transformer"] == {"decoded noise", "copy last frame"}, "pixels have no round trip"
    assert variants["one step"] == {"1 step", "2 steps"}
    assert variants["no AdaLN"] == {
        "identity", "constant", "same at every step", "frozen at the first step", "frozen half-way", "gates only",
        "shift and scale only", "constant in attn", "constant in mlp", "constant in final", "no action",
        "another clip's action",
    }  # fmt: skip
    heads = {f"layer {layer} head {head}" for layer in range(2) for head in range(2)}
    assert variants["no attention"] == heads | {
        "layer 0", "layer 1", "all off", "all at their mean", "own frame only", "same position only",
        "context to target cut",
    }  # fmt: skip
    assert variants["no MLP"] == {"all off", "all at their mean", "layer 0", "layer 1"}
    singles = table[table["site"].isin(["head", "layer"])]
    assert set(singles["mode"]) == {"zero", "mean"} and set(singles["protocol"]) == {"denoise"}
    assert set(table["metric"]) == {"x0 error", "motion error", "sharpness", "PSNR", "SSIM"}
    assert set(table["reference"]) == {"truth", "intact", "rise"}
    assert set(table["frame"]) == {"mean", "2", "3", "4"}
    assert not table.duplicated([c for c in table.columns if c not in ("value", "low", "high", "n_clips")]).any()
    assert (table["low"] <= table["value"] + 1e-9).all() and (table["value"] <= table["high"] + 1e-9).all()
    assert (table["n_clips"] == 3).all()


def test_intact_against_itself_is_exactly_0(result: StudyResult) -> None:
    for protocol in ("sample", "denoise"):
        rows = result.table[(result.table["ablation"] == "intact") & (result.table["protocol"] == protocol)]
        assert len(rows)
        assert (rows.query("metric == 'x0 error' and reference == 'intact'")["value"] == 0).all()
        assert (rows.query("metric == 'SSIM' and reference == 'intact'")["value"] == 1).all()
        assert (rows.query("reference == 'rise'")["value"] == 0).all()
    full = result.pick(ablation="one step", variant="2 steps", reference="intact")["value"]
    assert full.tolist() == [0]


def test_the_rise_is_paired(result: StudyResult) -> None:
    error = result.pick(ablation="no MLP", variant="all off")["value"].item()
    intact = result.pick(ablation="intact", protocol="sample")["value"].item()
    rise = result.pick(ablation="no MLP", variant="all off", reference="rise")["value"].item()
    assert rise == pytest.approx(error - intact, rel=1e-6)


def test_no_transformer_is_what_it_says(result: StudyResult) -> None:
    bench = small_bench()
    copy = bench.truth[:, 1:2].expand(-1, 3, -1, -1, -1)
    wanted = float((copy - bench.truth[:, 2:]).square().mean()) / bench.variance
    assert result.pick(variant="copy last frame")["value"].item() == pytest.approx(wanted, rel=1e-5)
    assert result.round_trip is None
    assert result.pick("motion error", variant="copy last frame")["value"].item() == pytest.approx(1, rel=1e-5)


def test_result_saves_loads_and_reports(result: StudyResult, tmp_path: Path) -> None:
    page = vd.report.write(result, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert len(text) < 10e6
    for chapter in ("No transformer", "One step", "No AdaLN", "No attention", "No MLP", "How it was measured"):
        assert f">{chapter}</h3>" in text
    loaded = type(result).load(tmp_path / "report")
    pd.testing.assert_frame_equal(loaded.table, result.table)
    assert loaded.summary() == result.summary()
    assert [section.text for section in loaded.sections()] == [section.text for section in result.sections()]
    for caption, figure in result.plot().items():
        assert figure.layout.title.text and caption
        if figure.data[0].type != "image":
            assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
    clip = result.strips["no AdaLN"]["identity"]
    assert clip.dtype == torch.uint8 and clip.shape == (5, 1, 4, 6)
    assert torch.equal(clip[:2], result.strips["no AdaLN"]["truth"][:2])  # the context is given


def test_a_model_that_fails_is_said_before_all_else(result: StudyResult) -> None:
    wild = small_pipe()
    for parameter in wild.model.final.parameters():
        parameter.data *= 60
    found = small_bench(wild, steps=1)
    assert "1 denoising step" in found.reliability.caution and "means nothing" in found.reliability.caution
    assert found.settings()["caution"] == found.reliability.caution and len(found.settings()["weights"]) == 12
    still = result.pick(variant="copy last frame")["value"].item()
    mine = small_bench(steps=2).reliability
    assert mine.still == pytest.approx(still, rel=1e-4), "what the table says of a still picture"
    assert mine.errors["2 denoising steps"] == pytest.approx(
        result.pick(ablation="intact", protocol="sample")["value"].item(), rel=1e-4
    )
    failing = replace(result, meta={**result.meta, "caution": "**It fails.**"})
    assert failing.summary().startswith("**It fails.**\n\n")
    assert AblationResult.compare([failing, failing])[0].text.startswith("**It fails.**")
    assert small_bench(clips_without_actions=True).reliability.without == "actions"


def test_fewer_steps_that_look_better_are_said_to_blur(result: StudyResult) -> None:
    def with_one_step(error: float, sharp: float) -> str:
        table = result.table.copy()
        one = (table["variant"] == "1 step") & (table["frame"] == "mean") & (table["reference"] == "truth")
        table.loc[one & (table["metric"] == "x0 error"), "value"] = error
        table.loc[one & (table["metric"] == "sharpness"), "value"] = sharp
        return replace(result, table=table).summary()

    base = result.pick(ablation="intact", protocol="sample")["value"].item()
    sharp = result.pick("sharpness", ablation="intact", protocol="sample")["value"].item()
    assert "so this is not better video" in with_one_step(0.5 * base, 0.5 * sharp)
    assert "not better video" not in with_one_step(0.5 * base, sharp)
    assert "no lower than all 2 steps" in with_one_step(2 * base, sharp)


def test_several_models_are_compared_in_one_figure(result: StudyResult) -> None:
    other = replace(result, meta={**result.meta, "model": "other"})
    (section,) = AblationResult.compare([result, other])
    (figure,) = section.figures.values()
    assert {trace.name for trace in figure.data} == {"tiny-3d", "other"}
    conditions = list(figure.data[0].y)
    assert conditions[:3] == ["intact", "still picture (no model)", "1 step"] and len(conditions) == 6
    assert [name.split(":")[0] for name in conditions[3:]] == ["no AdaLN", "no attention", "no MLP"]
    assert len(section.moving) == 2 and all("Clip " in caption for caption in section.moving), "why this clip is shown"
    (again,) = AblationResult.compare([result, result])
    assert {trace.name for trace in next(iter(again.figures.values())).data} == {"tiny-3d (1)", "tiny-3d (2)"}


@pytest.mark.parametrize("protocol", ["sample", "denoise"])
def test_an_identity_intervention_is_bitwise_the_intact_model(protocol: Any) -> None:
    bench = small_bench()
    same = Condition(
        ablation="x", variant="identity hook", interventions=(vd.Custom("resid_post", keep),), protocol=protocol
    )
    intact, hooked = bench.measure([replace(INTACT, protocol=protocol), same])
    assert torch.equal(hooked.scores["x0 error", "intact"], torch.zeros(3, 3).double())
    assert torch.equal(hooked.scores["x0 error", "truth"], intact.scores["x0 error", "truth"])
    if protocol == "sample":
        assert torch.equal(hooked.latents, intact.latents)


def test_all_conditions_start_from_the_same_noise_whatever_the_batch() -> None:
    one, other = small_bench(batch=1), small_bench(batch=3)
    assert torch.equal(one.noise, other.noise)
    conditions = [INTACT, Condition(ablation="one step", variant="1 step", steps=1)]
    for a, b in zip(one.measure(conditions), other.measure(conditions), strict=True):
        assert torch.allclose(a.latents, b.latents, atol=1e-5)
    sample = one.pipe.sample(one.truth[:, :2], 5, steps=1, noise=one.noise, cond=one.clips.action)
    assert torch.allclose(sample.latents[:, 2:], one.measure(conditions)[1].latents, atol=1e-5)
    assert not torch.equal(small_bench(seed=5).noise, one.noise)


def test_planted_attention_with_closed_gates_does_nothing() -> None:
    pipe = small_pipe()
    d_model = pipe.model.cfg.d_model
    for block in pipe.model.blocks:
        for parameter in block.modulation.linear.parameters():
            parameter.data[2 * d_model : 3 * d_model] = 0  # the attention gate
    table = run("ablations", pipe, small_clips(), **FAST)
    rises = table.pick(reference="rise", ablation="no attention")
    assert len(rises) > 10 and (rises["value"].abs() < 1e-5).all()
    assert table.pick(reference="intact", ablation="no attention")["value"].max() < 1e-9
    assert table.pick(reference="intact", ablation="no MLP", variant="all off")["value"].item() > 1e-4


def test_planted_modulation_that_never_varies_can_be_held_constant() -> None:
    pipe = small_pipe()
    for module in [*(block.modulation for block in pipe.model.blocks), pipe.model.final.modulation]:
        module.linear.weight.data.zero_()
    table = run("ablations", pipe, small_clips(), **FAST)
    held = table.pick(reference="intact", ablation="no AdaLN")
    assert held[held["variant"] == "identity"]["value"].item() > 1e-4
    assert held[held["variant"] != "identity"]["value"].max() < 1e-9


def test_the_cut_hides_the_context_and_own_frame_hides_the_rest() -> None:
    bench = small_bench()
    video = bench.clips.video.clone()
    video[:, :2] = 0.1  # another context
    other = replace(bench.clips, video=video)
    changed = Bench(bench.pipe, other, bench.reference, n_context=2, steps=3, batch=2)
    found = {}
    for name, where in (("plain", bench), ("changed", changed)):
        cut = Condition(ablation="x", variant="cut", interventions=(vd.MaskAttention(cut=((2, 3, 4), (0, 1))),))
        found[name] = where.measure([INTACT, cut])
    assert torch.allclose(found["plain"][1].latents, found["changed"][1].latents, atol=1e-6)
    assert not torch.allclose(found["plain"][0].latents, found["changed"][0].latents, atol=1e-3)


@pytest.mark.parametrize("n_frames", [5, 6], ids=["whole", "padded"])
def test_other_actions_are_those_given_to_the_sampler(n_frames: int) -> None:
    bench = small_bench(small_pipe(n_frames=n_frames), batch=3)
    found = {one.variant: one for one in no_adaln(bench, ()) if one.site == "condition"}
    assert list(found) == ["no action", "another clip's action"]
    action = bench.clips.action
    without = {"cond": Conditions(actions=action).drop()}
    for condition, given in zip(found.values(), (without, {"cond": action.roll(1, dims=0)}), strict=True):
        sample = bench.pipe.sample(bench.truth[:, :2], 5, steps=bench.steps, noise=bench.noise, **given)
        made = bench.measure([INTACT, condition])
        assert torch.allclose(sample.latents[:, 2:], made[1].latents, atol=1e-5)
        assert not torch.allclose(made[0].latents, made[1].latents, atol=1e-3)


def test_means_are_those_of_the_reference_clips_step_by_step() -> None:
    bench = small_bench(batch=4)
    name = "blocks.1.attn.hook_z"
    means = bench.references.means([name])
    assert len(means) == 3
    from vdinterp.diffusion import SeededNoise

    noise = SeededNoise(1, [(i,) for i in range(4)]).initial(bench.others.latents.shape)
    states = bench.pipe.iterate(
        bench.others.latents[:, :2], 5, steps=3, noise=noise, record=[name], cond=bench.reference.action
    )
    for state, mean in zip(states, means, strict=True):
        assert mean[name].shape == (1, 1, 2, 12)
        assert torch.allclose(mean[name], state.cache[name].mean((0, 1), keepdim=True), atol=1e-6)
    split = small_bench(batch=3)
    assert torch.allclose(split.references.means([name])[0][name], means[0][name], atol=1e-6)
    assert len(bench.references.means([name], level=0.6)) == 1


def test_all_four_modes_and_a_space_time_model() -> None:
    modes = ("zero", "mean", "resample", "frozen")
    result = run("ablations", small_pipe("space_time"), small_clips(), modes=modes, **FAST)
    heads = result.pick(ablation="no attention", site="head", reference="intact")
    assert set(heads["mode"]) == set(modes) and (heads["value"] > 0).all()
    with pytest.raises(ValueError, match="at least two clips"):
        run("ablations", small_pipe(), small_clips(1), modes=["resample"])


def test_clips_of_a_file_have_no_actions_and_still_run() -> None:
    result = run("ablations", small_pipe(), small_clips(2, actions=False), steps=1, n_context=4, strips=False)
    assert result.strips == {} and result.sections()
    assert "no action" not in set(result.table["variant"])
    assert result.meta["reference"] == "the judged clips themselves"
    assert result.meta["clips"] == "2 clips of kind file"
    one = run("ablations", small_pipe(), small_clips(1), steps=1)
    assert "another clip's action" not in set(one.table["variant"])


# Clips


def test_judged_frames_end_at_the_first_surprise() -> None:
    predictable = torch.tensor([[0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1]]).bool()
    clips = Clips(kind="snippet", video=torch.rand(2, 6, 1, 8, 8), labels={"predictable": predictable})
    assert judged(clips, 2).tolist() == [[True, True, False, False], [False] * 4]
    assert judged(replace(clips, labels={}), 2).all()
    assert default_context(16, True) == 15 and default_context(8, False) == 4 and default_context(1, False) == 1


def test_held_out_clips_can_be_judged_and_share_nothing_with_the_reference() -> None:
    pipe = small_pipe("3d", height=8, width=8, n_frames=16, d_action=0)
    pipe.meta["clips"] = "snippet"
    clips, reference = (held_out_clips(pipe, 6, part=part, n_context=12) for part in ("evaluation", "reference"))
    assert judged(clips, 12)[:, :2].all() and clips.video.shape == (6, 16, 1, 8, 8)
    assert not any(torch.equal(a, b) for a in clips.video for b in reference.video)
    assert torch.equal(held_out_clips(pipe, 3, n_context=12).video, clips.video[:3])
    result = run("ablations", pipe, n_clips=2, steps=1, n_context=12)
    assert result.meta["judged frames"] <= 2 * 4 and result.meta["context frames"] == 12
    judged_frames = result.pick(frame="12", ablation="intact", protocol="sample")["n_clips"].item()
    assert judged_frames == 2
    game = small_pipe()
    game.meta["clips"] = "crafter"
    first, second = held_out_clips(game, 5), held_out_clips(game, 5, part="reference")
    assert first.video.shape == (5, 5, 3, 56, 72) and first.action is not None
    with pytest.raises(ValueError, match="96 crafter clips for evaluation, 97 were asked for"):
        held_out_clips(game, 97)
    assert not any(torch.equal(a, b) for a in first.video for b in second.video)


# Bad input


def test_unknown_study_setting_or_mode() -> None:
    with pytest.raises(KeyError, match="did you mean 'ablations'"):
        run("ablation", small_pipe(), small_clips())
    with pytest.raises(ValueError, match="no setting mode; its settings are modes, strips"):
        run("ablations", small_pipe(), small_clips(), mode="zero")
    with pytest.raises(ValueError, match="unknown mode 'median'; choose from zero, mean, resample, frozen"):
        run("ablations", small_pipe(), small_clips(), modes=("zero", "median"))
    with pytest.raises(ValueError, match="there is a study 'ablations' already"):
        study("ablations")(lambda bench: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips": small_clips(n_frames=2), "n_context": 2}, "2 frames .*at least 3 are needed"),
        ({"n_context": 5}, "at least 6 are needed"),
        ({"n_context": 0}, "n_context >= 1"),
        (
            {"reference": Clips(kind="file", video=torch.rand(2, 5, 1, 6, 6))},
            "are 1x6x6 latents, the clips 1x4x6: give",
        ),
        ({"clips": Clips(kind="file", video=torch.rand(2, 5, 3, 4, 6))}, "do not fit"),
        ({"clips": replace(small_clips(), action=torch.zeros(3, 5, 7))}, r"actions in cond are \[3, 5, 7\]"),
        ({"clips": None}, "does not say what clips"),
        ({"reference": small_clips(n_frames=3)}, "reference clips have 3 frames"),
        ({"steps": 0}, "steps must be a whole number in 1"),
        ({"noise_levels": (0.0, 0.5)}, "noise levels in"),
        ({"n_clips": 0}, "n_clips must be a whole number in 1"),
        ({"batch": 0}, "batch must be a whole number in 1"),
    ],
)
def test_what_does_not_fit_is_said_before_any_compute(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = small_pipe()
    monkeypatch.setattr(pipe.model, "forward", lambda *args, **kwargs: pytest.fail("computed"))
    options = {"clips": small_clips(), "n_context": 2, **options}
    with pytest.raises(ValueError, match=message):
        run("ablations", pipe, options.pop("clips"), **options)


def test_a_pipeline_without_vae_is_refused() -> None:
    pipe = small_pipe()
    pipe.vae = None
    with pytest.raises(ValueError, match="no VAE"):
        run("ablations", pipe, small_clips())


def test_conditions_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="unknown protocol 'simple'"):
        Condition(ablation="a", variant="b", protocol="simple")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="go together"):
        Condition(ablation="a", variant="b", protocol="given")
    with pytest.raises(ValueError, match="steps=3"):
        Condition(ablation="a", variant="b", protocol="denoise", steps=3)


# Examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = small_pipe("3d", height=8, width=8, n_frames=16, d_action=0)
    return save_bundle(tmp_path_factory.mktemp("models") / "small", pipe, {"clips": "loop"})


def test_the_example_study_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["own_study.py", str(folder), str(tmp_path)])
    monkeypatch.setattr(vd.studies.registry, "NAMES", dict(vd.studies.NAMES))
    runpy.run_path(str(ROOT / "examples" / "own_study.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "times 0.5" in printed and (tmp_path / "report.html").exists()
    assert len((ROOT / "examples" / "own_study.py").read_text().splitlines()) <= 36


def test_the_example_hook_shows_when_the_head_works(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "own_hook.py"), run_name="__main__")
    untouched, early, late = (
        float(line.split(" (steps")[0].split()[-1]) for line in capsys.readouterr().out.splitlines()
    )
    assert untouched < 0.4 and early > 2 * untouched and late < 1.25 * untouched
