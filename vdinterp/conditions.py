"""Conditions: everything that steers a run besides noise, as one value."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float

log = logging.getLogger(__name__)


DIMS = {"actions": "batch frame d_action", "text": "batch key d_text", "text_mask": "batch key", "dropped": "batch"}


class Takes(Protocol):
    """What a model takes: its configuration, or one like it."""

    @property
    def model_name(self) -> str: ...

    @property
    def d_action(self) -> int: ...

    @property
    def d_text(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Conditions:
    """What steers a batch of clips besides noise. Everything is optional; `NO_CONDITION` is nothing at all.

    `cond[2:5]` are those of some clips, `cond.repeat(3)` those of every clip three times over, `cond.frames(..)` those
    of some frames, `cond.drop()` those of clips that run without.
    """

    actions: Float[torch.Tensor, "batch frame d_action"] | None = None
    """What led to each frame."""
    text: Float[torch.Tensor, "batch key d_text"] | None = None
    """Token embeddings."""
    text_mask: Bool[torch.Tensor, "batch key"] | None = None
    """Which text tokens may be looked at; None: all."""
    dropped: Bool[torch.Tensor, "batch"] | None = None
    """Clips that run as if they had none: their actions add nothing, their text is zeros."""

    def __post_init__(self) -> None:
        for field, dims in DIMS.items():
            value = getattr(self, field)
            masks = field in ("text_mask", "dropped")
            if value is None:
                continue
            shown = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            if not isinstance(value, torch.Tensor) or value.ndim != len(dims.split()):
                raise ValueError(f"{field} is {shown}: give a tensor [{dims}]")
            if (value.dtype == torch.bool) != masks or value.is_complex():
                raise ValueError(f"{field} is {shown}: give {'booleans' if masks else 'numbers'} [{dims}]")

    def __repr__(self) -> str:
        shown = (f"{name} {list(value.shape)}" for name, value in self._parts())
        return f"Conditions({', '.join(shown)})"

    def __len__(self) -> int:
        """How many clips it is for; 0 for none at all."""
        return next((len(value) for _, value in self._parts()), 0)

    def __bool__(self) -> bool:
        """Whether there is anything to be steered by."""
        return self.actions is not None or self.text is not None

    def __getitem__(self, clips: slice | Sequence[int] | torch.Tensor) -> Conditions:
        return self._each(lambda value: value[clips])

    def repeat(self, times: int) -> Conditions:
        """The whole batch `times` over, one copy after the other."""
        return self._each(lambda value: torch.cat([value] * times))

    def frames(self, which: slice | Sequence[int] | torch.Tensor) -> Conditions:
        """Those of some frames; what is not by frame stays."""
        return self if self.actions is None else replace(self, actions=self.actions[:, which])

    def drop(self, clips: Bool[torch.Tensor, "batch"] | None = None) -> Conditions:
        """Without those of `clips` (default: all); what was dropped before stays so."""
        where = next((value.device for _, value in self._parts()), None)
        clips = torch.ones(len(self), dtype=torch.bool, device=where) if clips is None else clips.to(where)
        return replace(self, dropped=clips if self.dropped is None else self.dropped | clips)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditions:
        """On another device; numbers (not masks) in another dtype."""
        return self._each(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    @classmethod
    def cat(cls, parts: Sequence[Conditions]) -> Conditions:
        """Batches one after the other. ValueError where some have what others lack, or texts of other lengths."""
        known = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        if any(value is not None for value in known["dropped"]):
            known["dropped"] = [part.drop(torch.zeros(len(part), dtype=torch.bool)).dropped for part in parts]
        for name, values in known.items():
            if len({None if value is None else value.shape[1:] for value in values}) > 1:
                raise ValueError(f"conditions differ in their {name}: {parts}; give all of them one of the same size")
        return cls(**{name: torch.cat(values) for name, values in known.items() if values[0] is not None})

    def check(self, cfg: Takes, batch: int, frames: int, longest: int | None = None) -> None:
        """Raise `ValueError` unless a model takes these, of `batch` clips of `frames` frames (actions may go on to
        `longest`)."""
        name = cfg.model_name
        if self.actions is not None:
            if not cfg.d_action:
                raise ValueError(f"{name} takes no actions; leave them out of cond")
            wanted = f"one action a frame is needed, [batch frame d_action] = [{batch}, {frames}, {cfg.d_action}]"
            shape = tuple(self.actions.shape)
            fits = (shape[0], shape[2]) == (batch, cfg.d_action)
            if not fits or not frames <= shape[1] <= max(frames, longest or frames):
                raise ValueError(f"actions in cond are {list(shape)}: {wanted}")
        if self.text is not None:
            if not cfg.d_text:
                raise ValueError(f"{name} takes no text; leave it out of cond")
            if (len(self.text), self.text.shape[-1]) != (batch, cfg.d_text):
                raise ValueError(
                    f"text in cond is {list(self.text.shape)}: {name} takes embeddings [{batch}, tokens, {cfg.d_text}]"
                )
        if self.text_mask is not None:
            if self.text is None or tuple(self.text_mask.shape) != tuple(self.text.shape[:2]):
                shape = "no text" if self.text is None else f"text {list(self.text.shape)}"
                raise ValueError(f"text_mask in cond is {list(self.text_mask.shape)}, of {shape}: give [batch, tokens]")
            if not bool(self.text_mask.any(1).all()):
                raise ValueError("text_mask in cond leaves a clip without any token; drop its condition instead")
        if self.dropped is not None and tuple(self.dropped.shape) != (batch,):
            raise ValueError(f"dropped in cond is {list(self.dropped.shape)}: give one boolean a clip, [{batch}]")

    def _parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                yield field.name, value

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        return Conditions(**{name: change(value) for name, value in self._parts()})


NO_CONDITION = Conditions()
"""A model that takes actions or text is meant to run without: said aloud, so that nobody warns."""

Cond = Conditions | Float[torch.Tensor, "batch _ _"] | None


def as_conditions(given: Any, cfg: Takes) -> Conditions:
    """What a caller gave as `cond`: conditions; a tensor, which is the actions of a model that takes some, or else the
    text; or None. A model that takes some and is given None is said to run without, once. ValueError for other things.
    """
    if isinstance(given, Conditions):
        return given
    if given is None:
        if cfg.d_action or cfg.d_text:
            _say_without(cfg.model_name, missing(NO_CONDITION, cfg))
        return NO_CONDITION
    if isinstance(given, torch.Tensor):
        if cfg.d_action and cfg.d_text:
            raise ValueError(f"{cfg.model_name} takes actions and text: give cond=vd.Conditions(actions=.., text=..)")
        return Conditions(text=given) if cfg.d_text else Conditions(actions=given)
    raise ValueError(f"cond is {type(given).__name__}; give vd.Conditions(actions=.., text=..), a tensor, or None")


def missing(given: Conditions, cfg: Takes) -> str:
    """What a model takes and these lack, in words: "actions", "text", "actions and text" or ""."""
    return " and ".join(what for what, n in _taken(cfg) if n and getattr(given, what) is None)


def _taken(cfg: Takes) -> list[tuple[str, int]]:
    return [("actions", cfg.d_action), ("text", cfg.d_text)]


@functools.cache
def _say_without(model_name: str, what: str) -> None:
    log.warning("%s takes %s and runs without; give cond=.., or vd.NO_CONDITION if that is meant", model_name, what)
