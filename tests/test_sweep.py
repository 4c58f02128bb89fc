"""The sweep engine: nothing is lost, nothing is done twice, and what fails says so."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from contrasts import QUIET, given
from interrupted_sweep import run, trials
from sweep_runs import SCRIPT, outcomes

import vdinterp as vd
from vdinterp.analysis import Contrast
from vdinterp.analysis.patching.judging import Judge, recovered
from vdinterp.interventions import Custom, MaskAttention, Patch
from vdinterp.sweep import Trial
from vdinterp.sweep.outcomes import Unit
from vdinterp.sweep.start import Start, start_of, touched
from vdinterp.sweep.worker import Worker

# Where trials start


@pytest.mark.parametrize(
    ("site", "layer", "n_known"),
    [("hook_patch_embed", 0, 0), ("cond", 0, 0), (("z", 1), 1, 0), (("mod.gate", 1, "mlp"), 1, 1),
     ("blocks.1.hook_resid_pre", 1, 0), ("blocks.1.hook_attn_out", 1, 1), ("blocks.1.hook_resid_mid", 1, 1),
     ("blocks.1.hook_mlp_out", 1, 2), ("blocks.0.hook_resid_post", 0, 2), ("final.hook_in", 2, 0), ("hook_pred", 2, 0),
     (["blocks.1.hook_mlp_out", "blocks.0.attn.hook_v"], 0, 0)],
)  # fmt: skip
def test_a_trial_starts_at_the_first_sublayer_that_it_changes(site: Any, layer: int, n_known: int) -> None:
    pair = Contrast(**given())
    made = (Patch(site, "clean"),)
    assert start_of(pair.model, made, touched(pair.model, made), pair.cases()[0]) == Start(0, layer, n_known)


def test_blocks_before_the_start_are_not_run() -> None:
    pair = Contrast(**given(n=2))
    calls: list[int] = []
    for index, block in enumerate(pair.model.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    trial = Trial(interventions=(Patch(("z", 1), "clean", heads=[0]),), label={"head": 0})
    vd.sweep.run(pair.denoiser, pair.cases(), [trial] * 3, {"recovered": Judge(recovered)}, **QUIET)
    assert calls == [0, 1, 0, 1] + [1] * 3, "two untouched runs, then block 1 alone"


def test_trials_that_set_masks_run_alone_and_right() -> None:
    pair = Contrast(**given(n=2))
    made = [
        Trial(interventions=(MaskAttention("own_frame", layers=[1], heads=[head]),), label={"head": head})
        for head in (0, 1)
    ]
    metrics = {"recovered": Judge(recovered)}
    one = vd.sweep.run(pair.denoiser, pair.cases(), made, metrics, **QUIET)
    two = vd.sweep.run(pair.denoiser, pair.cases(), made, metrics, progress=False, trials_per_pass=2)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.table["value"].abs().min() > 0


def test_values_of_every_clip_over_the_labels() -> None:
    pair = Contrast(**{**given(n=5), "noise_levels": (0.3, 0.6)})
    made = [
        Trial(interventions=(Patch(("z", layer), "clean", heads=[head]),), label={"layer": layer, "head": head})
        for layer in (0, 1)
        for head in (0, 1)
        if (layer, head) != (1, 1)
    ]
    found = vd.sweep.run(pair.denoiser, pair.cases(), made, {"recovered": Judge(recovered)}, **QUIET)
    assert sorted(set(found.table["clip"])) == sorted(set(found.runs["clip"])) == [0, 1, 2, 3, 4], "over three cases"
    values = found.per_clip()
    assert values.shape == (5, 2, 2) and values[:, 1, 1].isnan().all() and not values[:, 1, 0].isnan().any()
    rows = found.table.query("layer == 0 and head == 1 and clip == 4")
    assert len(rows) == 2 and float(values[4, 0, 1]) == pytest.approx(rows["value"].mean()), "mean over two levels"
    by_level = found.per_clip({"head": [1, 0], "level": [0.6]}, base="clean")
    wanted = found.table.query("level == 0.6 and head == 1 and layer == 0")["value"].to_numpy() - 1
    assert by_level.shape == (5, 2, 1) and by_level[:, 0, 0].numpy() == pytest.approx(wanted), "the clean run is at 1"
    for options, message in [
        ({"over": ("token",)}, "the labels of this sweep are level, layer, head"),
        ({"base": "cleen"}, "no run is called 'cleen'; there are clean, corrupted"),
        ({"metric": "error"}, "no metric is called 'error'; there are recovered"),
    ]:
        with pytest.raises(KeyError, match=message):
            found.per_clip(**options)


# What fails


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    pair = Contrast(**given(n=2))

    def hungry(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation

    made = [
        Trial(
            interventions=(Custom(("z", 1), hungry), Patch(("z", 1), "clean", heads=[i % 2], tokens=[i])),
            label={"i": i},
        )
        for i in range(8)
    ]
    metrics = {"recovered": Judge(recovered)}
    wanted = vd.sweep.run(pair.denoiser, pair.cases(), made, metrics, **QUIET)
    denoise, sizes = type(pair.denoiser).denoise, []

    def small_device(self: Any, noisy: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(noisy) > 2 * 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(noisy) // 2)
        return denoise(self, noisy, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pair.denoiser), "denoise", small_device)
        found = vd.sweep.run(pair.denoiser, pair.cases(), made, metrics, progress=False, trials_per_pass=8)
    torch.testing.assert_close(
        torch.tensor(found.table["value"]), torch.tensor(wanted.table["value"]), atol=1e-6, rtol=0
    )
    assert max(sizes) == 2 and sizes.count(2) == 4
    assert not len(found.failures)


def test_one_trial_that_does_not_fit_is_an_error() -> None:
    pair = Contrast(**given(n=2))

    def hungry(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trial = Trial(interventions=(Custom(("z", 1), hungry),))
    with pytest.raises(torch.OutOfMemoryError):
        vd.sweep.run(pair.denoiser, pair.cases(), [trial], {"recovered": Judge(recovered)}, **QUIET)


def test_a_hook_function_that_fails_is_named_even_in_a_batch() -> None:
    pair = Contrast(**given(n=2))

    def broken(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        raise ValueError("no such thing")

    made = [Trial(interventions=(Patch(("z", 1), "clean", heads=[i]),), label={"head": i}) for i in (0, 1)]
    made.insert(1, Trial(interventions=(Custom(("z", 1), broken),), label={"head": -1}))
    found = vd.sweep.run(
        pair.denoiser, pair.cases(), made, {"recovered": Judge(recovered)}, progress=False, trials_per_pass=3
    )
    assert found.failures["error"].tolist() == ["ValueError: no such thing"]
    assert found.table["head"].unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"every trial failed; the first, head -1: ValueError: no such thing"):
        vd.sweep.run(pair.denoiser, pair.cases(), made[1:2], {"recovered": Judge(recovered)}, **QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": []}, "at least one of each"),
        ({"trials": [Trial(interventions=())]}, "at least one intervention"),
        ({"metrics": {"a": 3}}, "give a function"),
        ({"workers": 0}, "workers must be"),
        ({"workers": True}, "workers must be"),
        ({"trials_per_pass": 1.5}, r"trials_per_pass must be a whole number in 1..1000000 \(or 'auto'\)"),
        ({"shard": (True, 2)}, "shard="),
        ({"trials": [Trial(interventions=(Patch("z", "cleen"),))]}, "no run 'cleen'"),
        ({"trials": [Trial(interventions=(Patch("z", "clean", heads=[9]),))]}, "0..1"),
    ],
)
def test_refused_before_anything_runs(change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Contrast(**given(n=2))
    arguments = {"trials": trials(2), "metrics": {"recovered": Judge(recovered)}, **change}
    cases = pair.cases()
    monkeypatch.setattr(pair.model, "forward", lambda *a, **k: pytest.fail("it ran"))
    with pytest.raises((ValueError, KeyError), match=message):
        vd.sweep.run(pair.denoiser, cases, **arguments)


def test_what_would_not_fit_into_memory_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import vdinterp.models.memory as memory

    pair = Contrast(**given(n=2))
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match="activations that this sweep keeps"):
        vd.sweep.run(pair.denoiser, pair.cases(), trials(2), {"recovered": Judge(recovered)}, **QUIET)


# How many at once


def test_calibration_chooses_what_is_faster_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    plain = Worker.run

    def timed(self: Worker, unit: Unit) -> Any:
        clock["now"] += 1.0 + 0.1 * len(unit.trials)  # a batch costs hardly more than one
        return plain(self, unit)

    monkeypatch.setattr(Worker, "run", timed)
    monkeypatch.setattr("vdinterp.sweep.work.time.perf_counter", lambda: clock["now"])
    run(tmp_path, 120, trials_per_pass="auto")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["said"]["batch"] for line in lines if "said" in line] == [4]
    clock["now"] = 0.0
    run(tmp_path, 120, trials_per_pass="auto")
    assert clock["now"] == 0, "everything is known, the batch too"


# Other engines and devices


def test_ray_gives_the_same_and_survives_a_killed_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    monkeypatch.setenv("VDINTERP_TYPECHECK", "0")
    pair, marker = Contrast(**given(n=4)), str(tmp_path / "killed")

    def deadly(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return activation

    made = trials(60)
    made[17] = Trial(interventions=(Custom(("z", 1), deadly), *made[17].interventions), label={"trial": 17})
    metrics = {"recovered": Judge(recovered)}
    Path(marker).touch()
    wanted = vd.sweep.run(pair.denoiser, pair.cases(), made, metrics, progress=False, trials_per_pass=2)
    os.unlink(marker)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        survived = vd.sweep.run(
            pair.denoiser, pair.cases(), made, metrics, engine="ray", workers=2, out=tmp_path, progress=False,
            trials_per_pass=2,
        )  # fmt: skip
    finally:
        ray.shutdown()
    assert os.path.exists(marker), "an actor was killed"
    pd.testing.assert_frame_equal(survived.table, wanted.table)
    assert len(outcomes(tmp_path)) == len(set(outcomes(tmp_path))) == 2 * 60 + 4


def test_nothing_assumes_that_the_model_is_on_one_device(tmp_path: Path) -> None:
    """Through accelerate, with half of the blocks' weights on disk."""
    from accelerate import dispatch_model

    wanted = run(None, 12)
    arguments = given(n=4)
    model = arguments["model"].model
    places = {name: "cpu" for name, _ in model.named_children() if name != "blocks"}
    places |= {"blocks.0": "cpu", "blocks.1": "disk"}
    places |= {name: "cpu" for name, _ in model.named_parameters(recurse=False)}
    dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    pair = Contrast(**arguments)
    found = vd.sweep.run(
        pair.denoiser, pair.cases(), trials(12), {"recovered": Judge(recovered)}, progress=False, trials_per_pass=2
    )
    pd.testing.assert_frame_equal(found.table, wanted.table)
