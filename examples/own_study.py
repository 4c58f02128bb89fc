"""A study of your own: how much of each attention gate does the model need?  Run: python examples/own_study.py"""

from __future__ import annotations

import sys

import vdinterp as vd
from vdinterp.studies import INTACT, Bench, Condition, StudyResult, build, study


@study("gate sweep")
def gate_sweep(bench: Bench, factors: tuple[float, ...] = (0.0, 0.5, 0.9, 1.1, 2.0)) -> StudyResult:
    """Multiply every attention gate by a factor; 1 is the intact model."""
    conditions = [INTACT]
    for factor in factors:
        change = vd.Ablate("attn.mod.gate", mode="scaled", factor=factor)
        conditions.append(Condition(ablation="attention gates", variant=f"times {factor:g}", interventions=(change,)))
    return build(StudyResult, bench, bench.measure(conditions), "Gate sweep")


if __name__ == "__main__":
    model, out = (*sys.argv[1:], *("tiny-crafter", "out/own_study")[len(sys.argv) - 1 :])
    result = vd.studies.run("gate sweep", vd.load(model), n_clips=8, steps=4, out=out)  # stopped? run it again
    rise = result.to_frame().query("metric == 'x0 error' and reference == 'rise' and frame == 'mean'")
    print(rise[["variant", "value", "low", "high"]].to_string(index=False))
    print(vd.report.write(result, out))
