"""VideoDiffusion: from a video to a video through a hooked model."""

from vdinterp.pipeline.bundle import load_bundle, save_bundle
from vdinterp.pipeline.loading import list_checkpoints, list_families, list_models, load
from vdinterp.pipeline.sampling import SampleResult, StepState
from vdinterp.pipeline.video_diffusion import VideoDiffusion
from vdinterp.pipeline.windows import interpolation_plan

__all__ = [
    "SampleResult",
    "StepState",
    "VideoDiffusion",
    "interpolation_plan",
    "list_checkpoints",
    "list_families",
    "list_models",
    "load",
    "load_bundle",
    "save_bundle",
]
