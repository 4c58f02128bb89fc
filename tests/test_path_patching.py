"""Paths and edges: identities in both kinds of stream, and a linear model whose paths add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contrasts import QUIET, given, latents, small_pipe
from factories import inputs, tiny_model

import vdinterp as vd
from vdinterp.analysis import Contrast, Graph, PatchEdges
from vdinterp.interventions import Patch
from vdinterp.models import BlockSpec, Sublayer

KINDS = ("3d", "normed", "space_time", "table", "causal", "cross")


def test_the_graph_of_a_model() -> None:
    graph = Graph(tiny_model("3d"))
    assert list(graph.senders) == ["embed", "0.0", "0.1", "mlp.0", "1.0", "1.1", "mlp.1"]
    assert list(graph.receivers)[:3] == ["0.0.q", "0.0.k", "0.0.v"] and list(graph.receivers)[-1] == "final"
    assert (
        ("0.1", "mlp.0") in graph.edges
        and ("mlp.0", "0.1.q") not in graph.edges
        and ("0.0", "0.1.q") not in graph.edges
    )
    n = 6 * 1 + 1 * 3 + 6 * 4 + 1 * 6 + 7  # layer 0's heads and MLP, layer 1's, the final layer
    assert len(graph.edges) == n
    crossed = Graph(tiny_model("cross"))
    assert (
        "cross.0.1" in crossed.senders and "cross.0.1.q" in crossed.receivers and "cross.0.1.k" not in crossed.receivers
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_paths_of_a_sender_together_give_its_total_effect(kind: str) -> None:
    """Patching a sender as every reader sees it, each through its own recomputed stream, is patching the sender."""
    model = tiny_model(kind)
    one, other = inputs(model, seed=1), inputs(model, seed=2)
    if model.cfg.d_text:
        other["cond"] = one["cond"]
    _, source = model.run_with_cache(**other)
    graph = Graph(model)
    for sender in graph.senders:
        edges = {receiver: [sender] for receiver in graph.receivers if graph.precedes(sender, receiver)}
        with model.intervene(PatchEdges(edges, source)):
            paths = model(**one)
        head = graph.senders[sender][1]
        with model.intervene(Patch(graph.sender_hook(sender), source, heads=None if head is None else [head])):
            total = model(**one)
        scale = float(total.abs().max())
        torch.testing.assert_close(paths, total, atol=2e-5 * scale, rtol=0)
        assert (total - model(**one)).abs().max() > 1e-3 * scale, "there is an effect to be explained"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_edges_of_the_other_run_give_the_other_run(kind: str) -> None:
    model = tiny_model(kind)
    one = inputs(model, seed=1)
    other = {**one, "latents": inputs(model, seed=2)["latents"]}
    wanted, source = model.run_with_cache(**other)
    graph = Graph(model)
    everything = {receiver: [s for s in graph.senders if graph.precedes(s, receiver)] for receiver in graph.receivers}
    with model.intervene(PatchEdges(everything, source)):
        found = model(**one)
    torch.testing.assert_close(found, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)
    with model.intervene(PatchEdges({r: dict.fromkeys(s, 0.0) for r, s in everything.items()}, source)):
        untouched = model(**one)
    torch.testing.assert_close(untouched, model(**one), atol=2e-5 * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["3d", "normed", "space_time"])
@torch.no_grad()
def test_one_path_is_what_freezing_everything_else_by_hand_gives(kind: str) -> None:
    arguments = given(kind, n=2)
    pair = Contrast(**arguments)
    runs = pair.inputs(slice(0, 2), 0.6)
    caches, x0 = {}, {}
    for name, run in runs.items():
        with pair.model.record() as recording:
            x0[name] = pair.denoiser.denoise(*run)
        caches[name] = recording[0]
    result = vd.path_patch(**arguments, senders=["0.1"], receivers=["1.0.k", "mlp.1", "final"], sweep_options=QUIET)

    def to_reader(reader: str) -> torch.Tensor:
        """The reader's activation when head 0.1 is the clean run's and all other outputs are held."""
        held = [
            name
            for name in pair.model.hook_names
            if name.endswith(("attn_out", "mlp_out")) and "0.hook_attn" not in name
        ]
        patches = Patch(("z", 0), caches["clean"], heads=[1]), Patch(held, caches["corrupted"])
        with pair.model.intervene(*patches), pair.model.record([reader]) as recording:
            pair.denoiser.denoise(*runs["corrupted"])
        return recording[0][reader]

    for column, (reader, heads) in enumerate(
        [("blocks.1.attn.hook_k", [0]), ("blocks.1.mlp.hook_pre", None), ("final.hook_in", None)]
    ):
        changed = {reader: to_reader(reader)}
        with pair.model.intervene(Patch(reader, changed, heads=heads)):
            patched = pair.denoiser.denoise(*runs["corrupted"])
        way = (x0["clean"] - x0["corrupted"]) * pair.region
        wanted = ((patched - x0["corrupted"]) * way).flatten(1).sum(1) / way.square().flatten(1).sum(1)
        torch.testing.assert_close(result.per_clip[:, 0, column], wanted.double(), atol=1e-5, rtol=0)


def linear_pipe() -> vd.VideoDiffusion:
    """No normalisation but the last, whose scale a huge constant in the stream holds still; attention that is uniform
    whatever it reads; no MLP. Then x0 is linear in every activation."""
    pipe = small_pipe(
        period=(BlockSpec(attn=Sublayer("none", (0, 1, 2)), mlp=None),),
        abs_pos="learned_spatial",
        n_layers=3,
        d_action=0,
    )
    model = pipe.model
    width = model.cfg.n_heads * model.cfg.d_head
    for block in model.blocks:
        block.attn.qkv.weight.data[: 2 * width] = 0
        block.attn.qkv.bias.data[: 2 * width] = 0
        block.attn.proj.weight.data[:2] = 0  # nobody writes where the constant is
        block.attn.qkv.weight.data[:, :2] = 0  # or reads it
    model.final.linear.weight.data[:, :2] = 0
    model.double()
    model.pos_embed.data[:, 0], model.pos_embed.data[:, 1] = 1e6, -1e6
    model.final.linear.weight.data *= 1e6
    return pipe


def linear(**options: Any) -> dict[str, Any]:
    clean, corrupted = (x.double() for x in latents(3))
    return {"model": linear_pipe(), "clean": clean, "corrupted": corrupted, "noise_levels": 0.6, **options}


def test_in_a_linear_model_the_paths_sum_to_the_total_effect() -> None:
    """First readers split a sender's effect: each path runs on freely behind its reader."""
    result = vd.path_patch(**linear(), senders=["embed", "0.0", "0.1", "1.0"], receivers="all", sweep_options=QUIET)
    assert (result.total.abs() > 1e-3).all()
    torch.testing.assert_close(result.values.nansum(1), result.total, atol=1e-5, rtol=1e-5)


def test_in_a_linear_model_attribution_is_exact() -> None:
    for method, site in (("atp", "z"), ("integrated_gradients", "z"), ("atp", "resid_pre"), ("atp", "v")):
        over = ("layer", "head") if site in ("z", "v") else ("layer", "frame")
        result = vd.attribution_patch(**linear(), site=site, over=over, method=method, sample=100, sweep_options=QUIET)
        torch.testing.assert_close(
            torch.tensor(result.exact["estimate"]), torch.tensor(result.exact["exact"]), atol=1e-5, rtol=1e-5
        )
        assert len(result.exact) == result.values.numel() and result.agreement.top_overlap == 1
    edges = vd.edge_attribution(**linear())
    paths = vd.path_patch(**linear(), receivers="all", sweep_options=QUIET).table.set_index(["sender", "receiver"])[
        "value"
    ]
    for row in edges.table.to_dict("records"):
        assert row["score"] == pytest.approx(paths[row["sender"], row["receiver"]], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"senders": ["9.0"]}, "no sender is called '9.0'"),
        ({"senders": []}, "empty list"),
        (
            {"senders": ["1.0"], "receivers": ["0.0.q", "mlp.0"]},
            "1.0 writes after all of 0.0.q, mlp.0 have read",
        ),
        ({"senders": ["0.0", "mlp.1"], "receivers": ["1.0.k"]}, "no path: mlp.1 writes after all of 1.0.k"),
        ({"senders": ["0.0"], "receivers": ["0.1.q", "final"]}, "no path: 0.1.q reads before any of 0.0 writes"),
        ({"receivers": ["1.0"]}, "no receiver is called '1.0'"),
        ({"noise_levels": None, "steps": 4, "n_context": 2}, "single passes"),
    ],
)
def test_bad_paths_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vd.path_patch(**{**given(), **change})


def test_bad_edges_are_refused() -> None:
    model = tiny_model("3d")
    for edges, message in (
        ({}, "at least one edge"),
        ({"0.0.q": ["mlp.0"]}, "no such edge"),
        ({"final": ["x"]}, "no sender"),
    ):
        with pytest.raises(ValueError, match=message):
            PatchEdges(edges, {}).hooks(model)
    with pytest.raises(KeyError, match="source has no"):
        PatchEdges({"final": ["0.0"]}, {}).hooks(model)


def test_paths_have_a_table_and_figures() -> None:
    result = vd.path_patch(**given(), senders="all", receivers=["1.0.q", "mlp.1", "final"], sweep_options=QUIET)
    assert list(result.to_frame().columns) == ["sender", "receiver", "value", "low", "high", "n_clips"]
    assert result.values.shape == (7, 3) and torch.isnan(result.values[-1, 0])
    assert len(result.plot()) == 2 and "strongest" in result.summary()
