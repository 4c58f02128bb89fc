"""From tensors to numbers: scores of generated clips with their intervals, and statistics of attention and streams."""

from vdinterp.analysis.bootstrap import Interval, bootstrap_mean
from vdinterp.analysis.metrics import deviation, motion_error, psnr, ssim, x0_error
from vdinterp.analysis.noised import NoisedClips

__all__ = ["Interval", "NoisedClips", "bootstrap_mean", "deviation", "motion_error", "psnr", "ssim", "x0_error"]
