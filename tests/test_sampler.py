"""Denoising steps and the sampler: the reference's trajectories, and exact answers where there are any."""

from __future__ import annotations

import math

import pytest
import torch
from sampling_goldens import GUIDANCE, load_model, load_settings, load_tensors, replay

from vdinterp.diffusion import (
    ClassifierGuidance,
    DiffusionConfig,
    SeededNoise,
    denoise_step,
    full_sequence,
    initial_state,
    levels,
    make_schedule,
    pyramid,
    sample_steps,
    with_mask,
)

ATOL = 1e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_tensors()


@pytest.fixture(scope="module")
def model():
    return load_model()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The reference


def test_one_mixed_level_step_is_the_references(golden):
    schedule = make_schedule(DiffusionConfig())
    x = golden["step.x"]
    after, x0, eps = denoise_step(schedule, golden["step.v"], x, golden["step.cur"], golden["step.next"])
    for ours, name in ((after, "x_next"), (x0, "x0"), (eps, "eps")):
        torch.testing.assert_close(ours, golden[f"step.{name}"], atol=ATOL, rtol=0)
    still = golden["step.cur"] == golden["step.next"]
    assert still.any() and torch.equal(after[still], x[still])


@pytest.mark.parametrize("name", list(GUIDANCE))
def test_guided_trajectories_are_the_references(golden, model, name):
    settings = load_settings()
    schedule = make_schedule(DiffusionConfig())
    mask = golden[f"samp.{name}.mask"]
    guidance = GUIDANCE[name](**settings[name]["kw"])
    noise = replay(golden, settings, name)
    seen: list[torch.Tensor] = []
    levels_seen: list[torch.Tensor] = []

    def network(x, k, cond, step):
        seen.append(x)
        levels_seen.append(k)
        with torch.no_grad():
            return model(x, schedule.timestep(k))

    start = initial_state(schedule, golden["samp.context"], mask, noise)
    matrix = with_mask(full_sequence(5, 5, 1000), mask, 1000)
    states = list(sample_steps(network, schedule, start, mask, matrix, noise, [guidance]))
    assert all(state.n_branches == settings[name]["nfe"] for state in states)

    record = torch.stack([state.latents for state in states] + [states[-1].next_latents])
    torch.testing.assert_close(record, golden[f"samp.{name}.record"], atol=ATOL, rtol=0)
    torch.testing.assert_close(states[-1].next_latents, golden[f"samp.{name}.out"], atol=ATOL, rtol=0)

    def branch_major(stacked: torch.Tensor) -> torch.Tensor:  # the reference stacks clip by clip
        n = settings[name]["nfe"]
        return stacked.unflatten(1, (-1, n)).transpose(1, 2).flatten(1, 2)

    assert torch.equal(torch.stack(levels_seen), branch_major(golden[f"samp.{name}.from"]))
    torch.testing.assert_close(torch.stack(seen), branch_major(golden[f"samp.{name}.in_x"]), atol=ATOL, rtol=0)


# One step


def test_one_step_to_clean_is_x0():
    schedule = make_schedule(DiffusionConfig())
    x, pred = normal(2, 2, 3, 1, 4, 4)
    cur = torch.tensor([[999, 400, 0], [10, 700, 999]])
    after, x0, _ = denoise_step(schedule, pred, x, cur, torch.full_like(cur, -1))
    assert torch.equal(after, x0)


def test_ddim_walks_along_the_line_between_x0_and_noise():
    schedule = make_schedule(DiffusionConfig(objective="x0"))
    x0, noise = normal(2, 1, 2, 1, 3, 3)
    cur, nxt = torch.tensor([[800, 500]]), torch.tensor([[300, 499]])
    after, _, eps = denoise_step(schedule, x0, schedule.add_noise(x0, noise, cur), cur, nxt)
    torch.testing.assert_close(eps, noise, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after, schedule.add_noise(x0, noise, nxt), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_eta_one_is_ddpms_posterior(name):
    schedule = make_schedule(DiffusionConfig(objective="x0", schedule=name))
    x0, x, z = normal(3, 1, 3, 1, 2, 2)
    cur = torch.tensor([[1, 300, 900]])
    after, _, _ = denoise_step(schedule, x0, x, cur, cur - 1, eta=1.0, noise=z)
    k = cur[0]
    t = torch.arange(1001, dtype=torch.float64) / 1000
    squared = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    exact = {
        "cosine": (squared / squared[0])[1:],
        "linear": torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0),
    }[name]
    ab, before = exact[k], exact[k - 1]
    beta = 1 - ab / before
    mean = (before.sqrt() * beta / (1 - ab)).view(-1, 1, 1, 1) * x0[0]
    mean = mean + ((1 - beta).sqrt() * (1 - before) / (1 - ab)).view(-1, 1, 1, 1) * x[0]
    std = (beta * (1 - before) / (1 - ab)).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(after[0].double(), mean + std * z[0], atol=1e-5, rtol=1e-4)


def test_the_last_stochastic_step_adds_nothing():
    schedule = make_schedule(DiffusionConfig())
    pred, x, z = normal(3, 1, 1, 1, 2, 2)
    cur, clean = torch.tensor([[40]]), torch.tensor([[-1]])
    after, x0, _ = denoise_step(schedule, pred, x, cur, clean, eta=1.0, noise=z)
    assert torch.equal(after, x0)


def test_eps_predictions_are_clipped():
    schedule = make_schedule(DiffusionConfig(objective="eps", schedule="linear", clip=2.0))
    x = torch.zeros(1, 1, 1, 2, 2)
    _, _, eps = denoise_step(schedule, x + 100, x, torch.tensor([[500]]), torch.tensor([[400]]))
    assert torch.equal(eps, torch.full_like(x, 2.0))


def test_bad_steps_raise():
    schedule = make_schedule(DiffusionConfig())
    x = torch.zeros(1, 1, 1, 2, 2)
    low, high = torch.tensor([[10]]), torch.tensor([[20]])
    with pytest.raises(ValueError, match="cannot raise"):
        denoise_step(schedule, x, x, low, high)
    with pytest.raises(ValueError, match="pass noise"):
        denoise_step(schedule, x, x, high, low, eta=1.0)
    with pytest.raises(ValueError, match="eta must be"):
        denoise_step(schedule, x, x, high, low, eta=2.0)


# Whole runs


def run(network, mask, matrix, *, seed=0, context=None, config=None, **options):
    schedule = make_schedule(config or DiffusionConfig())
    batch, frames = mask.shape
    noise = SeededNoise(seed, [(i,) for i in range(batch)])
    context = torch.zeros(batch, frames, 1, 4, 4) if context is None else context
    start = initial_state(schedule, context, mask, noise)
    rows = with_mask(matrix, mask, schedule.config.n_levels)
    return list(sample_steps(network, schedule, start, mask, rows, noise, **options))


def test_a_perfect_network_gives_its_own_answer():
    truth = normal(1, 4, 1, 4, 4)
    schedule = make_schedule(DiffusionConfig())

    def network(x, k, cond, step):
        a, s = (c[..., None, None, None] for c in schedule.coefficients(k.clamp(min=0)))
        return (a * x - truth) / s

    mask = torch.tensor([[1, 0, 0, 0]])
    for matrix in (full_sequence(4, 7, 1000), pyramid(4, 7, 1000, 2.0)):
        states = run(network, mask, matrix, context=truth)
        torch.testing.assert_close(states[-1].next_latents, truth, atol=1e-5, rtol=0)


def test_context_and_padding_frames_never_change():
    mask = torch.tensor([[1, 0, 2, 0, -1], [0, 1, 0, 0, -1]])
    context = normal(2, 5, 1, 4, 4, seed=5)
    states = run(lambda x, k, cond, step: torch.sin(x) + 1, mask, full_sequence(5, 6, 1000), context=context)
    for state in states:
        assert torch.equal(state.next_latents[mask >= 1], context[mask >= 1])
        assert torch.equal(state.next_latents[mask == -1], states[0].latents[mask == -1])
        assert torch.equal(state.x0[mask >= 1], context[mask >= 1])
        assert not torch.equal(state.next_latents[mask == 0], state.latents[mask == 0])


def test_context_is_put_back_whatever_the_matrix_says():
    """Levels that fall for known and padding frames as well: they are still not what is generated."""
    schedule, mask = make_schedule(DiffusionConfig()), torch.tensor([[1, 0, 2, -1]])
    matrix = full_sequence(4, 5, 1000)[:, None]
    noise, context = SeededNoise(0, [(0,)]), normal(1, 4, 1, 4, 4, seed=5)
    start = initial_state(schedule, context, mask, noise)
    states = list(sample_steps(lambda x, k, c, step: torch.sin(x), schedule, start, mask, matrix, noise))
    assert len(states) == 5
    for state in states:
        assert torch.equal(state.next_latents[mask != 0], start[mask != 0])
        assert not torch.equal(state.next_latents[mask == 0], state.latents[mask == 0])


def test_finished_frames_become_generated_history():
    mask = torch.tensor([[1, 0, 0]])
    states = run(lambda x, k, cond, step: x, mask, pyramid(3, 3, 1000, 3.0))
    masks = [state.mask[0].tolist() for state in states]
    assert masks == [[1, 0, 0]] * 3 + [[1, 2, 0]] * 3
    done = states[2].next_latents[:, 1]
    assert torch.equal(states[-1].next_latents[:, 1], done)


def test_ddpm_recovers_the_datas_variance():
    """For unit-variance data the best v-prediction is 0, and ancestral sampling must keep the variance at 1."""
    mask = torch.zeros(64, 2, dtype=torch.long)
    states = run(lambda x, *_: torch.zeros_like(x), mask, full_sequence(2, 250, 1000), eta=1.0)
    final = states[-1].next_latents
    assert abs(float(final.var()) - 1) < 0.08
    assert abs(float((final * states[0].latents).mean())) < 0.1, "almost nothing is left of the initial noise"
    deterministic = run(lambda x, *_: torch.zeros_like(x), mask, full_sequence(2, 40, 1000))[-1].next_latents
    assert float((deterministic * states[0].latents).mean()) > 0.9, "with eta 0 everything is"


def test_classifier_guidance_samples_the_posterior():
    """Prior N(0, 1) and log p(y | x0) = g x0 + const: the posterior is N(g, 1), and p(y | x_k) is known exactly."""
    g = 1.5
    schedule = make_schedule(DiffusionConfig())
    guidance = ClassifierGuidance(
        lambda x, level: (schedule.coefficients(schedule.k(level))[0][..., None, None, None] * g * x).sum((1, 2, 3, 4))
    )
    mask = torch.tensor([[1, 0]]).repeat(32, 1)
    states = run(lambda x, *_: torch.zeros_like(x), mask, full_sequence(2, 250, 1000), guidances=[guidance])
    final = states[-1].next_latents
    assert torch.equal(final[:, 0], torch.zeros_like(final[:, 0])), "context is not pushed"
    assert abs(float(final[:, 1].mean()) - g) < 0.08
    assert abs(float(final[:, 1].var()) - 1) < 0.12


def test_classifier_guidance_needs_one_number_a_clip():
    mask = torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="log_prob must return"):
        run(lambda x, *_: x, mask, full_sequence(2, 2, 1000), guidances=[ClassifierGuidance(lambda x, k: x.sum())])


# Noise


def test_noise_of_a_clip_depends_on_its_key_only():
    shape = (3, 4, 1, 2, 2)
    three = SeededNoise(7, [(0,), (1,), (2,)])
    alone = SeededNoise(7, [(1,)])
    for draw in ("initial", "ancestral", "history"):
        arguments = {"initial": (), "ancestral": (3,), "history": (3, 1)}[draw]
        many = getattr(three, draw)(*arguments, shape)
        one = getattr(alone, draw)(*arguments, (1, *shape[1:]))
        assert torch.equal(many[1], one[0])
        assert not torch.equal(many[0], many[1])
    assert torch.equal(three.initial(shape), SeededNoise(7, [(0,), (1,), (2,)]).initial(shape))


def test_noise_draws_are_all_different():
    shape = (1, 1, 1, 4, 4)
    draws = [SeededNoise(seed, [key]).initial(shape) for seed in (0, 1) for key in ((0,), (1,), (0, 0), (0, 1), (1, 0))]
    source = SeededNoise(0, [(0,)])
    draws += [source.history(step, branch, shape) for step in range(2) for branch in range(2)]
    draws += [source.ancestral(step, shape) for step in range(2)]
    for i, a in enumerate(draws):
        assert not any(torch.equal(a, b) for b in draws[:i])
    sample = SeededNoise(0, [(i,) for i in range(400)]).initial((400, 1, 1, 4, 4))
    assert abs(float(sample.mean())) < 4 / math.sqrt(sample.numel()) and abs(float(sample.var()) - 1) < 0.1


def test_bad_seeds_raise():
    with pytest.raises(ValueError, match="seed must be"):
        SeededNoise(-1, [(0,)])
    with pytest.raises(ValueError, match="keyed for 1 clips"):
        SeededNoise(0, [(0,)]).initial((2, 1, 1, 2, 2))


def test_every_level_is_visited_when_steps_equal_levels():
    assert torch.equal(levels(10, 10), torch.arange(-1, 10))
