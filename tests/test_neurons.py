"""MLP neurons: running statistics against all activations at once, planted neurons, what they write, the page."""

from __future__ import annotations

import gc
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import inputs, tiny_model
from test_browser import FLAGS, Opened, chromium

import vdinterp as vd
from vdinterp.analysis import NoisedClips, neurons
from vdinterp.analysis.neurons import NeuronEffects, NeuronResult, collect
from vdinterp.analysis.neurons.directions import pixel_map
from vdinterp.analysis.neurons.running import RunningMoments, RunningTop
from vdinterp.data import Clips
from vdinterp.models import BlockSpec
from vdinterp.plotting.crops import BOX, beside, patch_strip

LEVELS = (0.3, 0.9)
NAMES = ["dark", "grey", "bright"]
N_TOKENS, N_NEURONS = 30, 28  # 5 frames of 2 x 3 tokens


def patterns(n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips whose tokens show one of three patterns of 2 x 2 pixels, and which one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n, 5, 2, 3), generator=generator)
    pattern = torch.tensor([[[0.1, 0.2], [0.0, 0.1]], [[0.4, 0.6], [0.6, 0.4]], [[1.0, 0.8], [0.9, 1.0]]])
    video = pattern[labels].permute(0, 1, 2, 4, 3, 5).reshape(n, 5, 1, 4, 6)
    return video, labels


def noised_clips(
    kind: str = "3d", batch: int = 4, n_context: int = 3, levels: tuple[float, ...] = LEVELS, n: int = 6,
    objective: Any = "v", **settings: Any,
) -> NoisedClips:  # fmt: skip
    """Clips of 5 x 2 x 3 tokens for two layers of 28 neurons."""
    model = tiny_model(kind, **{"in_channels": 1, "out_channels": 1, "n_frames": 5, **settings})
    for parameter in model.parameters():
        parameter.data *= 0.5
    diffusion = vd.DiffusionConfig(objective=objective, schedule="linear")
    pipe = vd.VideoDiffusion(model, vd.vae.IdentityVAE(1), diffusion, vd.vae.LatentStats((0.5,), (0.5,)))
    clips = Clips(kind="file", video=patterns(n)[0], action=torch.eye(3)[torch.arange(5 * n).view(n, 5) % 3])
    return NoisedClips(pipe, clips, noise_levels=levels, n_context=n_context, batch=batch)


def everything(noised: NoisedClips) -> torch.Tensor:
    """All activations `[layer level clip token neuron]`."""
    layers = range(noised.model.cfg.n_layers)
    levels = [[torch.cat([c["post", i] for c in noised.caches(k, ["post"])]) for i in layers] for k in noised.levels]
    return torch.stack([torch.stack(level) for level in levels], 1)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return patterns()[1]


@pytest.fixture(scope="module")
def result(labels: torch.Tensor) -> NeuronResult:
    return neurons.top_patches(noised_clips(), n_patches=5, labels=labels, label_names=NAMES)


# Running statistics


@pytest.mark.parametrize("step", [1, 7, 60])
def test_the_largest_values_with_ties_whatever_the_parts(step: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-3, 3, (2, 60, 4), generator=generator) / 2  # [level patch neuron], full of ties
    values[0, ::3] *= -1.0  # with zeros of both signs
    top = RunningTop(9, 2)
    for start in range(0, 60, step):
        patches = torch.arange(start, min(60, start + step))
        for level in (0, 1):
            top.update(values[level, patches], patches, level)
    found, where, levels = top.result()
    for neuron in range(4):
        each = values[:, :, neuron]
        ranked = sorted((-float(each[:, p].max()), p, int(each[:, p].argmax())) for p in range(60))[:9]
        assert found[neuron].tolist() == [-value for value, _, _ in ranked]
        assert where[neuron].tolist() == [patch for _, patch, _ in ranked], "a patch once, of equal ones the earlier"
        assert levels[neuron].tolist() == [level for _, _, level in ranked]


def test_moments_lose_nothing_to_a_large_mean() -> None:
    values = 1e4 + torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 1e-3
    moments = RunningMoments()
    for part in values.split(70):
        moments.update(part)
    torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.std, values.std(0, correction=0), rtol=1e-5, atol=0)
    assert moments.active.tolist() == [1, 1, 1]


@pytest.mark.parametrize("batch", [1, 4, 6])
@pytest.mark.parametrize("n_context", [0, 3])
def test_top_patches_are_those_of_all_activations(batch: int, n_context: int) -> None:
    noised = noised_clips(batch=batch, n_context=n_context)
    found = neurons.top_patches(noised, n_patches=7)
    best, level = everything(noised_clips(batch=6, n_context=n_context)).max(1)  # [layer clip token neuron]
    values, where = best.flatten(1, 2).transpose(1, 2).topk(7)
    torch.testing.assert_close(found.activations, values, atol=1e-5, rtol=1e-5)
    clip, token = where // N_TOKENS, where % N_TOKENS
    place = torch.stack([clip, *noised.grid.all_coordinates()[token].unbind(-1)], -1)
    assert torch.equal(found.patches, place)
    layer, neuron = torch.meshgrid(torch.arange(2), torch.arange(N_NEURONS), indexing="ij")
    at = torch.tensor(LEVELS)[level[layer[..., None], clip, token, neuron[..., None]]]
    assert torch.equal(found.patch_levels, torch.where(place[..., 1] < n_context, 0.0, at))
    assert found.levels == ([0.0] if n_context else []) + list(LEVELS)
    video = (noised.clips.video * 255).round().byte()
    shown = found.frames[found.picture]
    assert torch.equal(shown[..., 0], video[place[..., 0], place[..., 1], 0]), "the frame that the patch lies in"


def test_statistics_are_those_of_all_activations(result: NeuronResult, labels: torch.Tensor) -> None:
    every = everything(noised_clips())
    tokens = every.permute(0, 4, 1, 2, 3)  # [layer neuron level clip token]
    close = torch.testing.assert_close

    def column(name: str) -> torch.Tensor:
        return torch.tensor(result.table[name].to_numpy(), dtype=torch.float).view(2, N_NEURONS)

    close(column("mean"), tokens.flatten(2).mean(2))
    close(column("std"), tokens.flatten(2).std(2, correction=0))
    close(column("active"), (tokens > 0).flatten(2).float().mean(2))
    close(column("top"), tokens.flatten(2).amax(2))
    target = torch.arange(N_TOKENS) >= 18
    close(result.by_level[..., 0], tokens[..., ~target].flatten(2).mean(2))
    close(result.by_level[..., 1:], tokens[..., target].mean((3, 4)))
    flat = labels.flatten(1)
    for values, scores in ((flat, result.selectivity), (flat.roll(3, 0), result.control)):
        for label in range(3):
            has = (values == label).expand(2, -1, -1).flatten().float()  # [level clip token]
            close(result.by_label[..., label], tokens[..., flat == label].mean((2, 3)))
            both = [np.corrcoef(one.numpy(), has.numpy())[0, 1] for one in tokens.flatten(2).flatten(0, 1)]
            close(scores[..., label].flatten(), torch.tensor(both).float(), atol=1e-4, rtol=1e-4)
    best = result.selectivity.argmax(-1).flatten().tolist()
    assert result.table["label"].tolist() == [NAMES[label] for label in best]
    assert result.patch_labels.tolist() == labels[tuple(result.patches.unbind(-1))].tolist()
    assert result.label_shares == pytest.approx([float((labels == i).float().mean()) for i in range(3)])


def test_chosen_layers_are_as_among_all(result: NeuronResult, labels: torch.Tensor) -> None:
    one = neurons.top_patches(noised_clips(), n_patches=5, labels=labels, label_names=NAMES, layers=[-1])
    assert one.layers == [1] and torch.equal(one.patches[0], result.patches[1])
    assert one.top(1, 3).equals(result.top(1, 3))
    with pytest.raises(KeyError, match=r"no neuron 0\.3: there are layers \[1\], neurons 0\.\.27"):
        one.top(0, 3)


def test_layers_without_an_mlp_are_passed_over() -> None:
    noised = noised_clips(period=(BlockSpec(mlp=None), BlockSpec()))
    assert neurons.top_patches(noised).layers == [1]
    with pytest.raises(ValueError, match=r"no MLP in layer 0: tiny-3d has MLPs in layers \[1\]"):
        neurons.top_patches(noised, layers=[0])


def test_what_is_held_does_not_grow_with_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    noised = noised_clips(batch=2, n=20, levels=(0.5,))
    held, others = [], [one for one in gc.get_objects() if type(one) is torch.Tensor]
    known = {id(one) for one in others}  # of tests before this one
    update = RunningTop.update

    def spy(self: RunningTop, values: torch.Tensor, *rest: Any) -> None:
        update(self, values, *rest)
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.shape[-1:] == (N_NEURONS,)]
        held.append(sum(one.numel() for one in tensors if id(one) not in known))

    monkeypatch.setattr(RunningTop, "update", spy)
    neurons.top_patches(noised, n_patches=3)
    assert len(held) == 20, "ten batches of two layers"
    assert max(held) == max(held[2:4]) <= 3 * 2 * 2 * N_TOKENS * N_NEURONS, "a few times one batch of two layers"


# A planted neuron


def plant(noised: NoisedClips, labels: torch.Tensor, neuron: int, label: int) -> None:
    """Make one neuron of the last layer fire for a label alone, and write what lowers the x0 error of its tokens."""
    model, pipe = noised.model, noised.pipe
    mlp, target = model.sublayer(1, "mlp"), noised.latents[:, noised.n_context :]
    with torch.no_grad():
        for layer in (0, 1):  # no token knows of another, and the others' outputs are small
            model.sublayer(layer).proj.weight.zero_()
            model.sublayer(layer, "mlp").fc2.weight *= 0.05
        entered = torch.cat(
            [cache["blocks.1.mlp.hook_in"] for cache in noised.caches(noised.levels[0], ["blocks.1.mlp.hook_in"])]
        )
        known = torch.cat([entered.flatten(0, 1), torch.ones(labels.numel(), 1)], 1).double()
        wanted = torch.where(labels.flatten() == label, 3.0, -3.0).double()
        solved = torch.linalg.lstsq(known, wanted[:, None]).solution[:, 0].float()
        mlp.fc1.weight[neuron], mlp.fc1.bias[neuron] = solved[:-1], solved[-1]
    given = noised.inputs(noised.levels[0], slice(0, len(labels)))
    # the bias learns along, so that no constant that the neuron's mean adds can help
    optimizer = torch.optim.Adam([mlp.fc2.weight, model.final.linear.bias], lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        (pipe.denoise(*given)[:, noised.n_context :] - target).square().mean().backward()
        mlp.fc2.weight.grad[:, torch.arange(N_NEURONS) != neuron] = 0
        optimizer.step()


@pytest.fixture(scope="module")
def planted() -> tuple[NoisedClips, torch.Tensor]:
    noised = noised_clips(levels=(0.1,), n=16, objective="x0")
    labels = patterns(16)[1]
    plant(noised, labels, neuron=11, label=2)
    return noised, labels


def test_the_planted_neuron_is_the_most_selective(planted: tuple[NoisedClips, torch.Tensor]) -> None:
    noised, labels = planted
    found = neurons.top_patches(noised, labels=labels, label_names=NAMES)
    assert found.most_selective(label="bright") == [(1, 11)]
    row = found.table.query("layer == 1 and neuron == 11").iloc[0]
    assert row["label"] == "bright" and row["selectivity"] > 0.9 > 0.2 > abs(row["control"])
    assert set(found.top(1, 11)["label"]) == {"bright"}
    assert (found.by_label[1, 11] > 1).tolist() == [False, False, True]
    assert "neuron 1.11 fires for **bright**" in found.summary()


def test_what_is_beyond_the_edge_heads_no_list(planted: tuple[NoisedClips, torch.Tensor]) -> None:
    noised, labels = planted
    found = neurons.top_patches(noised, labels=labels, label_names=[*NAMES[:2], "outside"])
    assert found.most_selective(label="outside") == [(1, 11)], "it can be asked for"
    assert found.most_selective()[0] != (1, 11) and (1, 11) in found.most_selective()
    assert "fires for **outside**" not in found.summary() and "fires for **" in found.summary()
    first = next(iter(found.sections()[0].tables.values())).iloc[0]
    assert first["label"] != "outside"


def test_its_ablation_effect_is_the_largest(planted: tuple[NoisedClips, torch.Tensor], tmp_path: Path) -> None:
    noised, labels = planted
    everyone = [(layer, neuron) for layer in (0, 1) for neuron in range(N_NEURONS)]
    options = {"progress": False, "out": tmp_path / "ledger"}
    effects = neurons.ablation_effects(noised, everyone, labels=labels, label_names=NAMES, sweep_options=options)
    top = effects.table.loc[effects.table["effect"].idxmax()]
    assert (top["layer"], top["neuron"]) == (1, 11) and top["low"] > 0
    assert effects.by_label is not None
    own = effects.by_label.query("layer == 1 and neuron == 11").set_index("label")["effect"]
    assert own["bright"] > top["effect"]
    assert "- neuron 1.11: " in effects.summary()
    assert effects.table["control"].isna().all(), "all neurons were named: no others are left"
    assert (tmp_path / "ledger" / "level-0.1").is_dir()
    loaded = vd.Result.load(effects.save(tmp_path / "effects"))
    assert isinstance(loaded, NeuronEffects) and loaded.summary() == effects.summary()
    assert len(loaded.plot()) == 2


def test_effects_are_those_of_plain_passes(labels: torch.Tensor) -> None:
    noised = noised_clips()
    effects = neurons.ablation_effects(
        noised, [(-1, 3), (0, 5), (1, 3)], labels=labels, label_names=NAMES, sweep_options={"progress": False}
    )
    assert effects.table[["layer", "neuron"]].to_numpy().tolist() == [[1, 3], [0, 5]] * 2
    every = everything(noised)
    assert effects.by_label is not None
    for row in effects.table.to_dict("records"):
        layer, level = row["layer"], LEVELS.index(row["level"])

        def without(neuron: int, layer: int = layer, level: int = level) -> vd.Ablate:
            site = f"blocks.{layer}.mlp.hook_post"
            return vd.Ablate(site, channels=[neuron], mode="mean", reference={site: every[layer, level]})

        intact = noised.x0(row["level"])
        changed = noised.x0(row["level"], without(row["neuron"]))
        truth = noised.latents[:, 3:]
        rise = ((changed - truth).square() - (intact - truth).square()) / noised.variance
        assert row["effect"] == pytest.approx(float(rise.mean()), abs=1e-6)
        assert row["low"] <= row["effect"] <= row["high"] and row["control"] <= row["control_high"]
        per_token = rise.mean(2).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        for label, name in enumerate(NAMES):  # noqa: B007 (the query knows it)
            has = labels[:, 3:] == label
            clips = [float(r[h].mean()) for r, h in zip(per_token, has, strict=True) if h.any()]
            part = effects.by_label.query("level == @row['level'] and layer == @layer and label == @name")
            assert part["effect"].item() == pytest.approx(np.mean(clips), abs=1e-6)
            assert part["n_clips"].item() == len(clips)
    assert effects.error["0.3"] == pytest.approx(float(noised.x0_error(0.3).mean()), abs=1e-6)


# What a neuron writes


def linear_change(
    pipe: vd.VideoDiffusion, given: dict[str, torch.Tensor], layer: int, neuron: int, token: int,
    held: dict[str, torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """How the x0 changes with one unit of activation when LayerNorm, modulation (`held`) and everyone later stay."""
    model = pipe.model
    hooks: list[Any] = [(name, lambda x, hook: held[hook.name].to(x).expand_as(x).clone()) for name in held]
    outs = [name for name in model.hook_dict if re.fullmatch(r"blocks\.\d+\.hook_(attn|mlp)_out", name)]
    outs = [name for name in outs if int(name.split(".")[1]) > layer]
    with torch.no_grad(), model.hooks(hooks):
        with model.record([*outs, "hook_pred"]) as recording:
            before = pipe.denoise(*given)
        kept = recording[0]

        def add(post: torch.Tensor, hook: Any) -> None:
            post[:, token, neuron] += 1

        later = [(name, lambda x, hook: kept[hook.name].clone()) for name in outs]
        with model.hooks([(f"blocks.{layer}.mlp.hook_post", add), *later]):
            return pipe.denoise(*given) - before


@pytest.mark.parametrize("objective", ["v", "eps"])
@pytest.mark.parametrize("kind", ["3d", "normed", "table", "space_time"])
def test_directions_are_the_models_own(kind: str, objective: str) -> None:
    level, layer, token = 0.6, 0, 25
    for settings in ({}, {"unpatch_order": "cpq", "norm_affine": True}):
        noised = noised_clips(kind, levels=(level,), objective=objective, **settings)
        pipe, grid = noised.pipe, noised.grid
        names = [name for name in noised.model.hook_dict if name.endswith((".mod.hook_scale", ".mod.hook_gate"))]
        norms = ["blocks.1.attn.ln.hook_scale", "blocks.1.mlp.ln.hook_scale", "final.ln.hook_scale"]
        cache = noised.cache(level, [*names, *norms], slice(0, 6))
        means = {name: cache[name][:, 3:].mean((0, 1), keepdim=True) for name in names}
        means |= {name: cache[name][:, 18:].mean((0, 1), keepdim=True) for name in norms}
        frame, row, col = grid.coordinates(token)
        for source, held in ((pipe, {name: torch.ones(()) for name in norms}), (noised, means)):
            found = neurons.write_directions(source, layer, level)
            assert found.shape == (N_NEURONS, 1, 2, 2)
            given = noised.inputs(level, slice(0, 1))
            if source is pipe:
                given = given._replace(cond=vd.NO_CONDITION)
            for neuron in (0, 17):
                change = linear_change(pipe, given, layer, neuron, token, held)[0]
                patch = change[frame, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
                torch.testing.assert_close(patch, found[neuron], atol=2e-5, rtol=2e-3)
                assert change.abs().sum() == pytest.approx(float(patch.abs().sum())), "nowhere else"


def test_directions_of_the_result_are_those_of_the_clips(result: NeuronResult) -> None:
    noised = noised_clips()
    for layer in (0, 1):
        for index, level in enumerate(LEVELS):
            expected = neurons.write_directions(noised, layer, level)
            torch.testing.assert_close(result.writes[layer, :, index], expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(result.pixel_map.flatten(3).flatten(0, 2), torch.eye(4) / 2)  # pixel = latent / 2 + 1/2
    pixels = torch.from_numpy(result.pixel_writes(1, 4))
    torch.testing.assert_close(pixels, result.writes[1, 4] / 2)


def test_directions_of_a_model_that_takes_text_by_hand() -> None:
    model = tiny_model("cross")
    pipe = vd.VideoDiffusion(model, None, vd.DiffusionConfig())
    k = torch.full((2, 3), 499)
    _, cache = model.run_with_cache(**{**inputs(model), "timestep": k}, names=["mod.gate", "final.mod.hook_scale"])
    row = model.sublayer(1, "mlp").W_out * cache["mod.gate", 1, "mlp"][0, 0]  # RMSNorm does not centre
    pred = (row * (1 + cache["final.mod.hook_scale"][0, 0])) @ model.final.linear.weight.T
    x0 = -pipe.schedule.sigma[499] * pred  # of a velocity
    expected = x0.view(28, 2, 2, 2).permute(0, 3, 1, 2)  # pqc
    torch.testing.assert_close(neurons.write_directions(pipe, -1, 0.5), expected.detach(), atol=1e-6, rtol=1e-4)


# A model with a VAE


def test_patches_of_a_model_with_a_vae_are_cut_from_the_clips_own_video() -> None:
    pipe, clips = vd.load("tiny-crafter"), vd.data.sample_clips("crafter", n=4)
    noised = NoisedClips(pipe, clips, noise_levels=(0.5,), batch=3)
    names = vd.data.crafter.SEMANTIC
    found = neurons.top_patches(noised, n_patches=4, labels=clips.labels["semantic_map"], label_names=names)
    assert found.grid == (8, 7, 9) and found.frames.shape[1:] == (56, 72, 3)
    assert found.writes.shape == (4, 384, 1, 8, 1, 1) and found.pixel_map.shape == (8, 1, 1, 3, 8, 8)
    clip, frame = found.patches[2, 7, 0, :2].tolist()
    pixels = (clips.video[clip, frame] * 255).round().byte().permute(1, 2, 0)
    assert torch.equal(found.frames[found.picture[2, 7, 0]], pixels)
    base = torch.zeros(1, 1, 8, 7, 9) + noised.latents.mean((0, 1, 3, 4))[:, None, None]
    moved = base.clone()
    moved[0, 0, 2, 3, 4] += 0.05
    change = (pipe.decode(moved) - pipe.decode(base))[0, 0, :, 24:32, 32:40]
    cosine = torch.cosine_similarity(change.flatten(), pixel_map(noised)[2, 0, 0].flatten(), 0)
    assert cosine > 0.9, "the decoder's own change, up to its curvature"


# Result, figures, page


def test_round_trip(result: NeuronResult, tmp_path: Path) -> None:
    effects = neurons.ablation_effects(
        noised_clips(), [(0, 1), (1, 2)], labels=patterns()[1], label_names=NAMES, sweep_options={"progress": False}
    )
    full = result.with_effects(effects)
    assert full.effects is not None and full.effects["label_effect"].notna().all() and len(full.effects) == 4
    for one in (result, full, neurons.top_patches(noised_clips(), n_patches=2)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        loaded = vd.Result.load(one.save(folder))
        assert isinstance(loaded, NeuronResult) and loaded.summary() == one.summary()
        for field in fields(NeuronResult):
            before, after = getattr(one, field.name), getattr(loaded, field.name)
            if isinstance(before, torch.Tensor):
                torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)
            elif isinstance(before, pd.DataFrame):
                pd.testing.assert_frame_equal(before, after)
            else:
                assert before == after
        assert loaded.to_html() == one.to_html()
        for caption, figure in loaded.plot().items():
            assert caption and figure.layout.title.text
    vd.report.write(full, tmp_path / "report")


def test_figures_of_chosen_neurons(result: NeuronResult) -> None:
    figures = result.plot([(1, 3), (0, 27)])
    titles = list(figures)
    assert [word.split()[0] for word in titles] == ["Selectivity", "Patches", "Mean", "Sparsity:"]
    assert list(figures[titles[0]].data[0].y) == ["1.3", "0.27"]
    assert figures[titles[1]].layout.yaxis.ticktext[0] == f"1.3 {result.table['label'][N_NEURONS + 3]}"
    assert [figure.data[0].type for figure in result.plot([]).values()] == ["scatter"]
    assert len(result.most_selective(2, "grey")) == 2
    with pytest.raises(ValueError, match="no label 'red'; there are dark, grey, bright"):
        result.most_selective(label="red")


def test_a_patch_stands_beside_its_frame() -> None:
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[2:4, 4:6] = 200
    drawn = beside(frame, (1, 2), (2, 2), 3)
    assert drawn.shape == (12, 12 + 2 + 18, 3)
    assert (drawn[:, :12] == 200).all(), "the patch, as high as the frame"
    assert (drawn[11, 14 + 12 : 32] == BOX).all() and (drawn[2, 14:20] == 0).all()
    with pytest.raises(ValueError, match=r"'a': patch \(0, 2, 0\); 1 frames of \(2, 3\) patches"):
        patch_strip(frame[None], {"a": [(0, 2, 0)]}, grid=(2, 3), title="t")
    with pytest.raises(ValueError, match="no patch to show"):
        patch_strip(frame[None], {"a": []}, grid=(2, 3), title="t")


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="browser-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_holds_everything_and_asks_for_nothing(result: NeuronResult, tmp_path: Path) -> None:
    path = result.to_html(tmp_path / "sub" / "neurons.html")
    page = path.read_text("utf-8")
    assert not re.search(r"https?://|<link[^>]+href=\"(?!data:)|<script[^>]+src|@import|url\(", page)
    data = page_data(page)
    assert len(data["patches"]) == 56 and {len(patches) for patches in data["patches"]} == {5}
    assert data["info"]["left_out"] == 0 and data["info"]["levels"] == ["clean", "0.3", "0.9"]
    frame, cell, activation, level, label = data["patches"][30][1]
    row = result.top(1, 2).iloc[1]
    assert data["frames"][frame] == [row["clip"], row["frame"]] and cell == row["row"] * 3 + row["col"]
    assert activation == pytest.approx(row["activation"], rel=5e-3) and NAMES[label] == row["label"]
    assert data["info"]["levels"][level] == ("clean" if row["level"] == 0 else f"{row['level']:g}")
    few = page_data(result.to_html(neurons=[(1, 2), (0, 3)]))
    assert few["neurons"]["layer"] == [1, 0] and few["patches"][0][1][2] == activation


def test_a_page_too_large_leaves_out_the_least_active_patches(
    result: NeuronResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdinterp.analysis.neurons.page.PER_ROW", 2)
    whole = result.to_html()
    least = page_data(whole)
    best = {patches[0][0] for patches in least["patches"]}
    size = len(whole.encode()) - 100
    data = page_data(result.to_html(max_bytes=size))
    assert data["info"]["left_out"] > 0 and len(data["sheets"]) < len(least["sheets"])
    assert all(patches for patches in data["patches"]) and len(data["frames"]) >= len(best)
    with pytest.raises(ValueError, match=r"more than 30,000 bytes: choose fewer neurons=.*max_bytes="):
        result.to_html(max_bytes=30_000)
    with pytest.raises(ValueError, match="no neuron was chosen"):
        result.to_html(neurons=[])


def test_frames_beyond_the_budget_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MOST_PIXELS", 8 * 4 * 6 * 3)
    found = neurons.top_patches(noised_clips(), n_patches=5)
    assert len(found.frames) == 8 and (found.picture == -1).any() and (found.picture[..., 0] >= 0).any()
    assert len(found.plot()) == 3


@pytest.mark.skipif(chromium() is None, reason="no Chromium: install one, or name it in $CHROMIUM")
def test_the_page_in_a_browser(result: NeuronResult, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    effects = neurons.ablation_effects(
        noised_clips(), [(0, 1)], labels=patterns()[1], label_names=NAMES, sweep_options={"progress": False}
    )
    path = result.with_effects(effects).to_html(tmp_path / "neurons.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 800})
        shown = Opened(page, [], [])
        page.on("request", lambda request: shown.requests.append(request.url))
        page.on("console", lambda message: shown.complaints.append(message.text))
        page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        page.goto(path.as_uri())
        first = result.table.loc[result.table["selectivity"].round(2).idxmax()]
        assert page.locator("h2").inner_text() == f"Neuron {first['layer']}.{first['neuron']}"
        page.locator(".patches canvas[data-drawn]").nth(9).wait_for()
        assert page.locator(".patches figure").count() == 5
        page.get_by_label("Layer").select_option("1")
        assert page.locator(".found").inner_text() == "28 of 56 neurons"
        page.get_by_role("button", name="largest").click()
        top = result.table[result.table["layer"] == 1].nlargest(2, "top")["neuron"].tolist()
        assert page.locator(".room .row").first.inner_text().split()[0] == f"1.{top[0]}"
        page.locator(".room .row").first.click()
        page.locator(".list").press("ArrowDown")
        assert page.locator("h2").inner_text() == f"Neuron 1.{top[1]}"
        page.get_by_label("Layer").select_option("")
        page.get_by_label("Selectivity for").select_option("1")
        page.get_by_label("Neuron", exact=True).fill("0.1")
        page.locator(".room .row", has_text=re.compile(r"^0\.1\D")).click()
        assert page.locator("h2").inner_text() == "Neuron 0.1"
        assert page.get_by_text("rise of x0 error").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 1400
        shown.check(path)
        browser.close()


# What does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_patches": 0}, r"n_patches=0: 1\.\.180, the number of patches there are"),
        ({"n_patches": 181}, r"n_patches=181: 1\.\.180"),
        ({"layers": [2]}, r"no MLP in layer 2: tiny-3d has MLPs in layers \[0, 1\]"),
        ({"layers": []}, r"layers=\[\]: tiny-3d has MLPs in layers \[0, 1\]"),
        ({"label_names": ["a"]}, "label_names without labels"),
        (
            {"labels": torch.zeros(6, 5, 2, 3)},
            r"labels are integers \[clip frame row col\] = \[6, 5, 2, 3\], got torch.f",
        ),
        (
            {"labels": torch.zeros(6, 4, 2, 3, dtype=torch.long)},
            r"values \[6, 4, 2, 3\]: give \[clip frame ..\] = \[6 5 ..\]",
        ),
        ({"labels": torch.zeros(6, 5, 4, 6, dtype=torch.long)}, r"these clips have \[6, 5, 2, 3\] .* tokens"),
        ({"labels": torch.full((6, 5, 2, 3), -1)}, r"labels are in \[-1, -1\]"),
        ({"labels": torch.full((6, 5, 2, 3), 2), "label_names": ["a", "b"]}, r"labels are in \[2, 2\] and there are 2"),
        ({"labels": torch.zeros(6, 5, 2, 3, dtype=torch.long), "label_names": ["a", "a"]}, "with a name of its own"),
        ({"labels": torch.zeros(6, 5, 2, 3, dtype=torch.long), "label_names": ["none"]}, "other than 'none'"),
    ],
)
def test_bad_input_is_named_before_any_compute(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noised = noised_clips()
    monkeypatch.setattr(noised.model, "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        neurons.top_patches(noised, **options)


def test_bad_neurons_levels_and_sources_are_named() -> None:
    noised = noised_clips()
    for chosen, message in [
        ([], "no neurons were named"),
        ([3], r"neuron 3: give pairs \(layer, neuron\)"),
        ([(0, 28)], r"neuron \(0, 28\): tiny-3d has neurons 0\.\.27 a layer"),
        ([(2, 0)], "no MLP in layer 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            neurons.ablation_effects(noised, chosen)  # type: ignore[arg-type]
    for function in (neurons.top_patches, lambda pipe: neurons.ablation_effects(pipe, [(0, 0)])):
        with pytest.raises(ValueError, match=r"noised is VideoDiffusion; give vd\.NoisedClips\(pipe, clips"):
            function(noised.pipe)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"level 0\.5: these clips are noised at 0\.3, 0\.9"):
        neurons.write_directions(noised, 0, 0.5)
    with pytest.raises(ValueError, match=r"level 1\.5: noise levels are in \(0, 1\]"):
        neurons.write_directions(noised.pipe, 0, 1.5)
    with pytest.raises(ValueError, match="source is str; give a pipeline"):
        neurons.write_directions("tiny-crafter", 0, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no MLP in layer 7"):
        neurons.write_directions(noised.pipe, 7, 0.5)


def test_activations_that_are_not_finite_are_refused() -> None:
    noised = noised_clips()
    noised.model.sublayer(1, "mlp").fc1.bias.data[3] = torch.nan
    with pytest.raises(ValueError, match="layer 1: its MLP's activations are not all finite"):
        neurons.top_patches(noised)


def test_effects_of_another_model_are_refused(result: NeuronResult) -> None:
    other = NeuronEffects(table=pd.DataFrame({"level": [0.3]}), error={}, meta={"model": "other"})
    with pytest.raises(ValueError, match="effects of other, neurons of tiny-3d"):
        result.with_effects(other)


def test_one_clip_has_no_control() -> None:
    found = neurons.top_patches(noised_clips(n=1), labels=patterns(1)[1])
    assert found.control.isnan().all() and found.selectivity.isfinite().any()
    assert found.label_names == ["0", "1", "2"] and found.to_html()


def test_a_label_of_no_or_every_token_has_no_selectivity() -> None:
    found = neurons.top_patches(noised_clips(), labels=torch.ones(6, 5, 2, 3, dtype=torch.long), label_names=["a", "b"])
    assert found.selectivity.isnan().all() and set(found.table["label"]) == {"none"}
    assert found.most_selective() == [] and found.to_html() and "The most selective" not in found.summary()
    assert len(found.plot()) == 1
