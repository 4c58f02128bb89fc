"""Controls: what would look like induction and is not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from vdinterp.analysis.bootstrap import bootstrap_mean
from vdinterp.analysis.induction.effects import Head
from vdinterp.analysis.induction.scores import score_table
from vdinterp.analysis.induction.task import Task
from vdinterp.interventions import RotateRope
from vdinterp.pipeline import VideoDiffusion

UNTRAINED = 3  # seeds of random weights


@dataclass(frozen=True)
class Control:
    """`value`: what was measured; `passed`: None where it could not be."""

    name: str
    question: str
    value: float
    criterion: str
    passed: bool | None
    note: str = ""


def controls(task: Task, level: float, scores: pd.DataFrame, heads: Sequence[Head], seed: int) -> list[Control]:
    """All controls of the named heads at one noise level, on clips they were not chosen on."""
    names = [f"{layer}.{head}" for layer, head in heads]
    mine = scores[(scores["level"] == level)].copy()
    mine["name"] = [f"{layer}.{head}" for layer, head in zip(mine["layer"], mine["head"], strict=True)]
    mine = mine.set_index("name").loc[names]
    share = _successor_share(task, level, heads)
    return [
        _twin(task, level, heads, share, "none", "shuffled content",
              "Does the same lag get as much where other frames stand there?"),
        _twin(task, level, heads, share, "reversed", "time-reversed repeat",
              "Does it find what comes back where it stands before its cue?", shift=-1),
        _twin(task, level, heads, share, "no match", "predecessor taken away",
              "Does it find what comes back without the frame that came before?"),
        Control("position", "What is left beyond what the displacement alone gets?",
                float(mine["beyond_position"].min()), "each above half of the prefix matching",
                bool((mine["beyond_position"] > 0.5 * mine["prefix_matching"]).all())),
        Control("slope of the preferred lag", "Does it follow the lag?", _mean(mine["slope"]),
                "each between 0.5 and 1.5",
                None if mine["slope"].isna().any() else bool(mine["slope"].between(0.5, 1.5).all())),
        Control("foils", "Does it prefer the successor to the best foil (" + ", ".join(sorted(set(mine["best_foil"])))
                + ")?", float(mine["contrast_low"].min()), "each surely above 0",
                bool((mine["contrast_low"] > 0).all())),
        _permuted(task, level, heads, share, seed),
        _untrained(task, level, float(mine["prefix_matching"].max()), seed),
        Control("other clips", "Do heads chosen on some clips score on others?", _mean(mine["prefix_matching"]),
                "each significant there, q < 0.01",
                None if mine["q"].isna().any() else bool((mine["q"] < 0.01).all())),
    ]  # fmt: skip


def control_table(found: Sequence[Control]) -> pd.DataFrame:
    """One row a control."""
    outcome = {True: "passed", False: "failed", None: "not measured"}
    return pd.DataFrame(
        {
            "control": [one.name for one in found],
            "question": [one.question for one in found],
            "value": [one.value for one in found],
            "criterion": [one.criterion for one in found],
            "outcome": [outcome[one.passed] for one in found],
            "note": [one.note or "-" for one in found],
        }
    )


def _successor_share(task: Task, level: float, heads: Sequence[Head]) -> torch.Tensor:
    return _of(task.on_successor(task.look(level)), heads)


def _of(values: torch.Tensor, heads: Sequence[Head]) -> torch.Tensor:
    """`[head clip]` of `[layer clip head]`."""
    return torch.stack([values[layer, :, head] for layer, head in heads])


def _twin(
    task: Task, level: float, heads: Sequence[Head], share: torch.Tensor, twin: str, name: str, question: str,
    shift: int = 0,
) -> Control:  # fmt: skip
    """Beyond chance, a twin has to get less than half of what the repeat gets. `shift`: where it is in the twin."""
    beyond = share - task.chance
    other = _of(task.on_successor(task.look(level, twin), shift), heads) - task.chance
    ratio = other.mean(1) / beyond.mean(1).clamp(min=1e-9)
    surely = all(bootstrap_mean(one).low > 0 for one in (beyond - other))
    return Control(
        name, question, float(ratio.max()), "at most 0.5 of the share with it, beyond chance, each",
        bool((ratio <= 0.5).all()) and surely,
    )  # fmt: skip


def _permuted(task: Task, level: float, heads: Sequence[Head], share: torch.Tensor, seed: int) -> Control:
    name, question = "rotary times permuted", "Does it need the order of frames, with all contents in place?"
    try:
        turn = RotateRope("frame", way="permuted", seed=seed)
        other = _of(task.on_successor(task.look(level, None, turn)), heads)
    except ValueError as error:
        return Control(name, question, float("nan"), "-", None, str(error))
    ratio = (other - task.chance).mean(1) / (share - task.chance).mean(1).clamp(min=1e-9)
    return Control(
        name, question, float(ratio.max()), "at most 0.5 of the share with it, beyond chance, each",
        bool((ratio <= 0.5).all()),
    )  # fmt: skip


def _untrained(task: Task, level: float, best: float, seed: int) -> Control:
    """The best score of any head of the same network with random weights."""
    top = max(
        float(score_table(_task_of(task, untrained(task.pipe, seed + i), level), significance=False)[
            "prefix_matching"].max())
        for i in range(UNTRAINED)
    )  # fmt: skip
    return Control(
        "untrained weights", f"What does the best head of {UNTRAINED} untrained networks get?", top,
        "at most half of the best named head", top <= 0.5 * best,
    )  # fmt: skip


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
    return Task(pipe, task.repeats, (level,), task.seed, task.batch)


def _mean(values: pd.Series) -> float:
    return float(np.nanmean(values.to_numpy())) if values.notna().any() else float("nan")
