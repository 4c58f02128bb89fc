"""Steering, scaling, other attention, other positions, other conditions: each hits its part, identities hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import KINDS, inputs, tiny_model

import vdinterp as vd
from vdinterp.conditions import Conditions
from vdinterp.interventions import (
    Ablate,
    Custom,
    Freeze,
    Intervention,
    MaskAttention,
    Patch,
    RotateRope,
    SetCondition,
    SetNoiseLevel,
    Steer,
    TransferAttention,
)
from vdinterp.models import Rope

Z = "blocks.0.attn.hook_z"
ROTATED = ["rot_q", "rot_k"]


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


@torch.no_grad()
def under(model: Any, *interventions: Intervention, names: Any = "hook_pred", seed: int = 1, **more: Any) -> Any:
    """The cache of a run with these interventions."""
    with model.intervene(*interventions):
        return model.run_with_cache(**{**inputs(model, seed=seed), **more}, names=names)[1]


# Identities


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_nothing_is_bitwise_nothing(kind: str) -> None:
    model = tiny_model(kind)
    same: dict[str, Any] = {"timestep": model.timestep(torch.full((2, 3), 0.3))}
    bare = under(model, **same)["hook_pred"]
    identities: list[Intervention] = [
        Ablate(["resid_post", "z", "mod.gate"], "scaled", factor=1.0),
        Steer("resid_post", torch.randn(20), strength=0.0),
        SetNoiseLevel(0.3),
        SetNoiseLevel(torch.tensor([0.3, 0.3, 0.3]), frames=[1]),
    ]
    if model.cfg.d_action:
        cond = inputs(model)["cond"]
        identities += [SetCondition(cond), SetCondition(cond[:, :3], frames=[0, 2])]
    if model.cfg.rope:
        identities.append(RotateRope("frame", shift=0))
    for one in identities:
        assert torch.equal(under(model, one, **same)["hook_pred"], bare), one


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_of_the_same_run_changes_nothing(kind: str) -> None:
    model = tiny_model(kind)
    source = under(model, names=ROTATED)
    pattern = under(model, names=["attn.pattern"])
    bare = under(model)["hook_pred"]
    for one in (
        TransferAttention(source),
        TransferAttention(source, layers=[1], heads=[0]),
        TransferAttention(source, frames=[1], heads=[1]),
        TransferAttention(source, tokens=[4, 7]),
        TransferAttention(pattern),
    ):
        close(under(model, one)["hook_pred"], bare, 3e-6)


# Steering and scaling


@torch.no_grad()
def test_steering_adds_exactly_there() -> None:
    model, direction = tiny_model(), torch.randn(20)
    site = "blocks.0.hook_resid_post"
    bare = under(model, names=site)[site]
    found = under(model, Steer(site, direction, 2.5, tokens=[3, 9]), names=site)[site]
    expected = bare.clone()
    expected[:, [3, 9]] += 2.5 * direction
    close(found, expected)
    every_token = torch.randn(18, 20)
    close(under(model, Steer(site, every_token), names=site)[site], bare + every_token)
    channel = torch.tensor([1.0, 0.0])  # of the latents
    found = under(model, Steer("hook_pred", channel, frames=[2]))["hook_pred"] - under(model)["hook_pred"]
    frames, channels = (found != 0).nonzero()[:, 1:3].T
    assert frames.unique().tolist() == [2] and channels.unique().tolist() == [0]
    half = under(model, Ablate(Z, "scaled", factor=0.5, heads=[1]), names=Z)[Z]
    plain = under(model, names=Z)[Z]
    assert torch.equal(half[:, :, 1], plain[:, :, 1] * 0.5) and torch.equal(half[:, :, 0], plain[:, :, 0])


# Attention of another run


@torch.no_grad()
@pytest.mark.parametrize("kind", ["3d", "space_time", "causal", "table"])
@pytest.mark.parametrize("where", [{}, {"frames": [1]}, {"tokens": [2, 11, 12]}], ids=str)
def test_transferred_attention_meets_own_values(kind: str, where: dict[str, Any]) -> None:
    """z of chosen rows is the source's pattern times this run's values, for the chosen head."""
    model, layer = tiny_model(kind), 1
    kinds = [f"blocks.{layer}.attn.hook_{what}" for what in ("pattern", "v", "z")]
    pattern, v, z = kinds
    source = under(model, names=[*ROTATED], seed=9)
    theirs = under(model, names=pattern, seed=9)[pattern]
    own = under(model, names=kinds)
    mixed = own[pattern].clone()
    chosen = Freeze(pattern, 7.5, heads=[1], **where)
    rows = under(model, chosen, names=pattern)[pattern] == 7.5
    mixed = torch.where(rows, theirs, own[pattern])
    attention, grid = model.sublayer(layer), model.grid()
    groups = mixed.flatten(0, 1) if mixed.ndim == 5 else mixed
    expected = attention._unfold(groups @ attention._fold(own[v], grid), grid)
    for given in (source, {pattern: theirs}):
        found = under(model, TransferAttention(given, layers=[layer], heads=[1], **where), names=z)[z]
        close(found, expected, 1e-5)
    assert (expected - own[z]).abs().max() > 1e-2


@torch.no_grad()
def test_a_mask_travels_with_the_attention() -> None:
    model = tiny_model()
    masked = MaskAttention("own_frame", heads=[1])
    source = under(model, masked, names=[*ROTATED, Z], seed=9)
    assert ("mask", 0) in source
    for one in (TransferAttention(source), TransferAttention(source, frames=range(3))):
        found = under(model, one, names="pattern")
        for layer in range(2):
            close(found["pattern", layer], source["pattern", layer].materialize(), 1e-5)
    lonely = under(model, TransferAttention(source, heads=[0]), names="pattern")["pattern", 0]
    own = under(model, names="pattern")["pattern", 0]
    close(lonely[:, 1], own[:, 1])


def test_a_pattern_that_a_hook_changed_must_be_recorded() -> None:
    model = tiny_model()
    change = Custom(("pattern", 0), lambda pattern, hook: pattern.flip(-1))
    source = under(model, change, names=ROTATED)
    with pytest.raises(ValueError, match=r"A hook changed blocks.0.attn.hook_pattern.*record 'blocks.0"):
        TransferAttention(source)
    TransferAttention(source, layers=[1])
    recorded = under(model, change, names=[*ROTATED, "pattern"])
    found = under(model, TransferAttention(recorded), names="pattern")["pattern", 0]
    assert torch.equal(found, recorded["pattern", 0])


def test_no_pattern_is_made_for_whole_attention() -> None:
    model = tiny_model()
    source = under(model, names=ROTATED, seed=9)
    names = {name.rpartition("_")[2] for name, _ in TransferAttention(source).hooks(model)}
    assert names == {"q", "k"}
    rows = {name.rpartition("_")[2] for name, _ in TransferAttention(source, tokens=[1]).hooks(model)}
    assert rows == {"pattern"}


# Rotary position


@torch.no_grad()
@pytest.mark.parametrize("way", ["shifted", "frozen", "permuted"])
def test_positions_move_for_chosen_heads_and_frames(way: Any) -> None:
    model = tiny_model()
    bare = under(model, names=ROTATED)
    moved = under(model, RotateRope("col", way, layers=[0], heads=[1], frames=[2]), names=ROTATED)
    for name in ROTATED:
        differs = (bare[name, 0] != moved[name, 0]).any(-1).any(0)  # pos head
        if way == "shifted" and name == "rot_k":
            assert not differs.any()
            continue
        assert not differs[:, 0].any() and not differs[:12].any()
        assert differs[12:, 1].tolist() == [way != "frozen", True, True] * 2  # frozen: column 0 stays where it is
    close(bare["rot_q", 0].norm(dim=-1), moved["rot_q", 0].norm(dim=-1), 1e-5)


@torch.no_grad()
def test_shifts_add_up_and_every_rotating_layer_is_meant() -> None:
    model = tiny_model("space_time")
    twice = under(model, RotateRope("row", shift=1), RotateRope("row", shift=1), names=ROTATED)
    once = under(model, RotateRope("row", shift=2), names=ROTATED)
    close(twice["rot_q", 0], once["rot_q", 0], 1e-5)
    back = under(model, RotateRope("row", shift=2), RotateRope("row", shift=-2))["hook_pred"]
    close(back, under(model)["hook_pred"], 1e-5)
    assert {name for name, _ in RotateRope("row").hooks(model)} == {"blocks.0.attn.hook_rot_q"}
    assert {name for name, _ in RotateRope("frame").hooks(model)} == {"blocks.1.attn.hook_rot_q"}


# Conditions


@torch.no_grad()
@pytest.mark.parametrize("kind", ["3d", "causal", "table"])
def test_another_noise_level_is_that_of_another_call(kind: str) -> None:
    model = tiny_model(kind)
    given = inputs(model)
    told = {**given, "timestep": given["timestep"].clone()}
    if kind == "causal":
        told["timestep"], given["timestep"] = (told["timestep"].float() for _ in range(2))
    told["timestep"][:, 1] = model.timestep(0.077)
    found = under(model, SetNoiseLevel(0.077, frames=[1]), timestep=given["timestep"])
    assert torch.equal(found["hook_pred"], model(**told))
    per_frame = torch.tensor([0.005, 0.006, 0.007])
    told["timestep"] = model.timestep(per_frame).expand(2, 3)
    assert torch.equal(under(model, SetNoiseLevel(per_frame))["hook_pred"], model(**told))
    own = torch.tensor([[0.5, 0, 0.7], [0.8, 0.9, 1]])
    told["timestep"] = model.timestep(own)
    assert torch.equal(under(model, SetNoiseLevel(own))["hook_pred"], model(**told))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["table", "space_time"])
def test_another_action_is_that_of_another_call(kind: str) -> None:
    model = tiny_model(kind)
    given, other = inputs(model), inputs(model, seed=8)["cond"]
    del given["cond"]

    def call(cond: Any, **more: Any) -> torch.Tensor:
        return model(**given, cond=cond, **more)

    own = inputs(model)["cond"]
    for action, cond in ((other, other), (other[0], other[:1].expand(2, -1, -1)), (None, None)):
        assert torch.equal(under(model, SetCondition(action))["hook_pred"], call(cond))
        assert torch.equal(under(model, SetCondition(action), cond=None)["hook_pred"], call(cond))
    assert torch.equal(under(model, SetCondition(other[0, 0]))["hook_pred"], call(other[:1, :1].expand(2, 3, -1)))
    some = own.clone()
    some[:, 2] = other[:, 2]
    assert torch.equal(under(model, SetCondition(other, frames=[2]))["hook_pred"], call(some))
    dropped = torch.tensor([True, False])
    masked = under(model, SetCondition(other), cond=Conditions(actions=own, dropped=dropped))["hook_pred"]
    assert torch.equal(masked, call(Conditions(actions=other, dropped=dropped)))
    branches = {name: x.repeat(2, *[1] * (x.ndim - 1)) for name, x in inputs(model).items()}
    repeated = under(model, SetCondition(other), **branches)
    close(repeated["hook_pred"], call(other).repeat(2, 1, 1, 1, 1), 1e-5)  # other batches round differently


@torch.no_grad()
def test_action_and_noise_level_together_in_any_order() -> None:
    model = tiny_model("table")
    given = {**inputs(model), "cond": inputs(model, seed=8)["cond"], "timestep": torch.full((2, 3), 39)}
    for order in (1, -1):
        both = [SetNoiseLevel(0.04), SetCondition(given["cond"])][::order]
        assert torch.equal(under(model, *both)["hook_pred"], model(**given))


@torch.no_grad()
def test_another_action_under_guidance_leaves_the_unconditional_branch() -> None:
    pipe = vd.VideoDiffusion(tiny_model("table"), None, vd.DiffusionConfig())
    context = inputs(pipe.model)["latents"][:, :1]
    own, other = (inputs(pipe.model, seed=seed)["cond"] for seed in (1, 8))
    same: dict[str, Any] = {"steps": 2, "guidance": vd.ClassifierFreeGuidance(2.0)}
    expected = pipe.sample(context, cond=other, **same).latents
    found = pipe.sample(context, cond=own, interventions=[SetCondition(other)], **same).latents
    close(found, expected, 1e-5)
    part = SetCondition(other, steps=[0], noise_levels=[1])
    assert not torch.allclose(pipe.sample(context, cond=own, interventions=[part], **same).latents, expected)


# Names of runs


def test_runs_by_name() -> None:
    model = tiny_model()
    caches = {"clean": under(model, seed=9, names=[Z, *ROTATED])}
    sites = [f"blocks.{layer}.attn.hook_{what}" for layer in range(2) for what in ("rot_q", "rot_k")]
    for named, needed in (
        (Patch(Z, "clean", heads=[1]), [Z]),
        (Ablate(Z, "mean", "clean", frames=[0]), [Z]),
        (TransferAttention("clean"), sites),
        (TransferAttention("clean", tokens=[3], layers=[1]), sites[2:]),
    ):
        assert named.run_names == ("clean",) and named.sites_of_run(model) == {"clean": needed}
        with pytest.raises(ValueError, match=r"'clean' is the name of a run of a sweep; give a cache"):
            named.hooks(model)
        with pytest.raises(KeyError, match=r"'clean' is no run of these; there are 'other'"):
            named.bind({"other": caches["clean"]})
        bound = named.bind(caches)
        assert bound.run_names == () and bound.sites_of_run(model) == {} and bound.bind({}) is bound
        field = named.RUNS[0]
        assert getattr(bound, field) is caches["clean"] and getattr(named, field) == "clean"
        given = type(named)(**{**{name: getattr(named, name) for name in vars(named)}, field: caches["clean"]})
        assert torch.equal(under(model, bound)["hook_pred"], under(model, given)["hook_pred"])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Patch(Z, "clean", heads=[4]).sites_of_run(model)
    with pytest.raises(ValueError, match="layers 3"):
        TransferAttention("clean", layers=[3]).sites_of_run(model)


# Composition


@torch.no_grad()
def test_interventions_on_one_site_apply_in_order() -> None:
    model = tiny_model()
    plain = under(model, names=Z)[Z]
    freeze, double = Freeze(Z, 3.0, heads=[0]), Ablate(Z, "scaled", factor=2.0)
    for order, first in (((freeze, double), 6.0), ((double, freeze), 3.0)):
        found = under(model, *order, names=Z)[Z]
        assert (found[:, :, 0] == first).all() and torch.equal(found[:, :, 1], plain[:, :, 1] * 2)
    source = under(model, names=ROTATED, seed=9)
    masked = under(model, TransferAttention(source), MaskAttention("own_frame"), names="pattern")["pattern", 0]
    theirs = under(model, MaskAttention("own_frame"), names="pattern", seed=9)["pattern", 0]
    close(masked, theirs, 1e-5)  # a mask that is set in this run holds for transferred attention


# Refusals

CACHE = {f"blocks.{layer}.attn.hook_rot_{what}": torch.ones(1, 18, 2, 12) for layer in (0, 1) for what in "qk"}


@pytest.mark.parametrize(
    ("kind", "make", "error", "message"),
    [
        ("3d", lambda: Ablate("z", "scaled"), ValueError, "go together"),
        ("3d", lambda: Ablate("z", factor=2.0), ValueError, "go together"),
        ("3d", lambda: Ablate("z", "scaled", factor=float("nan")), ValueError, "finite number"),
        ("3d", lambda: Ablate("z", reference="clean"), ValueError, "could mean any of 'mean', 'resample' and 'frozen'"),
        ("3d", lambda: Ablate("z", reference=dict(CACHE)), ValueError, "without mode= could mean"),
        ("3d", lambda: Ablate("z", "zero", reference=dict(CACHE)), ValueError, "'zero' uses no other run"),
        ("3d", lambda: Ablate("z", "scaled", {}, factor=2), ValueError, "'scaled' uses no other run"),
        ("3d", lambda: Ablate("z", "mean", reference=3), ValueError, "reference is 3"),
        ("3d", lambda: Patch("z", ""), ValueError, "name of a run"),
        ("3d", lambda: Patch("z", None), ValueError, "needs source"),
        ("3d", lambda: Patch("z", "clean"), ValueError, "name of a run of a sweep"),
        ("3d", lambda: Freeze("z", torch.ones(5)), ValueError, "does not broadcast"),
        ("3d", lambda: Freeze("z", "one"), ValueError, "a number or a tensor"),
        ("3d", lambda: Steer("z", torch.ones(5)), ValueError, "does not broadcast"),
        ("3d", lambda: Steer("z", torch.ones(12) * torch.inf), ValueError, "NaN or infinity"),
        ("3d", lambda: Steer("z", [1.0]), ValueError, "floating point tensor"),
        ("3d", lambda: Steer("z", torch.ones(12), "much"), ValueError, "strength='much'"),
        ("3d", lambda: Steer("hook_pred", torch.ones(6)), ValueError, "does not broadcast"),
        ("3d", lambda: TransferAttention(None), ValueError, "needs source"),
        ("3d", lambda: TransferAttention({}), KeyError, "hook_rot_q"),
        ("3d", lambda: TransferAttention({**CACHE}, layers=[2]), ValueError, "layers 2"),
        ("3d", lambda: TransferAttention({**CACHE}, heads=[2]), ValueError, r"0\.\.1"),
        ("3d", lambda: TransferAttention({**CACHE}, frames=[3]), ValueError, r"0\.\.2"),
        ("3d", lambda: TransferAttention({**CACHE}, tokens=[18]), ValueError, r"tokens are 0\.\.17"),
        ("3d", lambda: TransferAttention({**CACHE}, tokens=3), ValueError, "give a list"),
        ("3d", lambda: TransferAttention({k: v[..., :5] for k, v in CACHE.items()}), ValueError, "another model"),
        ("3d", lambda: RotateRope("time"), ValueError, "Unknown axis='time'; choose one of frame, row, col"),
        ("3d", lambda: RotateRope("row", "turned"), ValueError, "Unknown way='turned'"),
        ("3d", lambda: RotateRope("row", "frozen", shift=2), ValueError, "leave shift=2 out"),
        ("3d", lambda: RotateRope("row", seed=3), ValueError, "'shifted' draws nothing; leave seed=3 out"),
        ("3d", lambda: RotateRope("row", seed=-1), ValueError, "seed must be"),
        ("3d", lambda: RotateRope("row", layers=[5]), ValueError, "layers 5"),
        ("3d", lambda: RotateRope("row", heads=[5]), ValueError, r"0\.\.1"),
        ("table", lambda: RotateRope("row"), ValueError, "rotate nothing along 'row'.*: none"),
        ("space_time", lambda: RotateRope("row", layers=[0, 1]), ValueError, r"layers \[1\] rotate nothing"),
        ("3d", lambda: SetNoiseLevel(float("inf")), ValueError, "shares of noise"),
        ("3d", lambda: SetNoiseLevel(torch.zeros(1, 1, 3)), ValueError, r"give one, \[frame\] or"),
        ("3d", lambda: SetNoiseLevel(0.3, frames=[3]), ValueError, r"0\.\.2"),
        ("3d", lambda: SetCondition(torch.zeros(3)), ValueError, "takes no actions"),
        ("3d", lambda: SetCondition(None), ValueError, "takes no actions"),
        ("table", lambda: SetCondition(torch.zeros(4)), ValueError, "actions of width 3"),
        ("table", lambda: SetCondition([0.0]), ValueError, "action is list"),
        ("table", lambda: SetCondition(torch.zeros(3) * torch.nan), ValueError, "NaN"),
        ("table", lambda: SetCondition(torch.zeros(3), frames=[3]), ValueError, r"0\.\.2"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(kind: str, make: Any, error: type[Exception], message: str) -> None:
    model = tiny_model(kind)
    before = [("hook_patch_embed", lambda x, hook: pytest.fail("it was accepted"))]
    with pytest.raises(error, match=message), model.intervene(make()):
        model.run_with_hooks(**inputs(model), fwd_hooks=before)
    assert not model.has_live_hooks


def test_a_grid_of_one_column_has_nowhere_to_move() -> None:
    model = tiny_model(patch_size=(1, 2, 6))
    with pytest.raises(ValueError, match="this clip has one col; to move"), model.intervene(RotateRope("col")):
        model(**inputs(model))
    model = tiny_model(rope={"3d": Rope(dims=(0, 6, 6))})
    with pytest.raises(ValueError, match="rotate nothing along 'frame'"):
        RotateRope("frame").hooks(model)


@torch.no_grad()
def test_refused_when_they_meet_the_clip() -> None:
    model = tiny_model("table")
    for one, message in (
        (SetCondition(torch.zeros(2, 3)), "action is given for 2 frames; this clip has 3"),
        (SetCondition(torch.zeros(3, 3, 3)), "3 clips of 3 frames"),
        (SetNoiseLevel(torch.zeros(2)), "level is given for 2 frames"),
        (TransferAttention(under(model, names=ROTATED, **short(model))), "stored activation is"),
        (TransferAttention(under(model, names=ROTATED, **short(model)), frames=[0]), "stored activation is"),
    ):
        with pytest.raises(ValueError, match=message), model.intervene(one):
            model(**inputs(model))
    assert not model.has_live_hooks
    turning = tiny_model()
    with pytest.raises(ValueError, match="this clip has one frame"), turning.intervene(RotateRope("frame")):
        turning(**inputs(turning, n_frames=1))


def short(model: Any) -> dict[str, torch.Tensor]:
    return inputs(model, n_frames=2)
