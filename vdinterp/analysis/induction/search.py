"""The search itself: stimuli, behaviour, scores, effects, controls, verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from vdinterp.analysis.circuits.pairs import Part, composition, undetermined
from vdinterp.analysis.induction import effects
from vdinterp.analysis.induction.behaviour import PAIRS, Pairs, behaviour_table, behaviours, position_table
from vdinterp.analysis.induction.controls import control_table, controls
from vdinterp.analysis.induction.effects import Sweeps
from vdinterp.analysis.induction.looks import example, lag_table
from vdinterp.analysis.induction.naming import again_row, chosen_heads, evidence_of, finding_table, judge, judged_table
from vdinterp.analysis.induction.result import InductionResult
from vdinterp.analysis.induction.scores import candidates, same_position, score_table
from vdinterp.analysis.induction.stimuli import stimuli
from vdinterp.analysis.induction.task import Task, cells_of, of_latents, pool_of
from vdinterp.analysis.induction.verdict import FIXED, Evidence, Finding, findings, from_heads
from vdinterp.analysis.stimulus.fit import check_levels
from vdinterp.analysis.stimulus.noised_clips import checkpoint, weights_id
from vdinterp.data import Clips
from vdinterp.data.repeats import DESIGNS, cue_of, lags_of, make_repeats
from vdinterp.pipeline import VideoDiffusion
from vdinterp.progress import bar
from vdinterp.store import Ledger
from vdinterp.sweep import about

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)
LOOKS = 0.1  # prefix matching from which a head is a candidate
MOST_HEADS, MOST_CELLS = 12, 400
FEW_HEADS = 64  # copying is measured for all heads and levels of up to so many
MOST_ASKED, MOST_SENDERS = 24, 3  # earlier heads whose removal is tried, and of which paths are patched
Q = 0.01
CODE = ("models", "diffusion", "pipeline", "analysis/induction", "analysis/stimulus")  # what a look depends on


def find_induction(
    pipe: VideoDiffusion,
    clips: Clips | torch.Tensor | None = None,
    *,
    seed: int = 0,
    noise_levels: Sequence[float] = LEVELS,
    n_per_lag: int = 16,
    designs: Sequence[str] = DESIGNS,
    repeats: int = 2,
    verdict_only: bool = False,
    batch: int = 16,
    engine: Literal["inline", "ray"] = "inline",
    out: str | Path | None = None,
    progress: bool = True,
) -> InductionResult:
    """Search a model for an induction circuit, and say no if there is none.

    >>> found = vd.find_induction(vd.load("tiny-induction"))
    >>> found.verdict, found.heads

    Induction: A B came before, A comes again, and the model foretells B by looking at what followed A. In a denoiser
    the frame that is being denoised looks itself, at the earlier frame that followed the content of its predecessor.

    1. Behaviour: is a last frame that came back denoised better than the same one where it did not (noise and last
       frame equal)? If not: "no behaviour", and the search ends (unless
       the frame at one distance is copied, whatever it shows). Twins take away one thing at a time: the frame that
       followed, the one before it, the cue, the order.
    2. Scores of every head at every noise level, with permutation p-values, corrected over all heads and levels.
    3. Effects: mean ablation of the heads against matched random ones; what they copy; paths from previous-frame heads
       into their keys and queries; composition of the weights where these determine it.
    4. Controls, of every head by itself. Heads are chosen on clips of one seed and reported on those of another; those
       that fail a control, copy nothing or are not needed are not named, and `.judged` says why.

    The verdict is that of the strongest behaviour; `.findings` has those of all noise levels, `.again` the verdicts of
    `repeats` further searches.

    Args:
        pipe: the model. `clips`: videos in [0, 1], or `Clips` of latents, whose frames the stimuli are made of;
            default: what the model was trained on, if it says so. With a VAE that compresses time, latent frames are.
        seed: of clips, noise and permutations.
        noise_levels: shares in (0, 1], of the last frame.
        n_per_lag: clips for every lag.
        designs: kinds of repeats (`vdinterp.data.repeats.MEANING`) whose behaviour is measured; "one-off" and "loop"
            are always among them, and "long cue" where loops are foretold and one-offs are not.
        repeats: searches with the next seeds, at the noise level that decided, for how often the verdict comes again;
            each takes about a tenth of the time of the first.
        verdict_only: leave out what no verdict hangs on: interchange, paths, composition, copying of all heads at all
            levels, the example. Takes about a third of the time.
        batch: clips a forward pass. `engine`: of the sweeps of interventions.
        out: folder in which everything is recorded as it is measured; a search that was stopped goes on from there.

    Returns an `InductionResult`: `.verdict`, `.heads`, `.to_frame()`, `.plot()`.

    Raises ValueError before any compute when clips, levels or designs do not fit the model.
    """
    if not isinstance(pipe, VideoDiffusion):
        raise ValueError(
            f"find_induction takes a pipeline (vd.load(..), vd.organisms.build(..)), got {type(pipe).__name__}"
        )
    check_levels(noise_levels)
    if isinstance(designs, str):
        raise ValueError(f"designs={designs!r}: give a list, ({designs!r},)")
    if unknown := [name for name in designs if name not in DESIGNS]:
        raise ValueError(f"unknown designs {unknown}; there are {', '.join(DESIGNS)}")
    if not (isinstance(n_per_lag, int) and isinstance(seed, int)) or n_per_lag < 2 or seed < 0:
        raise ValueError(f"need whole numbers n_per_lag >= 2 and seed >= 0, got {n_per_lag=}, {seed=}")
    check_enough(pipe, len(noise_levels), n_per_lag)
    if not isinstance(repeats, int) or repeats < 0:
        raise ValueError(f"repeats={repeats!r}: how many further searches, a whole number, 0 for none")
    folder, pool = None if out is None else Path(out), pool_of(pipe, clips)
    looks = None if folder is None else Ledger(folder / "looks", about(pipe, *CODE))
    search = _Search(
        pipe,
        pool,
        seed,
        tuple(noise_levels),
        n_per_lag,
        batch,
        Sweeps(engine, folder and folder / "sweeps"),
        looks,
        verdict_only,
        of_latents(pipe, clips),
    )
    wanted = [name for name in DESIGNS if name in ("one-off", "loop", *designs)]
    with bar(total=len(wanted) + 4 + repeats, desc="induction", show=progress) as shown:
        search.advance = shown.update
        found = search.run(wanted)
        shown.update(len(wanted) + 4 - shown.n)
        rows = [again_row(seed, found)]
        # Where the model does nothing with what came back, it has to do so at every level.
        at = tuple(noise_levels) if found.verdict == "no behaviour" else (found.level,)
        for other in range(seed + 1, seed + 1 + repeats):
            sweeps = Sweeps(engine, folder and folder / f"sweeps-{other}")
            once_more = _Search(pipe, pool, other, at, n_per_lag, batch, sweeps, looks, True, search.encoded)
            rows.append(again_row(other, once_more.run(["one-off", "loop"])))
            shown.update()
    return replace(found, again=pd.DataFrame(rows))


def check_enough(pipe: VideoDiffusion, n_levels: int, n_per_lag: int) -> None:
    """Raise ValueError if no permutation of so few clips could be significant."""
    cfg, n_lags = pipe.model.cfg, len(lags_of(pipe.model.cfg.n_frames))
    n_tests = n_levels * cfg.n_layers * cfg.n_heads

    def smallest(n: int) -> float:  # q of a single significant test, in logarithms: one over all assignments of lags
        return math.log(n_tests) + n_lags * math.lgamma(n + 1) - math.lgamma(n * n_lags + 1)

    if smallest(n_per_lag) >= math.log(Q):
        enough = next(n for n in range(n_per_lag, 10_000) if smallest(n) < math.log(Q))
        raise ValueError(
            f"n_per_lag={n_per_lag}: with {n_lags} lags and {n_tests} heads and levels to correct for, no result could "
            f"be significant; at least {enough} clips a lag are needed"
        )


class _Search:
    def __init__(
        self,
        pipe: VideoDiffusion,
        pool: torch.Tensor,
        seed: int,
        levels: tuple[float, ...],
        n_per_lag: int,
        batch: int,
        sweeps: Sweeps,
        looks: Ledger | None,
        verdict_only: bool,
        encoded: bool,
    ) -> None:
        self.pipe, self.pool, self.seed, self.levels, self.batch = pipe, pool, seed, levels, batch
        self.n_frames, self.sweeps, self.looks = pipe.model.cfg.n_frames, sweeps, looks
        self.n_clips = n_per_lag * len(lags_of(self.n_frames))
        self.cells = cells_of(pipe, pool)
        self.verdict_only, self.encoded = verdict_only, encoded
        self.advance: Any = lambda n=1: None

    def task(
        self,
        design: str,
        part: Literal["chosen on", "reported on"] = "reported on",
        levels: tuple[float, ...] | None = None,
    ) -> Task:
        """Clips of two seeds: heads are chosen on one and reported on the other."""
        seed = 2 * self.seed + (part == "reported on")
        n = self.n_clips if design in PAIRS else max(48 if design == "loop" else 24, self.n_clips // 2)
        repeats = make_repeats(design, self.pool, n, n_frames=self.n_frames, cells=self.cells, seed=seed)
        options: Any = {"seed": seed, "batch": self.batch, "looks": self.looks, "encoded": self.encoded}
        return Task(self.pipe, repeats, levels or self.levels, **options)

    def possible(self, design: str) -> str:
        """Why a design cannot be shown; empty where it can."""
        if design == "splice" and self.pool.shape[1] < 2:
            return "the pool holds single frames, no clips to splice"
        if design in ("translated", "cell loops") and self.cells == (1, 1):
            return "a frame is one cell"
        if design == "long cue" and cue_of(self.n_frames) == 1:
            return "clips are too short for a longer cue"
        return ""

    def run(self, designs: Sequence[str]) -> InductionResult:
        skipped = {design: why for design in designs if (why := self.possible(design))}
        tasks = {design: self.task(design) for design in designs if design not in skipped}
        tables = []
        self.advance(len(skipped))
        for design, task in tasks.items():
            tables.append(behaviour_table({design: task}))
            self.advance()
        task = tasks["one-off"]
        positions = position_table(task, tasks["loop"])
        found = behaviours(pd.concat(tables, ignore_index=True), positions, FIXED)
        if any(one.loops_only for one in found) and "long cue" not in {**tasks, **skipped}:
            if why := self.possible("long cue"):
                skipped["long cue"] = why
            else:
                tasks["long cue"] = self.task("long cue")
                tables.append(behaviour_table({"long cue": tasks["long cue"]}))
                found = behaviours(pd.concat(tables, ignore_index=True), positions, FIXED)
        scores, looks = None, set()
        if any(one.gains or one.distance for one in found):
            scores = score_table(task, self.seed)
            looks = set(looking(scores)["level"])
        self.advance()
        shown = findings(found, looks)
        lead = shown[0]
        about: dict[str, Any] = {
            "behaviour": pd.concat(tables, ignore_index=True),
            "positions": positions,
            "skipped": skipped,
            "stimuli": stimuli(task),
            "meta": self._meta(task),
        }
        if lead.pairs is None:
            return InductionResult.without_heads(
                lead.verdict, lead.level, lead.why, scores=scores, findings=finding_table(shown), **about
            )
        if lead.pairs.design != "one-off":
            task = tasks[lead.pairs.design]
            scores = score_table(task, self.seed)
        assert scores is not None
        return self._with_heads(shown, lead.pairs, task, scores, about)

    def _with_heads(
        self, shown: Sequence[Finding], pairs: Pairs, task: Task, scores: pd.DataFrame, about: dict[str, Any]
    ) -> InductionResult:
        level = shown[0].level
        about["design"] = pairs.design
        first = score_table(self.task(pairs.design, "chosen on", (level,)), self.seed)
        chosen = [head for head in candidates(first, level, LOOKS) if head in _heads(looking(first))]
        tried, left_out = chosen[:MOST_HEADS], chosen[MOST_HEADS:]
        self.advance()
        if not tried:
            verdict, why = from_heads(Evidence())
            return InductionResult.without_heads(
                verdict, level, why, scores=scores, findings=finding_table(shown, verdict, why), **about
            )
        if left_out:
            about["meta"]["candidates left out"] = ", ".join(f"{layer}.{head}" for layer, head in left_out)
        checked = controls(task, level, scores, tried, self.seed)
        copied = self._copied(task, level, scores, tried)
        rest: Any = first[first["prefix_matching"] < LOOKS]
        others = effects.matched(tried, _heads(rest), self.seed)
        sets = {f"head {layer}.{head}": ((layer, head),) for layer, head in tried}
        sets |= {f"other {layer}.{head}": ((layer, head),) for layer, head in others}
        rises = effects.rises(task, level, sets, self.sweeps)
        here_copied: Any = copied[copied["level"] == level]
        judged = judge(tried, checked, here_copied, rises)
        named = chosen_heads(judged)
        if len(named) > 1:
            rises |= effects.rises(task, level, {"all named": named}, self.sweeps, "ablation-together")
        evidence = evidence_of(pairs.gain, named, judged, rises)
        verdict, why = from_heads(evidence)
        self.advance()
        here = scores[scores["level"] == level].set_index(["layer", "head"])
        more: dict[str, Any] = {}
        if not self.verdict_only:
            followed = named or tried
            reliance = effects.reliance_table(task, level, self._earlier(here, followed), followed, self.sweeps)
            senders = strongest(reliance, MOST_SENDERS)
            more = {
                "reliance": reliance,
                "paths": effects.path_table(task, level, senders, followed, self.sweeps),
                "composition": self._composition(level, senders, followed),
                "composition_note": undetermined(self.pipe.model),
                "lags": lag_table(task, level, tried),
                "example": example(task, level, tried),
            }
        self.advance()
        place = torch.full((self.pipe.model.cfg.n_layers, self.pipe.model.cfg.n_heads), float("nan"))
        if task.noised().grid.tokens_per_frame <= MOST_CELLS and not self.verdict_only:
            place = same_position(task, level)
        scores = scores.merge(copied[["level", "layer", "head", "copy_gain"]], how="left").assign(
            same_position=[
                float(place[layer, head]) if at == level else float("nan")
                for at, layer, head in zip(scores["level"], scores["layer"], scores["head"], strict=True)
            ]
        )
        return InductionResult(
            verdict=verdict,
            reason=why,
            level=level,
            heads=list(named) if verdict == "induction" else [],
            candidates=tried,
            table=scores,
            judged=judged_table(judged, named),
            ablation=effects.ablation_table(rises),
            copying=copied,
            controls=control_table(checked),
            times_random=evidence.times_random,
            carried=evidence.carried,
            findings=finding_table(shown, verdict, why),
            **more,
            **about,
        )

    def _copied(self, task: Task, level: float, scores: pd.DataFrame, tried: Sequence[effects.Head]) -> pd.DataFrame:
        """Of small models for all heads and levels, else where it decides."""
        here: Any = scores[scores["level"] == level]
        everyone = _heads(here)
        if len(everyone) <= FEW_HEADS and not self.verdict_only:
            return effects.copy_table(task, self.levels, everyone, self.sweeps)
        return effects.copy_table(task, [level], tried, self.sweeps)

    def _earlier(self, here: pd.DataFrame, named: Sequence[effects.Head]) -> list[effects.Head]:
        """Heads before the last named one; of many, those that look most at the frame before."""
        last = max(layer for layer, _ in named)
        ranked = here.sort_values("previous_frame", ascending=False)
        return [(int(layer), int(head)) for layer, head in ranked.index if layer < last][:MOST_ASKED]

    def _composition(
        self, level: float, senders: Sequence[effects.Head], named: Sequence[effects.Head]
    ) -> pd.DataFrame:
        columns = ["sender", "receiver", "part", "displacement", "score", "baseline", "beyond", "z"]
        if undetermined(self.pipe.model):
            return pd.DataFrame(columns=columns)
        parts: tuple[Part, ...] = ("k", "q")
        lags = lags_of(self.n_frames)
        pairs = [(one, other) for one in senders for other in named if one[0] < other[0]]
        rows = []
        for (sender, receiver), part, lag in product(pairs, parts, (0, lags[0], lags[-1])):
            found = composition(
                self.pipe.model,
                sender,
                receiver,
                part,
                noise_level=0,
                query_level=level,
                displacement=(-lag, 0, 0),
            )
            names = {"sender": f"{sender[0]}.{sender[1]}", "receiver": f"{receiver[0]}.{receiver[1]}"}
            rows.append({**names, "part": part, "displacement": -lag, **found})
        return pd.DataFrame(rows, columns=columns)

    def _meta(self, task: Task) -> dict[str, Any]:
        cfg = self.pipe.model.cfg
        return {
            "model": cfg.model_name,
            **checkpoint(self.pipe),
            "weights": weights_id(self.pipe.model),
            "levels": list(self.levels),
            "clips": len(task.repeats),
            "lags": lags_of(self.n_frames),
            "seed": self.seed,
            **{
                what: "none: the model ran without"
                for what, width in (("actions", cfg.d_action), ("text", cfg.d_text))
                if width
            },
        }


def looking(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of heads that look at the successor: enough, more than at any foil, and significantly."""
    found: Any = scores[(scores["prefix_matching"] >= LOOKS) & (scores["contrast_low"] > 0) & (scores["q"] < Q)]
    return found


def _heads(table: pd.DataFrame) -> list[effects.Head]:
    return [(int(layer), int(head)) for layer, head in zip(table["layer"], table["head"], strict=True)]


def strongest(reliance: pd.DataFrame, n: int) -> list[effects.Head]:
    """Of the senders without which the prefix matching of some head surely falls, the `n` that cost it most and the `n`
    that look most at the frame before (senders come in that order)."""
    sure = reliance[reliance["low"] > 0]
    worst = sure.groupby("sender")["drop"].max().sort_values(ascending=False).index[:n]
    names = dict.fromkeys([*worst, *list(dict.fromkeys(sure["sender"]))[:n]])
    return [(int(name.split(".")[0]), int(name.split(".")[1])) for name in names]
