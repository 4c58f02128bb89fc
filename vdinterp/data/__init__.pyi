from .clips import KINDS as KINDS, Clips as Clips, make_clips as make_clips
from .samples import sample_clips as sample_clips
from .video_files import read_clips as read_clips, read_video as read_video, write_video as write_video
