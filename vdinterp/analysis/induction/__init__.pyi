from .development import DevelopmentResult as DevelopmentResult, induction_over_training as induction_over_training
from .result import InductionResult as InductionResult
from .search import LEVELS as LEVELS, find_induction as find_induction
from .verdict import VERDICTS as VERDICTS, Verdict as Verdict
