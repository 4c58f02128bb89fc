"""Pure functions from tensors to numbers: scores of generated clips, and their intervals."""

from vdinterp.analysis.bootstrap import Interval, bootstrap_mean
from vdinterp.analysis.metrics import deviation, motion_error, psnr, ssim, x0_error

__all__ = ["Interval", "bootstrap_mean", "deviation", "motion_error", "psnr", "ssim", "x0_error"]
