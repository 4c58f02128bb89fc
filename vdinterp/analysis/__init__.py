"""From tensors to numbers: scores of generated clips with their intervals, and statistics of attention and streams."""

from vdinterp.analysis import circuits, neurons, probes
from vdinterp.analysis.attention import (
    DisplacementKernels,
    FrameMass,
    Synopsis,
    chunk_mass,
    displacement_kernel,
    frame_mass,
    synopsis,
)
from vdinterp.analysis.attribution_patching import AttributionResult, attribution_patch
from vdinterp.analysis.bootstrap import Interval, bootstrap_mean
from vdinterp.analysis.contrast import Contrast
from vdinterp.analysis.correspondence import correspondence
from vdinterp.analysis.direct_attribution import DirectAttribution, direct_attribution
from vdinterp.analysis.direct_effect import DirectEffect, direct_effect
from vdinterp.analysis.edge_attribution import CircuitCurve, EdgeResult, edge_attribution, faithfulness
from vdinterp.analysis.edges import Graph, PatchEdges
from vdinterp.analysis.head_statistic import HeadStatistic
from vdinterp.analysis.heads import HeadTable, head_table
from vdinterp.analysis.induction import (
    DevelopmentResult,
    InductionResult,
    find_induction,
    induction_over_training,
)
from vdinterp.analysis.lens import LensResult, TunedLens, lens, tuned_lens
from vdinterp.analysis.lens_curve import LensCurve, lens_curve
from vdinterp.analysis.massive_activations import MassiveActivations, massive_activations
from vdinterp.analysis.metrics import deviation, motion_error, psnr, sharpness, ssim, x0_error
from vdinterp.analysis.modulation import modulation_atlas
from vdinterp.analysis.modulation_result import ModulationAtlas
from vdinterp.analysis.noised import NoisedClips
from vdinterp.analysis.patch_crossing import PatchCrossing, patch_crossing
from vdinterp.analysis.patching import PatchingResult, activation_patch
from vdinterp.analysis.path_patching import PathResult, path_patch
from vdinterp.analysis.redundancy import HeadConsensus, StepRedundancy, head_consensus, step_redundancy
from vdinterp.analysis.rope_reliance import RopeReliance, rope_reliance
from vdinterp.analysis.scroll import ScrollHeads, scroll_heads
from vdinterp.analysis.sinks import Sinks, sinks
from vdinterp.analysis.spatial_temporal import spatial_temporal

__all__ = [
    "AttributionResult",
    "CircuitCurve",
    "Contrast",
    "DevelopmentResult",
    "DirectAttribution",
    "DirectEffect",
    "DisplacementKernels",
    "EdgeResult",
    "FrameMass",
    "Graph",
    "HeadConsensus",
    "HeadStatistic",
    "HeadTable",
    "InductionResult",
    "Interval",
    "LensCurve",
    "LensResult",
    "MassiveActivations",
    "ModulationAtlas",
    "NoisedClips",
    "PatchCrossing",
    "PatchEdges",
    "PatchingResult",
    "PathResult",
    "RopeReliance",
    "ScrollHeads",
    "Sinks",
    "StepRedundancy",
    "Synopsis",
    "TunedLens",
    "activation_patch",
    "attribution_patch",
    "bootstrap_mean",
    "chunk_mass",
    "circuits",
    "correspondence",
    "deviation",
    "direct_attribution",
    "direct_effect",
    "displacement_kernel",
    "edge_attribution",
    "faithfulness",
    "find_induction",
    "frame_mass",
    "head_consensus",
    "head_table",
    "induction_over_training",
    "lens",
    "lens_curve",
    "massive_activations",
    "modulation_atlas",
    "motion_error",
    "neurons",
    "patch_crossing",
    "path_patch",
    "probes",
    "psnr",
    "rope_reliance",
    "scroll_heads",
    "sharpness",
    "sinks",
    "spatial_temporal",
    "ssim",
    "step_redundancy",
    "synopsis",
    "tuned_lens",
    "x0_error",
]


def __dir__() -> list[str]:
    """The public names, without the modules that they live in."""
    return sorted(__all__)
