from ._ablations import ablations as ablations
from ._heads import HeadStudy as HeadStudy, heads as heads
from .ablation_result import AblationResult as AblationResult
from .bench import METRICS as METRICS, Bench as Bench, Measurement as Measurement
from .clips import held_out_clips as held_out_clips, pairs_of as pairs_of
from .conditions import INTACT as INTACT, INTACT_DENOISE as INTACT_DENOISE, Condition as Condition
from .labels import Labels as Labels, label_names as label_names, labels_of as labels_of
from .registry import NAMES as NAMES, find as find, run as run, study as study
from .result import StudyResult as StudyResult, build as build, tabulate as tabulate
from .trials import Moment as Moment
