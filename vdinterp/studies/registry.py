"""Which studies there are, and how one is run."""

from __future__ import annotations

import difflib
import inspect
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vdinterp.analysis.stimulus.fit import check_levels, frames_seen
from vdinterp.checks.counts import check_count
from vdinterp.data import Clips
from vdinterp.models.identity import identity
from vdinterp.pipeline import VideoDiffusion
from vdinterp.results import Result
from vdinterp.store import Ledger, fingerprint
from vdinterp.studies.bench import Bench
from vdinterp.studies.clips import default_context, held_out_clips, kind_of, without_twin
from vdinterp.sweep import about

Study = Callable[..., Result]
NAMES: dict[str, Study] = {}
DEFAULTS: dict[str, dict[str, int | None]] = {}  # of studies that do not take the usual numbers
SMALL = 128  # tokens a clip: below, a pass costs next to nothing, and more clips and steps are affordable
CODE = (
    "interventions",
    "sweep",
    "analysis/metrics.py",
    "studies/bench.py",
    "studies/references.py",
    "studies/trials.py",
)


def study(name: str, *, n_context: int | None = None, n_clips: int | None = None) -> Callable[[Study], Study]:
    """Decorator that makes a function `(bench, **settings) -> Result` a study: `run(name, pipe)` then runs it.

    `n_context`, `n_clips`: what it takes unless told otherwise (-1 is all frames but the last). Default: see `run`.
    Raises ValueError if another function has the name already.
    """

    def register(function: Study) -> Study:
        there = NAMES.get(name)
        if there is not None and (there.__module__, there.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"there is a study {name!r} already ({there.__module__}.{there.__qualname__})")
        NAMES[name] = function
        DEFAULTS[name] = {"n_context": n_context, "n_clips": n_clips}
        return function

    return register


def find(name: str) -> Study:
    """The study of that name. KeyError with those that are close, and all there are."""
    if not isinstance(name, str) or name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
        raise KeyError(f"no study is called {name!r}{hint} the studies are {', '.join(sorted(NAMES))}")
    return NAMES[name]


def run(
    name: str,
    pipe: VideoDiffusion,
    clips: Clips | None = None,
    *,
    n_clips: int | None = None,
    reference: Clips | None = None,
    n_context: int | None = None,
    steps: int | None = None,
    noise_levels: Sequence[float] = (0.6, 0.9),
    seed: int = 0,
    batch: int = 16,
    out: str | Path | None = None,
    resume: bool = True,
    **settings: Any,
) -> Result:
    """Run a study on a model.

    Args:
        name: one of `NAMES`.
        clips: what to judge the model on; None takes `n_clips` held-out clips of the model's own kind.
        n_clips: at most this many (default: all `clips`; held-out ones: 16, or 32 for models with few tokens).
        reference: other clips, over which mean ablations average. Default: further held-out clips of the model's kind;
            for a model that does not say its kind, the judged clips themselves.
        n_context: frames given (default: half; all but the last of clips that say which frames are predictable).
        steps: denoising steps of an intact sample (default 8, or 16 for models with few tokens).
        noise_levels: shares in (0, 1], of what is judged in single forward passes.
        seed: of clips and noise. `batch`: clips a forward pass.
        out: folder in which finished work is recorded; a run that was stopped continues from there. None: nowhere.
        resume: False starts over.
        settings: the study's own.

    Raises:
        KeyError: no such study; says which are close.
        ValueError: clips, model and settings that do not fit together, before any compute.
    """
    function = find(name)
    if not isinstance(pipe, VideoDiffusion):
        raise ValueError(
            f"pipe is {type(pipe).__name__}; give a VideoDiffusion, for example vdinterp.load({str(pipe)!r})"
        )
    _check_settings(name, function, settings)
    defaults = DEFAULTS.get(name, {})
    small = pipe.model.grid().n_tokens <= SMALL
    if n_clips is not None:
        check_count("n_clips", n_clips)
    if n_context is not None:
        check_count("n_context", n_context, 0)
    check_count("batch", batch)
    check_levels(noise_levels)
    if clips is not None and not isinstance(clips, Clips):
        raise ValueError(f"clips is {type(clips).__name__}; give clips, for example vd.data.Clips(kind=.., video=..)")
    if clips is None:
        clips = held_out_clips(
            pipe, n_clips or defaults.get("n_clips") or (32 if small else 16), seed, n_context=n_context
        )
    elif not len(clips):
        raise ValueError("clips holds no clip")
    clips = without_twin(clips if n_clips is None else clips[:n_clips])
    if n_context is None:
        n_frames = frames_seen(pipe, clips)
        n_context = defaults.get("n_context")
        if n_context is None:
            n_context = default_context(n_frames, "predictable" in clips.labels)
        n_context += n_frames if n_context < 0 else 0
    own_reference = reference is None and kind_of(pipe) is None
    if own_reference:
        reference = clips
    elif reference is None:
        reference = held_out_clips(pipe, len(clips), seed, part="reference", n_context=None)
    assert reference is not None
    steps = (16 if small else 8) if steps is None else steps
    options = {
        "n_context": n_context,
        "steps": steps,
        "noise_levels": tuple(noise_levels),
        "seed": seed,
        "batch": batch,
    }
    bench = Bench(pipe, clips, without_twin(reference), **options)  # checks everything; nothing is hashed before
    if out is not None:
        made_by = about(pipe, *CODE)
        of = [made_by, _identity(pipe), bench.clips, bench.reference, options]
        folder = Path(out) / "records" / fingerprint(of)[:16]  # records of other clips or settings are not for these
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        bench.ledger = Ledger(folder, made_by)
    bench.about["reference"] = "the judged clips themselves" if own_reference else f"{len(reference)} other clips"
    return function(bench, **settings)


def _check_settings(name: str, function: Study, settings: dict[str, Any]) -> None:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"study {name!r} has no setting {', '.join(unknown)}; its settings are {', '.join(known) or 'none'}"
        )


def _identity(pipe: VideoDiffusion) -> list[Any]:
    """What measurements depend on besides clips, settings and this library's own code: weights and process."""
    vae: Any = pipe.vae
    module = vae if isinstance(vae, torch.nn.Module) else getattr(vae, "vae", None)
    coded = None if vae is None else [vae.config, identity(module) if isinstance(module, torch.nn.Module) else None]
    return [pipe.identity, coded, pipe.latent_stats.to_dict()]
