"""A model that reads text in every analysis, study and command: clips bring their text, and it is told in every run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from factories import tiny_model

import vdinterp as vd
from vdinterp.analysis import head_table, patch_crossing
from vdinterp.cli import main
from vdinterp.conditions import Conditions, _say_without
from vdinterp.pipeline import save_bundle

PIPE = vd.VideoDiffusion(tiny_model("cross", qk_norm=None), None, vd.DiffusionConfig())
GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(6, 3, 2, 4, 6, generator=GENERATOR)
TEXT, OTHER = torch.randn(2, 6, 4, 5, generator=GENERATOR)
MASK = torch.arange(4) < torch.tensor([2, 4, 3, 4, 1, 4])[:, None]
QUIET: dict[str, Any] = {"sweep_options": {"progress": False}}


def clips(text: torch.Tensor | None = TEXT, **more: Any) -> vd.data.Clips:
    told = {} if text is None else {"text": text, "text_mask": MASK}
    return vd.data.Clips(kind="told", encoded=LATENTS, **told, **more)


def noised(text: torch.Tensor | None = TEXT, **options: Any) -> vd.NoisedClips:
    return vd.NoisedClips(PIPE, clips(text), **{"noise_levels": (0.4, 0.8), "batch": 4, **options})


@torch.no_grad()
def test_clips_tell_their_text() -> None:
    given = noised()
    noisy, levels, cond = given.inputs(0.8)
    assert torch.equal(cond.text, TEXT) and torch.equal(cond.text_mask, MASK)
    x0 = PIPE.denoise(noisy, levels, cond=Conditions(text=TEXT, text_mask=MASK))
    torch.testing.assert_close(given.x0(0.8), x0[:, 2:], atol=1e-5, rtol=0)
    assert not torch.allclose(given.x0(0.8), noised(OTHER).x0(0.8), atol=1e-2)
    error = (x0[:, 2:] - LATENTS[:, 2:]).square().mean((1, 2, 3, 4)) / given.variance
    torch.testing.assert_close(given.x0_error(0.8), error, atol=1e-5, rtol=1e-5)
    attention = given.cache(0.8, "cross_attn.pattern")["blocks.1.cross_attn.hook_pattern"]
    assert float(attention[~MASK[:, None, None].expand_as(attention)].abs().max()) == 0


def test_clips_without_text_are_said_to_run_without_once(caplog: pytest.LogCaptureFixture) -> None:
    _say_without.cache_clear()
    with caplog.at_level(logging.WARNING, "vdinterp"):
        noised(None, cond=vd.NO_CONDITION).x0(0.8)
        assert not caplog.messages
        for _ in range(2):
            noised(None).x0(0.8)
    assert noised(None).meta()["text"] == "none: the model ran without" and "text" not in noised().meta()
    assert len(caplog.messages) == 1 and "takes text and runs without" in caplog.messages[0]


def test_runs_that_differ_in_their_text_alone() -> None:
    """All that one text does goes through what cross-attention adds: patched in every layer it is the other run."""
    pair: dict[str, Any] = {"clean": clips(), "corrupted": clips(OTHER), "noise_levels": 0.8}
    contrast = vd.Contrast(PIPE, **pair)
    assert contrast.difference == "the clean clip with another text"
    runs = contrast.inputs(slice(0, 6), 0.8)
    with torch.no_grad():
        clean, source = PIPE.run_with_cache(*runs["clean"], names="cross_attn_out")
        with PIPE.intervene(vd.Patch("cross_attn_out", source)):
            torch.testing.assert_close(PIPE.denoise(*runs["corrupted"]), clean, atol=1e-5, rtol=1e-5)
        with PIPE.intervene(vd.SetCondition(text=TEXT)):
            torch.testing.assert_close(PIPE.denoise(*runs["corrupted"]), clean, atol=1e-5, rtol=1e-5)
    exact = vd.activation_patch(PIPE, **pair, site="cross_attn_out", over=("layer",), **QUIET)
    assert bool((exact.values.abs() > 1e-3).any()) and bool(exact.values.isfinite().all())
    spared = vd.activation_patch(PIPE, **pair, site="attn_out", over=("layer",), **QUIET)
    assert float(spared.values[0].abs()) < 1e-4 < float(spared.values[1].abs()), (
        "before any text is read both runs are one"
    )
    near = vd.attribution_patch(PIPE, **pair, site="cross_attn_out", over=("layer",), sample=4, **QUIET)
    assert bool(near.values.isfinite().all()) and near.values.shape == exact.values.shape
    edges = vd.edge_attribution(PIPE, **pair, n_steps=2).table
    assert bool(edges["score"].notna().all()) and (edges["score"].abs() > 1e-6).any()
    walks = {**pair, "noise_levels": None, "steps": 2, "n_context": 1}
    walked = vd.activation_patch(PIPE, **walks, site="cross_attn_out", over=("step",), **QUIET)
    assert walked.values.shape == (2,) and bool(walked.values.isfinite().all())


def test_analyses_take_it() -> None:
    given = noised()
    results = [
        head_table(given),
        patch_crossing(given),
        vd.lens(PIPE, given.cache(0.8), frames=given.target),
        vd.direct_attribution(PIPE, given.cache(0.8), frames=given.target),
        vd.neurons.top_patches(given, n_patches=2),
        vd.modulation_atlas(PIPE.model),
        vd.circuits.composition(PIPE.model, 0.0, 0.8, parts=["v"]),
    ]
    for result in results:
        assert result.summary() is not None and len(result.to_frame())
    whole = results[3]
    torch.testing.assert_close(whole.parts.sum(0), whole.total, atol=1e-3, rtol=1e-3)  # type: ignore[attr-defined]
    torch.testing.assert_close(results[2].x0[-1], given.x0(0.8), atol=1e-4, rtol=1e-4)  # type: ignore[attr-defined]
    assert vd.tuned_lens(given, steps=2).weight.isfinite().all()
    labels = torch.randint(0, 2, (6, 3, 2, 3), generator=GENERATOR)
    assert len(vd.probes.fit(given, labels, layers=[1], folds=3).to_frame())


@pytest.mark.parametrize("name", ["heads", "ablations"])
def test_studies_take_it(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_context": 2, "noise_levels": (0.8,), "out": tmp_path}
    options |= {"steps": 2} if name == "ablations" else {}
    told = vd.studies.run(name, PIPE, clips=clips(), reference=clips(), **options)
    assert told.summary() and "without" not in told.meta
    if name == "ablations":
        assert "no text" in set(told.table["variant"])  # type: ignore[attr-defined]
    again = vd.studies.run(name, PIPE, clips=clips(), reference=clips(), **options)
    assert again.to_frame().equals(told.to_frame())


@pytest.mark.parametrize("command", ["heads", "lens", "attribute", "neurons"])
def test_commands_take_it(command: str, tmp_path: Path) -> None:
    folder, file = save_bundle(tmp_path / "model", PIPE), clips().save(tmp_path / "clips.safetensors")
    arguments = [command, str(folder), "--clips", str(file), "--level", "0.8", "--out", str(tmp_path / "out")]
    arguments = [one for one in arguments if command != "heads" or one not in ("--level", "0.8")]
    done = CliRunner().invoke(main, arguments + (["--steps", "2"] if command == "lens" else []))
    assert done.exit_code == 0, done.output
    assert "runs without" not in done.output and (tmp_path / "out").exists()
