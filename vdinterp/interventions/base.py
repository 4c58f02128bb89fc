"""What every intervention is: when it acts, on which frames, whose activations it uses, and how it is checked."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool

from vdinterp.checks.counts import check_indices
from vdinterp.grid import TokenGrid
from vdinterp.interventions.kind import Kind
from vdinterp.interventions.levels import Between, NoiseLevels, among, check_noise_levels
from vdinterp.interventions.places import FIELDS, Pass, alike, check_within, chosen_of, tokens_in

if TYPE_CHECKING:
    from typing_extensions import Self

HookPair = tuple[str, Callable[..., Any]]
Place = str | Sequence[Any] | Callable[[str], bool]  # a name, an alias, a key such as ("z", 3), or several of these
Run = Mapping[str, torch.Tensor] | str  # a run's activations by hook name, or the name of a run of a sweep

_NEEDS_SAMPLER = "steps= needs a sampler, which counts denoising steps; leave it out for a single forward"
_NEEDS_LEVELS = (
    "noise_levels= needs a sampler or pipe.denoise, which know the noise level of every frame; for model(...) itself "
    "set them: model.set_hook_ctx(noise_levels=..), shares [batch frame]"
)


@dataclass(frozen=True, kw_only=True)
class Intervention(metaclass=Kind):
    """Something that changes a forward pass. Subclasses say where and how.

    `steps`: denoising steps at which it acts (a sampler counts them). `noise_levels`: it acts on frames at these
    noise levels only, 0 clean: `[0, 0.9]`, or all in `Between(0.5, 1.0)`, clip by clip (a sampler and `pipe.denoise`
    know them). None: always.
    """

    RUNS: ClassVar[tuple[str, ...]] = ()  # fields that hold another run's activations

    steps: Collection[int] | None = None
    noise_levels: NoiseLevels | None = None

    def __post_init__(self) -> None:
        check_indices("steps", self.steps, low=0)
        check_noise_levels(self.noise_levels)
        for field in self.RUNS:
            check_run(field, getattr(self, field))

    @abstractmethod
    def hooks(self, model: Any) -> list[HookPair]:
        """Hook functions for `model`. Raises `KeyError` or `ValueError` if they do not fit it, before anything runs."""

    # When and on which frames

    @property
    def when(self) -> dict[str, Any]:
        """`steps` and `noise_levels`, for an intervention that does a part of this one."""
        return {"steps": self.steps, "noise_levels": self.noise_levels}

    def is_active(self, hook: Any) -> bool:
        """Whether this step is one of `steps`. Raises `ValueError` outside a sampler, which alone counts steps."""
        if self.steps is None:
            return True
        if "step" not in hook.ctx:
            raise ValueError(_NEEDS_SAMPLER)
        return hook.ctx["step"] in self.steps

    def frames_at_levels(self, hook: Any) -> Bool[torch.Tensor, "batch frame"] | None:
        """Which frames are at one of `noise_levels`; None: all. Raises `ValueError` where nobody says their levels."""
        if self.noise_levels is None:
            return None
        if "noise_levels" not in hook.ctx:
            raise ValueError(_NEEDS_LEVELS)
        return among(hook.ctx["noise_levels"], self.noise_levels)

    @property
    def places(self) -> dict[str, Any]:
        """The frames, rows, columns and tokens that it is limited to, of those that are given."""
        return chosen_of(self)

    def check_acts(self, model: Any, passes: Iterable[Pass]) -> None:
        """Raise `ValueError` if none of these forward passes is one in which this can act."""
        what = type(self).__name__
        if self.steps is None and self.noise_levels is None:
            return
        seen: set[str] = set()
        for one in passes:
            step, levels = one.step, one.noise_levels
            if self.steps is not None and step is None:
                raise ValueError(f"{what}: {_NEEDS_SAMPLER}")
            if self.steps is not None and step not in self.steps:
                continue
            if self.noise_levels is None:
                return
            if levels is None:
                raise ValueError(f"{what}: {_NEEDS_LEVELS}")
            here = self._frames_in(one, *levels.shape).to(levels.device)
            if bool((among(levels, self.noise_levels) & here).any()):
                return
            seen.update(f"{level:.4g}" for level in levels[here].unique().tolist())
        if self.noise_levels is None:
            raise ValueError(f"{what} never acts: none of its steps {_listed(self.steps or ())} happens here")
        where = "no frame is"
        if self.places:
            where = f"none of the {', '.join(f'{field} {chosen}' for field, chosen in self.places.items())} is"
        when = "" if self.steps is None else f" at the steps {_listed(self.steps)}"
        raise ValueError(
            f"{what} never acts: {where} at the noise levels {_levels(self.noise_levels)}{when}; they are at "
            f"{_listed(sorted(seen, key=float)) or 'none'} (0 clean)"
        )

    def check_clips(self, passes: Sequence[Pass]) -> None:
        """Raise `ValueError` if what is given does not fit the clips of these passes, of those whose grid is known."""
        check_within(type(self).__name__, self.places, passes)

    def _frames_in(self, one: Pass, batch: int, n_frames: int) -> Bool[torch.Tensor, "batch frame"]:
        """The frames of a pass that it may change."""
        frames = alike(one.frames, n_frames)
        grid = TokenGrid(n_frames, 1, 1) if one.grid is None else one.grid
        known = FIELDS if one.grid is not None else ("frames",)
        places = {field: chosen for field, chosen in self.places.items() if field in known}
        found = tokens_in(frames, grid, places).any(-1)
        return found.repeat(batch // len(found), 1)

    # Whose activations

    @property
    def run_names(self) -> tuple[str, ...]:
        """The runs of a sweep that this names in place of their activations."""
        given = (getattr(self, field) for field in self.RUNS)
        return tuple(dict.fromkeys(run for run in given if isinstance(run, str)))

    def sites_of_run(self, model: Any) -> dict[str, list[str]]:
        """The hooks of each named run whose activations this needs. Raises as `hooks` does, where the run's own
        activations are not needed to see that something does not fit."""
        return {}

    def bind(self, runs: Mapping[str, Mapping[str, torch.Tensor]]) -> Self:
        """The same intervention with the names of runs replaced by their activations.

        Raises `KeyError` saying which runs there are when one is missing.
        """
        found = {}
        for field in self.RUNS:
            name = getattr(self, field)
            if isinstance(name, str):
                if name not in runs:
                    known = ", ".join(map(repr, runs)) or "none"
                    raise KeyError(f"{type(self).__name__}: {field} {name!r} is no run of these; there are {known}.")
                found[field] = runs[name]
        return replace(self, **found) if found else self

    def check_bound(self) -> None:
        """Raise `ValueError` if a run is only named."""
        for field in self.RUNS:
            name = getattr(self, field)
            if isinstance(name, str):
                raise ValueError(
                    f"{type(self).__name__}: {field} {name!r} is the name of a run of a sweep; give a cache, or run it "
                    "in a sweep."
                )

    # As data

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data; `from_dict` is its inverse. Raises `ValueError` for what cannot be written."""
        from vdinterp.interventions.serialize import to_dict  # which knows every kind

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild an intervention from `to_dict`'s output. Raises `ValueError` for unknown kinds and fields."""
        from vdinterp.interventions.serialize import from_dict

        found = from_dict(data)
        if not isinstance(found, cls):
            raise ValueError(f"This is {type(found).__name__}, not {cls.__name__}; use Intervention.from_dict.")
        return found


def check_interventions(given: Any) -> tuple[Intervention, ...]:
    """What was given as interventions, as a tuple. Raises `ValueError` if it holds anything else."""
    if isinstance(given, Intervention) or not isinstance(given, Sequence):
        raise ValueError(f"interventions is {type(given).__name__}; give a list of interventions, e.g. [Ablate('z')].")
    for item in given:
        if not isinstance(item, Intervention):
            raise ValueError(
                f"{item!r} is no intervention (Ablate, Patch, Freeze, Steer, MaskAttention ..., see "
                "vdinterp.interventions). A hook function of your own is Custom(site, function)."
            )
    return tuple(given)


def hooks_of(interventions: Iterable[Intervention], model: Any) -> list[HookPair]:
    """The hooks of several interventions, in their order, each checked against the model."""
    return [pair for intervention in interventions for pair in intervention.hooks(model)]


class Acting:
    """Hooks of several interventions, and whether each of them ever changed anything."""

    def __init__(self, interventions: Sequence[Intervention], model: Any) -> None:
        self.interventions = interventions
        self.called, self.acted = ([False] * len(interventions) for _ in range(2))
        self.pairs: list[HookPair] = [
            (name, self._noting(function, index) if self._is_limited(one, function) else function)
            for index, one in enumerate(interventions)
            for name, function in one.hooks(model)
        ]

    @staticmethod
    def _is_limited(one: Intervention, function: Callable[..., Any]) -> bool:
        """Whether it may leave a call as it is. A recorder, which alone has `listens`, never changes anything."""
        limited = one.steps is not None or one.noise_levels is not None or "frames" in one.places
        return limited and not hasattr(function, "listens")

    def _noting(self, function: Callable[..., Any], index: int) -> Callable[..., Any]:
        @wraps(function)
        def call(activation: torch.Tensor, hook: Any) -> Any:
            self.called[index] = True
            returned = function(activation, hook=hook)
            self.acted[index] |= returned is not None
            return returned

        return call

    def check(self, grid: TokenGrid, frames: torch.Tensor | None) -> None:
        """Raise `ValueError` before a pass whose clips do not have what was asked for; a window on a clip, which says
        its `frames`, need not show all of it."""
        for one in self.interventions:
            if frames is None and one.steps is None and one.noise_levels is None:  # others may leave this call as it is
                one.check_clips([Pass(None, None, grid)])

    def warn_of_idle(self) -> None:
        """Warn about interventions whose hooks were called and which changed nothing in any call."""
        for one, called, acted in zip(self.interventions, self.called, self.acted, strict=True):
            if called and not acted:
                limits = {**{name: value for name, value in one.when.items() if value is not None}, **one.places}
                limits = ", ".join(f"{name}={value!r}" for name, value in limits.items())
                warnings.warn(f"{type(one).__name__}({limits}) never acted: no pass was one of these", stacklevel=4)


def check_choice(field: str, chosen: Any, size: int, owner: str) -> None:
    """Raise `ValueError` unless `chosen` is None or a list of whole numbers in `range(size)` that is not empty."""
    check_indices(field, chosen)
    for value in () if chosen is None else chosen:
        if int(value) not in range(size):
            raise ValueError(f"{field} {value!r}: {owner} has {size} {field}, so 0..{size - 1}.")


def check_place(site: Any) -> None:
    """Raise `ValueError` unless `site` is a hook name, an alias, a key such as `("z", 3)`, a predicate, or a list."""
    if callable(site) or (isinstance(site, str) and site):
        return
    given = () if not isinstance(site, (list, tuple)) else [site] if _is_key(site) else site
    if not given or not all(_is_key(one) if isinstance(one, tuple) else isinstance(one, str) for one in given):
        raise ValueError(f"site {site!r}: give a hook name, an alias such as 'z', a key such as ('z', 3), or a list")


def _listed(numbers: Collection[Any], most: int = 12) -> str:
    if isinstance(numbers, range) and len(numbers) > most:
        return repr(numbers)
    shown = ", ".join(str(number) for number, _ in zip(numbers, range(most), strict=False))
    return f"{shown}, .. ({len(numbers)} in all)" if len(numbers) > most else shown


def _levels(wanted: NoiseLevels) -> str:
    return str(wanted) if isinstance(wanted, Between) else _listed(wanted)


def _is_key(site: Any) -> bool:
    whole = isinstance(site, tuple) and len(site) in (2, 3) and type(site[1]) is int
    return whole and all(isinstance(part, str) for part in (site[0], *site[2:]))


def check_run(field: str, run: Any) -> None:
    """Raise `ValueError` unless `run` is None, a mapping from hook name to activation, or a name."""
    if run is not None and (not isinstance(run, (str, Mapping)) or run == ""):
        raise ValueError(
            f"{field} is {run!r}: give a cache (a mapping from hook name to tensor), or the name of a run of a sweep."
        )


def chosen_layers(layers: Sequence[int] | None, model: Any) -> list[int]:
    """`layers`, None: all. Raises `ValueError` for those that the model does not have."""
    check_choice("layers", layers, model.cfg.n_layers, model.cfg.model_name)
    return list(range(model.cfg.n_layers) if layers is None else layers)
