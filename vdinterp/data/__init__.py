"""Clips with ground truth, and video files."""

from vdinterp.data.clips import KINDS, Clips, make_clips

__all__ = ["KINDS", "Clips", "make_clips"]
