"""The ledger of a sweep: every outcome, on disk as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdinterp.sweep._fingerprint import code_of, fingerprint
from vdinterp.sweep.records import Records, parse
from vdinterp.sweep.trial import Case, Denoiser, Metric, Trial
from vdinterp.sweep.worker import Outcome, Unit

FORMAT = 2
CODE = ("interventions", "sweep", "models", "diffusion", "pipeline/sampling.py", "pipeline/video_diffusion.py")
Shard = tuple[int, int]


class SweepLedger:
    """Outcomes by content: of a model, inputs, interventions and metrics. In memory only if `folder` is None.

    The first line of a file says which model it is of; every other line is what one unit gave, so that a unit is either
    recorded whole or not at all. A shard writes a file of its own; all files of the folder are read. Every line has a
    checksum: one that is damaged counts for nothing, and what it recorded is computed again.

    Raises ValueError for the ledger of another model, or of another version of this library (any from before there were
    checksums among them).
    """

    def __init__(
        self,
        folder: str | Path | None,
        denoiser: Denoiser,
        cases: Sequence[Case],
        trials: Sequence[Trial],
        metrics: Mapping[str, Metric],
        *,
        shard: Shard = (1, 1),
        resume: bool = True,
    ) -> None:
        self.known: dict[str, dict[str, Any]] = {}
        self.batch: int | None = None
        self.records: Records | None = None
        if folder is None:
            self._keys = None
            return
        asked = fingerprint(dict(metrics))
        self._cases = [fingerprint(case) for case in cases]
        self._trials = [fingerprint(trial.interventions) for trial in trials]
        self._keys = {
            (case, trial): fingerprint([self._cases[case], self._trials[trial], asked])[:24]
            for case in range(len(cases))
            for trial in range(len(trials))
        }
        self._runs = {
            (case, run): fingerprint([self._cases[case], "run", run, asked])[:24]
            for case in range(len(cases))
            for run in cases[case].runs
        }
        self._open(Path(folder), identity(denoiser), shard, resume)

    def _open(self, folder: Path, about: dict[str, Any], shard: Shard, resume: bool) -> None:
        if folder.is_file():
            raise ValueError(f"out={str(folder)!r} is a file; give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        mine = folder / ("ledger.jsonl" if shard == (1, 1) else f"ledger-{shard[0]}-of-{shard[1]}.jsonl")
        if not resume:
            for file in [mine] if shard != (1, 1) else sorted(folder.glob("ledger*.jsonl")):
                file.unlink(missing_ok=True)
        self.records = Records(mine)
        for file in sorted(folder.glob("ledger*.jsonl")):
            if file == mine:
                lines = self.records.read()
            elif not file.is_file():
                continue
            else:  # another shard may be writing it now: leave it as it is
                text = file.read_bytes()
                lines = parse(text[: text.rfind(b"\n") + 1], file)
            if lines:
                check_identity(lines[0], about, file)
            for line in lines[1:]:
                self.known.update(line.get("outcomes", {}))
                if file == mine and "batch" in line:
                    self.batch = line["batch"]
        if not mine.exists() or not mine.stat().st_size:
            self.records.append({"format": FORMAT, **about})

    def choose_batch(self, batch: int) -> None:
        """Remember how many trials run together, so that a resumed sweep groups them alike."""
        self.batch = batch
        if self.records is not None:
            self.records.append({"batch": batch})

    def add(self, unit: Unit, outcomes: Iterable[Outcome]) -> None:
        """Record what a unit gave, as one line."""
        new = {}
        for outcome in outcomes:
            key = self._key(unit.case, outcome.run if outcome.trial is None else outcome.trial)
            new[key] = {"values": outcome.values} if outcome.values is not None else {"error": outcome.error}
        if self.records is not None:
            self.records.append({"outcomes": new})
        self.known.update(new)

    def find(self, case: int, which: int | str) -> dict[str, Any] | None:
        """`{"values": ..}` or `{"error": ..}` of a trial (or of an untouched run, by name); None if not known."""
        return self.known.get(self._key(case, which))

    def _key(self, case: int, which: int | str) -> str:
        if self._keys is None:
            return f"{case}/{which!r}"
        return self._runs[case, which] if isinstance(which, str) else self._keys[case, which]


def identity(denoiser: Denoiser) -> dict[str, str]:
    """What all outcomes depend on besides inputs, interventions and metrics."""
    model, diffusion = denoiser.model, getattr(denoiser, "diffusion", None)
    process = None if diffusion is None else diffusion.to_dict()
    return {
        "model": model.cfg.model_name,
        "weights": fingerprint([model.cfg.to_dict(), process, model.state_dict()]),
        "code": fingerprint(code_of(*CODE)),
    }


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError if a ledger's first line is of another model, version or format."""
    if "format" not in found:
        raise ValueError(
            f"{file}: its first line, which says what it is of, is damaged: use another folder, or start over "
            "(resume=False, --fresh)"
        )
    if found["format"] != FORMAT:
        raise ValueError(f"{file} is no ledger of this version (format {found['format']!r}); use another folder")
    if found.get("weights") != wanted["weights"]:
        raise ValueError(
            f"{file} is the ledger of another model ({found.get('model')!r}; this is {wanted['model']!r} with its own "
            "weights): use another folder, or start over (resume=False, --fresh)"
        )
    if found.get("code") != wanted["code"]:
        raise ValueError(
            f"{file} was written by another version of vdinterp, whose numbers may differ: use another folder, or "
            "start over (resume=False, --fresh)"
        )
