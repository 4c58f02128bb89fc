"""Training of the bundled models, and the loop anyone can train their own with."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vdinterp.training.loop import fit, step_generator

if TYPE_CHECKING:
    from vdinterp.pipeline import VideoDiffusion

__all__ = ["RECIPES", "fit", "step_generator", "train"]

RECIPES = {
    # name: module and function; called as function(name, steps=..., out=..., seed=..., resume=...)
    "tiny-induction": ("vdinterp.training.digits", "train_digits"),
    "tiny-loop": ("vdinterp.training.digits", "train_digits"),
    "tiny-crafter": ("vdinterp.training.crafter", "train_crafter"),
}


def train(
    name: str, *, steps: int | None = None, out: str | Path, seed: int | None = None, resume: bool = True
) -> VideoDiffusion:
    """Train a bundled model from nothing and write it to the directory `out`, in the format of the package's own.

    `steps`: a shorter run with every stage shortened alike (20 is a smoke test); None is the recipe's own number, as
    `seed=None` is the seed of the bundled weights.
    A run that was stopped continues from its last save; `resume=False` starts over. Same seed, same machine and number
    of threads: same weights.

    Raises ValueError for an unknown name, `steps` below 1, a negative seed, or an `out` that holds another run.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(str(name), RECIPES, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"no recipe for {name!r}{hint} There are: {', '.join(RECIPES)}")
    if (steps is not None and steps < 1) or (seed is not None and seed < 0):
        raise ValueError(f"need steps >= 1 and seed >= 0, got steps={steps}, seed={seed}")
    module, function = RECIPES[name]
    return getattr(import_module(module), function)(name, steps=steps, out=Path(out), seed=seed, resume=resume)
