"""The options of sampling, written once for all that samples."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, TypeVar

import torch

from vdinterp.conditions import Cond
from vdinterp.diffusion import Guidance, NoiseSource
from vdinterp.interventions import Intervention
from vdinterp.interventions.kind import Kind

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingOptions(metaclass=Kind):
    """How a clip is generated: keyword arguments of `sample`, `iterate`, `rollout` and `interpolate`."""

    steps: int = 50
    """Denoising steps a frame, at most the number of noise levels."""
    guidance: Guidance | Sequence[Guidance] | None = None
    """A guidance or a list of them, see `vdinterp.diffusion.guidance`. Branches follow one another in the batch: clip
    `i` of branch `j` is entry `j * n_clips + i`."""
    cond: Cond = None
    """`vd.Conditions`, or the one tensor that the model takes (one action a frame; text)."""
    seed: int = 0
    """A clip's noise depends on `(seed, first_index + its place in the batch)` and on nothing else."""
    noise: torch.Tensor | NoiseSource | None = None
    """The initial state itself (to share one noise between conditions), or a NoiseSource."""
    interventions: Sequence[Intervention] = ()
    """Applied at `at_steps` to every branch."""
    at_steps: Iterable[int] | None = None
    """Steps of the interventions, 0 the noisiest; None: all."""
    record: Any = None
    """Names of activations to keep, a cache a step (as `names` of `run_with_cache`)."""
    matrix: str | torch.Tensor = "full_sequence"
    """`full_sequence`, `autoregressive`, `pyramid`, `trapezoid`, or noise levels `[step frame]` of your own."""
    uncertainty: float = 1.0
    """Steps between neighbouring frames of `pyramid` and `trapezoid`."""
    eta: float = 0.0
    """0 DDIM, 1 DDPM (with `steps` equal to the number of levels exactly its ancestral sampler)."""
    mask: torch.Tensor | Sequence[int] | None = None
    """`[frame]` or `[batch frame]`: -1 padding, 0 generate, 1 ground truth, 2 generated history."""
    batch: int | None = None
    """Clips, where there is no context to say how many."""
    first_index: int = 0
    """Of the first clip, for its noise."""
    pad: bool | None = None
    """Fill clips shorter than those of training with frames of pure noise, as the model was trained. Default:
    yes, unless its attention is causal."""


def with_options(options: type) -> Callable[[Method], Method]:
    """A method that takes `**options` shows the fields of a dataclass as keyword arguments, with their meanings."""

    def decorate(method: Method) -> Method:
        shown = inspect.signature(method)
        own = [one for one in shown.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
            for one in fields(options)
        ]
        meanings = "\n".join(f"    {name}: {text}" for name, text in meanings_of(options).items())
        method.__doc__ = f"{inspect.cleandoc(method.__doc__ or '')}\n\nOptions:\n{meanings}"
        method.__signature__ = shown.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return method

    return decorate


def meanings_of(options: type) -> dict[str, str]:
    """What stands beneath each field in the source of a dataclass; nothing where there is no source to read."""
    try:
        (written,) = ast.parse(inspect.getsource(options)).body
    except OSError:
        return {}
    assert isinstance(written, ast.ClassDef)
    found = {}
    for field, below in pairwise(written.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found
