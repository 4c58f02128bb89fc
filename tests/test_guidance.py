"""Guidance: which branches there are, what they weigh, and the identities between them."""

from __future__ import annotations

import pytest
import torch

from vdinterp.conditions import NO_CONDITION, Conditions
from vdinterp.diffusion import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DiffusionConfig,
    HistoryGuidance,
    HistorySegment,
    SeededNoise,
    as_guidances,
    full_sequence,
    history_k,
    initial_state,
    make_branches,
    make_schedule,
    sample_steps,
    with_mask,
)

MASK = torch.tensor([[1, 2, 1, 0, 0, -1]])
ALL = {
    "conditional": HistoryGuidance.conditional(),
    "vanilla": HistoryGuidance.vanilla(2.5),
    "stabilized_conditional": HistoryGuidance.stabilized_conditional(0.02),
    "stabilized_vanilla": HistoryGuidance.stabilized_vanilla(3.0, 0.02),
    "fractional": HistoryGuidance.fractional(2.0, 0.3),
    "stabilized_fractional": HistoryGuidance.stabilized_fractional(2.0, 0.3, 0.02),
    "temporal": HistoryGuidance.temporal([[0, 1], [-1]], [1.0, 0.7]),
}


def table(guidance, mask=MASK, has_cond=False) -> list[tuple[float, list[int], bool]]:
    """Branches as (weight, levels of the history frames of the first clip, drops the condition)."""
    branches = make_branches(as_guidances(guidance, has_cond), mask, 1000, has_cond)
    return [(round(b.weight, 6), b.levels[0, mask[0] >= 1].tolist(), b.drop_cond) for b in branches]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conditional", [(1.0, [-1, -1, -1])]),
        ("vanilla", [(-1.5, [999] * 3), (2.5, [-1] * 3)]),
        ("stabilized_conditional", [(1.0, [-1, 19, -1])]),
        ("stabilized_vanilla", [(-2.0, [999] * 3), (3.0, [-1, 19, -1])]),
        ("fractional", [(-1.0, [999] * 3), (1.0, [-1] * 3), (1.0, [299] * 3)]),
        ("stabilized_fractional", [(-1.0, [999] * 3), (1.0, [-1, 19, -1]), (1.0, [299] * 3)]),
        ("temporal", [(-0.7, [999] * 3), (1.0, [-1, -1, 999]), (0.7, [999, 999, -1])]),
    ],
)
def test_branches(name, expected):
    assert [(weight, levels) for weight, levels, _ in table(ALL[name])] == expected


@pytest.mark.parametrize("name", list(ALL))
def test_weights_sum_to_one(name):
    assert sum(weight for weight, _, _ in table(ALL[name])) == pytest.approx(1)
    assert sum(
        weight for weight, _, _ in table([ALL[name], ClassifierFreeGuidance(3.0)], has_cond=True)
    ) == pytest.approx(1)


def test_only_the_masked_branch_drops_the_condition():
    assert [drop for _, _, drop in table(ALL["fractional"], has_cond=True)] == [True, False, False]
    kept = HistoryGuidance.fractional(2.0, 0.3, drop_cond=False)
    assert [drop for _, _, drop in table(kept, has_cond=True)] == [False, False, False]
    assert [drop for _, _, drop in table(ALL["fractional"], has_cond=False)] == [False, False, False]


def test_guidances_multiply():
    both = [HistoryGuidance.vanilla(3.0, drop_cond=False), ClassifierFreeGuidance(2.0)]
    assert table(both, has_cond=True) == [
        (2.0, [999] * 3, True),
        (-3.0, [-1] * 3, True),
        (-4.0, [999] * 3, False),
        (6.0, [-1] * 3, False),
    ]
    # where the branch without history drops the condition anyway, two of the four are one
    merged = table([HistoryGuidance.vanilla(3.0), ClassifierFreeGuidance(2.0)], has_cond=True)
    assert merged == [(-2.0, [999] * 3, True), (-3.0, [-1] * 3, True), (6.0, [-1] * 3, False)]


def test_without_history_all_branches_are_one():
    mask = torch.zeros(2, 4, dtype=torch.long)
    for name in ("conditional", "vanilla", "stabilized_vanilla", "fractional"):
        assert [weight for weight, _, _ in table(ALL[name], mask)] == [1.0]


def test_masks_may_differ_between_clips():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 2]])
    branches = make_branches([HistoryGuidance.temporal([[0], [-1]], [1.0, 1.0])], mask, 1000, False)
    history = [torch.where(mask >= 1, b.levels, 0).tolist() for b in branches]
    assert history == [
        [[999, 999, 0, 0], [999, 0, 0, 999]],
        [[-1, 999, 0, 0], [-1, 0, 0, 999]],
        [[999, -1, 0, 0], [999, 0, 0, -1]],
    ]


@pytest.mark.parametrize(("level", "k"), [(0.0, -1), (0.02, 19), (0.3, 299), (0.5, 499), (1.0, 999)])
def test_history_levels(level, k):
    assert history_k(level, 1000) == k


# Sampling under guidance, with a network whose every input matters


def network(x, k, cond, step):
    pooled = (torch.tanh(x) * (1 + k[..., None, None, None] / 1000)).mean(1, keepdim=True)
    out = torch.sin(x + pooled)
    if cond:
        acts = cond.actions.sum(-1)
        out = out + (acts if cond.dropped is None else acts * ~cond.dropped[:, None])[..., None, None, None]
    return out


def sample(guidance, *, cond=NO_CONDITION, mask=MASK, function=network, steps=6):
    schedule = make_schedule(DiffusionConfig())
    mask = mask.repeat(2, 1)
    noise = SeededNoise(3, [(0,), (1,)])
    context = torch.randn(2, mask.shape[1], 1, 3, 3, generator=torch.Generator().manual_seed(9))
    start = initial_state(schedule, context, mask, noise)
    rows = with_mask(full_sequence(mask.shape[1], steps, 1000), mask, 1000)
    guidances = as_guidances(guidance, bool(cond))
    states = list(sample_steps(function, schedule, start, mask, rows, noise, guidances, cond))
    return states[-1].next_latents


def test_weight_one_is_no_guidance_bitwise():
    plain = sample(None)
    assert torch.equal(sample(HistoryGuidance.conditional()), plain)
    assert torch.equal(sample(HistoryGuidance.vanilla(1.0)), plain)
    assert torch.equal(sample(HistoryGuidance.stabilized_vanilla(1.0, 0.0)), plain)
    assert torch.equal(sample(HistoryGuidance.fractional(1.0, 0.4)), plain)
    assert not torch.equal(sample(HistoryGuidance.vanilla(1.5)), plain)


def test_stabilization_touches_generated_history_only():
    truth_only = torch.tensor([[1, 1, 1, 0, 0, -1]])
    stabilized = HistoryGuidance.stabilized_conditional(0.3)
    assert torch.equal(sample(stabilized, mask=truth_only), sample(None, mask=truth_only))
    assert not torch.equal(sample(stabilized), sample(None))


def test_condition_guidance_identities():
    cond = Conditions(actions=torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(1)))
    dropped = torch.tensor([True, True])
    with_cond, without = sample(None, cond=cond), sample(None, cond=cond.drop(dropped))
    assert not torch.equal(with_cond, without)
    assert torch.equal(sample(ClassifierFreeGuidance(1.0), cond=cond), with_cond)
    assert torch.equal(sample(ClassifierFreeGuidance(0.0), cond=cond), without)
    assert torch.equal(without, sample(None))
    # clips whose condition is dropped anyway are not moved by guidance on it
    guided = sample(ClassifierFreeGuidance(2.0), cond=cond.drop(torch.tensor([True, False])))
    torch.testing.assert_close(guided[0], without[0])
    torch.testing.assert_close(guided[1], sample(ClassifierFreeGuidance(2.0), cond=cond)[1])
    assert not torch.allclose(guided[1], with_cond[1], atol=1e-3)


def test_predictions_are_combined_with_the_stated_weights():
    """One step to clean under vanilla guidance, by hand."""
    schedule = make_schedule(DiffusionConfig())
    noise = SeededNoise(3, [(0,), (1,)])
    mask = MASK.repeat(2, 1)
    context = torch.randn(2, 6, 1, 3, 3, generator=torch.Generator().manual_seed(9))
    x = initial_state(schedule, context, mask, noise)
    k = torch.where(mask >= 1, -1, 999)
    masked = torch.where((mask >= 1)[..., None, None, None], noise.history(0, 0, x.shape), x)
    clean_pred, masked_pred = network(x, k, NO_CONDITION, 0), network(masked, torch.full_like(k, 999), NO_CONDITION, 0)
    x0 = -(2.5 * clean_pred - 1.5 * masked_pred)  # v-prediction at a level without signal
    torch.testing.assert_close(
        sample(HistoryGuidance.vanilla(2.5), steps=1)[mask == 0], x0[mask == 0], atol=1e-5, rtol=0
    )


def test_branches_follow_one_another_in_the_batch():
    shapes = []

    def spy(x, k, cond, step):
        shapes.append((tuple(x.shape), tuple(cond.actions.shape), cond.dropped.tolist(), k[:, 0].tolist()))
        return network(x, k, cond, step)

    sample(HistoryGuidance.vanilla(2.0), cond=Conditions(actions=torch.ones(2, 6, 3)), function=spy, steps=1)
    assert shapes == [((4, 6, 1, 3, 3), (4, 6, 3), [True, True, False, False], [999, 999, -1, -1])]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HistoryGuidance.stabilized_conditional(1.2), r"in \[0, 1\]"),
        (lambda: HistorySegment(level=-0.1), r"in \[0, 1\]"),
        (lambda: HistoryGuidance.temporal([[0]], [1.0, 2.0]), "as many weights as segments"),
        (lambda: HistoryGuidance((), ()), "at least one"),
        (
            lambda: make_branches([HistoryGuidance.temporal([[3]], [1.0])], MASK, 1000, False),
            "history frame 3 does not",
        ),
        (
            lambda: make_branches([HistoryGuidance.temporal([[-4]], [1.0])], MASK, 1000, False),
            "history frame -4 does not",
        ),
        (lambda: as_guidances([ALL["vanilla"], ALL["fractional"]], False), "two history guidances"),
        (lambda: as_guidances([ClassifierFreeGuidance(2.0)] * 2, True), "two classifier-free"),
        (lambda: as_guidances(ClassifierFreeGuidance(2.0), False), "needs a condition"),
    ],
)
def test_bad_guidance_raises(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_something_else_is_no_guidance():
    with pytest.raises(ValueError, match="is no guidance"):
        as_guidances([2.0], False)  # type: ignore[list-item]


def test_classifier_guidance_scales_its_gradient():
    x, k = torch.randn(2, 3, 1, 2, 2), torch.zeros(2, 3)
    guidance = ClassifierGuidance(lambda x, k: -(x**2).sum((1, 2, 3, 4)) / 2, scale=3.0)
    torch.testing.assert_close(guidance.gradient(x, k), -3 * x)
    with torch.no_grad():
        torch.testing.assert_close(guidance.gradient(x, k), -3 * x)
