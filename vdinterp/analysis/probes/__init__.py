"""Linear probes: what can be read off an activation, and off the input alone. `vd.probes.fit(noised, labels)`."""

from vdinterp.analysis.probes.fitting import fit
from vdinterp.analysis.probes.result import BASELINES, ProbeResult

__all__ = ["BASELINES", "ProbeResult", "fit"]
