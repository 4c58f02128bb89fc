"""Controls: what would look like induction and is not."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from vdinterp.analysis.induction.effects import Head, on_successor
from vdinterp.analysis.induction.scores import score_table
from vdinterp.analysis.induction.task import Look, Task
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.interventions import RotateRope
from vdinterp.pipeline import VideoDiffusion
from vdinterp.sweep import Trial

UNTRAINED = 3  # seeds of random weights


@dataclass(frozen=True)
class Control:
    """Of one head. `value`: what was measured; `passed`: None where it could not be."""

    head: Head
    name: str
    question: str
    value: float
    criterion: str
    passed: bool | None
    note: str = ""


def controls(task: Task, level: float, scores: pd.DataFrame, heads: Sequence[Head], seed: int) -> list[Control]:
    """All controls of every head by itself at one noise level, on clips it was not chosen on."""
    mine = scores[scores["level"] == level].set_index(["layer", "head"])
    back = -task.repeats.cue  # where in a reversed repeat that stands which comes next
    asked = [
        ("none", "shuffled content", "Does the same lag get as much where other frames stand there?", 0),
        ("reversed", "time-reversed repeat", "Does it find what comes back where it stands before its cue?", back),
        ("no match", "predecessor taken away", "Does it find what comes back without the frame that came before?", 0),
    ]
    on = _beyond(task, task.look(level))
    twins = [_beyond(task, task.look(level, twin), shift) for twin, _, _, shift in asked]
    permuted, note = _permuted(task, level, heads, seed)
    top = _untrained(task, level, seed)
    found = []
    for head in heads:
        row, with_it = mine.loc[head], _of(on, head)
        found += [
            _half(head, name, question, with_it, _of(twin, head))
            for (_, name, question, _), twin in zip(asked, twins, strict=True)
        ]
        matching = float(row["prefix_matching"])
        contrast, q = (float(row[name]) for name in ("contrast_low", "q"))
        beyond = float(row["beyond_position"])
        found += [
            Control(
                head,
                "position",
                "What is left beyond what the displacement alone gets?",
                beyond,
                "above half of the prefix matching",
                beyond > 0.5 * matching,
            ),
            _followed(task, level, head),
            Control(
                head,
                "foils",
                f"Does it prefer the successor to the best foil ({row['best_foil']})?",
                contrast,
                "surely above 0",
                contrast > 0,
            ),
            _turned(head, with_it, permuted.get(head), note),
            Control(
                head,
                "untrained weights",
                f"What does the best head of {UNTRAINED} untrained networks get?",
                top,
                "at most half of its prefix matching",
                top <= 0.5 * matching,
            ),
            Control(
                head,
                "other clips",
                "Does a head chosen on some clips score on others?",
                matching,
                "significant there, q < 0.01",
                None if math.isnan(q) else q < 0.01,
            ),
        ]
    return found


def control_table(found: Sequence[Control]) -> pd.DataFrame:
    """One row a head and control."""
    outcome = {True: "passed", False: "failed", None: "not measured"}
    return pd.DataFrame(
        {
            "head": [f"{one.head[0]}.{one.head[1]}" for one in found],
            "control": [one.name for one in found],
            "question": [one.question for one in found],
            "value": [one.value for one in found],
            "criterion": [one.criterion for one in found],
            "outcome": [outcome[one.passed] for one in found],
            "note": [one.note or "-" for one in found],
        }
    )


def _beyond(task: Task, look: Look, shift: int = 0) -> torch.Tensor:
    """`[layer clip head]`: shares on what comes next (or `shift` frames on), beyond chance."""
    return task.on_successor(look, shift) - task.chance[:, None]


def _of(values: torch.Tensor, head: Head) -> torch.Tensor:
    """`[clip]` of `[layer clip head]`."""
    return values[head[0], :, head[1]]


def _ratio(other: torch.Tensor, with_it: torch.Tensor) -> float:
    return float(other.mean() / with_it.mean().clamp(min=1e-9))


def _half(head: Head, name: str, question: str, with_it: torch.Tensor, other: torch.Tensor) -> Control:
    """Beyond chance, a twin has to get at most half of what the repeat gets, and surely less."""
    ratio, surely = _ratio(other, with_it), bool(bootstrap_mean(with_it - other).low > 0)
    criterion = "at most 0.5 of the share with it, beyond chance, and surely less"
    return Control(head, name, question, ratio, criterion, ratio <= 0.5 and surely)


def _followed(task: Task, level: float, head: Head) -> Control:
    """Short lags and long ones: a head at a fixed distance gets more than without a repeat at neither. (The slope of
    the preferred lag says less: a head that misses in some clips and then looks at one distance may have any.)"""
    name, question = "lags followed", "Does it find what comes back at short and at long lags?"
    criterion = "at both surely more than that lag gets without a repeat"
    layer, index = head
    lag = task.repeats.lag
    if len(lag.unique()) < 2:
        return Control(head, name, question, float("nan"), criterion, None, "all clips have one lag")
    share, without = (task.look(level, twin).last[layer, :, index] for twin in (None, "none"))
    at = task.n_frames - 1 - lag
    beyond = share[torch.arange(len(at)), at] - without.mean(0)[at]
    short = lag <= lag.double().median()
    if bool(short.all()):
        short = lag < lag.max()
    found = [bootstrap_mean(beyond[half]) for half in (short, ~short)]
    least = min(float(one.value) for one in found)
    return Control(head, name, question, least, criterion, all(bool(one.low > 0) for one in found))


def _permuted(task: Task, level: float, heads: Sequence[Head], seed: int) -> tuple[dict[Head, torch.Tensor], str]:
    """Shares on the successor beyond chance, clip by clip, or why there are none."""
    try:
        turned = Trial(interventions=(RotateRope("frame", way="permuted", seed=seed),), label={"way": "permuted"})
        found = on_successor(task, level, [turned], heads)
    except ValueError as error:
        return {}, str(error)
    return {
        (layer, head): found.per_clip(("way",), metric=f"{layer}.{head}")[:, 0] - task.chance for layer, head in heads
    }, ""


def _turned(head: Head, with_it: torch.Tensor, other: torch.Tensor | None, note: str) -> Control:
    name, question = "rotary times permuted", "Does it need the order of frames, with all contents in place?"
    if other is None:
        return Control(head, name, question, float("nan"), "-", None, note)
    ratio = _ratio(other, with_it)
    return Control(head, name, question, ratio, "at most 0.5 of the share with it, beyond chance", ratio <= 0.5)


def _untrained(task: Task, level: float, seed: int) -> float:
    """The best score of any head of the same network with random weights."""
    return max(
        float(
            score_table(_task_of(task, untrained(task.pipe, seed + i), level), significance=False)[
                "prefix_matching"
            ].max()
        )
        for i in range(UNTRAINED)
    )


def untrained(pipe: VideoDiffusion, seed: int) -> VideoDiffusion:
    """The same pipeline with random weights, none of them zero: as networks are initialised, gates are closed and
    nothing passes from frame to frame."""
    model, generator = copy.deepcopy(pipe.model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                drawn = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
                parameter.copy_(drawn)
    return VideoDiffusion(model, pipe.vae, pipe.diffusion, pipe.latent_stats, pipe.meta)


def _task_of(task: Task, pipe: VideoDiffusion, level: float) -> Task:
    return Task(pipe, task.repeats, (level,), task.seed, task.batch, encoded=task.encoded)
