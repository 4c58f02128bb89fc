"""Interventions as JSON: plain data in, plain data out. Nothing is pickled, and the text names kinds, never code."""

from __future__ import annotations

import base64
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any

import torch

from vdinterp.checks.counts import MOST, check_count
from vdinterp.interventions.attention import MaskAttention, TransferAttention
from vdinterp.interventions.base import Intervention, check_interventions
from vdinterp.interventions.condition import SetCondition, SetNoiseLevel
from vdinterp.interventions.levels import Between
from vdinterp.interventions.replace import Ablate, Custom, Freeze, Patch, Steer
from vdinterp.interventions.rope import RotateRope

_KINDS: dict[str, type[Intervention]] = {
    kind.__name__: kind
    for kind in (
        Ablate,
        Freeze,
        MaskAttention,
        Patch,
        RotateRope,
        SetCondition,
        SetNoiseLevel,
        Steer,
        TransferAttention,
    )
}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def to_json(interventions: Sequence[Intervention]) -> str:
    """Interventions as text; `from_json` is its inverse: same kinds and settings, tensors equal bit for bit.

    Tensors are inside, as base64 with dtype and shape, and caches as mappings of them; names of runs stay names.
    Tensors come back on the CPU. Raises `ValueError` for what holds a function: `Custom`, and sites given as one.
    """
    return json.dumps([to_dict(intervention) for intervention in check_interventions(interventions)], allow_nan=False)


def from_json(text: str) -> tuple[Intervention, ...]:
    """The interventions that `to_json` wrote.

    Raises `ValueError` for other text, for unknown kinds or fields with the closest ones, and for values that `to_json`
    does not write: tensors whose data are not those of their shape, names that occur twice, NaN in place of a number.
    """
    if not isinstance(text, str):
        raise ValueError(f"interventions are read from a text, see to_json; got {type(text).__name__}")
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"These are no interventions: {error}") from error
    if not isinstance(data, list):
        raise ValueError(f"Interventions are written as a list, see to_json; this is {type(data).__name__}.")
    return tuple(from_dict(item) for item in data)


def to_dict(intervention: Intervention) -> dict[str, Any]:
    """One intervention as JSON-able data: its kind and every field that is not None by default."""
    kind = type(intervention)
    if kind is Custom:
        raise ValueError("Custom holds a function, which is not written to JSON; use a kind that says what it does.")
    if _KINDS.get(kind.__name__) is not kind:
        raise ValueError(f"{kind.__name__} is none of the library's kinds, which are {', '.join(_KINDS)}.")
    data: dict[str, Any] = {"kind": kind.__name__}
    for field in fields(intervention):
        value = getattr(intervention, field.name)
        if value is not None or field.default is not None:
            data[field.name] = _encode(value, f"{kind.__name__}.{field.name}")
    return data


def from_dict(data: Any) -> Intervention:
    """The intervention that `to_dict` gave this for."""
    if not isinstance(data, Mapping) or "kind" not in data:
        raise ValueError(f"An intervention is written as a mapping with its kind, see to_dict; got {data!r:.200}.")
    name = data["kind"]
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"Unknown kind of intervention {name!r}.{_hint(str(name), _KINDS)}")
    kind = _KINDS[name]
    known = {field.name: field for field in fields(kind)}
    for key in data:
        if key != "kind" and key not in known:
            raise ValueError(f"{name} has no field {key!r}.{_hint(str(key), known)}")
    missing = [key for key, field in known.items() if field.default is MISSING and key not in data]
    if missing:
        raise ValueError(f"{name}: missing {', '.join(missing)}.")
    given = {key: _decode(value, f"{name}.{key}") for key, value in data.items() if key != "kind"}
    try:
        return kind(**given)
    except (TypeError, OverflowError, AttributeError) as error:  # of another type than the field has
        raise ValueError(f"{name} is not written as to_json does: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
        raise ValueError(f"{twice!r} is given twice")
    return data


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" Did you mean {close[0]!r}?" if close else f" There are {', '.join(known)}."


# Values: what JSON has no word for is an object with one telling key.


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, where)
    if isinstance(value, Between):
        return {"between": [value.low, value.high]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items()):
            raise ValueError(f"{where}: a run is written as a mapping from hook name to tensor.")
        return {"cache": {name: _encode_tensor(item, where) for name, item in value.items()}}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, where) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, (set, frozenset)):
        return {"set" if isinstance(value, set) else "frozenset": [_encode(item, where) for item in sorted(value)]}
    if hasattr(value, "tolist"):  # a numpy array of indices
        return _encode(value.tolist(), where)
    what = "a function, which is not written to JSON; give names" if callable(value) else f"{type(value).__name__}"
    raise ValueError(f"{where} is {what}.")


def _decode(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_decode(item, where) for item in value]
    if not isinstance(value, Mapping):
        return value
    try:
        if value.keys() == {"tensor", "dtype", "shape"}:
            return _decode_tensor(value)
        if len(value) == 1:
            ((tag, inner),) = value.items()
            if tag == "float":
                return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[inner]
            if tag == "range":
                if not isinstance(inner, list) or len(inner) != 3:
                    raise ValueError(f"a range is [start, stop, step], not {inner!r:.80}")
                return range(*(check_count("a range's parts", part, -MOST, MOST) for part in inner))
            if tag == "between":
                return Between(*inner)
            if tag == "cache":
                return {name: _decode_tensor(item) for name, item in inner.items()}
            if tag in ("tuple", "set", "frozenset"):
                if not isinstance(inner, list):
                    raise ValueError(f"a {tag} is written as a list, not {type(inner).__name__}")
                kind = {"tuple": tuple, "set": set, "frozenset": frozenset}[tag]
                return kind(_decode(item, where) for item in inner)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where} is not written as to_json does: {error}") from error
    raise ValueError(f"{where} is not written as to_json does: an object with the keys {', '.join(value)}.")


def _encode_tensor(tensor: torch.Tensor, where: str) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"{where}: tensors of {tensor.dtype} are not written to JSON; there are {', '.join(_DTYPES)}.")
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"tensor": base64.b64encode(raw).decode("ascii"), "dtype": dtype, "shape": list(tensor.shape)}


def _decode_tensor(data: Mapping[str, Any]) -> torch.Tensor:
    name, shape, text = data["dtype"], data["shape"], data["tensor"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"there is no dtype {name!r:.80}; there are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not isinstance(text, str):
        raise ValueError("a tensor's shape is a list, its data are text")
    sizes, dtype = [check_count("a size of a tensor", size, 0, 2**40) for size in shape], _DTYPES[name]
    raw = bytearray(base64.b64decode(text, validate=True))
    wanted = math.prod(sizes) * dtype.itemsize
    if len(raw) != wanted:  # torch would take what happens to be in memory for the rest
        raise ValueError(f"a {name} tensor {sizes} has {wanted} bytes, not {len(raw)}")
    if dtype == torch.bool and any(byte > 1 for byte in raw):
        raise ValueError("a boolean tensor holds 0 and 1 only")
    return torch.frombuffer(raw, dtype=dtype).reshape(sizes) if raw else torch.zeros(sizes, dtype=dtype)
