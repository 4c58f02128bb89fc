from .collect import top_patches as top_patches
from .directions import write_directions as write_directions
from .effects import NeuronEffects as NeuronEffects, ablation_effects as ablation_effects
from .result import NeuronResult as NeuronResult
