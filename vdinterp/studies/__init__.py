"""Studies: whole experiments on a model, each of which reads like a method section.

`run("ablations", pipe)` runs one. A study of your own is a function `(bench, **settings) -> Result` under the decorator
`@study("name")`; it gets resuming, progress and the report for nothing (see `examples/own_study.py`).
"""

from vdinterp.studies.ablation_result import AblationResult
from vdinterp.studies.ablations import ablations
from vdinterp.studies.bench import METRICS, Bench, Measurement, Moment
from vdinterp.studies.clips import held_out_clips, pairs_of
from vdinterp.studies.conditions import INTACT, INTACT_DENOISE, Condition
from vdinterp.studies.heads import HeadStudy, heads
from vdinterp.studies.labels import Labels, label_names, labels_of
from vdinterp.studies.ledger import Ledger
from vdinterp.studies.registry import NAMES, find, run, study
from vdinterp.studies.result import StudyResult, build, tabulate
from vdinterp.sweep import fingerprint

__all__ = [
    "INTACT",
    "INTACT_DENOISE",
    "METRICS",
    "NAMES",
    "AblationResult",
    "Bench",
    "Condition",
    "HeadStudy",
    "Labels",
    "Ledger",
    "Measurement",
    "Moment",
    "StudyResult",
    "ablations",
    "build",
    "find",
    "fingerprint",
    "heads",
    "held_out_clips",
    "label_names",
    "labels_of",
    "pairs_of",
    "run",
    "study",
    "tabulate",
]
