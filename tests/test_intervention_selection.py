"""Which part of an activation an intervention changes: tokens, frames at a noise level, directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from factories import inputs, tiny_model
from hypothesis import given, settings, strategies as st

import vdinterp as vd
from vdinterp.interventions import Ablate, Between, Custom, Freeze, MaskAttention, Patch, Steer

MODELS = {kind: tiny_model(kind) for kind in ("3d", "space_time")}
GRID = MODELS["3d"].grid()
SITES = [
    ("3d", "blocks.0.attn.hook_z"),
    ("3d", "blocks.1.hook_resid_post"),
    ("3d", "blocks.0.attn.hook_pattern"),
    ("space_time", "blocks.0.attn.hook_pattern"),
    ("space_time", "blocks.1.attn.hook_pattern"),
]


def changed_part(model: Any, site: str, **where: Any) -> torch.Tensor:
    """Boolean: what `Freeze` puts its value into."""
    with torch.no_grad(), model.intervene(Freeze(site, 7.5, **where)):
        _, cache = model.run_with_cache(**inputs(model, batch=1), names=site)
    return cache[site] == 7.5


def subsets(size: int) -> st.SearchStrategy[list[int] | None]:
    return st.none() | st.lists(st.integers(0, size - 1), min_size=1, unique=True)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SITES), subsets(3), subsets(2), subsets(3))
def test_tokens_are_frames_rows_and_columns(site: tuple[str, str], frames: Any, rows: Any, cols: Any) -> None:
    model, name = MODELS[site[0]], site[1]
    tokens = GRID.tokens(frames, rows, cols)
    listed = changed_part(model, name, tokens=tokens)
    assert torch.equal(listed, changed_part(model, name, frames=frames, rows=rows, cols=cols))
    both = changed_part(model, name, tokens=tokens, frames=frames, heads=[1] if "attn" in name else None)
    assert not (both & ~listed).any() and both.any()


def test_a_single_token() -> None:
    part = changed_part(MODELS["3d"], "blocks.0.attn.hook_z", tokens=[10], heads=[1])
    assert part[0, 10, 1].all() and part.sum() == 12
    part = changed_part(MODELS["space_time"], "blocks.1.attn.hook_pattern", tokens=[10])  # frame 1, place 4
    assert part[0, 4, :, 1].all() and part.sum() == 2 * 3


# Noise levels


@pytest.fixture(params=["3d", "space_time"])
def pipe(request: pytest.FixtureRequest) -> Iterator[vd.VideoDiffusion]:
    yield vd.VideoDiffusion(tiny_model(request.param, d_action=3), None, vd.DiffusionConfig())


@torch.no_grad()
@pytest.mark.parametrize("site", ["blocks.1.attn.hook_z", "blocks.0.mlp.mod.hook_gate", "hook_pred", "hook_cond"])
def test_only_frames_that_are_so_noisy(pipe: vd.VideoDiffusion, site: str) -> None:
    model, levels = pipe.model, torch.tensor([[0, 0.1, 0.9], [0.6, 0, 0.5]])
    noisy = inputs(model)["latents"]
    with model.record(site) as plain:
        pipe.denoise(noisy, levels)
    with model.intervene(Freeze(site, 7.5, noise_levels=Between(0.1, 0.5))), model.record(site) as recording:
        pipe.denoise(noisy, levels)
    expected = plain[0][site].unflatten(1, (3, -1)).clone()
    expected[0, 1], expected[1, 2] = 7.5, 7.5
    assert torch.equal(recording[0][site], expected.view(recording[0][site].shape))
    with pytest.warns(UserWarning, match="never acted"), model.intervene(Freeze(site, 7.5, noise_levels=[0.999])):
        assert torch.equal(pipe.denoise(noisy, levels), pipe.denoise(noisy, levels))
    assert "noise_levels" not in model.hook_pred.ctx
    with pytest.raises(ValueError, match="sampler or pipe"), model.intervene(Freeze(site, 7.5, noise_levels=[0.5])):
        model(noisy, pipe.timestep(levels))
    assert not model.has_live_hooks


@torch.no_grad()
def test_noise_levels_on_patterns_and_masks(pipe: vd.VideoDiffusion) -> None:
    """Of the queries' frames: rows of other queries stay."""
    model, levels = pipe.model, torch.tensor([[0, 0.1, 0.9], [0.6, 0, 0.5]])
    noisy, hit = inputs(model)["latents"], torch.tensor([[False, True, False], [False, False, True]])
    for layer in range(2):
        axis, site = model.cfg.blocks[layer].axis, f"blocks.{layer}.attn.hook_pattern"
        queries = {
            "3d": lambda x: x.repeat_interleave(6, 1)[:, None, :, None],
            "space": lambda x: x[:, :, None, None, None],
            "time": lambda x: x[:, None, None, :, None],
        }[axis](hit)
        with model.record(site) as plain:
            pipe.denoise(noisy, levels)
        with model.intervene(Freeze(site, 7.5, noise_levels=Between(0.1, 0.5))), model.record(site) as recording:
            pipe.denoise(noisy, levels)
        assert torch.equal(recording[0][site], plain[0][site].masked_fill(queries, 7.5))

        allow = "same_position" if axis == "space" else "own_frame"
        mask = MaskAttention(allow, layers=[layer], heads=[1], noise_levels=Between(0.1, 0.5))
        with model.intervene(mask), model.record(site) as masked:
            pipe.denoise(noisy, levels)
        found = masked[0][site]
        assert torch.allclose(found.masked_fill(queries, 0), plain[0][site].masked_fill(queries, 0), atol=1e-6)
        assert torch.equal(found.select(-3, 0), plain[0][site].select(-3, 0))  # the other head
        rows = found.select(-3, 1)[queries.expand_as(found).select(-3, 1)]
        assert (rows == 0).any() and rows.sum() == pytest.approx(rows.numel() / found.shape[-1], abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_masks_are_chosen_as_their_patterns_are(kind: str) -> None:
    model = MODELS[kind]
    for layer in range(2):

        def alone(mask: torch.Tensor, hook: Any) -> torch.Tensor:
            return mask & torch.eye(mask.shape[-1], dtype=torch.bool)

        names = [f"blocks.{layer}.attn.hook_pattern"]
        where = {"frames": [1], "tokens": range(3, 12), "heads": [1]}
        with torch.no_grad(), model.intervene(Custom(("mask", layer), alone, **where)):
            _, cache = model.run_with_cache(**inputs(model, batch=1), names=names)
        part = changed_part(model, names[0], **where).any(-1)
        assert torch.equal((cache[names[0]] == 1).any(-1), part | (cache[names[0]].count_nonzero(-1) == 1))
        assert part.any() and not part.all()


@torch.no_grad()
def test_noise_levels_while_sampling_are_those_of_each_branch() -> None:
    pipe = vd.VideoDiffusion(tiny_model("3d"), None, vd.DiffusionConfig())
    context = inputs(pipe.model, batch=1)["latents"][:, :1]
    steps: dict[str, Any] = {"steps": 4, "guidance": vd.HistoryGuidance.vanilla(2.0), "record": "hook_cond"}
    levels = Between(0.5, 1)
    with_levels = pipe.sample(context, interventions=[Freeze("hook_cond", 7.5, noise_levels=levels)], **steps)
    seen: list[torch.Tensor] = []
    look = Custom("hook_pred", lambda pred, hook: seen.append(hook.ctx["noise_levels"]) or pred)
    pipe.sample(context, interventions=[look], **steps)
    for step, here in enumerate(seen):
        assert here.shape == (2, 3) and (here[0] != here[1]).any()
        replaced = (with_levels.record[step]["hook_cond"] == 7.5).all(-1)
        assert torch.equal(replaced, here >= 0.5)


# Subspaces


@torch.no_grad()
@pytest.mark.parametrize("site", ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "hook_pred"])
def test_a_subspace_is_replaced_and_the_rest_stays(site: str) -> None:
    model = MODELS["3d"]
    width = {"blocks.0.hook_resid_post": 20, "blocks.1.attn.hook_z": 12, "hook_pred": 2}[site]
    axis = 2 if site == "hook_pred" else -1
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1 if width == 2 else 2, width, generator=generator) * 5
    basis = torch.linalg.qr(rows.T)[0].T
    runs = [model.run_with_cache(**inputs(model, seed=seed), names=site)[1] for seed in (1, 2)]
    x, source = (run[site].movedim(axis, -1) for run in runs)
    share = (lambda y: y @ basis.T @ basis)  # fmt: skip  # noqa: E731
    given_subspace = rows[0] if len(rows) == 1 else rows
    for intervention, expected in (
        (Ablate(site, subspace=given_subspace), x - share(x)),
        (Patch(site, runs[1], subspace=given_subspace), x + share(source - x)),
        (Ablate(site, "scaled", factor=0.5, subspace=given_subspace, frames=[1]), x - share(x) / 2),
    ):
        with model.intervene(intervention):
            _, cache = model.run_with_cache(**inputs(model), names=site)
        found = cache[site].movedim(axis, -1)
        if intervention.frames is not None:
            frames = slice(1, 2) if site == "hook_pred" else slice(6, 12)
            assert torch.equal(found[:, : frames.start], x[:, : frames.start])
            found, expected = found[:, frames], expected[:, frames]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with model.intervene(Patch(site, runs[0], subspace=given_subspace)):
        _, same = model.run_with_cache(**inputs(model), names=site)
    assert torch.equal(same[site], runs[0][site])


@torch.no_grad()
def test_the_whole_space_is_a_patch() -> None:
    model, site = MODELS["3d"], "blocks.0.hook_resid_post"
    _, source = model.run_with_cache(**inputs(model, seed=5), names=site)
    with model.intervene(Patch(site, source, subspace=torch.eye(20).flip(0) * 3)):
        _, cache = model.run_with_cache(**inputs(model), names=site)
    torch.testing.assert_close(cache[site], source[site], atol=1e-5, rtol=0)


# Refusals

E = torch.eye(12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablate("z", tokens=[18]), r"tokens \[18\] are outside these clips, whose tokens are 0\.\.17"),
        (lambda: Ablate("z", tokens=[]), "one or more"),
        (lambda: Ablate("mod.gate", tokens=[0]), "no tokens to choose"),
        (lambda: Ablate("hook_pred", tokens=[0]), "no tokens to choose"),
        (lambda: Ablate("z", tokens=[0, 1], frames=[1, 2]), r"no token lies in all of frames \[1, 2\], tokens"),
        (lambda: Ablate("z", noise_levels=[]), "one or more"),
        (lambda: Ablate("z", noise_levels=[-2]), r"noise_levels must be a number in \[0, 1\] .*, got -2"),
        (lambda: Ablate("z", noise_levels=[949]), r"level k of a model with K levels is \(k \+ 1\) / K\), got 949"),
        (lambda: Ablate("z", noise_levels=range(500, 1000)), r"\(k \+ 1\) / K\), got 500"),
        (lambda: Ablate("z", noise_levels=[True]), "got True"),
        (lambda: Ablate("z", noise_levels=0.7), "give a list"),
        (lambda: Ablate("z", noise_levels=Between(0.7, 0.2)), "between 0.7 and 0.2: there are none"),
        (lambda: Ablate("z", noise_levels=Between(0, 500)), "got 500"),
        (lambda: Ablate("z", subspace=[1.0]), "subspace is list"),
        (lambda: Ablate("z", subspace=E[0].long()), "floating point tensor"),
        (lambda: Ablate("z", subspace=torch.ones(11)), r"12 channels, so \[k 12\]"),
        (lambda: Ablate("z", subspace=E[:2] * torch.nan), "finite and not zero"),
        (lambda: Ablate("z", subspace=torch.zeros(12)), "finite and not zero"),
        (lambda: Ablate("z", subspace=torch.stack([E[0], E[1], E[0] + E[1]])), "span only 2 dimensions"),
        (lambda: Ablate("z", subspace=torch.randn(13, 12)), "its 13 directions span only 12"),
        (lambda: Ablate("pattern", subspace=E[0]), "no subspace to choose"),
        (lambda: Ablate("z", subspace=E[0], channels=[0]), "give one"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(make: Any, message: str) -> None:
    model = tiny_model()
    before = [("hook_patch_embed", lambda x, hook: pytest.fail("it was accepted"))]
    with pytest.raises(ValueError, match=message), model.intervene(make()):
        model.run_with_hooks(**inputs(model), fwd_hooks=before)
    assert not model.has_live_hooks


def test_no_frames_no_noise_levels() -> None:
    model = tiny_model("cross")
    for site in ("cross_attn.k", "cross_attn.v"):
        with pytest.raises(ValueError, match="no noise_levels to choose"):
            model.intervene(Steer(site, torch.ones(12), noise_levels=[0])).__enter__()
    with pytest.raises(ValueError, match=r"2 clips of 3 frames; their noise levels in hook.ctx are \[1, 3\]"):
        model.set_hook_ctx(noise_levels=torch.zeros(1, 3))
        model.run_with_hooks(**inputs(model), fwd_hooks=Ablate("z", noise_levels=[0]).hooks(model))
