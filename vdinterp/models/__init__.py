"""The hooked video diffusion transformer: architecture as data, every activation named."""

from vdinterp.models.cache import ActivationCache, Recording
from vdinterp.models.config import BlockSpec, Rope, Sublayer, VideoDiTConfig
from vdinterp.models.hooked_video_dit import HookedVideoDiT

__all__ = ["ActivationCache", "BlockSpec", "HookedVideoDiT", "Recording", "Rope", "Sublayer", "VideoDiTConfig"]
