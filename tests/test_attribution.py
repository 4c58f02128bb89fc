"""Attribution patching against exact patching: nodes, the QK correction, GradDrop, edges, circuits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contrasts import QUIET, actions, given, latents, small_pipe

import vdinterp as vd
from vdinterp.analysis.agreement import agreement, rank_correlation, spearman
from vdinterp.analysis.patching._edge_attribution import EdgeResult


@pytest.mark.parametrize("kind", ["3d", "normed", "space_time", "causal"])
def test_attribution_is_the_derivative_of_patching(kind: str) -> None:
    """For runs that hardly differ, first order is all there is."""
    arguments = given(kind, same_action=True)
    near = arguments["corrupted"] + 1e-3 * (arguments["clean"] - arguments["corrupted"])
    arguments |= {"clean": near.double(), "corrupted": arguments["corrupted"].double()}
    arguments["cond"], arguments["corrupted_cond"] = arguments["cond"].double(), arguments["corrupted_cond"].double()
    arguments["model"].model.double()
    for site, over in [("z", ("layer", "head", "frame")), ("mlp_out", ("layer",)), ("resid_pre", ("layer", "token")),
                       ("q", ("layer", "head")), ("k", ("layer", "head")), ("mod.gate", ("layer",))]:  # fmt: skip
        found = vd.attribution_patch(**arguments, site=site, over=over, sample=16, sweep_options=QUIET)
        exact, estimate = found.exact["exact"].to_numpy(), found.exact["estimate"].to_numpy()
        np.testing.assert_allclose(estimate, exact, atol=2e-2 * float(np.abs(exact).max()) + 1e-9)


def test_the_qk_correction_is_exact_where_only_the_attention_is_not_linear() -> None:
    """In a last block without normalisation and MLP, x0 is linear in z but not in queries or keys."""
    from test_path_patching import linear_pipe

    pipe = linear_pipe()
    last = pipe.model.blocks[-1].attn.qkv
    generator = torch.Generator().manual_seed(0)
    last.weight.data[:48, 2:] = torch.randn(48, 18, generator=generator, dtype=torch.float64)  # hot queries and keys
    clean, corrupted = (x.double() * 3 for x in latents(3))
    options: dict[str, Any] = {"over": ("layer", "head"), "sweep_options": QUIET}
    for site in ("q", "k"):
        exact = vd.activation_patch(pipe, clean, corrupted, 0.6, site=site, **options).per_clip[:, 2].abs()
        # GradDrop leaves a last layer's direct effect in the passes without any of the other layers: L - 1 of L - 1
        star = vd.attribution_patch(pipe, clean, corrupted, 0.6, site=site, method="atp*", **options).per_clip[:, 2]
        plain = vd.attribution_patch(pipe, clean, corrupted, 0.6, site=site, **options).per_clip[:, 2].abs()
        assert exact.max() > 1e-3
        torch.testing.assert_close(star, exact, atol=1e-5, rtol=1e-4)
        assert (plain - exact).abs().max() > 0.3 * exact.max(), "which the gradient alone misses"


def test_grad_drop_sees_what_cancels() -> None:
    """A head whose direct effect the next layer undoes: no gradient, but two large paths."""
    from test_path_patching import linear_pipe

    pipe = linear_pipe()
    one, two, three = (block.attn for block in pipe.model.blocks)
    three.proj.weight.data.zero_(), three.proj.bias.data.zero_()
    # layer 1 answers whatever layer 0 wrote with its negative: values and output are the identity on what is written
    for attention in (one, two):
        attention.proj.weight.data.zero_(), attention.proj.bias.data.zero_()
        attention.qkv.weight.data[48:] = 0
        attention.qkv.bias.data.zero_()
    for channel in range(12):
        one.qkv.weight.data[48 + channel, 2 + channel] = 1
        one.proj.weight.data[2 + channel, channel] = 1
        two.qkv.weight.data[48 + channel, 2 + channel] = 1
        two.proj.weight.data[2 + channel, channel] = -1
    for block in pipe.model.blocks:  # no modulation: gates 1
        block.modulation.linear.weight.data.zero_(), block.modulation.linear.bias.data.zero_()
        block.modulation.linear.bias.data[2 * 20 : 3 * 20] = 1
    clean, corrupted = (x.double() for x in latents(3))
    options: dict[str, Any] = {"site": "z", "over": ("layer", "head"), "sample": 100, "sweep_options": QUIET}
    exact = vd.activation_patch(pipe, clean, corrupted, 0.6, site="z", sweep_options=QUIET).values
    plain = vd.attribution_patch(pipe, clean, corrupted, 0.6, method="atp", **options).values
    star = vd.attribution_patch(pipe, clean, corrupted, 0.6, method="atp*", **options).values
    # uniform attention over uniform attention: what layer 0 writes, the same everywhere, is undone exactly
    assert exact[0, 0].abs() < 1e-6 and plain[0, 0].abs() < 1e-6
    assert star[0, 0] > 1e-3


def test_integrated_gradients_of_edges_sum_to_the_whole_change() -> None:
    for kind in ("3d", "normed", "space_time"):
        edges = vd.edge_attribution(**given(kind, same_action=True), n_steps=24)
        assert edges.table["score"].sum() == pytest.approx(1.0, abs=5e-3)
        assert (edges.table["score"].abs().diff().dropna() <= 1e-12).all(), "largest first"


def test_edges_agree_with_path_patching_for_runs_that_hardly_differ() -> None:
    arguments = given("normed", same_action=True)
    near = arguments["corrupted"] + 1e-2 * (arguments["clean"] - arguments["corrupted"])
    arguments["model"].model.double()
    arguments |= {name: x.double() for name, x in (("clean", near), ("corrupted", arguments["corrupted"]))}
    arguments["cond"] = arguments["corrupted_cond"] = arguments["cond"].double()
    edges = vd.edge_attribution(**arguments).table.set_index(["sender", "receiver"])["score"]
    paths = vd.path_patch(**arguments, receivers="all", sweep_options=QUIET).table
    paths = paths[paths["receiver"] != "total"].dropna(subset=["value"]).set_index(["sender", "receiver"])["value"]
    assert len(edges) == len(paths)
    np.testing.assert_allclose(edges[paths.index], paths, atol=2e-2 * float(paths.abs().max()))


@pytest.mark.parametrize("kind", ["3d", "normed"])
def test_a_whole_circuit_recovers_all_and_an_empty_one_nothing(kind: str) -> None:
    arguments = given(kind, same_action=True)
    edges = vd.edge_attribution(**arguments)
    options = {"noise_levels": 0.6, "cond": arguments["cond"]}
    curve = vd.faithfulness(arguments["model"], edges, arguments["clean"], sizes=[0, 8], **options)
    assert curve.table["n_edges"].tolist() == [0, 8, len(edges.table)]
    assert curve.table["recovered"].iloc[0] == pytest.approx(0, abs=1e-6)
    assert curve.table["recovered"].iloc[-1] == 1 and curve.table["random"].iloc[-1] == 1
    assert curve.plot() and "edges" in curve.summary()
    with pytest.raises(ValueError, match="no such edge"):
        vd.faithfulness(arguments["model"], [("mlp.1", "0.0.q")], arguments["clean"], **options)
    with pytest.raises(ValueError, match="sizes"):
        vd.faithfulness(arguments["model"], edges, arguments["clean"], sizes=[999], **options)


def test_a_planted_circuit_is_found_and_is_enough() -> None:
    """Only head 0.0's output reaches the prediction; everything else is silenced."""
    pipe = small_pipe(d_action=0)
    for layer, block in enumerate(pipe.model.blocks):
        block.mlp.fc2.weight.data.zero_(), block.mlp.fc2.bias.data.zero_()
        block.attn.proj.weight.data[:, 12 if layer == 0 else 0 :] = 0
    pipe.model.patch_embed.proj.weight.data *= 0.3
    clean, corrupted = latents()
    edges = vd.edge_attribution(pipe, clean, corrupted, 0.6)
    assert edges.circuit(1) == [("0.0", "final")]
    silent = edges.table[edges.table["sender"].isin(["0.1", "1.0", "1.1", "mlp.0", "mlp.1"])]
    assert (silent["score"].abs() < 1e-9).all()
    kept = [edge for edge in edges.circuit(len(edges.table)) if edge[0] in ("embed", "0.0")]
    curve = vd.faithfulness(pipe, kept, clean, 0.6)
    assert curve.table["recovered"].iloc[-1] == pytest.approx(1, abs=1e-5), "nothing else matters"


def test_agreement_is_what_it_says() -> None:
    spread = np.linspace(-0.3, 0.3, 40)[:, None]
    exact, estimate = (np.array(one) + spread for one in ([[1.0, -2.0, 3.0, 0.0]], [[0.9, -1.5, 4.0, 0.1]]))
    found = agreement(exact, estimate, top_k=2)
    assert found.spearman == pytest.approx(1) and found.top_overlap == 1 and found.n == 4
    assert found.low == found.high == pytest.approx(1), "no draw of these clips changes the order"
    assert agreement(exact, np.array([[4.0, 0.1, 0.2, 3.0]]) + spread, 2).top_overlap == 0
    assert np.isnan(spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])))
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([3.0, 4.0, 5.0])) == pytest.approx(0.75**0.5), "ties"
    assert agreement(exact, np.abs(exact), 2, signed=False).spearman == pytest.approx(1)
    gap = np.where(np.arange(4) == 1, np.nan, exact)
    assert agreement(gap, estimate, 4).n == 3
    single = agreement(exact[:1], estimate[:1], 2)
    assert np.isnan([single.low, single.high]).all() and "[nan, nan]" in single.sentence(), "one clip has no interval"


def test_a_correlation_has_an_interval_and_a_chance_range() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(40, 16)), rng.normal(size=(40, 16))
    found = rank_correlation(one, other)
    assert found["chance"] == pytest.approx(0.5, abs=0.03), "of 16 unrelated entries"
    assert found["low"] < found["high"] and found["high"] - found["low"] > 0.3
    truth = np.arange(16.0)
    near, far = (rank_correlation(truth + size * one, truth + size * other) for size in (0.5, 20))
    assert near["low"] > 0.95 and near["spearman"] > near["chance"]
    assert far["high"] - far["low"] > 4 * (near["high"] - near["low"])
    assert rank_correlation(one, other) == found, "the same seed draws the same clips"
    flat = rank_correlation(np.ones((8, 4)), one[:8, :4])
    assert np.isnan([flat["spearman"], flat["low"], flat["high"]]).all()


def output(x0: torch.Tensor, compare: Any) -> torch.Tensor:
    """A metric that knows neither run, and is not linear."""
    return x0[:, -1].square().mean((1, 2, 3))


def test_integrated_gradients_are_taken_between_both_runs() -> None:
    """One step is the gradient half way: twice what the gradient at that point says of the way left from there."""
    arguments = given(same_action=True)
    options: dict[str, Any] = {"metric": output, "site": "resid_pre", "over": ("layer",), "sweep_options": QUIET}
    middle = (arguments["clean"] + arguments["corrupted"]) / 2
    one = vd.attribution_patch(**arguments, **options, method="integrated_gradients", n_steps=1).values
    half = vd.attribution_patch(**{**arguments, "corrupted": middle}, **options, method="atp").values
    torch.testing.assert_close(one[0], 2 * half[0], atol=1e-6, rtol=1e-4)
    base = vd.attribution_patch(**arguments, **options, method="atp").values
    assert abs(base[0] - one[0]) > 1e-3 * abs(one[0]), "another point is another gradient"


def test_edges_of_one_step_are_differentiated_where_they_start() -> None:
    """What the embedding sends is linear in the input: a tenth of the way there has a tenth of the score."""
    arguments = given(same_action=True)
    near = arguments["corrupted"] + 0.1 * (arguments["clean"] - arguments["corrupted"])
    tables = [
        vd.edge_attribution(**{**arguments, "clean": clean}, metric=output).table.set_index(["sender", "receiver"])
        for clean in (arguments["clean"], near)
    ]
    whole, part = (table.xs("embed")["score"] for table in tables)
    assert whole.abs().max() > 1e-3
    np.testing.assert_allclose(part, 0.1 * whole[part.index], atol=1e-3 * float(whole.abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "eap"}, "unknown method"),
        ({"site": "pattern"}, "atp\\*"),
        ({"noise_levels": None, "steps": 4, "n_context": 2}, "single passes"),
        ({"n_steps": 0}, "n_steps must be a whole number in 1"),
        ({"metric": lambda x0, pair: x0.detach().flatten(1).mean(1)}, "gradient"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vd.attribution_patch(**{**given(), "sweep_options": QUIET, **change})


def test_parameters_keep_their_gradients_and_can_be_trained_afterwards() -> None:
    arguments = given()
    model = arguments["model"].model
    next(model.parameters()).requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    vd.attribution_patch(**arguments, sweep_options=QUIET)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_result_says_how_far_to_trust_it(tmp_path: Any) -> None:
    found = vd.attribution_patch(**given(), site="z", sample=3, sweep_options=QUIET)
    assert len(found.exact) == 3 and found.agreement.n == 3
    assert "Spearman" in found.summary() and len(found.plot()) == 2
    again = type(found).load(found.save(tmp_path))
    assert again.agreement.spearman == found.agreement.spearman
    edges = vd.edge_attribution(**given(), metric="error")
    assert edges.plot() and "strongest" in edges.summary() and isinstance(edges, EdgeResult)
    with pytest.raises(ValueError, match="n_edges"):
        edges.circuit(10_000)
    assert actions().shape == (5, 4, 3)


@pytest.mark.parametrize("seed", [5, 6])
def test_on_a_trained_model_attribution_ranks_heads_as_patching_does(seed: int) -> None:
    pipe = vd.load("tiny-induction")
    clips = vd.data.make_clips("one_off", n=12, seed=seed)
    found = vd.attribution_patch(pipe, clips, clips.corrupt, 0.95, site="z", sample=16, sweep_options=QUIET)
    assert found.agreement.n == 16 and found.agreement.spearman >= 0.8
    assert found.values.flatten().argmax() == 15, "head 3.3 carries the earlier frame"
