"""Circuits from weights are what a forward pass does, find planted heads, and say no where weights do not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import inputs, tiny_model

import vdinterp as vd
from vdinterp.analysis import circuits
from vdinterp.analysis.circuits.pairs import composition as of_pair
from vdinterp.analysis.circuits.weights import FoldedWeights
from vdinterp.data.textures import make_textures
from vdinterp.models import ActivationCache, BlockSpec, HookedVideoDiT, Rope, Sublayer
from vdinterp.models.stream import modulations
from vdinterp.results import Result, rows_of
from vdinterp.site import FINAL_LAYER, Site

LEVELS = [0.001, 0.3, 0.8]  # of the three frames
AFFINE = {"norm_affine": True}
PLAIN = {"period": (BlockSpec(attn=Sublayer("plain", None), mlp=Sublayer("plain", None)),)}
BARE = {"period": (BlockSpec(attn=Sublayer("none", None), mlp=None),)}


def run(model: HookedVideoDiT, names: Any = None) -> ActivationCache:
    """A forward pass with another noise level in every frame, without an action."""
    given = inputs(model, batch=1)
    given.pop("cond", None)
    given["timestep"] = model.timestep(torch.tensor([LEVELS]))
    with torch.no_grad():
        return model.run_with_cache(**given, names=names)[1]


# The circuits are what a forward pass does


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("3d", {}), ("normed", {}), ("space_time", {}), ("table", {}), ("cross", {}), ("causal", {}), ("3d", AFFINE),
     ("normed", AFFINE), ("3d", PLAIN), ("normed", PLAIN), ("3d", BARE), ("3d", {"norm": "rms"})],
)  # fmt: skip
def test_ov_gives_what_heads_write(kind: str, settings: dict[str, Any]) -> None:
    model = tiny_model(kind, **settings)
    cache, per_frame = run(model), model.grid().tokens_per_frame
    for layer, head in ((0, 1), (1, 0)):
        if model.cfg.blocks[layer].attn.norm == "none":
            normalized = cache["in", layer, "attn"]
        else:
            normalized = cache["ln.normalized", layer, "attn"]
        pattern = cache["pattern", layer].rows(range(model.grid().n_tokens))[0, head]
        found = torch.zeros(1, model.grid().n_tokens, 20)
        for query, query_level in enumerate(LEVELS):
            to = slice(query * per_frame, (query + 1) * per_frame)
            for key, level in enumerate(LEVELS):
                at = slice(key * per_frame, (key + 1) * per_frame)
                circuit = circuits.ov(model, layer, head, level, query_level)
                found[:, to] += pattern[to, at] @ circuit.output(normalized[:, at])
        wanted = cache.head_results(layer)[:, :, head]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_part_of_the_stream_goes_through_ov_alone() -> None:
    """Centring is in the circuit: no need to take the mean from a part of the stream first."""
    model = tiny_model("3d")
    circuit = circuits.ov(model, 0, 0, 0.5)
    part = torch.randn(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((part - part.mean()) @ circuit.A @ circuit.B, (part + 3) @ circuit.A @ circuit.B)
    torch.testing.assert_close(circuit.matrix.AB, circuit.A @ circuit.B)
    assert circuit.A.shape == (20, 12) and circuit.B.shape == (12, 20)


ROPES: dict[str, dict[str, Any]] = {
    "half": {"rope": {"3d": Rope(dims=(4, 4, 4), style="half")}},
    "half_axis": {"rope": {"3d": Rope(dims=(2, 4, 6), style="half_axis", theta=(10.0, 20.0, 30.0))}},
    "fraction": {
        "rope": {"3d": Rope(dims=(4, 4, 2), coords="fraction", freqs="pixel", theta=(10.0,) * 3, scale=(1.0, 2.0, 3.0))}
    },
    "linspace": {"rope": {"3d": Rope(dims=(4, 4, 4), coords="linspace")}},
    "none": {"rope": {}},
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("3d", {}),
        ("normed", {}),
        ("space_time", {}),
        ("normed", AFFINE),
        ("3d", PLAIN),
        *(("3d", ROPES[n]) for n in ROPES),
    ],
)
def test_qk_gives_the_scores(kind: str, settings: dict[str, Any]) -> None:
    model = tiny_model(kind, **settings)
    cache, grid = run(model), model.grid()
    generator = torch.Generator().manual_seed(0)
    for layer, head in ((0, 1), (1, 0)):
        normalized = cache["ln.normalized", layer, "attn"][0]
        seen = cache["pattern", layer].rows(range(grid.n_tokens))[0, head] > 0
        pairs = seen.nonzero()
        for query, key in pairs[torch.randperm(len(pairs), generator=generator)[:12]].tolist():
            at = [LEVELS[grid.coordinates(token)[0]] for token in (key, query)]
            circuit = circuits.qk(model, layer, head, at[0], grid.displacement(query, key), at[1])
            found = float(circuit.scores(normalized[query], normalized[key]))
            rot_q, rot_k = (cache[name, layer][0, token, head] for name, token in (("rot_q", query), ("rot_k", key)))
            assert found == pytest.approx(float(rot_q @ rot_k) / 12**0.5, abs=2e-5)
            if model.cfg.blocks[layer].axis == "3d":
                assert found == pytest.approx(float(cache["attn_scores", layer][0, head, query, key]), abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "objective", "schedule", "order"),
    [("3d", "x0", "cosine", "pqc"), ("3d", "v", "cosine", "cpq"), ("normed", "v", "cosine", "pqc"),
     ("normed", "eps", "linear", "pqc"), ("normed", "flow", "flow", "cpq"), ("space_time", "v", "cosine", "pqc")],
)  # fmt: skip
def test_the_patch_circuit_is_the_jacobian(kind: str, objective: Any, schedule: Any, order: Any) -> None:
    """Of a real forward pass in which LayerNorm's scales are held, the head looks at one token, and nothing else is
    written."""
    model = tiny_model(kind, unpatch_order=order).double()
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig(objective=objective, schedule=schedule))
    grid, (layer, head), (key, query) = model.grid(), (1, 1), (4, 16)  # the same place, two frames apart
    latents = torch.randn(1, 3, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    k = torch.tensor([[-1, 200, 700]])
    with torch.no_grad():
        scales = model.run_with_cache(latents, pipe.schedule.timestep(k), names="ln.scale")[1]

    def look(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        pattern = torch.zeros_like(pattern)
        pattern[..., key if kind != "space_time" else 0] = 1
        return pattern

    def alone(z: torch.Tensor, hook: Any) -> torch.Tensor:
        kept = torch.zeros_like(z)
        if hook.name == f"blocks.{layer}.attn.hook_z":
            kept[:, :, head] = z[:, :, head]
        return kept

    hooks: list[Any] = [
        ("ln.scale", lambda _, hook: scales[hook.name].clone()), (f"blocks.{layer}.attn.hook_pattern", look),
        ("attn.z", alone), ("mlp.out", lambda out, hook: torch.zeros_like(out)),
    ]  # fmt: skip

    def patch(video: torch.Tensor, token: int) -> torch.Tensor:
        frame, row, col = grid.coordinates(token)
        return video[0, frame, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]

    given = latents.clone().requires_grad_()
    with model.hooks(hooks):
        x0 = patch(pipe.denoise(given, pipe.schedule.level(k)), query).flatten()
    rows = [patch(torch.autograd.grad(value, given, retain_graph=True)[0], key).flatten() for value in x0]

    normed, sites = kind == "normed", ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp", "final"]
    before, after = (sites[:3], sites[3:]) if normed else (sites[2:3], sites[4:])
    size = 1.0
    for chosen, token in ((before, key), (after, query)):
        for site in chosen:
            size *= float(scales[f"{site}.ln.hook_scale"][0, token, 0])
    circuit = circuits.patch_circuit(pipe, layer, head, 0, 0.701)
    torch.testing.assert_close(circuit.matrix.double() / size, torch.stack(rows), atol=1e-6, rtol=1e-4)
    whole = torch.einsum("r, ro, ri -> oi", circuit.singular, circuit.writes.flatten(1), circuit.reads.flatten(1))
    torch.testing.assert_close(whole, circuit.matrix)


# Copying


def wired(objective: Any, order: Any, sign: float = 1.0) -> vd.VideoDiffusion:
    """A head that hands on what it reads times `sign`, from the patch embedding to a final layer that inverts it."""
    model = tiny_model("3d", unpatch_order=order, qkv_bias=False)
    schedule = {"flow": "flow", "eps": "linear"}.get(objective, "cosine")
    for parameter in model.parameters():
        parameter.data.zero_()
    network: Any = model
    basis = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(basis - basis.mean(0)).Q  # nothing for LayerNorm to take away
    network.patch_embed.proj.weight.data = basis.reshape(20, 2, 2, 2).clone()
    attn = network.blocks[0].attn
    attn.W_V[0][:, :8], attn.W_O[0][:8] = basis, sign * basis.T
    network.blocks[0].modulation.linear.bias.data[40:60] = 1.0  # the gate
    out = basis.T.reshape(2, 2, 2, 20)
    network.final.linear.weight.data = (out.permute(1, 2, 0, 3) if order == "pqc" else out).reshape(8, 20).clone()
    return vd.VideoDiffusion(model, None, vd.DiffusionConfig(objective=objective, schedule=schedule))


@pytest.mark.parametrize("objective", ["x0", "eps", "v", "flow"])
@pytest.mark.parametrize("order", ["pqc", "cpq"])
def test_the_copying_score_is_that_of_x0(objective: str, order: str) -> None:
    with torch.no_grad():
        sign = 1.0 if objective == "x0" else -1.0  # what is added to noise or velocity is taken from x0
        copies, removes = wired(objective, order, sign), wired(objective, order, -sign)
    found = circuits.patch_circuit(copies, 0, 0, 0.5)
    assert found.copying == pytest.approx(1) and found.chance < 1
    scale = found.matrix[0, 0]
    assert scale > 0
    torch.testing.assert_close(found.matrix, scale * torch.eye(8), atol=1e-5, rtol=1e-5)
    assert (found.reads * found.writes).sum((1, 2, 3)).numpy() == pytest.approx(1, abs=1e-5)
    assert circuits.patch_circuit(removes, 0, 0, 0.5).copying == pytest.approx(-1)
    table = circuits.copying(copies, 0.5).table.set_index(["layer", "head"])
    assert table.loc[(0, 0), "value"] == pytest.approx(1)
    assert np.isnan(table.loc[(0, 1), "value"]), "a head that writes nothing has no score"


def test_random_heads_stay_within_chance() -> None:
    scores = [circuits.copying(vd.organisms.build("random", seed), 0.6).table for seed in range(4)]
    table = pd.concat(scores)
    assert (table["value"].abs() > table["chance"]).mean() < 0.15
    assert abs(table["value"].mean()) < 0.1


# Composition


@pytest.mark.parametrize("kind", ["3d", "normed", "space_time"])
def test_composition_is_that_of_dense_matrices(kind: str) -> None:
    model = tiny_model(kind)
    here, there, moved = 0.3, 0.8, (-1, 0, 0)
    centre = torch.eye(20, dtype=torch.double) - 1 / 20
    for part in ("q", "k", "v"):
        side = there if part == "q" else here
        sent = circuits.ov(model, 0, 1, here, side).matrix.AB.double()
        if part == "v":
            read = circuits.ov(model, 1, 0, here, there).matrix.AB.double()
        else:
            read = circuits.qk(model, 1, 0, here, moved, there).matrix.AB.double()
            read = read if part == "q" else read.T
        if kind == "normed":  # the MLP between the two
            given = inputs(model, batch=1)["latents"][:, :1]
            _, cache = model.run_with_cache(given, model.timestep(torch.tensor([[side]])), names="mlp.mod.scale")
            scale = cache["mod.scale", 0, "mlp"][0, 0].detach().double()
            read = centre @ torch.diag(1 + scale) @ read
        wanted = float((sent @ read).norm() / (sent.norm() * read.norm()))
        found = of_pair(model, (0, 1), (1, 0), part, noise_level=here, query_level=there, displacement=moved)
        assert found["score"] == pytest.approx(wanted, rel=1e-4)
        assert found["beyond"] == pytest.approx(found["score"] - found["baseline"])
        table = circuits.composition(model, here, there, displacements=[(0, 0, 0), moved]).table
        name = "any" if part == "v" else "(-1, 0, 0)"
        row = rows_of(table, part=part, displacement=name, sender="0.1", receiver="1.0").iloc[0]
        assert {name: row[name] for name in found} == pytest.approx(found, rel=1e-6)


def test_chance_is_what_random_rotations_score() -> None:
    model = tiny_model("3d")
    sent, read = (circuits.ov(model, layer, 0, 0.3).matrix.AB.double() for layer in (0, 1))
    generator = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(4000, 20, 20, generator=generator, dtype=torch.double)).Q
    squares = (sent @ turns @ read).pow(2).sum((-2, -1)) / (sent.norm() * read.norm()) ** 2
    found = of_pair(model, (0, 0), (1, 0), "v", noise_level=0.3)
    assert found["baseline"] == pytest.approx(20**-0.5)
    assert float(squares.mean().sqrt()) == pytest.approx(found["baseline"], rel=0.01)
    assert (found["score"] ** 2 - float(squares.mean())) / float(squares.std()) == pytest.approx(
        found["z"], rel=0.1, abs=0.05
    )


@pytest.mark.parametrize("seed", range(4))
def test_planted_heads_stand_out(seed: int) -> None:
    organism = vd.organisms.build("induction", seed)
    sender, receiver = (".".join(map(str, organism.heads[role])) for role in ("previous frame", "induction"))
    found = circuits.composition(organism.model, 0, 0.95, displacements=[(-3, 0, 0)], parts=["k", "q"])
    for part in ("k", "q"):
        rows = rows_of(found.table, part=part).sort_values("beyond", ascending=False)
        assert list(rows.iloc[0][["sender", "receiver"]]) == [sender, receiver]
        assert rows.iloc[0]["beyond"] > 5 * rows.iloc[1]["beyond"] and rows.iloc[0]["z"] > 20
        assert found.values(part).loc[sender, receiver] == rows.iloc[0]["beyond"]
    copying = circuits.copying(organism, 0, 0.95)
    planted = organism.heads["induction"]
    others = np.delete(copying.values().flatten(), 4 * planted[0] + planted[1])
    assert copying.values()[planted] > 0.99 and others.max() < 0.6
    assert f"{receiver} (1.00" in copying.summary()


def test_some_pairs_and_their_parts() -> None:
    model = tiny_model("space_time", n_layers=4)
    pairs = [((0, 0), (2, 1)), ((1, 1), (3, 0)), ((0, 1), (2, 1))]
    found = circuits.composition(model, 0, displacements=[(-1, 0, 0), (0, 0, 1)], pairs=pairs)
    asked = rows_of(found.table, part="v")
    assert set(zip(asked["sender"], asked["receiver"], strict=True)) == {("0.0", "2.1"), ("1.1", "3.0"), ("0.1", "2.1")}
    assert set(rows_of(found.table, part="k", receiver="2.1")["displacement"]) == {"(0, 0, 1)"}, "space sees no frame"
    assert set(rows_of(found.table, part="k", receiver="3.0")["displacement"]) == {"(-1, 0, 0)"}
    assert list(found.table["part"].unique()) == ["q", "k", "v"]
    whole = circuits.composition(model, 0)
    assert len(rows_of(whole.table, part="v")) == 24 and set(whole.table["displacement"]) == {"any", "(0, 0, 0)"}


@pytest.mark.parametrize(
    ("kind", "between"), [("3d", []), ("normed", ["blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"])]
)
def test_what_the_stream_goes_through(kind: str, between: list[str]) -> None:
    """DFoT's carried stream is centred and scaled by every sublayer on the way, the usual one by none."""
    model = tiny_model(kind)
    folded, reading = FoldedWeights(model, 0.3, 0.8), torch.randn(20, 3, dtype=torch.double)
    wanted = reading
    for site in reversed(between):
        scale = modulations(model, model.timestep(torch.tensor([0.8])))[Site.parse(site).at("mod.scale")][0].double()
        wanted = (1 + scale)[:, None] * wanted
        wanted = wanted - wanted.mean(0)
    torch.testing.assert_close(folded.sides["query"].carry_back(reading, Site(0, "attn"), FINAL_LAYER), wanted)


# Where weights do not tell


@pytest.mark.parametrize("kind", ["table", "cross", "causal"])
def test_qk_norm_needs_activations(kind: str) -> None:
    model = tiny_model(kind)
    with pytest.raises(ValueError, match=r"normalised .* qk_activations\(model, cache, layer, head\)"):
        circuits.qk(model, 0, 0, 0.3, (0, 0, 0))
    with pytest.raises(ValueError, match="V-composition is determined"):
        circuits.composition(model, 0.3, parts=["q", "v"])
    assert set(circuits.composition(model, 0.3).table["part"]) == {"v"}


@pytest.mark.parametrize(
    ("kind", "layer"), [("table", 0), ("cross", 1), ("causal", 1), ("space_time", 0), ("space_time", 1)]
)
def test_scores_by_displacement_are_least_squares(kind: str, layer: int) -> None:
    model = tiny_model(kind)
    cache, grid, head = run(model), model.grid(), 1
    found = circuits.qk_activations(model, cache, layer, head)
    q, k = (cache[name, layer][0, :, head].double() for name in ("rot_q", "rot_k"))
    pairs = (cache["pattern", layer].rows(range(grid.n_tokens))[0, head] > 0).nonzero().tolist()
    places = sorted({grid.displacement(*pair) for pair in pairs})
    design = torch.zeros(len(pairs), grid.n_tokens + len(places), dtype=torch.double)
    for row, (query, key) in enumerate(pairs):
        design[row, query] = design[row, grid.n_tokens + places.index(grid.displacement(query, key))] = 1
    scores = torch.stack([q[query] @ k[key] / 12**0.5 for query, key in pairs])
    rest = scores - design @ torch.linalg.lstsq(design, scores[:, None], driver="gelsd").solution[:, 0]
    rows = torch.stack([scores[[p[0] == pair[0] for p in pairs]].mean() for pair in pairs])
    assert found.position == pytest.approx(1 - float(rest.square().sum() / (scores - rows).square().sum()), abs=1e-4)
    table = found.to_frame()
    assert [tuple(row) for row in table[["frame", "row", "col"]].to_numpy().tolist()] == places
    spread = [
        float(rest[[grid.displacement(*pair) == place for pair in pairs]].square().mean().sqrt()) for place in places
    ]
    np.testing.assert_allclose(table["sd"], spread, atol=1e-3)
    assert (table["value"] * table["count"]).sum() == pytest.approx(0, abs=1e-3) and table["count"].sum() == len(pairs)


def test_rotation_over_all_heads_is_not_one_heads() -> None:
    model = tiny_model("cross", qk_norm=None)
    with pytest.raises(ValueError, match="over all heads together"):
        circuits.qk(model, 0, 0, 0.3, (0, 0, 0))


def test_position_and_content_are_told_apart() -> None:
    organism = vd.organisms.build("induction", 3)
    video = make_textures(64, seed=0).unflatten(0, (4, 16))
    levels = torch.zeros(4, 16, dtype=torch.long)
    levels[:, -1] = 949
    with torch.no_grad():
        _, cache = organism.model.run_with_cache(organism.encode(video), levels, names=["rot_q", "rot_k"])
    by_place, by_content = (
        circuits.qk_activations(organism.model, cache, *organism.heads[role])
        for role in ("previous frame", "induction")
    )
    assert by_place.position > 0.9 > 0.7 > by_content.position > by_content.chance
    table = by_place.to_frame()
    assert list(table.loc[table["value"].idxmax(), ["frame", "row", "col"]]) == [-1, 0, 0]
    assert "(-1, 0, 0)" in by_place.summary() and len(by_place.plot()) == 1


def test_scores_of_places_alone_and_of_contents_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    place, content = tiny_model("3d", n_frames=8), tiny_model("3d", n_frames=8, rope={}, qkv_bias=False)
    place.blocks[0].attn.W_Q.data.zero_(), place.blocks[0].attn.W_K.data.zero_()  # type: ignore[union-attr]
    video, levels = torch.randn(16, 8, 2, 4, 6, generator=generator), torch.full((16, 8), 300)
    found = [
        circuits.qk_activations(model, model.run_with_cache(video, levels, names=["rot_q", "rot_k"])[1], 0, 0)
        for model in (place, content)
    ]
    assert found[0].position == pytest.approx(1, abs=1e-6)
    assert found[1].position < 3 * found[1].chance < 0.1


# Results


def test_results_are_drawn_and_come_back(tmp_path: Path) -> None:
    organism = vd.organisms.build("induction", 3)
    model = organism.model
    made: list[Result] = [
        circuits.ov(model, 0, 1, 0, 0.9), circuits.qk(model, 3, 0, 0, (-2, 0, 0), 0.9),
        circuits.patch_circuit(organism, 3, 0, 0, 0.9), circuits.copying(organism, 0, 0.9),
        circuits.composition(model, 0, 0.9),
    ]  # fmt: skip
    for index, result in enumerate(made):
        assert result.plot() and result.summary() and len(result.to_frame())
        again = type(result).load(result.save(tmp_path / str(index)))
        pd.testing.assert_frame_equal(again.to_frame(), result.to_frame())
        assert again.summary() == result.summary()
    spectrum = made[0].to_frame()
    dense = made[0].matrix.AB.double()  # type: ignore[attr-defined]
    np.testing.assert_allclose(spectrum["singular_value"], torch.linalg.svdvals(dense)[:48], atol=1e-5)
    assert spectrum["real"].sum() == pytest.approx(float(dense.trace()), abs=1e-4)
    with pytest.raises(KeyError, match=r"there are q at \(0, 0, 0\)"):
        made[4].values("k", (5, 0, 0))  # type: ignore[attr-defined]


MODEL = tiny_model("3d")
PIPE = vd.VideoDiffusion(MODEL, None, vd.DiffusionConfig())
OTHER = vd.VideoDiffusion(tiny_model("3d", out_channels=4), None, vd.DiffusionConfig())


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: circuits.ov(PIPE, 0, 0, 0.3), r"of a pipeline: pipe.model\), got VideoDiffusion"),
        (lambda: circuits.ov(MODEL, 2, 0, 0.3), "layers 0..1 of 2 heads"),
        (lambda: circuits.ov(MODEL, 0, 0, [0.1, 0.2]), "noise_level holds 2 numbers; one share"),
        (lambda: circuits.ov(MODEL, 0, 0, 0.3, float("nan")), "query_level are shares of noise"),
        (lambda: circuits.ov(MODEL, 0, 0, "clean"), "noise_level: 'clean' is no share"),
        (lambda: circuits.qk(MODEL, 0, 0, 0.3, (1, 0)), "three whole numbers"),
        (lambda: circuits.qk(MODEL, 0, 0, 0.3, (-3, 0, 0)), r"clips are \(3, 2, 3\)"),
        (lambda: circuits.qk(tiny_model("space_time"), 0, 0, 0.3, (-1, 0, 0)), "attends over space only"),
        (lambda: circuits.qk(tiny_model("space_time"), 1, 0, 0.3, (1, 0, 0)), "causal"),
        (lambda: circuits.composition(MODEL, 0.3, parts=["o"]), "choose 'q', 'k' or 'v'"),
        (lambda: circuits.composition(MODEL, 0.3, pairs=[((1, 0), (1, 1))]), "does not write before"),
        (lambda: circuits.composition(MODEL, 0.3, pairs=[]), "nothing to compute"),
        (lambda: circuits.composition(MODEL, 0.3, displacements=[(9, 0, 0)]), "no receiver sees a key"),
        (lambda: of_pair(MODEL, (0, 0), (1, 5), "k"), "head 1.5"),
        (lambda: circuits.patch_circuit(MODEL, 0, 0, 3), "a pipeline is needed"),
        (lambda: circuits.patch_circuit(PIPE, 0, 0, 900), "query_level .* k = 900 of 1000 is 0.901"),
        (lambda: circuits.patch_circuit(PIPE, 0, 0, 0), "a clean frame is not denoised"),
        (lambda: circuits.copying(PIPE, 1000), r"in \[0, 1\] .*got 1000$"),
        (lambda: circuits.copying(OTHER, 0.3), "makes 4 channels of 2"),
        (lambda: circuits.qk_activations(MODEL, run(MODEL, "rot_q"), 0, 4), "head 0.4"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_would_work(ask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask()


def test_a_cache_without_queries_and_keys() -> None:
    with pytest.raises(KeyError, match="was not cached"):
        circuits.qk_activations(MODEL, run(MODEL, "rot_q"), 0, 0)
