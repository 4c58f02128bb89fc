from ._composition import CompositionScores as CompositionScores, composition as composition
from .activations import QKActivations as QKActivations, qk_activations as qk_activations
from .heads import OVCircuit as OVCircuit, QKCircuit as QKCircuit, ov as ov, qk as qk
from .patches import (
    CopyingScores as CopyingScores,
    PatchCircuit as PatchCircuit,
    copying as copying,
    eigenvalue_score as eigenvalue_score,
    patch_circuit as patch_circuit,
)
