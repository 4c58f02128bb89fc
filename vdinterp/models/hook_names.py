"""Names of hook points: full, by alias, by key, and what may have been meant."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeGuard

from vdinterp.site import Site, endings, with_hook

Name = str | tuple[str, int] | tuple[str, int, str]
Names = Name | Sequence[Name] | Callable[[str], bool]


def match_alias(alias: str, names: Iterable[str]) -> list[str]:
    """Hook names that an alias stands for: `"z"`, `"attn.z"`, `"mod.gate"`, `"resid_post"`, or a name in full.

    The dots of an alias are those of the name: `"attn.z"` is not `"cross_attn.z"`.
    """
    full = with_hook(alias)
    return [name for name in names if name == full or name.endswith("." + full)]


@functools.lru_cache(maxsize=16)  # a model's names stay the same
def _by_ending(names: tuple[str, ...]) -> dict[str, list[str]]:
    """The names that end so, by every ending that begins after a dot or at the start."""
    found: dict[str, list[str]] = {}
    for name in names:
        for ending in endings(name):
            found.setdefault(ending, []).append(name)
    return found


def is_key(name: Any) -> TypeGuard[tuple]:
    """Whether `name` is a key `(alias, layer[, sublayer])`, not a list of names."""
    return isinstance(name, tuple) and len(name) in (2, 3) and isinstance(name[1], int) and isinstance(name[0], str)


def match_key(key: tuple, names: Iterable[str], n_layers: int) -> list[str]:
    """Hook names that `(alias, layer[, sublayer])` stands for; layers may be negative. KeyError for other layers."""
    alias, layer, *sublayer = key
    if not -n_layers <= layer < n_layers:
        raise KeyError(f"No layer {layer}: there are {n_layers}, so 0..{n_layers - 1} or negative.")
    block = Site(layer % n_layers)
    found = match_alias(alias, [name for name in names if name.startswith(f"{block}.")])
    within = [name for name in found if name.startswith(f"{block}.{sublayer[0] if sublayer else 'attn'}.")]
    return within if within or sublayer else found


def unknown_hook(name: str, names: Iterable[str]) -> KeyError:
    """The error for a name that matches no hook, with what may have been meant."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    short = sorted({Site.parse(full).alias for full in known if full.count(".")})
    close += [alias for alias in difflib.get_close_matches(name, short, n=3, cutoff=0.6) if alias not in close]
    hint = f"Did you mean {', '.join(map(repr, close))}?" if close else "model.describe_hooks() lists them all."
    return KeyError(f"No hook is called {name!r}. {hint}")


def resolve(names: Any, known: Collection[str], n_layers: int) -> list[str]:
    """Full names, see `HookedModule.resolve_names`."""
    if not callable(names) and (not isinstance(names, (str, Iterable)) or isinstance(names, (bytes, bytearray))):
        raise ValueError(
            f"{names!r} is no hook name; give a name, an alias such as 'z', a key such as ('z', 3), a list of these, "
            "or a function of a name"
        )
    if callable(names):
        found = [name for name in known if names(name)]
        if not found:
            raise KeyError("The name filter matches no hook of this model; model.describe_hooks() lists them.")
        return found
    found: list[str] = []
    seen: set[str] = set()
    endings = _by_ending(tuple(known))
    for alias in [names] if isinstance(names, str) or is_key(names) else names:
        if not isinstance(alias, str):
            if not is_key(alias):
                raise ValueError(
                    f"{alias!r} is no hook name; give names, aliases such as 'z', or keys such as ('z', 3)."
                )
            found.append(one := resolve_one(alias, known, n_layers))
            seen.add(one)
            continue
        matches = endings.get(with_hook(alias))
        if not matches:
            raise unknown_hook(alias, known)
        if len(matches) > 1:
            kinds = {kind for name in matches if (kind := Site.parse(name).kind)}
            if len(kinds) > 1:  # AdaLN's scale and the norm's
                raise KeyError(
                    f"{alias!r} is ambiguous: use {' or '.join(repr(f'{kind}.{alias}') for kind in sorted(kinds))}."
                )
        found += [name for name in matches if name not in seen]
        seen.update(matches)
    if not found:
        raise KeyError("An empty list of hook names; model.describe_hooks() lists them all, None means the default.")
    return found


def resolve_one(key: tuple, known: Collection[str], n_layers: int) -> str:
    """The one name that a key stands for."""
    names = match_key(key, known, n_layers)
    if len(names) != 1:
        alias, layer, *sublayer = key
        if names:
            raise KeyError(f"{key!r} is ambiguous: {', '.join(names)}. Give the full name.")
        raise unknown_hook(".".join([Site(layer % n_layers), *sublayer, alias]), known)
    return names[0]
