from .attention import Attention as Attention
from .block import Block as Block
from .final_layer import FinalLayer as FinalLayer
from .given import Given as Given
from .mlp import MLP as MLP
from .modulation import (
    AdaLN as AdaLN,
    BlockModulation as BlockModulation,
    SharedModulation as SharedModulation,
    modulate as modulate,
)
from .noise_embed import ActionEmbed as ActionEmbed, NoiseEmbed as NoiseEmbed
from .norm import Norm as Norm
from .patch_embed import PatchEmbed as PatchEmbed, unpatchify as unpatchify
from .rope import RotaryEmbedding as RotaryEmbedding, rotate as rotate
