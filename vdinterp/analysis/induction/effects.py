"""Effects: what is lost without the heads, what they copy, and who tells them where to look."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from vdinterp import sweep
from vdinterp.analysis.induction.task import Task, shares
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.patching.paths import path_patch
from vdinterp.analysis.stimulus.cases import TargetError, cases_of
from vdinterp.interventions import Ablate, MaskAttention, Patch
from vdinterp.site import Site

Head = tuple[int, int]  # layer, head
MOST_OTHERS = 20  # heads to compare with
PAIRS = 32  # of clips that paths are patched, and outputs interchanged, between
TOLD = ("no match", "no cue")  # twins whose outputs are interchanged
COPIES = 8  # clips of a lag that copying is measured on


@dataclass(frozen=True)
class Sweeps:
    """How the sweeps of a search are run: the engine, and the folder of their ledgers (None: in memory)."""

    engine: Literal["inline", "ray"] = "inline"
    out: Path | None = None

    def options(self, name: str) -> dict[str, Any]:
        return {"progress": False, "out": None if self.out is None else self.out / name}


IN_MEMORY = Sweeps()


@dataclass(frozen=True)
class Towards:
    """How far the last frame goes along a direction: its projection on it over the squared length."""

    def __call__(self, x0: torch.Tensor, moment: sweep.Moment) -> torch.Tensor:
        direction = moment.case.about["direction"].to(x0)
        return (x0[:, -1] * direction).sum((1, 2, 3)) / direction.square().sum((1, 2, 3))


@dataclass(frozen=True)
class OnSuccessor:
    """The share of a head's attention, from the last frame to clean ones, that goes to what comes next."""

    head: Head
    names = ("frame_mass",)

    def __call__(self, x0: torch.Tensor, moment: sweep.Moment) -> torch.Tensor:
        layer, index = self.head
        mass: Any = moment.cache
        last = mass["frame_mass", layer][:, index, -1, :-1].cpu()
        return (shares(last) * moment.case.about["successor"][:, :-1]).sum(-1)


@dataclass(frozen=True)
class Rise:
    """Rise of the last frame's x0 error, clip by clip, without a set of heads: on `repeats`, and on the same clips
    where nothing came back (`others`)."""

    heads: tuple[Head, ...]
    repeats: torch.Tensor
    others: torch.Tensor

    @property
    def lost(self) -> torch.Tensor:
        """What the repeat gains less without the heads. Signed on both sides: harm that is done to other clips as well
        is no loss of it, and help that other clips get is."""
        return self.repeats - self.others


def rises(
    task: Task, level: float, sets: Mapping[str, Sequence[Head]], sweeps: Sweeps = IN_MEMORY, name: str = "ablation"
) -> dict[str, Rise]:
    """What mean ablation of each set of heads does. The mean is that of the twins without a repeat at this noise level:
    that of the repeats would put back a part of what comes back. `name`: of the sweep's records."""
    means = task.noised("none").means(level)
    trials = [sweep.Trial(interventions=without(one, means), label={"set": key}) for key, one in sets.items()]
    cases = [
        case
        for twin, clips in ((None, "repeats"), ("none", "others"))
        for case in cases_of(task.noised(twin), level, {"clips": clips}, task.variance)
    ]
    found = sweep.run(task.pipe, cases, trials, {"error": TargetError()}, engine=sweeps.engine, **sweeps.options(name))
    found.check_whole()
    rise = found.per_clip({"clips": ["repeats", "others"], "set": list(sets)}, base="base")
    return {key: Rise(tuple(heads), *rise[:, :, index].unbind(1)) for index, (key, heads) in enumerate(sets.items())}


def ablation_table(found: Mapping[str, Rise]) -> pd.DataFrame:
    """One row a set: `set`, `heads`, the mean rise on `repeats`, with `low`, `high` (95 % interval over clips), and on
    `others`; `lost`, `lost_low`, `lost_high`: what the repeat gains less, clip by clip. Chance: what other heads do."""
    rows = []
    for name, one in found.items():
        interval, lost = bootstrap_mean(one.repeats), bootstrap_mean(one.lost)
        rows.append(
            {
                "set": name,
                "heads": " ".join(f"{layer}.{head}" for layer, head in one.heads),
                "repeats": float(interval.value),
                "low": float(interval.low),
                "high": float(interval.high),
                "others": float(one.others.mean()),
                "lost": float(lost.value),
                "lost_low": float(lost.low),
                "lost_high": float(lost.high),
            }
        )
    return pd.DataFrame(rows)


def without(heads: Sequence[Head], means: dict[str, torch.Tensor]) -> tuple[Ablate, ...]:
    """Mean ablation of some heads."""
    layers: dict[int, list[int]] = {}
    for layer, head in heads:
        layers.setdefault(layer, []).append(head)
    return tuple(
        Ablate(Site(layer, "attn", "z"), heads=chosen, mode="mean", reference=means) for layer, chosen in layers.items()
    )


def matched(heads: Sequence[Head], eligible: Collection[Head], seed: int) -> list[Head]:
    """Up to 20 eligible heads of the same layers, drawn at random."""
    layers = {layer for layer, _ in heads}
    others = sorted(head for head in eligible if head[0] in layers and head not in heads)
    order = np.random.default_rng(seed).permutation(len(others))[:MOST_OTHERS]
    return [others[index] for index in order]


def copy_table(task: Task, levels: Sequence[float], heads: Sequence[Head], sweeps: Sweeps = IN_MEMORY) -> pd.DataFrame:
    """Does what a head attends to come out as the prediction?

    `copy_gain = <x0 if it may see only the successor - x0 if only a distractor, B - D> / |B - D|^2`, with B and D what
    these two frames show: 1 if the head alone writes what it looks at, 0 if that changes nothing. Of the last frame's
    queries; its own frame stays visible. One row a level and head, with a 95 % bootstrap interval over clips; heads of
    spatial attention see no other frame and have none. In x0: under velocity or noise prediction what is copied shows
    with the wrong sign. Misleads: later layers may undo or amplify.
    """
    axes = [block.axis for block in task.pipe.model.cfg.blocks]
    heads = [head for head in heads if axes[head[0]] != "space"]
    lags = sorted(set(task.repeats.lag.tolist()))
    rows = []
    for level in levels:
        parts = [_copied(task, level, heads, lag, sweeps) for lag in lags[len(lags) // 3 :][:2]]
        for head in heads:
            interval = bootstrap_mean(torch.cat([part[head] for part in parts]))
            rows.append(
                {
                    "level": level,
                    "layer": head[0],
                    "head": head[1],
                    "copy_gain": float(interval.value),
                    "low": float(interval.low),
                    "high": float(interval.high),
                }
            )
    return pd.DataFrame(rows, columns=["level", "layer", "head", "copy_gain", "low", "high"])


def _copied(task: Task, level: float, heads: Sequence[Head], lag: int, sweeps: Sweeps) -> dict[Head, torch.Tensor]:
    """Copy gains clip by clip, on clips of one lag."""
    noised, last = task.noised(), task.n_frames - 1
    clips = (task.repeats.lag == lag).nonzero()[:COPIES, 0]
    at = last - lag
    other = at + 1 if at + 1 < last - 1 else max(0, at - 2)
    direction = noised.latents[clips, at] - noised.latents[clips, other]
    case = sweep.Case(runs={"base": noised.inputs(level, clips)}, base="base", about={"direction": direction})
    trials = [
        sweep.Trial(interventions=(_seeing(seen, last, head),), label={"head": str(head), "seen": seen})
        for head in heads
        for seen in (at, other)
    ]
    options = sweeps.options(f"copying-{level:g}-{lag}")
    found = sweep.run(task.pipe, [case], trials, {"towards": Towards()}, engine=sweeps.engine, **options)
    found.check_whole()
    towards = found.per_clip({"head": [str(head) for head in heads], "seen": [at, other]})
    return dict(zip(heads, (towards[..., 0] - towards[..., 1]).unbind(1), strict=True))


def _seeing(frame: int, last: int, head: Head) -> MaskAttention:
    """The last frame's queries of a head see one clean frame only, and their own."""
    return MaskAttention(cut=([last], [f for f in range(last) if f != frame]), layers=[head[0]], heads=[head[1]])


def path_table(
    task: Task, level: float, senders: Sequence[Head], receivers: Sequence[Head], sweeps: Sweeps = IN_MEMORY
) -> pd.DataFrame:
    """What earlier heads tell the keys and the queries of the named heads.

    `value`: share of the way from the clip that lacks the earlier predecessor (into keys) or the last one (into
    queries) to the repeat that patching this path alone goes, in x0; 95 % bootstrap interval over clips. `receiver`
    "total": everyone reads the sender. Rows only for senders before receivers. Chance 0.
    """
    rows = []
    seconds = {"k": "no match", "q": "no cue"}
    pairs = [(s, r) for s in senders for r in receivers if s[0] < r[0]]
    if not pairs:
        return pd.DataFrame(columns=["sender", "receiver", "value", "low", "high"])
    for part, twin in seconds.items():
        clean, corrupted = (task.clips(which)[:PAIRS] for which in (None, twin))
        found = path_patch(
            task.pipe,
            clean,
            corrupted,
            level,
            senders=[f"{layer}.{head}" for layer, head in dict.fromkeys(s for s, _ in pairs)],
            receivers=[f"{layer}.{head}.{part}" for layer, head in dict.fromkeys(r for _, r in pairs)],
            seed=task.seed,
            engine=sweeps.engine,
            sweep_options=sweeps.options(f"paths-{part}"),
        )
        table = found.table.dropna(subset=["value"]).assign(taken=twin)
        rows.append(table[["sender", "receiver", "taken", "value", "low", "high"]])
    return pd.concat(rows, ignore_index=True)


def reliance_table(
    task: Task, level: float, senders: Sequence[Head], heads: Sequence[Head], sweeps: Sweeps = IN_MEMORY
) -> pd.DataFrame:
    """Composition, by interchange: prefix matching of the named heads when an earlier one tells them of a twin.

    One row a pair: `prefix_matching` intact; `no_match` and `no_cue`, with the sender's output (`hook_z`) that of the
    twin that lacks the earlier predecessor or the cue; `drop`, the larger loss of the two, with its 95 % bootstrap
    interval; and `ablated`, with the sender at its mean. Unlike a path, this counts every way the output takes to the
    head. Chance: no drop. A head that is needed for something else drops `ablated` only; several that tell the same
    drop it in parts.
    """
    columns = ["sender", "head", "prefix_matching", "no_match", "no_cue", "drop", "low", "high", "ablated"]
    pairs = [(sender, head) for sender in senders for head in heads if head[0] > sender[0]]
    if not pairs:
        return pd.DataFrame(columns=columns)
    means, chance = task.noised("none").means(level), float(task.chance.mean())
    trials = [
        sweep.Trial(interventions=done, label={"sender": _name(sender), "told": told})
        for sender in dict.fromkeys(sender for sender, _ in pairs)
        for told, done in (
            *((twin, (Patch(Site(sender[0], "attn", "z"), twin, heads=[sender[1]]),)) for twin in TOLD),
            ("ablated", without([sender], means)),
        )
    ]
    found = on_successor(task, level, trials, [head for _, head in pairs], TOLD, sweeps, "reliance", PAIRS)
    rows = []
    for sender, head in pairs:
        before = found.untouched("base", _name(head))
        axes = {"sender": [_name(sender)], "told": [*TOLD, "ablated"]}
        no_match, no_cue, ablated = found.per_clip(axes, metric=_name(head))[:, 0].unbind(1)
        drop = bootstrap_mean(max((before - no_match, before - no_cue), key=lambda one: float(one.mean())))
        rows.append(
            {
                "sender": _name(sender),
                "head": _name(head),
                "prefix_matching": float(before.mean()) - chance,
                "no_match": float(no_match.mean()) - chance,
                "no_cue": float(no_cue.mean()) - chance,
                "drop": float(drop.value),
                "low": float(drop.low),
                "high": float(drop.high),
                "ablated": float(ablated.mean()) - chance,
            }
        )
    return pd.DataFrame(rows, columns=columns)


def on_successor(
    task: Task,
    level: float,
    trials: Sequence[sweep.Trial],
    heads: Sequence[Head],
    twins: Sequence[str] = (),
    sweeps: Sweeps = IN_MEMORY,
    name: str = "attention",
    n_clips: int | None = None,
) -> sweep.SweepResult:
    """Trials judged by the attention of some heads to what comes next (`OnSuccessor`, by the heads' names): on the
    batches of clips that hold the first `n_clips`, with some of their twins as further runs."""
    cases = [
        sweep.Case(
            runs={
                run: task.noised(twin).inputs(level, clips)
                for run, twin in (("base", None), *((twin, twin) for twin in twins))
            },
            base="base",
            first_clip=clips.start,
            about={"successor": task.successor[clips]},
        )
        for clips in task.noised().batches
        if n_clips is None or clips.start < n_clips
    ]
    metrics = {_name(head): OnSuccessor(head) for head in heads}
    found = sweep.run(task.pipe, cases, trials, metrics, engine=sweeps.engine, **sweeps.options(name))
    found.check_whole()
    return found


def _name(head: Head) -> str:
    return f"{head[0]}.{head[1]}"
