"""Ledger: what has been computed so far, by content, on disk as soon as it is known."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdinterp.store.files import write
from vdinterp.store.records import Records, parse

if TYPE_CHECKING:
    import torch

log = logging.getLogger("vdinterp")
FORMAT = 3
FRESH = "use another folder, or start over (resume=False, --fresh)"
Values = Mapping[str, Any]  # what JSON can hold, and tensors


class Ledger:
    """Values by key, append-only: who is killed, at whatever moment, repeats nothing that was recorded.

    A folder holds one file of JSON lines for each `writer`; all are read. The first line says what it is `about`; every
    other holds what was added together, so that it is recorded whole or not at all. Tensors are written before their
    line, to a file of their own. Lines have checksums, of themselves and of their tensors: what was damaged or lost is
    said in the log, counts for nothing, and is computed again. Keys are texts, made by `key_of` from all that a value
    depends on. `folder` None keeps everything in memory; `resume=False` forgets what is recorded.

    Raises ValueError for a file in place of the folder, and for a ledger about something else, or of another format.
    """

    def __init__(
        self,
        folder: str | Path | None,
        about: Mapping[str, str] | None = None,
        *,
        writer: str = "",
        resume: bool = True,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.said: dict[str, Any] = {}
        self.added = 0
        self._known: dict[str, Values] = {}
        self._files: dict[str, tuple[str, str]] = {}  # by key: the file of its tensors, and its checksum
        if self.folder is not None:
            self._open(self.folder, dict(about or {}), f"ledger{writer and '-'}{writer}.jsonl", resume)

    def _open(self, folder: Path, about: dict[str, str], name: str, resume: bool) -> None:
        if folder.is_file():
            raise ValueError(f"out={str(folder)!r} is a file; give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._records = Records(folder / name)
        if not resume:
            for file in _ledgers(folder) if name == "ledger.jsonl" else [self._records.path]:
                file.unlink(missing_ok=True)
        for file in _ledgers(folder):
            if file.name == name:
                lines = self._records.read()
            else:  # another process may be writing it now: leave it as it is
                text = file.read_bytes()
                lines = parse(text[: text.rfind(b"\n") + 1], file)
            if lines:
                _check_about(lines[0], about, file)
            for line in lines[1:]:
                self._files.update({key: (at, of) for key, (at, of) in line.get("tensors", {}).items()})
                self._known.update(line.get("made", {}))
                self.said.update(line.get("said", {}) if file.name == name else {})
        if not self._records.path.exists() or not self._records.path.stat().st_size:
            self._records.append({"format": FORMAT, **about})
        for key in [key for key, (file, _) in self._files.items() if not (folder / file).is_file()]:
            self._forget(key)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> Values | None:
        """What is recorded; None if nothing is, or if its tensors are damaged, and then it is recorded no longer."""
        found = self._known.get(key)
        if found is None or key not in self._files:
            return found
        assert self.folder is not None
        from safetensors.torch import load

        file, checksum = self._files[key]
        content = (self.folder / file).read_bytes() if (self.folder / file).is_file() else b""
        if _checksum(content) == checksum:
            return {**found, **load(content)}
        log.warning("%s is damaged; what it recorded is computed again", self.folder / file)
        self._forget(key)
        return None

    def get(self, key: str, compute: Callable[[], Values]) -> Values:
        """What is recorded, or else `compute()`, which then is."""
        found = self.find(key)
        if found is None:
            found = compute()
            self.add({key: found})
        return found

    def add(self, made: Mapping[str, Values]) -> None:
        """Record values by key, all of them or none."""
        self.added += len(made)
        if self.folder is None:
            self._known.update(made)
            return
        plain = {
            key: {name: part for name, part in values.items() if not _is_tensor(part)} for key, values in made.items()
        }
        files = {}
        for key, values in made.items():
            if tensors := {name: part for name, part in values.items() if _is_tensor(part)}:
                files[key] = self._write(f"{key[:24]}.safetensors", tensors)
        self._records.append({"made": plain, **({"tensors": files} if files else {})})
        self._known.update(plain)
        self._files.update(files)

    def say(self, **said: Any) -> None:
        """Remember how the work is done, for this writer when it goes on: `said` has it."""
        self.said.update(said)
        if self.folder is not None:
            self._records.append({"said": said})

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        from safetensors.torch import save

        assert self.folder is not None
        content = save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
        write(self.folder / name, content)
        return name, _checksum(content)

    def _forget(self, key: str) -> None:
        self._known.pop(key, None)
        del self._files[key]


def _ledgers(folder: Path) -> Iterable[Path]:
    return [file for file in sorted(folder.glob("ledger*.jsonl")) if file.is_file()]


def _check_about(found: Mapping[str, Any], about: Mapping[str, str], file: Path) -> None:
    """Raise ValueError if a ledger's first line is of something else, or of another format."""
    if "format" not in found:
        raise ValueError(f"{file}: its first line, which says what it is of, is damaged: {FRESH}")
    if found["format"] != FORMAT:
        raise ValueError(f"{file} is no ledger of this version (format {found['format']!r}): {FRESH}")
    for name, value in about.items():
        if found.get(name) != value:
            raise ValueError(f"{file} is the ledger of another {name} ({found.get(name)}; this is {value}): {FRESH}")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")
