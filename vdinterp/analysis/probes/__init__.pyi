from .fitting import fit as fit
from .result import BASELINES as BASELINES, ProbeResult as ProbeResult
