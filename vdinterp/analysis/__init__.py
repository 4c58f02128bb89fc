"""From tensors to numbers: scores of generated clips with their intervals, and statistics of attention and streams."""

from vdinterp.analysis.attention import chunk_mass, displacement_kernel, frame_mass, synopsis
from vdinterp.analysis.bootstrap import Interval, bootstrap_mean
from vdinterp.analysis.correspondence import correspondence
from vdinterp.analysis.head_statistic import HeadStatistic
from vdinterp.analysis.heads import HeadTable, head_table
from vdinterp.analysis.metrics import deviation, motion_error, psnr, ssim, x0_error
from vdinterp.analysis.noised import NoisedClips
from vdinterp.analysis.patch_crossing import PatchCrossing, patch_crossing
from vdinterp.analysis.scroll import ScrollHeads, scroll_heads

__all__ = [
    "HeadStatistic",
    "HeadTable",
    "Interval",
    "NoisedClips",
    "PatchCrossing",
    "ScrollHeads",
    "bootstrap_mean",
    "chunk_mass",
    "correspondence",
    "deviation",
    "displacement_kernel",
    "frame_mass",
    "head_table",
    "motion_error",
    "patch_crossing",
    "psnr",
    "scroll_heads",
    "ssim",
    "synopsis",
    "x0_error",
]
