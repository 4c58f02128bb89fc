from .config import OBJECTIVES as OBJECTIVES, SCHEDULES as SCHEDULES, DiffusionConfig as DiffusionConfig
from .guidance import (
    Branch as Branch,
    ClassifierFreeGuidance as ClassifierFreeGuidance,
    ClassifierGuidance as ClassifierGuidance,
    Guidance as Guidance,
    HistoryGuidance as HistoryGuidance,
    HistorySegment as HistorySegment,
    as_guidances as as_guidances,
    history_k as history_k,
    make_branches as make_branches,
)
from .noise import (
    GivenNoise as GivenNoise,
    NoiseSource as NoiseSource,
    RepeatedNoise as RepeatedNoise,
    SeededNoise as SeededNoise,
)
from .objective import (
    amplitudes as amplitudes,
    convert as convert,
    join_prediction as join_prediction,
    split_prediction as split_prediction,
    target as target,
    to_eps as to_eps,
    to_x0 as to_x0,
)
from .sampler import (
    SamplerState as SamplerState,
    denoise_step as denoise_step,
    initial_state as initial_state,
    sample_steps as sample_steps,
)
from .schedule import NoiseSchedule as NoiseSchedule, levels as levels, make_schedule as make_schedule
from .scheduling_matrix import (
    MATRICES as MATRICES,
    autoregressive as autoregressive,
    full_sequence as full_sequence,
    make_matrix as make_matrix,
    pyramid as pyramid,
    trapezoid as trapezoid,
    with_mask as with_mask,
)
