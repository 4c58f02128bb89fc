"""The hooked video diffusion transformer: architecture as data, every activation named."""

from vdinterp.models.act_names import get_act_name
from vdinterp.models.cache import ActivationCache, Recording
from vdinterp.models.config import BlockSpec, Rope, Sublayer, VideoDiTConfig
from vdinterp.models.hooked_video_dit import HookedVideoDiT
from vdinterp.models.pattern import AttentionPattern

__all__ = [
    "ActivationCache",
    "AttentionPattern",
    "BlockSpec",
    "HookedVideoDiT",
    "Recording",
    "Rope",
    "Sublayer",
    "VideoDiTConfig",
    "get_act_name",
]
