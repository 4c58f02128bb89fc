"""Studies that are stopped, killed or changed: what is taken from their records, and what is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_studies import FAST, ROOT, keep, small_bench, small_clips, small_pipe

import vdinterp as vd
from vdinterp.analysis import x0_error
from vdinterp.store import fingerprint
from vdinterp.studies import (
    INTACT,
    INTACT_DENOISE,
    Bench,
    Condition,
    Moment,
    StudyResult,
    build,
    run,
    study,
)
from vdinterp.studies._ablations import few_steps, modulation, no_adaln, no_attention, no_mlp, outputs
from vdinterp.sweep.outcomes import Unit
from vdinterp.sweep.worker import Worker

# Resuming


class Stop(Exception):
    pass


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[Unit]:
    """Every unit of work from now on; raises after so many."""
    made: list[Unit] = []
    plain = Worker.run

    def counting(self: Worker, unit: Unit) -> Any:
        if stop_after is not None and len(made) >= stop_after:
            raise Stop
        made.append(unit)
        return plain(self, unit)

    monkeypatch.setattr(Worker, "run", counting)
    return made


def test_a_stopped_study_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    def study_once(stop_after: int | None = None, out: Path | None = tmp_path) -> tuple[Any, list[Unit]]:
        with pytest.MonkeyPatch.context() as patch:
            made = counted(patch, stop_after)
            try:
                return run("ablations", small_pipe(), small_clips(), out=out, **FAST), made
            except Stop:
                return None, made

    whole, everything = study_once(out=None)
    stopped, first = study_once(stop_after=21)
    assert stopped is None and len(first) == 21
    resumed, second = study_once()
    assert first + second == everything, "each once, in order"
    pd.testing.assert_frame_equal(resumed.table, whole.table)
    _, third = study_once()
    assert third == []
    with pytest.MonkeyPatch.context() as patch:
        made = counted(patch)
        run("ablations", small_pipe(), small_clips(), out=tmp_path, resume=False, **FAST)
    assert made == everything


KILLED = """
import sys, time
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from small_studies import FAST, small_clips, small_pipe
from vdinterp.studies import run
from vdinterp.sweep.worker import Worker
plain = Worker.run
def slow(self, unit):
    time.sleep(0.05)
    return plain(self, unit)
Worker.run = slow
run("ablations", small_pipe(), small_clips(), out={out!r}, **FAST)
"""


def test_a_killed_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = KILLED.format(paths=[str(ROOT / "tests"), str(ROOT)], out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (lines := _lines(tmp_path)) or len(lines) < 12:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "the study recorded nothing"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()  # type: ignore[union-attr]
    recorded = len(_lines(tmp_path))
    made = counted(monkeypatch)
    resumed = run("ablations", small_pipe(), small_clips(), out=tmp_path, **FAST)
    assert len(_lines(tmp_path)) > recorded >= 12
    fresh = list(made)
    made.clear()
    whole = run("ablations", small_pipe(), small_clips(), **FAST)
    assert 0 < len(fresh) < len(made)
    pd.testing.assert_frame_equal(resumed.table, whole.table)


def _lines(folder: Path) -> list[str]:
    return [line for file in folder.glob("records/*/ledger.jsonl") for line in file.read_text().splitlines()]


def by_itself(bench: Bench, condition: Condition) -> torch.Tensor:
    """What a loop of one's own makes of a condition: whole runs under its hooks, `[batch frame ..]` (levels averaged
    as errors are not: those of the last level)."""
    made = []
    for clips in bench.batches:
        moment = Moment(bench, clips, None if condition.protocol == "sample" else bench.levels[-1])
        given = condition.interventions
        given = given(moment) if callable(given) else given
        if condition.protocol == "sample":
            made.append(
                bench.pipe.sample(
                    bench.truth[clips, :2], bench.n_frames, steps=condition.steps or bench.steps,
                    noise=bench.noise[clips], interventions=given, cond=bench.stimulus.cond[clips],
                ).latents
            )  # fmt: skip
        else:
            with torch.no_grad(), bench.pipe.model.intervene(*given):
                made.append(bench.pipe.denoise(*bench.stimulus.inputs(bench.levels[-1], clips)))
    return torch.cat(made)[:, 2:]


@pytest.mark.parametrize(("kind", "modes"), [("3d", ("zero", "mean", "resample", "frozen")), ("space_time", ("mean",))])
def test_conditions_are_trials_of_a_sweep_with_the_numbers_of_a_loop(kind: str, modes: Any) -> None:
    """Bitwise, for every condition of the five ablations and every mode; with fewer blocks."""
    blocks: list[int] = []
    bench = small_bench(small_pipe(kind, n_layers=4), noise_levels=(0.9,), batch=2)
    for block in bench.pipe.model.blocks:
        block.register_forward_hook(lambda *_: blocks.append(0))
    conditions = [INTACT, INTACT_DENOISE]
    for part in (few_steps, no_adaln, no_attention, no_mlp):
        conditions += part(bench, modes)
    conditions.append(Condition(ablation="x", variant="both", steps=2, interventions=(vd.Ablate(("mlp_out", 1)),)))
    bench.measure(conditions)  # makes the means, too, which stay recorded: a loop of one's own has them as well
    means = [
        vd.store.key_of("means", sorted(names(bench.pipe.model)), level)
        for names in (modulation, outputs)
        for level in (None, *bench.levels)
    ]
    recorded, bench.ledger = bench.ledger, vd.store.Ledger(None)
    bench.ledger.add({key: found for key in means if (found := recorded.find(key)) is not None})
    blocks.clear()
    measured = bench.measure(conditions)
    shared = len(blocks)
    blocks.clear()
    for one in measured:
        made = by_itself(bench, one.condition)
        error = x0_error(made, bench.truth[:, 2:], bench.variance).double()
        assert torch.equal(one.scores["x0 error", "truth"], error), one.condition.label
        if one.condition.protocol == "sample":
            assert one.latents is not None and torch.equal(one.latents, made)
    assert shared < len(blocks)


def test_a_condition_that_fails_is_an_error_and_not_recorded(tmp_path: Path) -> None:
    def broken(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        raise RuntimeError("no such thing")

    bench = small_bench(ledger=vd.store.Ledger(tmp_path))
    condition = Condition(ablation="mine", variant="bad", interventions=(vd.Custom("z", broken),))
    for _ in range(2):
        with pytest.raises(ValueError, match="mine: bad: RuntimeError: no such thing"):
            bench.measure([condition])
    assert len(bench.ledger) == 1, "the untouched run of the first batch"


@pytest.mark.parametrize("protocol", ["sample", "denoise"])
def test_a_condition_that_never_acts_is_said_first(protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = small_bench()
    monkeypatch.setattr(bench.pipe.model, "forward", lambda *_, **__: pytest.fail("computed"))
    never = vd.Ablate("z", noise_levels=[0.3])
    condition = Condition(ablation="mine", variant="idle", interventions=(never,), protocol=protocol)
    with pytest.raises(ValueError, match="mine: idle: Ablate never acts: no frame is at the noise levels"):
        bench.measure([condition])


def test_fingerprints_follow_the_content() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert fingerprint(tensor) == fingerprint(tensor.clone().t().contiguous().t())
    assert fingerprint(tensor) != fingerprint(tensor.reshape(3, 2)) != fingerprint(tensor.double())
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint(1) != fingerprint(1.0) != fingerprint("1")
    assert fingerprint(vd.Freeze("gate", 1.0)) != fingerprint(vd.Freeze("gate", 2.0))
    assert fingerprint(INTACT) == fingerprint(replace(INTACT)) != fingerprint(replace(INTACT, steps=2))
    factor = 2
    assert fingerprint(lambda x: x * factor) != fingerprint(keep)
    with pytest.raises(TypeError, match="object"):
        fingerprint(object())


FACTOR = 0.5


def by_global(x: torch.Tensor, hook: Any) -> torch.Tensor:
    return x * FACTOR


def through_another(x: torch.Tensor, hook: Any) -> torch.Tensor:
    return by_global(x, hook)


class Scaling:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def method(self, x: torch.Tensor, hook: Any) -> torch.Tensor:
        return x * self.factor

    __call__ = method


def test_a_function_counts_with_all_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a user changes in a hook function, its recorded results are not taken for the new ones."""

    def with_default(factor: float) -> Any:
        def scale(x: torch.Tensor, hook: Any, *, by: float = factor) -> torch.Tensor:
            return x * by

        return scale

    a, b = (lambda x, hook: x * 2), (lambda x, hook: x * 3)  # fmt: skip
    for one, other in (
        (a, b),
        (Scaling(1.0).method, Scaling(2.0).method),
        (Scaling(1.0), Scaling(2.0)),
        (with_default(1.0), with_default(2.0)),
        (lambda x, hook: Scaling(1.0), lambda x, hook: small_pipe()),
    ):
        assert fingerprint(one) != fingerprint(other)
        assert fingerprint(one) == fingerprint(one)
    assert fingerprint(Scaling(1.0).method) == fingerprint(Scaling(1.0).method)
    before = [fingerprint(function) for function in (by_global, through_another)]
    assert before == [fingerprint(function) for function in (by_global, through_another)]
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert not set(before) & {fingerprint(function) for function in (by_global, through_another)}


def test_records_of_other_weights_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @study("one intact sample")
    def intact(bench: Bench) -> StudyResult:
        return build(StudyResult, bench, bench.measure([INTACT]), "Intact")

    monkeypatch.setitem(vd.studies.NAMES, "one intact sample", intact)
    pipe, made = small_pipe(), counted(monkeypatch)
    for change in (lambda: None, lambda: None, lambda: pipe.model.blocks[0].attn.proj.bias.data.add_(1)):
        change()
        run("one intact sample", pipe, small_clips(), out=tmp_path, **FAST)
    assert len(made) == 4, "two batches, of two different models"
