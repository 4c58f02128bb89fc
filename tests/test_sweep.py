"""The sweep engine: nothing is lost, nothing is done twice, and what fails says so."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from contrasts import QUIET, given
from interrupted_sweep import run, trials

import vdinterp as vd
from vdinterp.analysis import Contrast
from vdinterp.analysis.patching.judging import Judge, recovered
from vdinterp.interventions import Ablate, Custom, MaskAttention, Patch
from vdinterp.store import Records
from vdinterp.sweep import Trial
from vdinterp.sweep.outcomes import Unit
from vdinterp.sweep.start import Start, start_of, touched
from vdinterp.sweep.worker import Worker

SCRIPT = Path(__file__).parent / "interrupted_sweep.py"
KILLS = int(os.environ.get("VDINTERP_KILLS", "2"))


def outcomes(folder: Path) -> list[str]:
    """The ids of every recorded outcome, in order."""
    text = "".join(file.read_text() for file in sorted(folder.glob("ledger*.jsonl")))
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [name for line in lines for name in line.get("made", {})]


def start_process(folder: Path, *options: str) -> subprocess.Popen:
    """The interrupted sweep; its standard output says when it has begun."""
    environment = {**os.environ, "VDINTERP_TYPECHECK": "0"}
    command = [sys.executable, str(SCRIPT), str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finish(process: subprocess.Popen) -> int:
    process.communicate()
    return process.returncode


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


# The ledger


def test_what_is_recorded_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(None, 40)
    run(tmp_path, 25)
    first = outcomes(tmp_path)
    more = run(tmp_path, 40)
    pd.testing.assert_frame_equal(more.table, whole.table)
    assert outcomes(tmp_path)[: len(first)] == first and len(set(outcomes(tmp_path))) == len(outcomes(tmp_path))
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("everything was recorded"))
    pd.testing.assert_frame_equal(run(tmp_path, 40).table, whole.table)


def test_shards_together_are_the_whole(tmp_path: Path) -> None:
    whole = run(None, 30)
    parts = [run(tmp_path, 30, shard=(index, 3)) for index in (1, 2, 3)]
    assert [part.missing for part in parts] == [40, 20, 0], "of 30 trials on two cases"
    merged = run(tmp_path, 30)
    assert merged.missing == 0
    torch.testing.assert_close(
        torch.tensor(merged.table["value"]), torch.tensor(whole.table["value"]), atol=1e-6, rtol=0
    )
    assert len(outcomes(tmp_path)) == 2 * 30 + 4, "later shards find the untouched runs recorded"


def test_a_ledger_of_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 4)
    arguments = given(n=4)
    arguments["model"].model.final.linear.weight.data += 1
    pair = Contrast(**arguments)
    with pytest.raises(ValueError, match="ledger of another model"):
        vd.sweep.run(pair.denoiser, pair.cases(), trials(4), {"recovered": Judge(recovered)}, out=tmp_path, **QUIET)
    fresh = vd.sweep.run(
        pair.denoiser, pair.cases(), trials(4), {"recovered": Judge(recovered)}, out=tmp_path, resume=False, **QUIET
    )
    assert len(fresh.table) == 16
    (tmp_path / "ledger.jsonl").write_text('{"format": 1, "mod\nel": 3}\n')
    with pytest.raises(ValueError, match="JSON lines"):
        run(tmp_path, 4)
    with pytest.raises(ValueError, match="is a file"):
        run(tmp_path / "ledger.jsonl", 4)


def test_records_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    records = Records(tmp_path / "lines.jsonl")
    records.append({"a": 1})
    records.append({"b": 2})
    whole = records.path.read_bytes()
    for cut in range(len(whole) + 1):
        records.path.write_bytes(whole[:cut])
        there = records.read()
        records.append({"c": 3})
        assert records.read() == [*there, {"c": 3}]


def test_every_flipped_bit_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(tmp_path / "lines.jsonl")
    written = [{}, {"values": [0.1, -2.5e-7], "what": "\u00e9 , }"}]
    for record in written:
        records.append(record)
    assert records.read() == written
    whole = records.path.read_bytes()
    for at in range(len(whole) - 1):
        for bit in range(8):
            records.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            caplog.clear()
            try:
                there = records.read()
            except ValueError as error:  # the line between them flipped into one
                assert "no record of JSON lines with checksums" in str(error)
                continue
            assert len(there) == 1 and there[0] in written, (at, bit)
            assert "are damaged or without a checksum; what they recorded is computed again" in caplog.text
    records.path.write_bytes(whole + b'{"old": 1}\n')
    assert records.read() == written, "one from before there were checksums"


def test_damaged_outcomes_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = run(tmp_path, 10).table
    ledger = tmp_path / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace("0.", "1.", 1)
    ledger.write_text("".join(lines))
    pd.testing.assert_frame_equal(run(tmp_path, 10).table, whole)
    assert f"1 of {len(lines)} lines are damaged" in caplog.text
    assert len(ledger.read_text().splitlines()) == len(lines) + 1, "and nothing else"
    ledger.write_text("x" + "".join(lines))
    with pytest.raises(ValueError, match="its first line, which says what it is of, is damaged"):
        run(tmp_path, 10)


def test_a_resumed_sweep_says_what_it_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    plain = vd.sweep.work.bar
    monkeypatch.setattr(vd.sweep.work, "bar", lambda **options: made.append(options) or plain(**options))
    run(tmp_path, 4)
    assert "found in" not in caplog.text and made[0]["initial"] == 0 and made[0]["show"] is False
    with caplog.at_level("INFO", "vdinterp"):
        run(tmp_path, 10)
    assert f"8 of 20 found in {tmp_path}" in caplog.text, "4 and 10 trials on two cases"
    assert 0 < made[1]["initial"] < made[1]["total"]
    run(tmp_path, 10)
    assert made[2]["initial"] == made[2]["total"] == made[1]["total"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full exists on Linux only")
def test_a_full_disk_says_what_is_kept(tmp_path: Path) -> None:
    run(tmp_path, 3)
    kept = (tmp_path / "ledger.jsonl").read_text()
    full = tmp_path / "ledger-1-of-2.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="what was recorded before is kept"):
        run(tmp_path, 6, shard=(1, 2))
    full.unlink()
    assert (tmp_path / "ledger.jsonl").read_text() == kept
    assert run(tmp_path, 6).missing == 0


def test_killed_at_any_moment_it_continues_and_the_table_is_the_same(tmp_path: Path) -> None:
    whole = start_process(tmp_path / "whole")
    began = time.perf_counter()
    assert finish(whole) == 0
    seconds = time.perf_counter() - began
    wanted = (tmp_path / "whole" / "table.csv").read_bytes()
    rng, killed = random.Random(0), tmp_path / "killed"
    interrupted, seen = 0, []
    for _ in range(KILLS):
        process = start_process(killed)
        time.sleep(rng.random() * seconds / max(2, KILLS / 2))
        process.send_signal(signal.SIGKILL)
        interrupted += finish(process) == -signal.SIGKILL
        there = outcomes(killed) if killed.exists() else []
        assert there[: len(seen)] == seen, "what was recorded stays"
        seen = there
    assert finish(start_process(killed)) == 0
    assert (killed / "table.csv").read_bytes() == wanted
    everything = outcomes(killed)
    assert everything[: len(seen)] == seen and len(everything) == len(set(everything)) == 2 * 500 + 4
    assert interrupted, "no run was killed before its end"


def test_streams_that_do_not_fit_are_computed_again(caplog: pytest.LogCaptureFixture) -> None:
    """Of a model of four blocks: whatever is kept, the numbers are bitwise the same; the blocks that run are not."""
    arguments = given(n=3, n_layers=4)
    pair, calls = Contrast(**arguments), []
    for block in pair.model.blocks:
        block.register_forward_hook(lambda *_: calls.append(0))
    made = [
        Trial(interventions=(Patch((site, layer), "clean"),), label={"site": site, "layer": layer})
        for layer in range(4)
        for site in ("z", "mlp_out")
    ]
    one = pair.model.estimate_cache(["blocks.1.hook_resid_pre"], 2)
    found, ran = [], []
    for n_bytes in (2**30, 3 * one, 0):
        caplog.clear()
        calls.clear()
        with caplog.at_level("INFO", "vdinterp"):
            options = {**QUIET, "keep_bytes": n_bytes}
            found.append(vd.sweep.run(pair.denoiser, pair.cases(), made, {"recovered": Judge(recovered)}, **options))
        ran.append(len(calls))
        said = [line for line in caplog.messages if "computed again" in line]
        assert len(said) == (n_bytes < 2**30), "once, if something was not kept"
    assert ran[0] < ran[1] < ran[2] == 2 * (2 * 4 + 8 * 4), "two cases: both runs, and every trial from its first block"
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0].table, other.table)


def test_streams_of_trajectories_that_do_not_fit_are_computed_again() -> None:
    options = {**given(n=2, n_layers=4), "noise_levels": None, "steps": 3}
    made = [Trial(interventions=(Patch(("z", layer), "clean"),), label={"layer": layer}) for layer in range(4)]
    found = [
        vd.sweep.run(
            pair.denoiser, pair.cases(), made, {"recovered": Judge(recovered)}, **{**QUIET, "keep_bytes": n_bytes}
        )
        for pair, n_bytes in ((Contrast(**options), 2**30), (Contrast(**options), 0))
    ]
    pd.testing.assert_frame_equal(found[0].table, found[1].table)


def test_a_metric_may_look_at_activations() -> None:
    """Those of blocks that a trial does not run are the base's; of several trials in one pass each sees its own."""
    pair = Contrast(**given(n=2))

    class Size:
        names = ("z",)

        def __init__(self, layer: int) -> None:
            self.layer = layer

        def __call__(self, x0: torch.Tensor, moment: Any) -> torch.Tensor:
            return moment.cache["z", self.layer].square().mean((1, 2, 3))

    made = [
        Trial(interventions=(Ablate(("z", layer), heads=[head]),), label={"layer": layer, "head": head})
        for layer, head in ((0, 0), (1, 0), (1, 1))
    ]
    metrics = {"first": Size(0), "second": Size(1)}
    found = [
        vd.sweep.run(pair.denoiser, pair.cases(), made, metrics, progress=False, trials_per_pass=size)
        for size in (1, 2)
    ]
    (case,) = pair.cases()
    for trial in made:
        with pair.model.record(["z"]) as recording, pair.model.intervene(*trial.interventions):
            pair.denoiser.denoise(*case.runs["corrupted"])
        for layer, name in enumerate(metrics):
            wanted = recording[0]["z", layer].square().mean((1, 2, 3)).double()
            for one in found:
                at = one.per_clip({key: [value] for key, value in trial.label.items()}, metric=name)[:, 0, 0]
                torch.testing.assert_close(at, wanted, atol=1e-6, rtol=0)


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
