"""VideoDiffusion: encoding, denoising, sampling with interventions and recordings, windows, and bad input."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from sampling_goldens import GUIDANCE, load_model, load_settings, load_tensors, replay

from vdinterp.conditions import Conditions
from vdinterp.diffusion import (
    ClassifierFreeGuidance,
    DiffusionConfig,
    HistoryGuidance,
    SeededNoise,
    full_sequence,
    to_x0,
)
from vdinterp.interventions import Ablate, Custom
from vdinterp.models import BlockSpec, HookedVideoDiT, Rope, VideoDiTConfig
from vdinterp.pipeline import VideoDiffusion, interpolation_plan
from vdinterp.vae import IdentityVAE, LatentStats

CFG = VideoDiTConfig(
    model_name="tiny-random",
    d_model=24,
    n_layers=2,
    n_heads=2,
    d_head=12,
    d_mlp=48,
    in_channels=1,
    out_channels=1,
    patch_size=(1, 4, 4),
    n_frames=6,
    height=8,
    width=8,
    d_action=3,
    rope={"3d": Rope(dims=(4, 4, 4))},
)


def make_pipe(**diffusion) -> VideoDiffusion:
    model = HookedVideoDiT(CFG)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # gates start at zero, and a model that does nothing tests nothing
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    stats = LatentStats(mean=(0.5,), std=(0.5,))
    return VideoDiffusion(model.eval(), IdentityVAE(1), DiffusionConfig(**diffusion), stats)


@pytest.fixture(scope="module")
def pipe() -> VideoDiffusion:
    return make_pipe()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CONTEXT = normal(2, 2, 1, 8, 8, seed=1)


# Video to latents


def test_encode_and_decode_are_inverse(pipe):
    video = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = pipe.encode(video)
    torch.testing.assert_close(latents, video * 2 - 1)
    torch.testing.assert_close(pipe.decode(latents), video)
    assert float(pipe.decode(latents * 10).max()) == 1.0, "video stays in [0, 1]"


# Denoising


@pytest.mark.parametrize("objective", ["v", "x0", "eps"])
def test_denoise_gives_x0_whatever_the_objective(objective):
    pipe = make_pipe(objective=objective, schedule="linear")
    noisy, k = normal(2, 3, 1, 8, 8), torch.tensor([[-1, 499, 999], [0, -1, 20]])
    with torch.no_grad():
        x0 = pipe.denoise(noisy, pipe.schedule.level(k))
        pred = pipe.model(noisy, k.clamp(min=0))
    moving = k >= 0
    assert torch.equal(x0[~moving], noisy[~moving])
    alpha_bar = pipe.schedule.alpha_bar(k.clamp(min=0))
    expected = to_x0(objective, pred.clamp(-20, 20) if objective == "eps" else pred, noisy, alpha_bar)
    torch.testing.assert_close(x0[moving], expected[moving], atol=2e-4, rtol=1e-3)
    assert not torch.allclose(x0[moving], noisy[moving], atol=0.1)


def test_denoise_hands_continuous_networks_their_levels():
    pipe = make_pipe(schedule="cosine_simple_diffusion", precond_scale=0.125)
    seen = []
    with torch.no_grad(), pipe.model.hooks([("hook_pred", lambda pred, hook: None)]):
        forward = pipe.model.forward
        pipe.model.forward = lambda x, timestep, **kw: seen.append(timestep) or forward(x, timestep, **kw)  # type: ignore
        try:
            pipe.denoise(normal(1, 2, 1, 8, 8), torch.tensor([[0, 0.401]]))
        finally:
            del pipe.model.forward
    torch.testing.assert_close(seen[0], 0.125 * pipe.schedule.logsnr[torch.tensor([[0, 400]])])


@torch.no_grad()
def test_the_pipeline_runs_with_cache_hooks_and_interventions_in_noise_levels_and_x0(pipe):
    noisy, levels = normal(2, 2, 1, 8, 8), torch.tensor([[0, 0.7]] * 2)
    cond = normal(2, 2, 3, seed=4)
    expected = pipe.denoise(noisy, levels, cond)
    x0, cache = pipe.run_with_cache(noisy, levels, cond=cond, names=["resid_post", "z"])
    _, wanted = pipe.model.run_with_cache(noisy, pipe.timestep(levels), cond=cond, names=["resid_post", "z"])
    assert torch.equal(x0, expected) and set(cache) == set(wanted)
    assert all(torch.equal(cache[name], wanted[name]) for name in wanted)
    _, everything = pipe.run_with_cache(noisy, 0.7, cond, device="cpu")
    assert torch.equal(everything["resid_post", 0], pipe.run_with_cache(noisy, 0.7, cond)[1]["resid_post", 0])
    _, alone = pipe.run_with_cache(noisy[:1], 0.7, cond[:1], names_filter="z", remove_batch_dim=True)
    assert alone["z", 0].ndim == 3
    ablated = Ablate(("z", 1), heads=[0])
    with pipe.intervene(ablated):
        changed = pipe.denoise(noisy, levels, cond)
    assert not torch.equal(changed, expected)
    with pipe.hooks(ablated.hooks(pipe.model)):
        assert torch.equal(pipe.denoise(noisy, levels, cond), changed)
    assert torch.equal(pipe.run_with_hooks(noisy, levels, cond=cond, fwd_hooks=ablated.hooks(pipe.model)), changed)
    assert torch.equal(pipe.run_with_hooks(noisy, levels, cond), expected)
    with pytest.raises(ValueError, match="names= and names_filter= are the same"):
        pipe.run_with_cache(noisy, 0.7, names="z", names_filter="z")
    with pytest.raises(ValueError, match="remove_batch_dim=True with 2 clips"):
        pipe.run_with_cache(noisy, 0.7, remove_batch_dim=True)
    assert not pipe.model.has_live_hooks


def test_denoise_lets_gradients_through(pipe):
    noisy = normal(1, 2, 1, 8, 8).requires_grad_(True)
    pipe.denoise(noisy, torch.tensor([[0, 0.7]]))[0, 1].sum().backward()
    assert noisy.grad is not None and float(noisy.grad[0, 0].abs().sum()) > 0, "the clean frame matters too"


def test_add_noise_is_the_schedules(pipe):
    x, noise = normal(1, 2, 1, 8, 8), normal(1, 2, 1, 8, 8, seed=2)
    assert torch.equal(
        pipe.add_noise(x, torch.tensor([[0, 0.301]]), noise),
        pipe.schedule.add_noise(x, noise, torch.tensor([[-1, 300]])),
    )
    assert torch.equal(pipe.add_noise(x, 0.3, noise), pipe.add_noise(x, torch.full((1, 2), 0.3), noise))
    assert torch.equal(pipe.denoise(x, 0.3), pipe.denoise(x, torch.full((1, 2), 0.3)))


# Sampling


@pytest.mark.parametrize("name", ["stabilized_vanilla", "interp"])
def test_sample_reproduces_the_reference(name):
    golden, settings = load_tensors(), load_settings()
    pipe = VideoDiffusion(load_model(), None, DiffusionConfig())
    result = pipe.sample(
        golden["samp.context"],
        5,
        steps=5,
        mask=golden[f"samp.{name}.mask"],
        guidance=GUIDANCE[name](**settings[name]["kw"]),
        noise=replay(golden, settings, name),
        keep_states=True,
    )
    torch.testing.assert_close(result.latents, golden[f"samp.{name}.out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(result.states, golden[f"samp.{name}.record"], atol=1e-5, rtol=0)


def test_sampling_is_deterministic_by_seed(pipe):
    first, again, other = (pipe.sample(CONTEXT, steps=4, seed=seed).latents for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first[:, :2], CONTEXT) and torch.equal(other[:, :2], CONTEXT)
    assert not torch.allclose(first[:, 2:], other[:, 2:], atol=0.1)
    assert first.shape == (2, 6, 1, 8, 8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_clip_does_not_depend_on_the_batch_it_is_in(pipe, eta):
    guidance = HistoryGuidance.vanilla(1.5)
    options = {"steps": 4, "seed": 5, "guidance": guidance, "eta": eta}
    both = pipe.sample(CONTEXT, **options).latents
    second = pipe.sample(CONTEXT[1:], first_index=1, **options).latents
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[1:], pipe.sample(CONTEXT[1:], **options).latents, atol=1e-2)


def test_noise_can_be_given(pipe):
    seeded = SeededNoise(0, [(0,), (1,)]).initial((2, 6, 1, 8, 8))
    given = pipe.sample(CONTEXT, steps=3, seed=99, noise=seeded).latents
    assert torch.equal(given, pipe.sample(CONTEXT, steps=3, seed=0).latents)
    source = pipe.sample(CONTEXT, steps=3, noise=SeededNoise(0, [(0,), (1,)])).latents
    assert torch.equal(given, source)


def test_weight_one_guidance_changes_nothing_bitwise(pipe):
    plain = pipe.sample(CONTEXT, steps=3).latents
    assert torch.equal(plain, pipe.sample(CONTEXT, steps=3, guidance=HistoryGuidance.vanilla(1.0)).latents)


def test_one_step_is_the_models_x0(pipe):
    result = pipe.sample(CONTEXT, steps=1, keep_states=True)
    noise_levels = torch.tensor([[0, 0, 1.0, 1, 1, 1]] * 2)
    with torch.no_grad():
        assert torch.equal(result.latents, pipe.denoise(result.states[0], noise_levels))


@pytest.mark.parametrize("matrix", ["full_sequence", "autoregressive", "pyramid", "trapezoid"])
def test_matrices(pipe, matrix):
    states = list(pipe.iterate(CONTEXT, steps=3, matrix=matrix, uncertainty=1.0))
    assert bool((states[-1].next_levels == 0).all())
    assert len(states) == {"full_sequence": 3, "autoregressive": 12, "pyramid": 6, "trapezoid": 5}[matrix]
    for before, after in pairwise(states):
        assert torch.equal(before.next_latents, after.latents)
        assert torch.equal(before.next_levels, after.noise_levels)


def test_a_matrix_of_ones_own(pipe):
    levels = pipe.schedule.level(full_sequence(6, 3, 1000))
    own = pipe.sample(CONTEXT, matrix=levels).latents
    assert torch.equal(own, pipe.sample(CONTEXT, steps=3).latents)


def test_any_mask(pipe):
    clip = normal(1, 6, 1, 8, 8)
    result = pipe.sample(clip, 6, steps=3, mask=[0, 1, 0, 0, 2, 0])
    assert torch.equal(result.latents[:, [1, 4]], clip[:, [1, 4]])
    assert not torch.allclose(result.latents[:, [0, 2, 3, 5]], clip[:, [0, 2, 3, 5]], atol=0.1)


def test_from_nothing(pipe):
    result = pipe.sample(batch=3, n_frames=6, steps=2)
    assert result.latents.shape == (3, 6, 1, 8, 8)
    assert result.video.shape == (3, 6, 1, 8, 8) and 0 <= float(result.video.min()) <= float(result.video.max()) <= 1


def test_short_clips_are_padded_with_noise_unless_told_otherwise(pipe):
    grids = {}
    for pad in (None, True, False):
        state = next(pipe.iterate(CONTEXT, 4, steps=2, pad=pad, record="resid_post"))
        assert state.latents.shape[1] == state.noise_levels.shape[1] == 4
        grids[pad] = state.cache["resid_post", 0].shape[1] // 4
    assert grids == {None: 6, True: 6, False: 4}
    causal = VideoDiTConfig.from_dict({**CFG.to_dict(), "period": [{"causal_block": 1}]})
    state = next(
        VideoDiffusion(HookedVideoDiT(causal), None, DiffusionConfig()).iterate(
            CONTEXT, 4, steps=2, record="resid_post"
        )
    )
    assert state.cache["resid_post", 0].shape[1] // 4 == 4


def test_actions_matter_and_can_be_guided(pipe):
    cond = normal(2, 6, 3)
    plain = pipe.sample(CONTEXT, steps=3).latents
    acted = pipe.sample(CONTEXT, steps=3, cond=cond).latents
    assert not torch.allclose(plain, acted, atol=1e-2)
    dropped = pipe.sample(CONTEXT, steps=3, cond=Conditions(actions=cond, dropped=torch.tensor([True, False]))).latents
    torch.testing.assert_close(dropped[1], acted[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(dropped[0], acted[0], atol=1e-2)
    guided = pipe.sample(CONTEXT, steps=3, cond=cond, guidance=ClassifierFreeGuidance(1.0)).latents
    assert torch.equal(guided, acted)
    # padding frames repeat the last action
    short = pipe.sample(CONTEXT, 4, steps=2, cond=cond[:, :4]).latents
    full = torch.cat([cond[:, :4], cond[:, 3:4], cond[:, 3:4]], 1)
    assert torch.equal(short, pipe.sample(CONTEXT, 4, steps=2, cond=full).latents)


# Interventions and recordings


def test_hooks_see_step_and_noise_levels(pipe):
    seen = []
    spy = Custom("blocks.0.attn.hook_z", lambda z, hook: seen.append((hook.ctx["step"], hook.ctx["noise_levels"])) or z)
    states = list(pipe.iterate(CONTEXT, steps=3, interventions=[spy]))
    assert [step for step, _ in seen] == [0, 1, 2]
    for (_, levels), state in zip(seen, states, strict=True):
        assert torch.equal(levels, state.noise_levels)
    assert not pipe.model.hook_dict["blocks.0.attn.hook_z"].ctx, "nothing is left behind"
    assert not pipe.model.has_live_hooks


def test_interventions_act_at_their_steps_only(pipe):
    ablate = Ablate("blocks.1.attn.hook_z", heads=[0])
    plain = list(pipe.iterate(CONTEXT, steps=4))
    late = list(pipe.iterate(CONTEXT, steps=4, interventions=[ablate], at_steps=[2]))
    for step in (0, 1):
        assert torch.equal(plain[step].next_latents, late[step].next_latents)
    assert not torch.equal(plain[2].next_latents, late[2].next_latents)
    assert torch.equal(
        pipe.sample(CONTEXT, steps=4, interventions=[ablate], at_steps=range(10)).latents,
        pipe.sample(CONTEXT, steps=4, interventions=[ablate]).latents,
    )


def test_identity_interventions_are_inert(pipe):
    identity = Custom("z", lambda z, hook: z)
    guidance = HistoryGuidance.vanilla(2.0)
    plain = pipe.sample(CONTEXT, steps=3, guidance=guidance).latents
    hooked = pipe.sample(CONTEXT, steps=3, guidance=guidance, interventions=[identity], record=["resid_post", "z"])
    assert torch.equal(plain, hooked.latents)
    assert list(hooked.record) == [0, 1, 2]
    assert hooked.record[1]["z", 0].shape[0] == 4, "both branches of both clips"


def test_what_is_recorded_is_what_happened(pipe):
    states = list(pipe.iterate(CONTEXT, steps=3, record=["resid_post", "z"]))
    for state in states:
        with torch.no_grad():
            _, cache = pipe.model.run_with_cache(
                state.latents, pipe.timestep(state.noise_levels), names=["resid_post", "z"]
            )
        assert set(cache) == set(state.cache)
        for name in cache:
            assert torch.equal(cache[name], state.cache[name])


def test_recordings_show_the_intervention(pipe):
    ablate = Ablate("blocks.1.attn.hook_z", heads=[0])
    result = pipe.sample(CONTEXT, steps=2, interventions=[ablate], at_steps=[1], record="z")
    assert float(result.record[0]["z", 1][:, :, 0].abs().max()) > 0
    assert float(result.record[1]["z", 1][:, :, 0].abs().max()) == 0
    assert float(result.record[1]["z", 1][:, :, 1].abs().max()) > 0


def test_iterating_holds_one_cache_at_a_time(pipe):
    alive: list[weakref.ref] = []
    for state in pipe.iterate(CONTEXT, steps=4, record="resid_post"):
        alive.append(weakref.ref(state.cache))
        del state
        gc.collect()
    assert len(alive) == 4 and all(ref() is None for ref in alive)


def test_an_interrupted_run_leaves_nothing_behind(pipe):
    def fail(z, hook):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        pipe.sample(CONTEXT, steps=2, interventions=[Custom("z", fail)], record="z")
    assert not pipe.model.has_live_hooks
    assert not pipe.model.hook_dict["hook_cond"].ctx


# Windows


def test_a_rollout_within_one_window_is_sampling(pipe):
    assert torch.equal(
        pipe.rollout(CONTEXT, 6, steps=3, seed=4).latents, pipe.sample(CONTEXT, 6, steps=3, seed=4).latents
    )


def test_rollout_windows_overlap(pipe):
    seen = []
    spy = Custom("hook_pred", lambda pred, hook: seen.append((hook.ctx["noise_levels"][0] == 0).tolist()) or pred)
    cond = normal(2, 11, 3)
    result = pipe.rollout(CONTEXT, 11, overlap=3, steps=1, cond=cond, interventions=[spy], record="hook_cond")
    assert result.latents.shape == (2, 11, 1, 8, 8) and torch.equal(result.latents[:, :2], CONTEXT)
    # 2 known + 4 new, 3 known + 3 new, 3 known + 2 new + 1 of padding
    assert seen == [[True] * 2 + [False] * 4, [True] * 3 + [False] * 3, [True] * 3 + [False] * 3]
    assert list(result.record) == [(0, 0), (1, 0), (2, 0)]
    again = pipe.rollout(CONTEXT[1:], 11, overlap=3, steps=1, cond=cond[1:], first_index=1).latents
    torch.testing.assert_close(again, result.latents[1:], atol=1e-4, rtol=0)  # batches of 1 and 2 round differently


def test_rollout_gives_each_window_its_actions_and_its_own_noise(pipe):
    cond = normal(1, 9, 3)
    whole = pipe.rollout(CONTEXT[:1], 9, overlap=3, steps=2, cond=cond)
    changed = cond.clone()
    changed[:, 8] += 5
    other = pipe.rollout(CONTEXT[:1], 9, overlap=3, steps=2, cond=changed)
    assert torch.equal(whole.latents[:, :6], other.latents[:, :6])
    assert not torch.allclose(whole.latents[:, 6:], other.latents[:, 6:], atol=1e-3)


def test_generated_frames_are_generated_history_later_on(pipe):
    stabilized = HistoryGuidance.stabilized_conditional(0.3)
    plain, noisy = (pipe.rollout(CONTEXT, 9, overlap=2, steps=2, guidance=g).latents for g in (None, stabilized))
    assert torch.equal(plain[:, :6], noisy[:, :6]), "the first window has ground truth only"
    assert not torch.allclose(plain[:, 6:], noisy[:, 6:], atol=1e-3)


@pytest.mark.parametrize(
    ("known", "window", "rounds"),
    [
        ([1, 0, 0, 1], 4, [[[0, 1, 2, 3]]]),
        ([1, 0, 1, 0, 1], 5, [[[0, 1, 2, 3, 4]]]),  # two small gaps share a window
        ([1, 0, 1, 0, 1], 4, [[[0, 1, 2], [2, 3, 4]]]),
        ([1] + [0] * 8 + [1], 4, [[[0, 3, 6, 9]], [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]]),
        ([1, 1, 1], 4, []),
    ],
)
def test_interpolation_plans(known, window, rounds):
    assert interpolation_plan([bool(k) for k in known], window) == rounds


@pytest.mark.parametrize("n_frames", [3, 6, 10, 17, 33])
@pytest.mark.parametrize("window", [3, 6])
def test_interpolation_plans_fill_every_frame_once(n_frames, window):
    filled = {0, n_frames - 1}
    for chunks in interpolation_plan([True] + [False] * (n_frames - 2) + [True], window):
        new: list[int] = []
        for frames in chunks:
            assert len(frames) <= window and frames == sorted(set(frames))
            assert {frames[0], frames[-1]} <= filled, "every window hangs between known frames"
            new += [frame for frame in frames if frame not in filled]
        assert len(new) == len(set(new)) > 0
        filled |= set(new)
    assert filled == set(range(n_frames))


def test_interpolate_keeps_what_is_known(pipe):
    clip = normal(2, 14, 1, 8, 8)
    known = torch.zeros(14, dtype=torch.bool)
    known[[0, 6, 13]] = True
    result = pipe.interpolate(clip, known, steps=2, record="hook_cond")
    assert torch.equal(result.latents[:, known], clip[:, known])
    assert not torch.allclose(result.latents[:, ~known], clip[:, ~known], atol=0.1)
    other = clip.clone()
    other[:, ~known] = 7.0
    assert torch.equal(pipe.interpolate(other, known, steps=2).latents, result.latents), (
        "unknown frames are not looked at"
    )
    alone = pipe.interpolate(clip[1:], known, steps=2, first_index=1).latents
    torch.testing.assert_close(alone, result.latents[1:], atol=1e-5, rtol=1e-5)


def test_interpolate_within_one_window_takes_any_mask(pipe):
    clip = normal(1, 6, 1, 8, 8)
    known = [False, True, False, True, False, False]
    result = pipe.interpolate(clip, known, steps=2).latents
    assert torch.equal(result, pipe.sample(clip, 6, steps=2, mask=[0, 1, 0, 1, 0, 0]).latents)
    assert torch.equal(pipe.interpolate(clip, steps=2).latents[:, [0, 5]], clip[:, [0, 5]]), (
        "by default the first and last frames are known"
    )


# Bad input, always before any compute


@pytest.fixture
def untouchable(pipe, monkeypatch):
    """A pipeline whose model must not run."""

    def forward(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(pipe.model, "forward", forward)
    return pipe


CLIP = normal(2, 6, 1, 8, 8)
K = torch.zeros(2, 6)
BAD = {
    "channels": (lambda p: p.denoise(CLIP.expand(-1, -1, 3, -1, -1), K), "do not fit tiny-random"),
    "height": (lambda p: p.denoise(CLIP[..., :3, :], K), "of 3x8 do not divide into tiny-random's 4x4 patches"),
    "rank": (lambda p: p.denoise(CLIP[0], K), "do not fit tiny-random"),
    "8 bit": (lambda p: p.denoise(CLIP.byte(), K), "pipe.encode"),
    "levels shape": (lambda p: p.denoise(CLIP, K[:, 0]), "noise levels of shape"),
    "levels range": (lambda p: p.denoise(CLIP, K + 1000), r"shares of noise in \[0, 1\] .*got 1000$"),
    "whole levels": (lambda p: p.denoise(CLIP, K.long() + 949), r"got 949; level k = 949 of 1000 is 0\.95"),
    "one whole level": (lambda p: p.add_noise(CLIP, 949, CLIP), r"level k = 949 of 1000 is 0\.95"),
    "clean as it was": (lambda p: p.denoise(CLIP, K.long() - 1), r"level k = -1 of 1000 is 0$"),
    "cond frames": (lambda p: p.denoise(CLIP, K, cond=torch.zeros(2, 5, 3)), "one action a frame"),
    "cond width": (lambda p: p.sample(CONTEXT, cond=torch.zeros(2, 6, 4)), r"\[2, 6, 3\]"),
    "cond mask": (lambda p: p.sample(CONTEXT, cond=Conditions(dropped=torch.zeros(2))), "boolean"),
    "video range": (lambda p: p.encode(CLIP * 255), r"in \[0, 1\]"),
    "video dtype": (lambda p: p.encode(CLIP.byte()), "divide 8-bit video by 255"),
    "video rank": (lambda p: p.encode(CLIP[0]), "batch frame channel"),
    "frames": (lambda p: p.sample(CONTEXT, 1_000_001), "n_frames must be"),
    "no frames": (lambda p: p.sample(CONTEXT, 0), "n_frames must be"),
    "nothing to do": (lambda p: p.sample(CLIP), "nothing is left"),
    "all known": (lambda p: p.sample(CLIP, mask=[1] * 6), "no frame to generate"),
    "mask shape": (lambda p: p.sample(CLIP, mask=[1] * 5), "mask of shape"),
    "mask values": (lambda p: p.sample(CLIP, mask=[0, 0, 0, 0, 0, 5]), "mask values"),
    "mask alone": (lambda p: p.sample(mask=[0] * 6), "pass context with it"),
    "short masked context": (lambda p: p.sample(CONTEXT, mask=[0] * 6), "must have all 6 frames"),
    "batch": (lambda p: p.sample(CONTEXT, batch=3), "holds 2 clips"),
    "no batch": (lambda p: p.sample(batch=0), "batch must be"),
    "steps": (lambda p: p.sample(CONTEXT, steps=2000), "steps must be"),
    "matrix": (lambda p: p.sample(CONTEXT, matrix="diagonal"), "unknown scheduling matrix"),
    "own matrix": (lambda p: p.sample(CONTEXT, matrix=torch.zeros(3, 6)), "starts at pure noise"),
    "own matrix frames": (
        lambda p: p.sample(CONTEXT, matrix=torch.linspace(1, 0, 4)[:, None].expand(4, 5)),
        "with 6 frames",
    ),
    "eta": (lambda p: p.sample(CONTEXT, eta=1.5), "eta must be"),
    "seed": (lambda p: p.sample(CONTEXT, seed=-1), "seed must be"),
    "noise shape": (lambda p: p.sample(CONTEXT, noise=CONTEXT), "noise of shape"),
    "no condition": (lambda p: p.sample(CONTEXT, guidance=ClassifierFreeGuidance(2.0)), "needs a condition"),
    "history frame": (lambda p: p.sample(CONTEXT, guidance=HistoryGuidance.temporal([[2]], [1.0])), "does not exist"),
    "at_steps": (lambda p: p.sample(CONTEXT, steps=3, at_steps=[3]), "steps 0 to 2"),
    "float frames": (lambda p: p.rollout(CONTEXT, float("nan")), "n_frames must be a whole number"),
    "endless rollout": (lambda p: p.rollout(CONTEXT, 10**9), "n_frames must be a whole number in 1..100000"),
    "whole steps": (lambda p: p.sample(CONTEXT, steps=True), "steps must be"),
    "float steps": (lambda p: p.sample(CONTEXT, steps=2.0), "steps must be"),
    "seed text": (lambda p: p.sample(CONTEXT, seed="0"), "seed must be"),
    "first index": (lambda p: p.rollout(CONTEXT, 9, first_index=1.5), "first_index must be"),
    "many clips": (lambda p: p.sample(batch=10**9), "batch must be"),
    "eta text": (lambda p: p.sample(CONTEXT, eta="0"), "eta must be"),
    "uncertainty": (lambda p: p.sample(CONTEXT, matrix="pyramid", uncertainty=float("inf")), "uncertainty must be"),
    "whole matrix": (
        lambda p: p.sample(CONTEXT, matrix=full_sequence(6, 3, 1000)),
        r"scheduling matrix are shares of noise .* level k = 999 of 1000 is 1$",
    ),
    "half mask": (lambda p: p.sample(CLIP, mask=[0, 0, 0, 0, 0.5, 1]), "mask values are whole"),
    "whole window": (lambda p: p.rollout(CONTEXT, 9, window=True), "window must be"),
    "known frames": (lambda p: p.interpolate(CLIP, [0, 5, 1, 0, 0, 1]), "True or False for every frame"),
    "window": (lambda p: p.rollout(CONTEXT, 9, window=1), "window must be"),
    "overlap": (lambda p: p.rollout(CONTEXT, 9, overlap=6), "overlap must be"),
    "rollout length": (lambda p: p.rollout(CONTEXT, 2), "nothing is left"),
    "rollout mask": (lambda p: p.rollout(CONTEXT, 9, mask=[1]), "does not take"),
    "rollout cond": (lambda p: p.rollout(CONTEXT, 9, cond=torch.zeros(2, 6, 3)), r"\[2, 9, 3\]"),
    "nothing unknown": (lambda p: p.interpolate(CLIP, [True] * 6), "every frame is known"),
    "unknown end": (lambda p: p.interpolate(normal(1, 9, 1, 8, 8), [True] + [False] * 8), "first and last"),
    "known shape": (lambda p: p.interpolate(CLIP, [True] * 5), "known of shape"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_raises_before_any_compute(untouchable, case):
    call, says = BAD[case]
    with pytest.raises(ValueError, match=says):
        call(untouchable)


@pytest.mark.parametrize("options", [{"record": ["resid_psot"]}, {"interventions": [Ablate("blocks.7.attn.hook_z")]}])
def test_unknown_hooks_raise_before_any_compute(untouchable, options):
    with pytest.raises(KeyError, match="No hook is called"):
        untouchable.sample(CONTEXT, steps=2, **options)


def test_iterate_checks_at_once(untouchable):
    with pytest.raises(ValueError, match="steps must be"):
        untouchable.iterate(CONTEXT, steps=0)


def test_no_vae_no_video():
    pipe = VideoDiffusion(HookedVideoDiT(CFG), None, DiffusionConfig())
    with pytest.raises(ValueError, match="no VAE"):
        pipe.encode(torch.zeros(1, 1, 1, 8, 8))
    with pytest.raises(ValueError, match="no VAE"):
        pipe.decode(torch.zeros(1, 1, 1, 8, 8))


def test_block_spec_default_is_bidirectional():
    assert not BlockSpec().causal_block, "the padding rule rests on it"
