"""The induction search: it names planted heads, is silent about everything else, and its parts are what they say."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import tiny_model
from induction_settings import BRIEF, QUICK, one_offs

import vdinterp as vd
from vdinterp.analysis.circuits.pairs import composition
from vdinterp.analysis.circuits.weights import rotation
from vdinterp.analysis.induction import VERDICTS, InductionResult
from vdinterp.analysis.induction.effects import (
    ablation_table,
    copy_table,
    path_table,
    rises,
)
from vdinterp.analysis.induction.scores import benjamini_hochberg, score_table
from vdinterp.analysis.induction.task import Task
from vdinterp.data.repeats import make_repeats
from vdinterp.data.textures import make_textures
from vdinterp.organisms import KINDS
from vdinterp.results import rows_of

LIGHT = {"noise_levels": (0.4, 0.95), "n_per_lag": 6, "designs": (), "repeats": 0, "progress": False}
VERDICT: Any = {**LIGHT, "noise_levels": (0.4, 0.95), "verdict_only": True}
TRAINED = sorted((Path(__file__).parent / "trained").glob("seed-*"))


@functools.cache
def searched(name: str, checkpoint: int | None = None) -> InductionResult:
    """A bundled model's light search, once a process."""
    return vd.find_induction(vd.load(name, checkpoint), **LIGHT)


# Verdicts


@pytest.mark.parametrize("seed", [1, 2])
def test_planted_heads_are_named(seed: int) -> None:
    organism = vd.organisms.build("induction", seed, n_layers=3 + seed)
    found = vd.find_induction(organism, **LIGHT)
    assert found.verdict == "induction"
    assert found.heads == [organism.heads["induction"]], "that head and no other"
    sender = ".".join(map(str, organism.heads["previous frame"]))
    assert found.carried > 0.4 and found.times_random > 3
    assert found.reliance.sort_values("drop").iloc[-1]["sender"] == sender
    assert (found.controls["outcome"] == "passed").all(), found.controls
    paths = found.paths.set_index(["sender", "receiver"])["value"]
    receiver = ".".join(map(str, found.heads[0]))
    assert paths[sender, f"{receiver}.k"] > 0.9 and paths[sender, f"{receiver}.q"] > 0.9


WANTED = {
    "previous_frame": {"no behaviour"},
    "reversal": {"reversal"},
    "fixed_lag": {"position copying"},
    "duplicate": {"duplicate matching"},
    "first_frame_sink": {"position copying"},
    "motion_tracking": {"no behaviour"},
    "symmetric": {"inconclusive"},
    "average": {"inconclusive", "no behaviour"},
    "decoy": {"inconclusive"},
    "random": {"no behaviour"},
}


def test_every_other_organism_has_an_expectation() -> None:
    assert set(WANTED) | {"induction", "half_induction", "long_cue"} == set(KINDS)


@pytest.mark.parametrize("kind", WANTED)
def test_other_mechanisms_are_not_induction(kind: str) -> None:
    options = {"lag": 6} if kind == "fixed_lag" else {}
    found = vd.find_induction(vd.organisms.build(kind, 3, **options), **VERDICT)
    assert found.verdict in WANTED[kind], found.summary()
    assert found.heads == []
    if kind == "fixed_lag":
        assert found.level == 0.95 and "the frame 6 before" in found.reason, "at the noisiest level"


def test_position_copying_at_a_lag_that_no_repeat_has() -> None:
    found = vd.find_induction(vd.organisms.build("fixed_lag", 3, lag=3), **QUICK)
    assert found.verdict == "position copying" and "the frame 3 before" in found.reason
    near = found.positions.set_index("distance")["nearness"]
    assert near[3] > 0.9 and near.drop(3).max() < 0.1


def test_a_cue_two_frames_before_is_no_period() -> None:
    """Loops are foretold and pairs after one frame are not: yet it is content that is matched."""
    organism = vd.organisms.build("long_cue", 3)
    found = vd.find_induction(organism, **BRIEF)
    assert found.verdict == "induction" and found.design == "long cue"
    assert found.heads == [organism.heads["induction"]]


def test_induction_for_half_of_the_contents() -> None:
    """Without the head repeats are hardly worse and other clips much better: all of the gain goes with it."""
    organism = vd.organisms.build("half_induction", 3)
    found = vd.find_induction(organism, **{**BRIEF, "n_per_lag": 6})
    assert found.verdict == "induction" and found.heads == [organism.heads["induction"]]
    alone = found.ablation.iloc[0]
    assert alone["repeats"] < 0.3 and alone["others"] < -0.3
    assert found.carried == pytest.approx(1, abs=0.1)


def test_a_head_that_looks_and_writes_nothing_is_not_named() -> None:
    """Nor does it stand in the way of the one that does."""
    organism = vd.organisms.build("induction", 1, placement={"previous frame": (0, 0), "induction": (2, 0)})
    attn = organism.model.blocks[2].attn
    with torch.no_grad():
        for view in (attn.W_Q, attn.W_K, attn.W_V):
            view[1].copy_(view[0])
        attn.W_O[1] = 0
    found = vd.find_induction(organism, **BRIEF)
    assert sorted(found.candidates) == [(2, 0), (2, 1)]
    assert found.verdict == "induction" and found.heads == [(2, 0)]
    judged = found.judged.set_index("head")
    assert judged.loc["2.0", "against"] == "-" and "copies nothing" in judged.loc["2.1", "against"]
    assert "2.1: surely copies nothing" in found.summary()


@pytest.mark.parametrize("folder", TRAINED, ids=lambda folder: folder.name)
def test_other_training_seeds_have_a_circuit(folder: Path) -> None:
    """In every search, and of exactly the heads whose removal costs something."""
    pipe = vd.load(folder)
    found = vd.find_induction(pipe, **{**BRIEF, "n_per_lag": 8, "repeats": 1})
    assert found.reproduced == (2, 2) and found.verdict == "induction"
    assert found.carried > 0.8 and found.times_random > 3
    others = found.ablation[found.ablation["set"].str.startswith("other")]
    assert (found.judged[found.judged["named"]]["lost"].min() > 3 * others["lost"]).all()


def test_verdicts_of_further_searches() -> None:
    found = vd.find_induction(vd.organisms.build("induction", 1), **{**BRIEF, "repeats": 1})
    assert list(found.again["seed"]) == [0, 1] and found.reproduced == (2, 2)
    assert "2 of 2 say induction, 2 of 2 with these heads" in found.summary()
    unlike = replace(found, again=found.again.assign(verdict=["induction", "inconclusive"]))
    assert unlike.reproduced == (1, 2) and "1 of 2 say induction" in unlike.summary()
    assert "inconclusive: 1" in unlike.summary()


def test_the_trained_model_has_a_circuit_and_its_control_has_none() -> None:
    found = searched("tiny-induction")
    assert found.verdict == "induction" and found.level == 0.95
    assert found.heads[0] == (3, 3) and {layer for layer, _ in found.heads} == {3}
    scores = rows_of(found.table, level=0.95, layer=3, head=3).iloc[0]
    assert scores["q"] < 0.01 and scores["prefix_matching"] > 0.6 and scores["contrast_low"] > 0.5
    assert found.times_random >= 3
    assert found.carried > 0.8
    together = rows_of(found.ablation, set="all named").iloc[0]
    assert together["low"] > 0.5 and abs(together["others"]) < 0.1, "repeats need these heads, other clips do not"
    assert "normalised" in found.composition_note and not len(found.composition)
    loop = searched("tiny-loop")
    assert loop.verdict == "period detector" and loop.heads == []


@pytest.mark.parametrize("step", [0, 500, 1200])
def test_early_checkpoints_have_none(step: int) -> None:
    assert searched("tiny-induction", step).verdict != "induction"


def test_a_model_with_a_codec_and_actions() -> None:
    found = vd.find_induction(vd.load("tiny-crafter"), **{**QUICK, "n_per_lag": 3, "designs": ("splice",)})
    assert found.verdict in VERDICTS and found.verdict != "induction"
    assert "splice" in set(found.behaviour["design"])
    assert found.meta["actions"].startswith("none")
    assert "of the lags" not in found.reason, "with three lags all clips together decide"


def test_clips_of_the_users_own() -> None:
    organism = vd.organisms.build("induction", 1)
    found = vd.find_induction(organism, make_textures(64, seed=9)[:, None], **QUICK)
    assert found.verdict == "induction"


# Scores


def test_scores_of_a_planted_head() -> None:
    organism = vd.organisms.build("induction", 4)
    table = score_table(one_offs(organism)).set_index(["layer", "head"])
    planted = table.loc[organism.heads["induction"]]
    assert planted["prefix_matching"] == pytest.approx(14 / 15, abs=0.05)
    assert (
        planted["slope"] == pytest.approx(1, abs=0.01)
        and 0.9 < planted["slope_low"] <= 1
        and planted["auc"] > 0.99
        and planted["rank"] < 1.1
    )
    assert planted["p"] < 0.001 and planted["contrast"] > 0.9 and planted["beyond_position"] > 0.8
    previous = table.loc[organism.heads["previous frame"]]
    assert previous["previous_frame"] > 0.9 and abs(previous["prefix_matching"]) < 0.1
    others = table.drop(index=[organism.heads["induction"]])
    assert others["prefix_matching"].max() < 0.1 and others["q"].min() > 0.01


def test_scores_of_a_head_at_a_fixed_distance() -> None:
    organism = vd.organisms.build("fixed_lag", 4, lag=7)
    row = score_table(one_offs(organism)).set_index(["layer", "head"]).loc[organism.heads["fixed lag"]]
    assert row["share"] == pytest.approx(1 / 7, abs=0.03), "right at one lag of seven"
    assert abs(row["slope"]) < 0.01 and row["slope_low"] <= 0 and abs(row["beyond_position"]) < 0.02 and row["p"] > 0.01


def test_a_symmetric_head_has_no_contrast() -> None:
    organism = vd.organisms.build("symmetric", 4)
    row = score_table(one_offs(organism)).set_index(["layer", "head"]).loc[organism.heads["symmetric"]]
    assert row["prefix_matching"] > 0.1 and row["contrast"] < 0.05 and row["best_foil"] != "same texture"


def test_p_values_of_random_heads_are_uniform() -> None:
    p = np.concatenate([score_table(one_offs(vd.organisms.build("random", seed)))["p"].to_numpy() for seed in range(4)])
    assert 0.3 < p.mean() < 0.7 and p.min() > 0.001
    assert (p < 0.05).mean() < 0.15


def test_chance_is_what_uniform_attention_scores() -> None:
    organism = vd.organisms.build("random", 0)
    for name in ("one-off", "loop"):
        repeats = make_repeats(name, make_textures(128)[:, None], 6, n_frames=16, cells=(2, 2))
        task = Task(organism, repeats, (0.9,))
        with torch.no_grad():
            for block in organism.model.blocks:
                block.attn.W_Q.zero_()
        torch.testing.assert_close(
            task.on_successor(task.look(0.9)), task.chance[None, :, None].expand(4, -1, 4), atol=1e-5, rtol=0
        )


def test_no_p_value_is_smaller_than_its_permutations_allow() -> None:
    """The assignment that was observed is one of those that could have been."""
    organism = vd.organisms.build("induction", 4)
    p = score_table(one_offs(organism)).set_index(["layer", "head"])["p"]
    assert p[organism.heads["induction"]] == pytest.approx(1 / 4001), "none of 4,000 was above"


def test_benjamini_hochberg() -> None:
    q = benjamini_hochberg(np.array([0.01, 0.04, 0.03, np.nan, 0.5]))
    np.testing.assert_allclose(q, [0.04, 0.16 / 3, 0.16 / 3, np.nan, 0.5])


# Composition of weights


def test_composition_singles_out_the_planted_pair() -> None:
    organism = vd.organisms.build("induction", 5)
    (layer, head), sender = organism.heads["induction"], organism.heads["previous frame"]
    senders = [(i, h) for i in range(layer) for h in range(4)]
    for part in ("k", "q"):
        beyond = {one: composition(organism.model, one, (layer, head), part)["beyond"] for one in senders}
        assert max(beyond, key=lambda one: beyond[one]) == sender
        assert beyond[sender] > 0.1 and abs(np.mean([v for one, v in beyond.items() if one != sender])) < 0.05


def test_the_rotation_is_the_models_own() -> None:
    organism = vd.organisms.build("random", 0)
    model, generator = organism.model, torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 48, generator=generator)
    grid = model.grid()
    one, two = grid.index(9, 1, 0), grid.index(6, 0, 1)
    stream = torch.zeros(1, grid.n_tokens, 1, 48)
    from vdinterp.models.components.rope import rotate

    rope = model.cfg.rope["3d"]
    table = model.rope["3d"](grid, like=stream)
    there = [rotate(vector.expand_as(stream), rope, table)[0, at, 0] for vector, at in ((q, one), (k, two))]
    wanted = float(there[0] @ there[1])
    found = float(q.double() @ rotation(model, 0, grid.displacement(one, two)) @ k.double())
    assert found == pytest.approx(wanted, abs=1e-3)


def test_composition_refuses_what_weights_do_not_say() -> None:
    with pytest.raises(ValueError, match="normalised"):
        composition(vd.load("tiny-induction").model, (0, 0), (1, 0), "k")
    model = vd.organisms.build("random", 0).model
    with pytest.raises(ValueError, match="does not write before"):
        composition(model, (1, 0), (1, 1), "k")
    with pytest.raises(ValueError, match="choose 'q', 'k' or 'v'"):
        composition(model, (0, 0), (1, 1), "o")  # type: ignore[arg-type]


# Other architectures


@pytest.mark.parametrize("kind", ["space_time", "normed", "causal"])
def test_other_architectures_are_measured(kind: str) -> None:
    """Attention over space alone sees no other frame, and scores nothing; all the rest is measured as ever."""
    model = tiny_model(kind, n_frames=8, in_channels=1, out_channels=1, height=4, width=6)
    pipe = vd.VideoDiffusion(model, vd.vae.IdentityVAE(1), vd.DiffusionConfig(), meta={"clips": "texture"})
    pool = make_textures(64, size=12)[:, None, :, :4, :6]
    repeats = make_repeats("one-off", pool, 12, n_frames=8, cells=(2, 3))
    task = Task(pipe, repeats, (0.9,))
    table = score_table(task)
    assert len(table) == 4 and table["p"].between(0, 1).all()
    if kind == "space_time":
        assert (table["share"][table["layer"] == 0] == 0).all() and (table["share"][table["layer"] == 1] > 0).all()
    copied = copy_table(task, [0.9], [(0, 0), (1, 1)])
    assert list(copied["layer"]) == ([1] if kind == "space_time" else [0, 1])
    ablated = ablation_table(rises(task, 0.9, {"head 1.0": [(1, 0)], "other 1.1": [(1, 1)]}))
    assert list(ablated["set"]) == ["head 1.0", "other 1.1"] and ablated["repeats"].notna().all()
    paths = path_table(task, 0.9, [(0, 1)], [(1, 0)])
    assert set(paths["receiver"]) == {"1.0.k", "1.0.q", "total"}
    assert vd.find_induction(pipe, pool, **QUICK).verdict in VERDICTS


def test_the_shortest_clips() -> None:
    """Five frames, as of the published models of Kinetics: two lags."""
    model = tiny_model("3d", n_frames=5, in_channels=1, out_channels=1)
    pipe = vd.VideoDiffusion(model, vd.vae.IdentityVAE(1), vd.DiffusionConfig())
    found = vd.find_induction(pipe, make_textures(64, size=12)[:, None, :, :4, :6], **{**QUICK, "n_per_lag": 8})
    assert found.verdict in VERDICTS and set(found.behaviour["lag"]) == {0, 2, 3}
    with pytest.raises(ValueError, match="at least 6 clips a lag"):
        vd.find_induction(pipe, make_textures(64, size=12)[:, None, :, :4, :6], **{**QUICK, "n_per_lag": 3})


# Results


def test_result_comes_back_and_is_drawn(tmp_path: Path) -> None:
    found = searched("tiny-induction")
    again = InductionResult.load(found.save(tmp_path))
    assert again.verdict == found.verdict and again.heads == found.heads
    pd.testing.assert_frame_equal(again.table, found.table)
    figures = found.plot()
    assert len(figures) == 9 and next(iter(figures)).startswith("A clip that comes back, and its control clips")
    assert [section.title for section in found.sections()] == ["Verdict", "Evidence", "Behaviour", "Heads", "Effects"]
    text = found.summary()
    assert "tiny-induction: induction" in text and "head 3.3" in text and "27 passed, 0 failed" in text
    assert "twin" not in text and "foil" not in text and "cue" not in text.split(), "words that nobody explains"
    edges = found.circuit()
    assert {"3.3", "2.1"} <= set(edges["sender"]) and "final" in set(edges["receiver"])
    silent = searched("tiny-loop")
    assert "period detector" in silent.summary() and len(silent.plot()) == 5
    assert silent.to_frame().equals(silent.table)


def test_a_stopped_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    organism = vd.organisms.build("induction", 1)
    first = vd.find_induction(organism, out=tmp_path, **QUICK)
    calls = []
    denoise = organism.denoise
    monkeypatch.setattr(organism, "denoise", lambda *a, **k: calls.append(1) or denoise(*a, **k))
    again = vd.find_induction(organism, out=tmp_path, **QUICK)
    pd.testing.assert_frame_equal(again.table, first.table)
    pd.testing.assert_frame_equal(again.ablation, first.ablation)
    pd.testing.assert_frame_equal(again.behaviour, first.behaviour)
    recorded = len(calls)
    calls.clear()
    vd.find_induction(organism, **QUICK)
    assert recorded < 0.5 * len(calls), "only what changes the model's inside is looked at again"


def test_development(tmp_path: Path) -> None:
    pipes = {step: vd.load("tiny-induction", step) for step in (500, 7900)}
    found = vd.induction_over_training(pipes, n_per_lag=4, repeats=1, out=tmp_path, progress=False)
    early, late = found.table.to_dict("records")
    assert (early["step"], late["step"]) == (500, 7900) and late["verdict"] == "induction" != early["verdict"]
    assert early["duplicate"] > 0.4 > early["prefix_matching"] + 0.3 and late["prefix_matching"] > 0.7
    assert late["composition"] > 0.2 > early["composition"] and late["error"] < 0.2 * late["twin_error"]
    assert len(found.plot()) == 2 and "duplicate" in found.summary()
    assert (late["same"], late["searches"]) == (2, 2) and "step 7900: induction (2 of 2 searches)" in found.summary()
    with pytest.raises(ValueError, match="no checkpoint"):
        vd.induction_over_training({})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_levels": (1.5,)}, "noise levels in"),
        ({"designs": ("palindrome",)}, "unknown designs"),
        ({"designs": "loop"}, "give a list"),
        ({"n_per_lag": 1}, "n_per_lag >= 2"),
        ({"n_per_lag": 4.5}, "whole numbers"),
        ({"clips": torch.zeros(3, 8)}, "give Clips, or videos"),
        ({"clips": torch.zeros(4, 1, 1, 8, 8)}, "at least 36 clips"),
        ({"clips": torch.rand(64, 1, 3, 16, 16)}, "do not fit"),
    ],
)
def test_bad_requests(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vd.find_induction(vd.organisms.build("random", 0), **given)


def test_a_model_that_predicts_nan() -> None:
    organism = vd.organisms.build("random", 0)
    with torch.no_grad():
        organism.model.final.linear.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="predicts NaN"):
        vd.find_induction(organism, **QUICK)


def test_a_pool_of_two_pictures() -> None:
    with pytest.raises(ValueError, match="fewer than 36 different frames"):
        vd.find_induction(vd.organisms.build("random", 0), make_textures(2).repeat(32, 1, 1, 1)[:, None], **QUICK)


def test_a_bare_model_is_no_pipeline() -> None:
    with pytest.raises(ValueError, match="takes a pipeline"):
        vd.find_induction(vd.organisms.build("random", 0).model)  # type: ignore[arg-type]


def test_a_model_that_does_not_say_what_it_was_trained_on() -> None:
    organism = vd.organisms.build("random", 0)
    organism.meta.pop("clips")
    with pytest.raises(ValueError, match="give clips="):
        vd.find_induction(organism)
