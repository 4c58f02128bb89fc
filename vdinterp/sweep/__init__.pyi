from ._fingerprint import fingerprint as fingerprint
from .engine import run as run
from .ledger import SweepLedger as SweepLedger
from .records import Records as Records
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
