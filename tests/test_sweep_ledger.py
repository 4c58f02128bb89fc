"""Sweeps that are stopped, killed or damaged go on, and their table is the same."""

from __future__ import annotations

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
from sweep_runs import SCRIPT, outcomes

import vdinterp as vd
from vdinterp.analysis import Contrast
from vdinterp.analysis.patching.judging import Judge, recovered
from vdinterp.interventions import Ablate, Patch
from vdinterp.store import Records
from vdinterp.sweep import Trial
from vdinterp.sweep.worker import Worker

KILLS = int(os.environ.get("VDINTERP_KILLS", "2"))


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
