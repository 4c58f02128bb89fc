"""Content hashes: whether a piece of work is the one that was recorded, functions of the user's included."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sysconfig
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PACKAGE = str(Path(__file__).parent.parent)


def fingerprint(value: Any) -> str:
    """A content hash: equal for equal data, whatever process computes it. 64 hexadecimal digits.

    Takes what studies are made of: tensors, arrays, modules, dataclasses, mappings, sequences, sets, plain values,
    functions and objects. A function counts with its code, its defaults, the object it is bound to, what it closes
    over and the globals that it names, functions among them followed in turn; one of an installed library counts by
    its name. Raises TypeError for an object whose content cannot be seen.
    """
    hasher = _Hasher()
    hasher.feed(value)
    return hasher.digest.hexdigest()


def key_of(*parts: Any) -> str:
    """A key for a `Ledger`, of all that a value depends on."""
    return fingerprint(parts)[:24]


def code_of(*parts: str) -> dict[str, str]:
    """The text of some of this library's files, by path; a folder stands for all of its code."""
    package = Path(_PACKAGE)
    places = [package / part for part in parts]
    assert all(place.exists() for place in places), f"code that went elsewhere: {parts}"
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))]
    return {str(file.relative_to(package)): file.read_text(encoding="utf-8") for file in sorted(files)}


class _Hasher:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.open: dict[int, int] = {}  # objects that are being fed: a cycle ends at a reference to its start

    def tag(self, *parts: object) -> None:
        self.digest.update(("\x1e" + "\x1f".join(map(str, parts)) + "\x1d").encode())

    def feed(self, value: Any) -> None:
        if value is None or value is Ellipsis or isinstance(value, (bool, int, float, complex, str, bytes)):
            self.tag(type(value).__name__, repr(value))
        elif isinstance(value, torch.Tensor):
            self.tag("tensor", value.dtype, list(value.shape))
            self.digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, (np.ndarray, np.generic)):
            self.tag("array", value.dtype, value.shape)
            self.digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, (Path, range, slice, torch.dtype, torch.device)):
            self.tag(type(value).__name__, value)
        elif isinstance(value, ModuleType):
            self.tag("module", value.__name__, getattr(value, "__version__", ""))
            file = getattr(value, "__file__", None)
            if file is not None and not _installed(file):  # a file of the user's: all of it
                self.tag(Path(file).read_bytes().hex())
        elif id(value) in self.open:
            self.tag("again", self.open[id(value)])
        else:
            self.open[id(value)] = len(self.open)
            self._feed_compound(value)
            del self.open[id(value)]

    def _feed_compound(self, value: Any) -> None:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.tag("dataclass", type(value).__qualname__)
            for field in dataclasses.fields(value):
                self.tag(field.name)
                self.feed(getattr(value, field.name))
        elif isinstance(value, Mapping):
            self.tag("mapping", len(value))
            for key in sorted(value, key=repr):
                self.feed(key)
                self.feed(value[key])
        elif isinstance(value, Set):
            self.tag("set", sorted(fingerprint(item) for item in value))
        elif isinstance(value, Sequence):
            self.tag("sequence", len(value))
            for item in value:
                self.feed(item)
        elif isinstance(value, partial):
            self.tag("partial")
            self.feed([value.func, value.args, value.keywords])
        elif isinstance(value, MethodType):
            self.tag("method")
            self.feed([value.__self__, value.__func__])
        elif isinstance(value, FunctionType):
            self._feed_function(value)
        elif isinstance(value, type):
            self._feed_class(value)
        elif isinstance(value, torch.nn.Module):
            self.tag("network", type(value).__qualname__)
            self.feed(value.state_dict())
        elif callable(value) and type(value).__module__ == "builtins":  # written in C
            self.tag("builtin", getattr(value, "__qualname__", repr(value)))
        elif hasattr(value, "__dict__"):
            self.tag("object")
            self.feed(type(value))
            self.feed({name: part for name, part in vars(value).items() if not name.startswith("__")})
        else:
            raise TypeError(
                f"a {type(value).__qualname__} cannot be recognised in a later run, so its work cannot be recorded; "
                "use tensors, plain values, dataclasses, or functions of these"
            )

    def _feed_function(self, function: FunctionType) -> None:
        function = inspect.unwrap(function)
        self.tag("function", function.__module__, function.__qualname__)
        file = function.__code__.co_filename
        ours = file.startswith(_PACKAGE)
        if _installed(file) and not ours:
            return
        self._feed_code(function.__code__)
        self.feed([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            self.feed(cell.cell_contents)
        if not ours:  # this library's own code is part of a study's identity as a whole
            names = sorted(_names(function.__code__) & function.__globals__.keys())
            self.feed({name: function.__globals__[name] for name in names})

    def _feed_code(self, code: CodeType) -> None:
        self.tag("code", code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._feed_code(constant)
            elif isinstance(constant, frozenset):
                self.tag("set", sorted(map(repr, constant)))
            else:
                self.tag(repr(constant))

    def _feed_class(self, cls: type) -> None:
        self.tag("class", cls.__module__, cls.__qualname__)
        if cls.__module__.partition(".")[0] in ("vdinterp", "torch", "numpy", "builtins", "typing"):
            return
        functions = [part for part in vars(cls).values() if isinstance(part, FunctionType)]
        for function in sorted(functions, key=lambda part: part.__qualname__):
            self._feed_function(function)


def _installed(file: str) -> bool:
    return file.startswith((*_LIBRARIES, _PACKAGE))


def _names(code: CodeType) -> set[str]:
    """Every name that a function's code, and the code inside it, looks up."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))
