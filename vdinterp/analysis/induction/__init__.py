"""Search for an induction circuit: behaviour, scores, effects, controls, verdict."""

from vdinterp.analysis.induction.development import DevelopmentResult, induction_over_training
from vdinterp.analysis.induction.result import InductionResult
from vdinterp.analysis.induction.search import LEVELS, find_induction
from vdinterp.analysis.induction.verdict import VERDICTS, Verdict

__all__ = [
    "LEVELS",
    "VERDICTS",
    "DevelopmentResult",
    "InductionResult",
    "Verdict",
    "find_induction",
    "induction_over_training",
]
