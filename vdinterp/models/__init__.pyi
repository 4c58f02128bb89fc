from .cache import ActivationCache as ActivationCache, Recording as Recording
from .config import BlockSpec as BlockSpec, Rope as Rope, Sublayer as Sublayer, VideoDiTConfig as VideoDiTConfig
from .hooked_video_dit import HookedVideoDiT as HookedVideoDiT
from .pattern import AttentionPattern as AttentionPattern
