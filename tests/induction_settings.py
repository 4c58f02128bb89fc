"""Light searches and one-offs for tests of the induction search."""

from __future__ import annotations

from typing import Any

import vdinterp as vd
from vdinterp.analysis.induction.task import Task
from vdinterp.data.repeats import make_repeats
from vdinterp.data.textures import make_textures

QUICK = {"noise_levels": (0.95,), "n_per_lag": 4, "designs": (), "repeats": 0, "progress": False}


BRIEF: Any = {**QUICK, "verdict_only": True}


def one_offs(pipe: vd.VideoDiffusion, n: int = 28, levels: tuple[float, ...] = (0.95,)) -> Task:
    return Task(pipe, make_repeats("one-off", make_textures(128)[:, None], n, n_frames=16, seed=3), levels)
