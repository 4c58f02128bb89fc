from .bundle import load_bundle as load_bundle, save_bundle as save_bundle
from .loading import (
    list_checkpoints as list_checkpoints,
    list_families as list_families,
    list_models as list_models,
    load as load,
)
from .sampling import SampleResult as SampleResult, StepState as StepState
from .video_diffusion import VideoDiffusion as VideoDiffusion
from .windows import interpolation_plan as interpolation_plan
