"""Statistics of heads, rotary position and the stream: against naive references, on planted cases and controls."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import tiny_model

import vdinterp as vd
from vdinterp.analysis import NoisedClips, frame_mass
from vdinterp.analysis.heads._rope_reliance import rope_reliance
from vdinterp.analysis.heads._sinks import sinks, without_key
from vdinterp.analysis.heads._spatial_temporal import spatial_temporal
from vdinterp.analysis.heads.redundancy import head_consensus, step_redundancy
from vdinterp.analysis.heads.statistic import head_rows, head_statistic
from vdinterp.analysis.stream._massive_activations import massive_activations
from vdinterp.data import Clips
from vdinterp.interventions.rope import no_fixed_point
from vdinterp.models import Rope
from vdinterp.models.components import RotaryEmbedding, rotate

LEVELS = (0.3, 0.9)
BIG = 50.0  # a logit that leaves nothing to the others


def noised_clips(kind: str = "3d", levels: tuple[float, ...] = LEVELS, **settings: Any) -> NoisedClips:
    """Three clips of 5 x 2 x 3 tokens for two layers of two heads."""
    model = tiny_model(kind, **{"in_channels": 1, "out_channels": 1, "n_frames": 5, **settings})
    for parameter in model.parameters():
        parameter.data *= 0.5
    pipe = vd.VideoDiffusion(model, vd.vae.IdentityVAE(1), vd.DiffusionConfig(), vd.vae.LatentStats((0.5,), (0.5,)))
    video = torch.rand(3, 5, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    action = torch.eye(3)[torch.arange(15).view(3, 5) % 3]
    return NoisedClips(pipe, Clips(kind="file", video=video, action=action), noise_levels=levels, n_context=3, batch=2)


def recorded(noised: NoisedClips, level: float, alias: str) -> list[torch.Tensor]:
    """An activation of all clips, layer by layer, as the model itself computes it."""
    caches = list(noised.caches(level, [alias]))
    layers = range(noised.model.cfg.n_layers)
    return [torch.cat([cache[f"blocks.{i}.{site(alias)}"] for cache in caches]) for i in layers]


def site(alias: str) -> str:
    return f"hook_{alias}" if alias == "resid_post" else f"attn.hook_{alias}"


def put(name: str, value: torch.Tensor, add: bool = False) -> tuple[str, Any]:
    """A hook that puts a value there, or adds it."""
    return name, lambda x, hook: (x if add else torch.zeros_like(x)) + value


def queries_and_keys(layer: int, *heads: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[str, Any]]:
    """Hooks that give the heads of a layer these queries and keys, `[pos d]` each, whose products are logits."""
    found = []
    for index, what in enumerate(("q", "k")):
        value = torch.zeros(30, 2, 12)
        for head, pair in enumerate(heads):
            value[:, head, : pair[index].shape[1]] = pair[index] * (12**0.5 if what == "q" else 1)
        found.append(put(f"blocks.{layer}.attn.hook_rot_{what}", value))
    return found


def same(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys that look at the tokens of their own label only."""
    one_hot = torch.nn.functional.one_hot(labels).float()
    return one_hot * BIG, one_hot


NOWHERE = (torch.zeros(30, 1), torch.zeros(30, 1))  # uniform attention


def round_trip(result: Any, folder: Any) -> None:
    loaded = vd.Result.load(result.save(folder))
    assert type(loaded) is type(result) and loaded.summary() == result.summary()
    pd.testing.assert_frame_equal(loaded.to_frame(), result.to_frame())
    for caption, figure in loaded.plot().items():
        layout = figure.layout
        assert caption and layout.title.text and layout.xaxis.title.text and layout.yaxis.title.text
        if figure.data[0].type == "heatmap":
            assert figure.data[0].colorbar.title.text


def close(one: Any, other: Any, tolerance: float = 1e-4) -> None:
    one, other = (torch.tensor(x if isinstance(x, list) else x.tolist()) for x in (one, other))
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance, check_dtype=False)


# HeadStatistic


def test_head_statistic(tmp_path) -> None:
    values = torch.arange(12.0).view(3, 2, 2)
    rows = [head_rows(values * scale, level=level, score="s", chance=torch.tensor([1.0, 2.0]))
            for level, scale in zip(LEVELS, (1, 2), strict=True)]  # fmt: skip
    result = head_statistic("Scores", rows, {"s": "anything"}, {})
    close(result.values(), values.mean(0))
    close(result.values("s", 0.9), 2 * values.mean(0))
    assert result.table["chance"].tolist() == [1, 1, 2, 2] * 2
    assert (result.table["low"] <= result.table["value"]).all() and "1.1 (7, uniform attention 2)" in result.summary()
    *grids, curve = result.plot().values()
    assert len(grids) == 2 and len({figure.data[0].zmax for figure in grids}) == 1  # one scale for all levels
    drawn = {trace.name: list(trace.y) for trace in curve.data if trace.name}
    assert list(drawn) == ["1.1", "1.0", "0.1", "0.0"] and drawn["1.1"] == [7, 14]
    with pytest.raises(KeyError, match=r"no score 't'.*there are s at 0\.3, 0\.9"):
        result.values("t")
    round_trip(result, tmp_path)


def test_the_analysis_of_the_contributing_page_works() -> None:
    page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text("utf-8")
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def first_frame" in one)
    written: dict[str, Any] = {}
    exec(textwrap.dedent(block), written)
    noised = noised_clips()
    mass = frame_mass(noised).mass[:, :, :, -1, 0]  # level layer head
    for index, level in enumerate(LEVELS):
        close(written["first_frame"](noised).values(level=level), mass[index])
    with pytest.raises(ValueError, match=r"give vd\.NoisedClips"):
        written["first_frame"]("clips")


# Spatial and temporal heads


@pytest.mark.parametrize("kind", ["3d", "causal"])
def test_spatial_and_temporal_error_equal_the_dense_ones(kind) -> None:
    noised = noised_clips(kind)
    result = spatial_temporal(noised)  # all 30 queries
    labels = noised.grid.frame_of(), noised.grid.cell_of()
    for layer, (dense, v) in enumerate(zip(*(recorded(noised, 0.9, a) for a in ("pattern", "v")), strict=True)):
        errors = {}
        for name, pattern in (("found", dense), ("chance", (dense > 0).float())):
            full = torch.einsum("bhqk,bkhd->bhqd", pattern / pattern.sum(-1, keepdim=True), v)
            for label, score in zip(labels, ("spatial", "temporal"), strict=True):
                kept = pattern * (label[:, None] == label)
                part = torch.einsum("bhqk,bkhd->bhqd", kept / kept.sum(-1, keepdim=True), v)
                errors[name, score] = (part - full).square().mean((2, 3)) / full.square().mean((2, 3))
        for score in ("spatial", "temporal"):
            close(result.values(f"{score} error", 0.9)[layer], errors["found", score].mean(0))
            rows = result.table.query("score == @score + ' error' and level == 0.9 and layer == @layer")
            close(rows["chance"].to_numpy(), errors["chance", score].mean().expand(2))
        smaller = (errors["found", "spatial"] < errors["found", "temporal"]).float()
        close(result.values("spatial", 0.9)[layer], smaller.mean(0))


def test_a_spatial_and_a_temporal_head_are_told_apart(tmp_path) -> None:
    noised = noised_clips()
    grid = noised.grid
    with noised.model.hooks(queries_and_keys(0, same(grid.frame_of()), same(grid.cell_of()))):
        result, few = spatial_temporal(noised), spatial_temporal(noised, n_queries=7)
    for found in (result, few):
        assert found.values("spatial")[0].tolist() == [1, 0]
        assert found.values("spatial error")[0, 0] < 1e-6 < 0.1 < found.values("spatial error")[0, 1]
        assert found.values("temporal error")[0, 1] < 1e-6 < 0.1 < found.values("temporal error")[0, 0]
    assert few.meta["queries"] == 7 and result.meta["queries"] == 30
    with noised.model.hooks(queries_and_keys(0, NOWHERE, NOWHERE)):
        control = spatial_temporal(noised)
    first = control.table[(control.table["layer"] == 0) & (control.table["score"] != "spatial")]
    by_head = first.groupby(["level", "score"]).agg({"value": "mean", "chance": "first"})
    close(by_head["value"].to_numpy(), by_head["chance"].to_numpy())
    round_trip(result, tmp_path)


# Sinks


def test_sinks_equal_the_dense_ones(tmp_path) -> None:
    noised = noised_clips()
    result = sinks(noised)
    level, layer, head = 0.9, 1, 0
    found = result.table.query("level == 0.9 and layer == 1 and head == 0").iloc[0]
    received = recorded(noised, level, "pattern")[layer].sum(-2).mean(0)[head]
    assert found["key"] == received.argmax() == noised.grid.index(*map(int, found[["frame", "row", "col"]]))
    assert found["received"] == pytest.approx(float(received.max()), rel=1e-4)
    norms = recorded(noised, level, "v")[layer][:, :, head].norm(dim=-1)
    ratio = (norms[:, int(found["key"])] / norms.median(-1).values).mean()
    assert found["value_norm"] == pytest.approx(float(ratio), rel=1e-4)

    def masked(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        others = torch.arange(30) != found["key"]
        scores[:, head, others, int(found["key"])] = -torch.inf
        return scores

    changed = noised.x0_change(level, vd.Custom(f"blocks.{layer}.attn.hook_attn_scores", masked))
    assert found["x0_change"] == pytest.approx(float(changed.mean()), rel=1e-3)
    assert (result.table["control_change"] > 0).all()
    pd.testing.assert_frame_equal(result.table, sinks(noised).table)
    round_trip(result, tmp_path / "a")
    plain = sinks(noised, effect=False)
    assert plain.table["x0_change"].isna().all() and len(plain.plot()) == 2
    pd.testing.assert_series_equal(plain.table["received"], result.table["received"])
    round_trip(plain, tmp_path / "b")


def test_a_sink_is_found_and_matters_in_its_head_only() -> None:
    noised = noised_clips(levels=(0.9,))
    everyone, sink = torch.ones(30, 1) * BIG, torch.zeros(30, 1)
    sink[7] = 1
    with noised.model.hooks(queries_and_keys(0, (everyone, sink), NOWHERE)):
        planted, uniform = sinks(noised).table.to_dict("records")[:2]
    assert planted["key"] == 7 and (planted["frame"], planted["row"], planted["col"]) == (1, 0, 1)
    assert planted["received"] == pytest.approx(30, rel=1e-4)
    assert planted["x0_change"] > 1e-3 > 1e-9 > planted["control_change"]
    assert uniform["received"] == pytest.approx(1, rel=1e-4)
    with torch.no_grad(), noised.model.intervene(without_key(7, 0, 1)):
        allowed = noised.cache(0.9, "mask")["mask", 0]
    assert allowed[0, 1].sum() == 900 - 29 and allowed[0, 1, 7, 7] and allowed[0, 0].all()


def test_received_over_space_and_time() -> None:
    result = sinks(noised_clips("space_time"), effect=False)
    assert (result.table["received"] >= 1 - 1e-4).all()


# Rotary position

ROPES = {
    "interleaved": ("3d", {}),
    "over the model": ("3d", {"rope": {"3d": Rope(dims=(8, 8, 8), style="half", coords="fraction", over="model")}}),
    "half_axis": ("3d", {"rope": {"3d": Rope(dims=(2, 4, 4), style="half_axis", scale=(1.0, 2.0, 2.0))}}),
    "space_time": ("space_time", {}),
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("way", ["shifted", "frozen", "permuted"])
def test_other_angles_by_hook_equal_other_coordinates(name, way, monkeypatch) -> None:
    kind, settings = ROPES[name]
    noised = noised_clips(kind, levels=(0.9,), **settings)
    model, grid, axis = noised.model, noised.grid, "col" if kind == "3d" else "row"
    layers = [i for i in range(2) if model.cfg.rope[model.cfg.blocks[i].axis].dims[("frame", "row", "col").index(axis)]]
    found = noised.x0(0.9, vd.RotateRope(axis, way))

    place = ("frame", "row", "col").index(axis)
    own = RotaryEmbedding.coordinates

    def moved(rotary: RotaryEmbedding, grid: Any) -> list[torch.Tensor]:
        coords = own(rotary, grid)
        along = coords[place]
        coords[place] = {
            "shifted": along + (along[1] - along[0]), "frozen": along[0].expand(len(along)),
            "permuted": along[no_fixed_point(len(along), 0)],
        }[way]  # fmt: skip
        return coords

    monkeypatch.setattr(RotaryEmbedding, "coordinates", moved)
    other = noised_clips(kind, levels=(0.9,), **settings)
    if way != "shifted":
        expected = other.x0(0.9)
    else:  # queries alone: rotated anew from what they were before
        kept, hooks = {}, []
        for layer in layers:
            attention = model.sublayer(layer)
            table = RotaryEmbedding(attention.rope)(grid, like=noised.latents)
            hooks += [
                vd.Custom(("q", layer), lambda x, hook, layer=layer: kept.__setitem__(layer, x.clone())),
                vd.Custom(("rot_q", layer), lambda x, hook, layer=layer, a=attention, t=table: rotate(
                    a.q_norm(kept[layer]), a.rope, t)),
            ]  # fmt: skip
        expected = noised.x0(0.9, *hooks)
    close(found, expected, 1e-5)
    assert (found - noised.x0(0.9)).abs().max() > 1e-4


def test_nothing_altered_changes_nothing() -> None:
    noised = noised_clips("space_time")
    rotary, grid = noised.model.rope["time"], noised.grid
    x = torch.randn(2, 30, 2, 12)
    assert torch.equal(rotary.moved(x, grid, 0, torch.zeros(5)), x)
    assert torch.equal(rotary.moved(x, grid, 1, torch.ones(2)), x)  # its channels are the frames' alone
    for size in range(2, 9):
        permutation = no_fixed_point(size, seed=size)
        assert (permutation != torch.arange(size)).all() and permutation.sort().values.tolist() == list(range(size))


def test_one_head_is_altered_alone() -> None:
    noised = noised_clips()
    names = ["rot_q", "rot_k"]
    plain = next(iter(noised.caches(0.9, names)))
    with noised.model.intervene(vd.RotateRope("frame", "frozen", layers=[0], heads=[1])):
        changed = next(iter(noised.caches(0.9, names)))
    for name in names:
        moved = (plain[name, 0] != changed[name, 0]).any(-1).any(0)  # pos head
        assert not moved[:, 0].any() and not moved[:6].any() and moved[6:, 1].all()  # frame 0 stays where it is


def test_reliance_on_the_axis_that_a_head_uses(tmp_path) -> None:
    noised = noised_clips(levels=(0.9,), rope={"3d": Rope(dims=(4, 4, 4), theta=(10.0, 10.0, 10.0))})
    # Constant queries and keys in the channels of the columns: the head attends by relative column and nothing else.
    value = torch.zeros(30, 2, 12)
    value[:, 0, 8:] = 3
    with noised.model.hooks([put(f"blocks.0.attn.hook_{what}", value) for what in ("q", "k")]):
        result = rope_reliance(noised, by="head")
        by_layer = rope_reliance(noised, axes=["col"], ways=["frozen"])
        zeroed = noised.x0_change(0.9, vd.Ablate(("z", 0), heads=[0])).mean()
    table = result.table[result.table["layer"] == 0]
    used = table[(table["head"] == 0) & (table["axis"] == "col")]
    assert len(used) == 3 and (used["x0_change"] > 1e-5).all()
    assert (table.drop(used.index)["x0_change"] < 1e-8).all()
    assert used["without_attention"].iloc[0] == pytest.approx(float(zeroed))
    both = by_layer.table.query("layer == 0")["x0_change"].item()
    assert both == pytest.approx(used[used["way"] == "frozen"]["x0_change"].item(), rel=1e-3)
    round_trip(result, tmp_path / "heads")
    round_trip(by_layer, tmp_path / "layers")
    split = rope_reliance(noised_clips("space_time", levels=(0.9,)), ways=["shifted"])
    assert set(zip(split.table["layer"], split.table["axis"], strict=True)) == {(0, "row"), (0, "col"), (1, "frame")}
    round_trip(split, tmp_path / "split")


# Redundancy


@pytest.mark.parametrize("kind", ["3d", "causal", "space_time"])
def test_head_consensus_equals_the_dense_one(kind, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("vdinterp.models.query_keys.CHUNK_BYTES", 1500)
    noised = noised_clips(kind)
    result = head_consensus(noised)
    for layer, dense in enumerate(recorded(noised, 0.9, "pattern")):
        maps = dense.movedim(-3, 1).flatten(2)  # clip head everything
        unit = maps / maps.norm(dim=-1, keepdim=True)
        close(result.cosine[1, layer], (unit @ unit.transpose(1, 2)).mean(0))
        allowed = (dense > 0).float()
        uniform = (allowed / allowed.sum(-1, keepdim=True)).movedim(-3, 1).flatten(2)[:, :1]
        to_uniform = (unit * uniform).sum(-1) / uniform.norm(dim=-1)
        close(result.unrelated[1, layer], (to_uniform[:, :, None] * to_uniform[:, None]).mean(0))
        close(result.scores.values("cosine", 0.9)[layer], result.cosine[1, layer, 0, 1].expand(2))
    round_trip(result, tmp_path)


def test_unrelated_is_the_mean_over_shuffled_rows() -> None:
    noised = noised_clips(levels=(0.9,))
    result = head_consensus(noised)
    dense = recorded(noised, 0.9, "pattern")[0]
    one, other = dense[:, 0], dense[:, 1]
    generator, total = torch.Generator().manual_seed(0), 0.0
    for _ in range(300):
        shuffled = other.gather(-1, torch.rand(other.shape, generator=generator).argsort(-1))
        total += float(((one * shuffled).sum((1, 2)) / (one.norm(dim=(1, 2)) * shuffled.norm(dim=(1, 2)))).mean())
    assert float(result.unrelated[0, 0, 0, 1]) == pytest.approx(total / 300, rel=5e-3)


def test_heads_that_attend_alike_and_heads_that_do_not() -> None:
    noised = noised_clips()
    frame = same(noised.grid.frame_of())
    away = (frame[0] * 1, frame[1].roll(6, 0))  # the frame after the own one
    with noised.model.hooks([*queries_and_keys(0, frame, frame), *queries_and_keys(1, frame, away)]):
        result = head_consensus(noised)
    close(result.scores.values("cosine"), [[1, 1], [0, 0]])
    close(result.scores.values("unrelated"), np.full((2, 2), 1 / 5))  # 6 of 30 keys each
    with noised.model.hooks(queries_and_keys(0, NOWHERE, NOWHERE)):
        uniform = head_consensus(noised)
    close(uniform.scores.values("cosine")[0], [1, 1])
    close(uniform.scores.values("unrelated")[0], [1, 1])


def test_step_redundancy_equals_the_naive_one(tmp_path) -> None:
    noised = noised_clips(levels=(0.3, 0.6, 0.9))
    result = step_redundancy(noised)
    streams = [recorded(noised, level, "resid_post") for level in noised.levels]
    one, other = (streams[index][1][:, 18:] for index in (0, 2))
    centred = [x - x.mean(1, keepdim=True) for x in (one, other)]
    for score, (a, b) in {"cosine": (one, other), "centred": centred}.items():
        expected = torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
        assert (
            result.values(score)[1, 0, 2] == result.values(score)[1, 2, 0] == pytest.approx(float(expected), rel=1e-4)
        )
        swapped = torch.cosine_similarity(
            a[:2].flatten(1), b[[1, 0]].flatten(1)
        ).mean()  # the third is alone in a batch
        assert result.values(score, "other_clip")[1, 0, 2] == pytest.approx(float(swapped), rel=1e-4)
        close(np.diagonal(result.values(score), 0, 1, 2), np.ones((2, 3)))
    with pytest.raises(KeyError, match="scores are cosine, centred"):
        result.values("mean")
    round_trip(result, tmp_path)


def test_a_constant_dominates_the_cosine_and_not_the_centred_one() -> None:
    noised = noised_clips()
    plain = step_redundancy(noised)
    constant = torch.zeros(20)
    constant[4] = 500
    with noised.model.hooks([put("blocks.1.hook_resid_post", constant, add=True)]):
        shifted = step_redundancy(noised)
    assert plain.values()[1, 0, 1] < 0.99 < 0.999 < shifted.values()[1, 0, 1]
    assert shifted.values(column="other_clip")[1, 0, 1] > 0.999
    close(shifted.values("centred"), plain.values("centred"), 1e-3)


# Massive activations


def test_massive_activations_equal_the_naive_ones(tmp_path) -> None:
    noised = noised_clips()
    result = massive_activations(noised, n_channels=2)
    row = result.table.query("level == 0.9 and layer == 0").iloc[0]
    stream = recorded(noised, 0.9, "resid_post")[0]
    size = stream.abs()
    ratio = size.amax((1, 2)) / size.flatten(1).median(1).values
    assert row["ratio"] == pytest.approx(float(ratio.mean()), rel=1e-4) and row["massive"] == 0
    assert row["largest"] == pytest.approx(float(size.amax((1, 2)).mean()), rel=1e-4)
    means = stream.mean((0, 1))
    top = means.abs().topk(2).indices.tolist()
    assert row["channels"] == f"{top[0]}, {top[1]}"
    assert row["token"] == size.amax(2).mean(0).argmax() == noised.grid.index(*map(int, row[["frame", "row", "col"]]))
    channels = result.channels.query("level == 0.9 and layer == 0")
    assert channels["channel"].tolist() == top
    close(channels["mean"].to_numpy(), means[top])
    close(channels["largest"].to_numpy(), size.amax((0, 1))[top])

    def without(x: torch.Tensor, hook: Any) -> None:
        x[..., top] = 0

    changed = noised.x0_change(0.9, vd.Custom("blocks.0.hook_resid_post", without)).mean()
    assert row["x0_change"] == pytest.approx(float(changed), rel=1e-4)
    assert (result.table["control_change"] > 0).all()
    pd.testing.assert_frame_equal(result.table, massive_activations(noised, n_channels=2).table)
    round_trip(result, tmp_path)


def test_a_massive_channel_is_found_and_matters() -> None:
    noised = noised_clips()
    # A bias of the first block's MLP puts 2,000 into channel 3 everywhere; token 11 gets twice as much.
    twice = torch.zeros(30, 20)
    twice[11, 3] = 2000
    with torch.no_grad():
        noised.model.blocks[0].mlp.fc2.bias[3] += 2000
    gate = [put("blocks.0.mlp.mod.hook_gate", torch.ones(20))]
    with noised.model.hooks([*gate, put("blocks.0.hook_resid_post", twice, add=True)]):
        planted = massive_activations(noised, n_channels=1).table.query("layer == 0")
    assert (planted["ratio"] > 1000).all() and (planted["massive"] == 1).all()
    assert set(planted["channels"]) == {"3"} and set(planted["token"]) == {11}
    assert (planted["x0_change"] > 10 * planted["control_change"]).all()
    assert (massive_activations(noised_clips()).table["massive"] == 0).all()


# Bad input


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: spatial_temporal(noised_clips(), n_queries=0), "n_queries=0"),
        (lambda: spatial_temporal(noised_clips("space_time")), "attends over space and time alone"),
        (lambda: sinks(noised_clips("space_time")), "effect=False"),
        (lambda: sinks(noised_clips(), seed=-1), "seed=-1"),
        (lambda: rope_reliance(noised_clips(), axes=["time"]), r"axes=\['time'\]: some of frame, row, col"),
        (lambda: rope_reliance(noised_clips(), ways="frozen"), "ways='frozen': some of shifted, frozen, permuted"),
        (lambda: rope_reliance(noised_clips(), by="block"), "some of layer, head"),
        (lambda: rope_reliance(noised_clips("table")), "nothing to alter along frame, row, col.*: none"),
        (
            lambda: rope_reliance(noised_clips(rope={"3d": Rope(dims=(0, 6, 6))}), axes=["frame"]),
            r"nothing to alter along frame: .* 3d attention \(0, 6, 6\)",
        ),
        (lambda: rope_reliance(noised_clips(patch_size=(1, 4, 2)), axes=["row"]), r"grid is \(5, 1, 3\)"),
        (lambda: head_consensus(noised_clips(n_heads=1)), "one head"),
        (lambda: step_redundancy(noised_clips(levels=(0.5,))), "at least two levels"),
        (lambda: massive_activations(noised_clips(), n_channels=11), r"1\.\.10 leave as many others"),
        (lambda: massive_activations(noised_clips(), n_channels=0), "n_channels=0"),
    ],
)
def test_bad_input(ask, message, monkeypatch) -> None:
    monkeypatch.setattr(NoisedClips, "caches", None)  # nothing is computed before it is refused
    monkeypatch.setattr(NoisedClips, "x0", None)
    with pytest.raises(ValueError, match=message):
        ask()
