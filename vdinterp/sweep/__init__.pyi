from .engine import run as run
from .outcomes import about as about
from .result import SweepResult as SweepResult
from .trial import (
    Case as Case,
    Inputs as Inputs,
    Metric as Metric,
    ModelOnly as ModelOnly,
    Moment as Moment,
    Trajectory as Trajectory,
    Trial as Trial,
)
