"""Effects of heads and the rules that turn them into a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from induction_settings import BRIEF, one_offs

import vdinterp as vd
from vdinterp.analysis.induction.behaviour import Behaviour, Pairs, behaviour_table, behaviours, position_table
from vdinterp.analysis.induction.controls import controls
from vdinterp.analysis.induction.effects import (
    Rise,
    copy_table,
    matched,
    reliance_table,
    rises,
)
from vdinterp.analysis.induction.naming import chosen_heads, evidence_of
from vdinterp.analysis.induction.scores import score_table
from vdinterp.analysis.induction.task import Task, pool_of
from vdinterp.analysis.induction.verdict import FIXED, HeadEvidence, findings, from_heads
from vdinterp.data.repeats import make_repeats

# Effects


def pairs(design: str = "one-off", **gains: float) -> Pairs:
    """What it gains over twins, of 1; a twin's loss costs something at all lags or at none."""
    every = {"none": 1.0, "no content": 1.0, "no match": 1.0, "no cue": 1.0, "reversed": 1.0, **gains}
    return Pairs(design, every, {twin: float(gain > 0.1) for twin, gain in every.items()}, False)


def behaviour(one_off: Pairs, **changes: Any) -> Behaviour:
    plain = {
        "level": 0.95, "long_cue": None, "turned": (0.0, 0.0), "loops": (1.0, 1.0), "uncued": 0.0, "distance": None,
        "nearness": 0.0, "saved": 0.0, "gains": True,
    }  # fmt: skip
    return Behaviour(one_off=one_off, **{**plain, **changes})


def test_induction_has_an_order() -> None:
    assert pairs().is_induction and not pairs().matches_both_ways
    both_ways = pairs(reversed=0.3)
    assert not both_ways.is_induction and both_ways.matches_both_ways
    assert not pairs(**{"no match": 0.05}).is_induction


SILENT = {"none": 0.0, "no content": 0.0, "no match": 0.0}


@pytest.mark.parametrize(
    ("changes", "verdict", "why"),
    [
        ({"long_cue": pairs("long cue", **SILENT), "uncued": 1.0}, "period detector", "with a longer cue no better"),
        ({"long_cue": pairs("long cue", **SILENT), "uncued": 0.5}, "inconclusive", "a cue of some other kind"),
        ({"long_cue": pairs("long cue", reversed=0.3), "uncued": 1.0}, "inconclusive", "after a longer cue"),
        ({"uncued": 1.0}, "inconclusive", "too short to try a longer cue"),
        ({"long_cue": pairs("long cue", **SILENT), "uncued": float("nan")}, "inconclusive", "no period is long enough"),
    ],
)
def test_a_period_needs_evidence_of_its_own(changes: dict, verdict: str, why: str) -> None:
    found = findings([behaviour(pairs(**SILENT), **changes)], set())
    assert [one.verdict for one in found] == [verdict] and why in found[0].why


def test_the_strongest_behaviour_leads_and_none_is_lost() -> None:
    low = behaviour(pairs(**{"none": 0.3, "no content": 0.3, "no match": 0.05}), level=0.4, loops=(0.3, 1.0))
    high = behaviour(pairs(**SILENT), distance=8, nearness=0.9, saved=1.7, gains=False)
    turned = behaviour(pairs(**SILENT), level=0.8, turned=(0.9, 1.0))
    found = findings([high, turned, low], {0.4})
    assert [(one.verdict, one.level) for one in found] == [
        ("position copying", 0.95), ("reversal", 0.8), ("duplicate matching", 0.4),
    ]  # fmt: skip


def test_loops_are_foretold_without_their_cue() -> None:
    """`tiny-loop` continues them though the last three frames are others; a head that matches a cue does not."""
    shares = {}
    for name, pipe in (("period", vd.load("tiny-loop")), ("cue", vd.organisms.build("long_cue", 1))):
        pool = pool_of(pipe, None)
        tasks = {
            design: Task(pipe, make_repeats(design, pool, 48, n_frames=16, seed=3), (0.95,))
            for design in ("one-off", "loop")
        }
        found = behaviours(behaviour_table(tasks), position_table(tasks["one-off"], tasks["loop"]), FIXED)[0]
        shares[name] = (found.loops[1], found.uncued)
        assert found.distance is None, "the frame that loops have at their period is at no fixed distance"
    assert shares["period"][0] >= 2 / 3 and shares["period"][1] == 1 and shares["cue"] == (1, 0)


def carrying(repeats: float, others: float) -> dict[str, Rise]:
    """One head, without which errors rise so; and another one that does nothing."""
    noise = 0.01 * torch.linspace(-1, 1, 40)
    return {
        "head 1.0": Rise(((1, 0),), repeats + noise, others + noise.flip(0)),
        "other 1.1": Rise(((1, 1),), noise, noise.flip(0)),
    }


@pytest.mark.parametrize(
    ("repeats", "others", "carried", "verdict"),
    [
        (1.0, 0.0, 1.0, "induction"),
        (0.6, 0.6, 0.0, "inconclusive"),  # harm to other clips as well is nothing carried
        (0.05, -0.95, 1.0, "induction"),  # what other clips gain without it, the repeat had gained
        (-0.5, -0.5, 0.0, "inconclusive"),
    ],
)
def test_what_is_carried(repeats: float, others: float, carried: float, verdict: str) -> None:
    judged = [HeadEvidence((1, 0), [], 0.5, 0.4, 1.0, 0.9)]
    evidence = evidence_of(1.0, [(1, 0)], judged, carrying(repeats, others))
    assert evidence.carried == pytest.approx(carried, abs=0.01) and from_heads(evidence)[0] == verdict
    assert np.isfinite(evidence.times_random)


def test_what_speaks_against_a_head() -> None:
    good = HeadEvidence((1, 0), [], 0.5, 0.4, 0.5, 0.4)
    bad = {
        "fails: foils": HeadEvidence((1, 1), ["foils"], 0.5, 0.4, 0.5, 0.4),
        "copies nothing": HeadEvidence((1, 2), [], 0.01, -0.01, 0.5, 0.4),
        "is not needed": HeadEvidence((1, 3), [], 0.5, 0.4, -0.01, -0.02),
    }
    assert good.against == "" and chosen_heads([good, *bad.values()]) == [(1, 0)]
    assert all(why in one.against for why, one in bad.items())
    assert chosen_heads(list(bad.values())) == [(1, 3)], "none is needed by itself: what they carry together decides"


def test_heads_are_ablated_to_what_they_write_where_nothing_came_back() -> None:
    organism = vd.organisms.build("induction", 2)
    task, (layer, head) = one_offs(organism), organism.heads["induction"]
    found = rises(task, 0.95, {"it": [(layer, head)]})["it"]
    name, wanted = f"blocks.{layer}.attn.hook_z", {}
    for twin in ("none", None):
        means = task.noised(twin).means(0.95)
        ablate = vd.Ablate(name, heads=[head], mode="mean", reference=means)
        wanted[twin] = task.noised().x0_error(0.95, ablate) - task.noised().x0_error(0.95)
    torch.testing.assert_close(found.repeats.float(), wanted["none"], atol=1e-4, rtol=1e-3)
    assert float((wanted["none"] - wanted[None]).abs().mean()) > 1e-3, "another mean is another number"


def test_copy_gain() -> None:
    organism = vd.organisms.build("induction", 2)
    planted, sender = organism.heads["induction"], organism.heads["previous frame"]
    other = next((3, h) for h in range(4) if (3, h) not in (planted, sender))
    table = copy_table(one_offs(organism), [0.95], [planted, other]).set_index(["layer", "head"])["copy_gain"]
    assert table[planted] > 0.5 and abs(table[other]) < 0.05


def test_heads_to_compare_with() -> None:
    everyone = [(layer, head) for layer in range(3) for head in range(4)]
    others = matched([(0, 1), (2, 0), (2, 3)], everyone, seed=0)
    assert len(others) == len(set(others)) == 5 and {layer for layer, _ in others} == {0, 2}
    assert not set(others) & {(0, 1), (2, 0), (2, 3)}
    assert matched([(0, 0), (0, 1)], [(0, 0), (0, 1), (1, 0)], seed=0) == []
    many = [(0, head) for head in range(48)]
    assert len(matched(many[:12], many, seed=0)) == 20


def test_a_layer_of_induction_heads_has_nothing_to_compare_with() -> None:
    """Four copies of the head share the work: all are named, and no other head of the layer is left."""
    organism = vd.organisms.build("induction", 1, placement={"previous frame": (0, 0), "induction": (2, 0)})
    attn = organism.model.blocks[2].attn
    with torch.no_grad():
        for view in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
            for head in range(1, 4):
                view[head].copy_(view[0])
        attn.W_O[:] /= 4
    found = vd.find_induction(organism, **BRIEF)
    assert found.verdict == "induction" and sorted(found.heads) == [(2, head) for head in range(4)]
    assert found.times_random > 3 and np.isfinite(found.times_random), "more than clips without a repeat need them"
    assert "no other head is left in these layers" in found.reason


def test_interchange_tells_who_carries_the_match() -> None:
    organism = vd.organisms.build("induction", 3)
    sender, named = organism.heads["previous frame"], organism.heads["induction"]
    others = [(layer, head) for layer in range(named[0]) for head in range(4) if (layer, head) != sender]
    table = reliance_table(one_offs(organism), 0.95, [sender, *others], [named]).set_index("sender")
    carrier = table.loc[".".join(map(str, sender))]
    assert carrier["drop"] > 0.8 and max(carrier["no_match"], carrier["no_cue"], carrier["ablated"]) < 0.2
    assert table.drop(index=".".join(map(str, sender)))["drop"].max() < 0.05


def test_a_symmetric_head_fails_the_reversed_control() -> None:
    organism = vd.organisms.build("symmetric", 4)
    task, head = one_offs(organism, levels=(0.95,)), organism.heads["symmetric"]
    found = {one.name: one for one in controls(task, 0.95, score_table(task), [head], seed=0)}
    assert found["time-reversed repeat"].passed is False and found["foils"].passed is False
    assert found["untrained weights"].passed
