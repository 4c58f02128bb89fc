"""The diffusion process: schedules, objectives, scheduling matrices, samplers and guidance."""

from vdinterp.diffusion.config import OBJECTIVES, SCHEDULES, DiffusionConfig
from vdinterp.diffusion.guidance import (
    Branch,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    HistoryGuidance,
    HistorySegment,
    as_guidances,
    level_to_k,
    make_branches,
)
from vdinterp.diffusion.noise import GivenNoise, NoiseSource, RepeatedNoise, SeededNoise
from vdinterp.diffusion.objective import amplitudes, convert, join_prediction, split_prediction, target, to_eps, to_x0
from vdinterp.diffusion.sampler import SamplerState, denoise_step, initial_state, sample_steps
from vdinterp.diffusion.schedule import NoiseSchedule, levels, make_schedule
from vdinterp.diffusion.scheduling_matrix import (
    MATRICES,
    autoregressive,
    full_sequence,
    make_matrix,
    pyramid,
    trapezoid,
    with_mask,
)

__all__ = [
    "MATRICES",
    "OBJECTIVES",
    "SCHEDULES",
    "Branch",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DiffusionConfig",
    "GivenNoise",
    "Guidance",
    "HistoryGuidance",
    "HistorySegment",
    "NoiseSchedule",
    "NoiseSource",
    "RepeatedNoise",
    "SamplerState",
    "SeededNoise",
    "amplitudes",
    "as_guidances",
    "autoregressive",
    "convert",
    "denoise_step",
    "full_sequence",
    "initial_state",
    "join_prediction",
    "level_to_k",
    "levels",
    "make_branches",
    "make_matrix",
    "make_schedule",
    "pyramid",
    "sample_steps",
    "split_prediction",
    "target",
    "to_eps",
    "to_x0",
    "trapezoid",
    "with_mask",
]
