"""Clips with ground truth, and video files."""

from vdinterp.data.clips import KINDS, Clips, make_clips
from vdinterp.data.samples import sample_clips
from vdinterp.data.video_files import read_clips, read_video, write_video

__all__ = ["KINDS", "Clips", "make_clips", "read_clips", "read_video", "sample_clips", "write_video"]
