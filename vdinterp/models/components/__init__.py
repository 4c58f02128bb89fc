"""The parts of a video diffusion transformer, one short file each."""

from vdinterp.models.components.attention import Attention
from vdinterp.models.components.block import Block
from vdinterp.models.components.final_layer import FinalLayer
from vdinterp.models.components.mlp import MLP
from vdinterp.models.components.modulation import AdaLN, BlockModulation, SharedModulation, modulate
from vdinterp.models.components.noise_embed import ActionEmbed, NoiseEmbed
from vdinterp.models.components.norm import Norm
from vdinterp.models.components.patch_embed import PatchEmbed, unpatchify
from vdinterp.models.components.rope import RotaryEmbedding, rotate

__all__ = [
    "MLP", "ActionEmbed", "AdaLN", "Attention", "Block", "BlockModulation", "FinalLayer", "NoiseEmbed", "Norm",
    "PatchEmbed", "RotaryEmbedding", "SharedModulation", "modulate", "rotate", "unpatchify",
]  # fmt: skip
