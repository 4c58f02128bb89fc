"""Sweeps: many interventions on the same inputs, each run only from where it changes something.

`run(pipe, cases, trials, metrics)` does it; `analysis.activation_patch` and the others build cases and trials.
"""

from vdinterp.sweep.engine import SweepResult, run
from vdinterp.sweep.fingerprint import fingerprint
from vdinterp.sweep.ledger import SweepLedger
from vdinterp.sweep.records import Records
from vdinterp.sweep.trial import Case, Inputs, Metric, ModelOnly, Moment, Trajectory, Trial

__all__ = [
    "Case",
    "Inputs",
    "Metric",
    "ModelOnly",
    "Moment",
    "Records",
    "SweepLedger",
    "SweepResult",
    "Trajectory",
    "Trial",
    "fingerprint",
    "run",
]
