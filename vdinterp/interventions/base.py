"""What every intervention is: when it acts, on which frames, whose activations it uses, and how it is checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool

if TYPE_CHECKING:
    from typing_extensions import Self

HookPair = tuple[str, Callable[..., Any]]
Site = str | Sequence[Any] | Callable[[str], bool]  # a name, an alias, a key such as ("z", 3), or several of these
Run = Mapping[str, torch.Tensor] | str  # a run's activations by hook name, or the name of a run of a sweep


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """Something that changes a forward pass. Subclasses say where and how.

    `steps`: denoising steps at which it acts (a sampler counts them). `noise_levels`: it acts on frames at these
    integer levels only, -1 clean, e.g. `range(500, 1000)`, clip by clip (a sampler and `pipe.denoise` know them). None:
    always.
    """

    RUNS: ClassVar[tuple[str, ...]] = ()  # fields that hold another run's activations

    steps: Collection[int] | None = None
    noise_levels: Collection[int] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and not isinstance(self.steps, Collection):
            raise ValueError(f"steps={self.steps!r}: give a list or a range of denoising steps.")
        check_list("noise_levels", self.noise_levels)
        for level in self.noise_levels or ():
            if not isinstance(level, Integral) or int(level) < -1:
                raise ValueError(f"noise_levels {level!r}: levels are whole numbers, -1 for clean frames.")
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
            raise ValueError("steps= needs a sampler, which counts denoising steps; leave it out for a single forward.")
        return hook.ctx["step"] in self.steps

    def frames_at_levels(self, hook: Any) -> Bool[torch.Tensor, "batch frame"] | None:
        """Which frames are at one of `noise_levels`; None: all. Raises `ValueError` where nobody says their levels."""
        if self.noise_levels is None:
            return None
        if "noise_levels" not in hook.ctx:
            raise ValueError(
                "noise_levels= needs a sampler or pipe.denoise, which know the integer level of every frame; for "
                "model(...) itself set them: model.set_hook_ctx(noise_levels=k)."
            )
        levels = hook.ctx["noise_levels"]
        return torch.isin(levels, torch.tensor([int(level) for level in self.noise_levels], device=levels.device))

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


def check_list(field: str, chosen: Any) -> None:
    """Raise `ValueError` unless `chosen` is None or a collection that is not empty (an empty one would do nothing)."""
    if chosen is not None and (not isinstance(chosen, Collection) or isinstance(chosen, str) or not len(chosen)):
        raise ValueError(f"{field}={chosen!r}: give a list of one or more numbers, or None for all.")


def check_choice(field: str, chosen: Any, size: int, owner: str) -> None:
    """Raise `ValueError` unless `chosen` is None or a list of whole numbers in `range(size)` that is not empty."""
    check_list(field, chosen)
    for value in () if chosen is None else chosen:
        if not isinstance(value, Integral) or int(value) not in range(size):
            raise ValueError(f"{field} {value!r}: {owner} has {size} {field}, so 0..{size - 1}.")


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
