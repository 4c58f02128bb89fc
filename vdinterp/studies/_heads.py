"""The study of heads: what each attends to, against chance, and what the model loses without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from vdinterp.analysis import (
    NoisedClips,
    chunk_mass,
    displacement_kernel,
    frame_mass,
    head_table,
    patch_crossing,
    scroll_heads,
)
from vdinterp.data import Clips, crafter
from vdinterp.results import Result, Section
from vdinterp.studies.bench import Bench
from vdinterp.studies.registry import study
from vdinterp.words.wording import caution

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

log = logging.getLogger("vdinterp")
RADIUS = (1, 3, 3)  # frames, rows, cols of the displacements that are shown


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadStudy(Result):
    """Every statistic of a model's heads, by name; `parts["head table"]` has their roles."""

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    parts: dict[str, Result]

    def to_frame(self) -> pd.DataFrame:
        """The head table."""
        return self.parts["head table"].to_frame()

    def plot(self) -> dict[str, go.Figure]:
        return {caption: figure for part in self.parts.values() for caption, figure in part.plot().items()}

    def summary(self) -> str:
        return self.parts["head table"].summary()

    def sections(self) -> list[Section]:
        """A chapter a statistic, the head table first."""
        parts = [section for part in self.parts.values() for section in part.sections()]
        lead, *rest = parts
        first = replace(lead, title=self.title, level=2)
        return [first, *(replace(section, level=3, text=self._without_caution(section.text)) for section in rest)]

    def _without_caution(self, text: str) -> str:
        """A chapter's text; what the report begins with is not said again in each."""
        return text.removeprefix(caution(self.meta))


@study("heads", n_context=-1, n_clips=32)
def heads(bench: Bench) -> HeadStudy:
    """Head table, attention from frame to frame and by displacement, chunks of history, patch crossing; with actions
    also which heads follow the scroll. The clips' last frame is noisy, the ones before it are clean."""
    options: dict[str, Any] = {
        "noise_levels": bench.levels,
        "n_context": bench.n_context,
        "seed": bench.seed,
        "batch": bench.batch,
    }
    noised = NoisedClips(bench.pipe, bench.clips, **options)
    implied = _implied(noised, bench.clips)
    asked: dict[str, Callable[[], Result]] = {
        "head table": partial(
            head_table, noised, implied=implied, reference=NoisedClips(bench.pipe, bench.reference, **options)
        ),
        "frame mass": partial(frame_mass, noised),
        "displacement": partial(displacement_kernel, noised, _groups(noised, implied), radius=RADIUS),
        "patch crossing": partial(patch_crossing, noised),
    }
    if bench.n_context > 1:
        asked["chunks"] = partial(chunk_mass, noised)
    if implied is not None:
        actual = noised.by_frame(crafter.displacement(bench.clips), "sum")[:, -1]
        if ((actual == implied[:, -1]) & (actual != 0)).any():
            asked["scroll"] = partial(scroll_heads, noised, implied[:, -1], actual)
        else:
            log.warning("no clip moved in its last step: whether heads follow the scroll was not measured")
    _ = noised.variance  # refuses clips that all look the same, before anything is measured
    parts = {}
    for name, compute in tqdm(asked.items(), desc="heads", unit="statistic"):
        parts[name] = bench.result(name.replace(" ", "-"), compute)
    return HeadStudy(title=f"Heads of {bench.pipe.model.cfg.model_name}", parts=parts, meta=noised.meta())


def _implied(noised: NoisedClips, clips: Clips) -> torch.Tensor | None:
    """Where actions lead, for clips in which they move the picture."""
    if clips.kind != "crafter" or clips.action is None or not noised.model.cfg.d_action:
        return None
    return noised.by_frame(crafter.implied(clips), "sum")


def _groups(noised: NoisedClips, implied: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    """Clips by what their last action did: where the picture went, nothing, or a move that was blocked."""
    if implied is None:
        return None
    went = noised.by_frame(crafter.displacement(noised.clips), "sum")[:, -1]
    blocked = (implied[:, -1] != 0).any(-1) & (went == 0).all(-1)
    steps = {"stay": (0, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    groups = {name: (went == torch.tensor(step)).all(1) & ~blocked for name, step in steps.items()}
    groups["blocked"] = blocked
    return {name: chosen for name, chosen in groups.items() if chosen.any()}
