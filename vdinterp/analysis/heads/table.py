"""The head table: what each head attends to, what chance would be, and what is lost without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from vdinterp import plotting
from vdinterp.analysis.heads.tables import mass_map
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.cases import head_effects
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.models import AttentionPattern
from vdinterp.results import Result, Section, rows_of
from vdinterp.words.wording import caution, listing, number, with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOLDS = 0.5  # share of its attention that makes a head's role
# From narrow to wide; a head has the first that holds enough of its attention.
ROLES = {
    "own token": "the token itself",
    "scroll": "one frame back, the cell a step of the action away",
    "match, same place": "the same place in the frame to copy",
    "previous, same place": "the same place one frame back",
    "same place": "the same place in any other frame",
    "match": "the frame to copy",
    "previous frame": "one frame back",
    "first frame": "the first frame",
    "own frame": "its own frame",
}
MIXED = "mixed"
# What the clips have to say for a role to be looked for.
NEEDS = {
    "scroll": "`implied=`, where an action leads, for example `vd.data.crafter.implied(clips)`",
    "match, same place": "clips with `match`",
    "match": "clips with `match`, the frame whose content comes back",
}
CAPTION = (
    "Every head. What it attends to and what is lost without it, the largest effect first. `role`: the narrowest "
    "relation that holds at least half of its attention; `score`: that share; `chance`: of uniform attention; "
    "`effect`: rise of the x0 error with the head at its mean, `low` and `high` its 95 % interval over clips; then the "
    "attention on each relation: " + "; ".join(f"`{role}`, {meaning}" for role, meaning in ROLES.items())
)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadTable(Result):
    """What every head does.

    `table`, one row a head and noise level: `level layer head role score chance effect low high`, then one column for
    every role with its score (of roles of which the clips say something; see `NEEDS`). `effect`: rise of the target
    frames' x0 error (over its variance) when the head is replaced by its mean, with a 95 % bootstrap interval over
    clips. `effects` `[level layer head clip]` has it clip by clip, to be averaged over some of them.
    """

    title = "Heads"
    table: pd.DataFrame
    effects: Float[torch.Tensor, "level layer head clip"]
    error: Float[torch.Tensor, "level clip"]

    def plot(self) -> dict[str, go.Figure]:
        """At every noise level: the effect of each head, and its score in every role."""
        figures = {}
        for level in self.table["level"].unique():
            rows = rows_of(self.table, level=level)
            effect = rows.pivot(index="layer", columns="head", values="effect").to_numpy()
            title = f"Rise of the x0 error when one head is replaced by its mean, noise level {level:g}"
            figures[title] = plotting.layer_head(
                effect, title=title, value_title="rise of the x0 error", diverging=True
            )
            roles = [role for role in ROLES if role in rows and rows[role].notna().any()]
            title = f"Attention of every head on what makes its role, noise level {level:g}"
            figures[title] = mass_map(rows, {role: role for role in roles}, title=title, x_title="role")
        return figures

    def summary(self) -> str:
        """The heads that matter, with their roles, at the last (noisiest) level."""
        level = self.table["level"].max()
        rows = rows_of(self.table, level=level)
        index = list(self.table["level"].unique()).index(level)
        clear = rows[rows["low"] > 0].nlargest(4, "effect")
        lines = [
            f"- head {row.layer}.{row.head} ({row.role}"
            + (f", {row.score:.2f} of its attention, chance {number(row.chance)}" if row.role != MIXED else "")
            + f"): without it the x0 error rises by {with_interval(row.effect, row.low, row.high)}."
            for row in clear.itertuples()
        ]
        intact = float(self.error[index].mean())
        lead = f"At noise level {level:g} the x0 error of the target frames is {number(intact)}. "
        if lines:
            text = f"{lead}The heads it needs most, by what is lost when each is at its mean:\n\n" + "\n".join(lines)
        elif rows["low"].isna().all():
            text = f"{lead}One clip gives no intervals, so no head can be said to be needed."
        else:
            text = f"{lead}No single head is needed."
        return caution(self.meta) + text + self._unmeasured()

    def _unmeasured(self) -> str:
        """Which roles were not looked for, and what they need."""
        missing = [f"`{role}` ({NEEDS[role]})" for role in ROLES if role in NEEDS and role not in self.table]
        return f"\n\nNot looked for, for want of ground truth: {listing(missing)}." if missing else ""

    def sections(self) -> list[Section]:
        """Summary, figures and the table, the noisiest level and the largest effects first."""
        table = self.table.sort_values(["level", "effect"], ascending=False, kind="stable", ignore_index=True)
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={CAPTION: table})]


@on_noised_clips
def head_table(
    noised: NoisedClips,
    *,
    implied: Int[torch.Tensor, "clip frame 2"] | None = None,
    reference: NoisedClips | None = None,
) -> HeadTable:
    """Role, score, chance and effect of every head, at every noise level.

    Scores: mean attention mass of the target frames' queries on what a role names (see `ROLES`), over the queries for
    which it exists. A head's role is the narrowest relation that holds at least half of its attention; "mixed" where
    none does. "match" is the clips' own ground truth (`clips.labels["match"]`: the frame whose content comes back),
    "scroll" needs `implied` (where an action leads, (row, col), for example `vd.data.crafter.implied(clips)`) and
    counts frames in which it is not (0, 0); roles of which the clips say nothing have no column. Range 0 to 1. Chance:
    the same of uniform attention.
    Effect: x0 error with the head's output (`hook_z`) at its mean over clips, frames and positions of `reference`
    (default: these clips), minus the error without. Range: any; 0 for a head that is not needed.
    Misleads: a role says where a head looks, not what it does with it; a head can be needed and have a backup, which
    hides its effect; mean ablation also removes what the head adds to every token alike, if that differs from the mean.
    """
    if implied is not None and implied.shape != (len(noised.clips), noised.n_frames, 2):
        wanted = [len(noised.clips), noised.n_frames, 2]
        raise ValueError(f"implied must be {wanted} (clip frame (row, col)), got {list(implied.shape)}")
    reference = noised if reference is None else reference
    if reference.model is not noised.model or not set(noised.levels) <= set(reference.levels):
        raise ValueError("reference must be NoisedClips of the same model and at the same noise levels")
    _ = noised.variance  # refuses clips that all look the same, before anything is measured
    n_layers, n_heads = noised.model.cfg.n_layers, noised.model.cfg.n_heads
    chance = [_scores(noised, noised.uniform_pattern(i), slice(0, len(noised.clips)), implied) for i in range(n_layers)]
    rows, effects, errors = [], [], []
    for level in noised.levels:
        batches = [
            [_scores(noised, pattern, clips, implied) for pattern in patterns]
            for clips, patterns in zip(noised.batches, noised.patterns(level), strict=True)
        ]
        means = reference.means(level)
        error = noised.x0_error(level)
        rises = head_effects(noised, level, means).permute(1, 2, 0)
        effects.append(rises)
        errors.append(error)
        for layer in range(n_layers):
            scores = {role: torch.cat([batch[layer][role] for batch in batches]).nanmean(0) for role in ROLES}
            for head in range(n_heads):
                rows.append(_row(level, layer, head, scores, chance[layer], rises[layer, head]))
    table: Any = pd.DataFrame(rows)
    known = [column for column in table if column not in ROLES or table[column].notna().any()]
    return HeadTable(
        table=table[known],
        effects=torch.stack(effects),
        error=torch.stack(errors),
        meta=noised.meta(reference=f"{len(reference.clips)} clips"),
    )


def _row(
    level: float,
    layer: int,
    head: int,
    scores: dict[str, torch.Tensor],
    chance: dict[str, torch.Tensor],
    rise: torch.Tensor,
) -> dict[str, object]:
    known = {role: float(values[head]) for role, values in scores.items()}
    role = next((name for name, value in known.items() if value >= HOLDS), MIXED)
    best = role if role != MIXED else max(known, key=lambda name: -1.0 if np.isnan(known[name]) else known[name])
    interval = bootstrap_mean(rise)
    return {
        "level": level,
        "layer": layer,
        "head": head,
        "role": role,
        "score": known[best],
        "chance": float(chance[best].nanmean()),
        "effect": float(interval.value),
        "low": float(interval.low),
        "high": float(interval.high),
        **known,
    }


def _scores(
    noised: NoisedClips, pattern: AttentionPattern, clips: slice, implied: torch.Tensor | None
) -> dict[str, Float[torch.Tensor, "clip head"]]:
    """Mean mass on what each role names, over target frames; NaN where a clip does not say. The uniform pattern has one
    clip, which stands for all."""
    where = range(*clips.indices(len(noised.clips)))
    found: dict[str, list[torch.Tensor]] = {role: [] for role in ROLES}
    masses = pattern.frame_mass().cpu().expand(len(where), -1, -1, -1)
    step = 0 if implied is None else int(implied.abs().max())
    reach = (noised.n_frames - 1, step, step)
    for frame in noised.target:
        kernel = pattern.displacement_kernel(reach, [frame]).cpu().expand(len(where), -1, -1, -1, -1)
        rows, cols = kernel.shape[3] // 2, kernel.shape[4] // 2
        place = kernel[:, :, :, rows, cols]  # the same place, by frame
        now, nothing = noised.n_frames - 1, torch.full_like(masses[:, :, 0, 0], torch.nan)
        at = {"own token": place[:, :, now], "own frame": masses[:, :, frame, frame]}
        at["same place"] = place.sum(2) - place[:, :, now]
        at["previous, same place"] = place[:, :, now - 1] if frame else nothing
        at["previous frame"] = masses[:, :, frame, frame - 1] if frame else nothing
        at["first frame"] = masses[:, :, frame, 0] if frame else nothing
        if "match" in noised.clips.labels:
            match = noised.frame_of(noised.labels("match"))[list(where), frame]
            there, index = ((match >= 0) & (match != frame))[:, None], match.clamp(min=0)
            to = masses[:, :, frame].gather(2, index[:, None, None].expand(-1, masses.shape[1], 1))[..., 0]
            same = place.gather(2, (index - frame + now)[:, None, None].expand(-1, masses.shape[1], 1))[..., 0]
            at["match"], at["match, same place"] = torch.where(there, to, nothing), torch.where(there, same, nothing)
        if implied is not None and frame:
            step_of = implied[list(where), frame]
            goes = (step_of != 0).any(-1)[:, None]
            clip = torch.arange(len(where))
            inside = (step_of[:, 0].abs() <= rows) & (step_of[:, 1].abs() <= cols)
            safe = torch.where(inside[:, None], step_of, 0)
            scroll = kernel[clip, :, now - 1, rows + safe[:, 0], cols + safe[:, 1]]
            at["scroll"] = torch.where(goes & inside[:, None], scroll, nothing)
        for role in ROLES:
            found[role].append(at.get(role, nothing))
    return {role: torch.stack(parts).nanmean(0) for role, parts in found.items()}
