"""Ledger: what a study has computed so far, on disk as soon as it is known."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from vdinterp import store
from vdinterp.results import Result
from vdinterp.sweep import Records, fingerprint

log = logging.getLogger("vdinterp")
Tensors = dict[str, torch.Tensor]


class Ledger:
    """Remembers the tensors of every finished piece of work, so that a study killed half-way repeats none of it.

    `identity` says what all the work depends on (weights, clips, settings): its content hash names the folder, so
    records of another model or other clips are never taken for these. Within it each piece has a key of its own.
    The tensors are written first, under a temporary name; only then a line of `records.jsonl` says that they are
    there, flushed to disk. Whatever moment the process dies at, what the lines name is whole. Lines have checksums, of
    themselves and of their tensors' file: what was damaged since (or recorded before there were checksums) is said in
    the log and computed again.

    `folder` None keeps everything in memory. `resume=False` forgets what is recorded under this identity.
    """

    def __init__(self, folder: str | Path | None, identity: Mapping[str, Any], *, resume: bool = True) -> None:
        self._memory: dict[str, Tensors] = {}
        self._files: dict[str, tuple[str, str]] = {}  # by key: the file, and its checksum
        self.computed = 0
        self.folder = None if folder is None else Path(folder) / fingerprint(identity)[:16]
        if self.folder is None:
            return
        if self.folder.exists() and not resume:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for line in self._lines():
            self._files[line["id"]] = line["file"], line["of file"]

    def __contains__(self, key: Any) -> bool:
        name = fingerprint(key)
        return name in self._memory or name in self._files

    def __len__(self) -> int:
        return len(self._memory.keys() | self._files.keys())

    def get(self, key: Any, compute: Callable[[], Tensors]) -> Tensors:
        """What is recorded under `key` (a string, or any plain data), or else `compute()`, which is recorded."""
        name = fingerprint(key)
        if (recorded := self._read(name)) is not None:
            return recorded
        if name not in self._memory:
            tensors = {label: tensor.detach().cpu().contiguous() for label, tensor in compute().items()}
            self.computed += 1
            if self.folder is None:
                self._memory[name] = tensors
            else:
                self._write(name, str(key), tensors)
            return tensors
        return self._memory[name]

    def result(self, name: str, compute: Callable[[], Result]) -> Result:
        """A whole result, recorded in a folder of its own called `name`, or `compute()`."""
        if self.folder is None:
            return compute()
        folder = self.folder / name
        if not store.find(folder, "result.json").is_file():
            compute().save(folder)
            self.computed += 1
        return Result.load(folder)

    def _write(self, name: str, label: str, tensors: Tensors) -> None:
        assert self.folder is not None
        file = f"{name[:24]}.safetensors"
        content = save({key: value.clone() for key, value in tensors.items()})
        store.write(self.folder / file, content)
        self._files[name] = file, _checksum(content)
        self._record.append({"id": name, "file": file, "of file": self._files[name][1], "what": label[:300]})

    def _read(self, name: str) -> Tensors | None:
        """What is recorded on disk; None if nothing is, or if it is damaged, and then it is recorded no longer."""
        if self.folder is None or name not in self._files:
            return None
        file, checksum = self._files[name]
        content = (self.folder / file).read_bytes()
        if _checksum(content) == checksum:
            return load(content)
        log.warning("%s is damaged; what it recorded is computed again", self.folder / file)
        del self._files[name]
        return None

    @property
    def _record(self) -> Records:
        assert self.folder is not None
        return Records(self.folder / "records.jsonl")

    def _lines(self) -> list[dict[str, str]]:
        """Records whose tensors are there."""
        assert self.folder is not None
        lines = [line for line in self._record.read() if {"id", "file", "of file"} <= line.keys()]
        return [line for line in lines if (self.folder / line["file"]).is_file()]


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
