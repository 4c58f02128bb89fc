"""The training loop: resuming, checkpoints, the average, the learning rate, bad input."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vdinterp.training.loop import checkpoint_path, fit, learning_rate, step_generator


class Killed(Exception):
    pass


class Net(nn.Module):
    """Has what can go wrong: a buffer, a parameter that only some steps use, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 1))
        self.sometimes = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


def make_loss(net: Net, seed: int = 0, die_at: int | None = None):
    def loss_at(step: int) -> torch.Tensor:
        if step == die_at:
            raise Killed
        x = torch.randn(16, 4, generator=step_generator(seed, step))
        out = net.body(x)[:, 0] + (net.sometimes if step % 3 else 0.0)
        return (out - x.sum(-1) * net.frozen).square().mean()

    return loss_at


def run(tmp_path, die_at=None, **changes):
    net = Net()
    settings = {
        "steps": 30,
        "lr": 1e-2,
        "warmup": 5,
        "save_every": 7,
        "keep": (0, 12, 30),
        "out_dir": tmp_path,
    } | changes
    return fit(net, make_loss(net, die_at=die_at), **settings)


def test_a_killed_and_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole")
    for die_at in (3, 17, 25):  # before the first save, twice between saves
        with pytest.raises(Killed):
            run(tmp_path / "parts", die_at=die_at)
    parts = run(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    for file in ("final.safetensors", "state-000030.safetensors", "checkpoints/step-00012.safetensors"):
        expected, got = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), file
    assert (tmp_path / "whole/losses.csv").read_text() == (tmp_path / "parts/losses.csv").read_text()


def test_it_learns_and_returns_the_average_not_the_last_weights(tmp_path):
    net = run(tmp_path, steps=300, keep=(0, 300))
    losses = load_file(tmp_path / "state-000300.safetensors")["losses"]
    assert losses[-50:].mean() < 0.25 * losses[:10].mean()
    state = load_file(tmp_path / "state-000300.safetensors")
    assert torch.equal(net.state_dict()["body.0.weight"], state["average.body.0.weight"])
    assert not torch.equal(state["average.body.0.weight"], state["weights.body.0.weight"])
    assert torch.equal(net.state_dict()["body.1.running_mean"], state["weights.body.1.running_mean"])
    assert not net.training


def test_checkpoints_are_kept_where_asked(tmp_path):
    run(tmp_path)
    assert [checkpoint_path(tmp_path, step).exists() for step in (0, 12, 30, 7)] == [True, True, True, False]
    first = load_file(checkpoint_path(tmp_path, 0))
    assert torch.equal(first["body.0.weight"], Net().state_dict()["body.0.weight"])
    assert len(list(tmp_path.glob("state-*"))) == 1


def test_a_finished_run_returns_at_once_and_resume_false_starts_over(tmp_path):
    expected = run(tmp_path)
    again = run(tmp_path, die_at=0)
    assert torch.equal(expected.body[0].weight, again.body[0].weight)
    with pytest.raises(Killed):
        run(tmp_path, die_at=0, resume=False)


def test_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(step, steps=100, lr=1.0, warmup=10, decay_from=0.75) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[74] == 1.0
    assert rates[75:] == pytest.approx([(100 - step) / 25 for step in range(75, 100)])


def test_step_generators_differ():
    draws = [
        torch.rand(4, generator=step_generator(seed, step, stream))
        for seed in (0, 1)
        for step in (0, 1, 2)
        for stream in ("train", "eval")
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)
    assert torch.equal(draws[0], torch.rand(4, generator=step_generator(0, 0)))


@pytest.mark.parametrize("changes", [{"steps": 0}, {"lr": 0.0}, {"keep": (31,)}, {"keep": (-1,)}, {"ema": 1.0}])
def test_settings_that_make_no_sense_raise(tmp_path, changes):
    with pytest.raises(ValueError, match="steps"):
        run(tmp_path, **changes)


def test_another_run_in_the_directory_raises(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"lr: 0.01 -> 0.02.*resume=False"):
        run(tmp_path, lr=0.02)
    net = nn.Linear(4, 1)
    with pytest.raises(ValueError, match="another architecture"):
        fit(net, lambda step: net.weight.sum(), steps=30, lr=1e-2, warmup=5, out_dir=tmp_path)
    (tmp_path / "state-000030.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="cannot be read"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_and_a_module_without_parameters_raise(tmp_path):
    net = nn.Linear(4, 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(net, lambda step: net.weight.sum() * float("nan"), steps=3, lr=1e-2, out_dir=tmp_path)
    with pytest.raises(ValueError, match="no trainable parameters"):
        fit(nn.GELU(), lambda step: torch.zeros(()), steps=3, lr=1e-2, out_dir=tmp_path)
