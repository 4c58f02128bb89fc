from . import circuits as circuits, neurons as neurons, probes as probes
from .heads._correspondence import correspondence as correspondence
from .heads._rope_reliance import RopeReliance as RopeReliance, rope_reliance as rope_reliance
from .heads._sinks import Sinks as Sinks, sinks as sinks
from .heads._spatial_temporal import spatial_temporal as spatial_temporal
from .heads.attention import (
    DisplacementKernels as DisplacementKernels,
    FrameMass as FrameMass,
    Synopsis as Synopsis,
    chunk_mass as chunk_mass,
    displacement_kernel as displacement_kernel,
    frame_mass as frame_mass,
    synopsis as synopsis,
)
from .heads.redundancy import (
    HeadConsensus as HeadConsensus,
    StepRedundancy as StepRedundancy,
    head_consensus as head_consensus,
    step_redundancy as step_redundancy,
)
from .heads.scroll import ScrollHeads as ScrollHeads, scroll_heads as scroll_heads
from .heads.statistic import HeadStatistic as HeadStatistic
from .heads.table import HeadTable as HeadTable, head_table as head_table
from .induction import (
    DevelopmentResult as DevelopmentResult,
    InductionResult as InductionResult,
    find_induction as find_induction,
    induction_over_training as induction_over_training,
)
from .intervals import Interval as Interval, bootstrap_mean as bootstrap_mean
from .metrics import (
    deviation as deviation,
    motion_error as motion_error,
    psnr as psnr,
    sharpness as sharpness,
    ssim as ssim,
    x0_error as x0_error,
)
from .patching._edge_attribution import (
    CircuitCurve as CircuitCurve,
    EdgeResult as EdgeResult,
    edge_attribution as edge_attribution,
    faithfulness as faithfulness,
)
from .patching.activation import PatchingResult as PatchingResult, activation_patch as activation_patch
from .patching.attribution import AttributionResult as AttributionResult, attribution_patch as attribution_patch
from .patching.edges import Graph as Graph, PatchEdges as PatchEdges
from .patching.paths import PathResult as PathResult, path_patch as path_patch
from .stimulus.contrast import Contrast as Contrast
from .stimulus.noised_clips import NoisedClips as NoisedClips
from .stream._direct_attribution import DirectAttribution as DirectAttribution, direct_attribution as direct_attribution
from .stream._direct_effect import DirectEffect as DirectEffect, direct_effect as direct_effect
from .stream._lens import LensResult as LensResult, TunedLens as TunedLens, lens as lens, tuned_lens as tuned_lens
from .stream._lens_curve import LensCurve as LensCurve, lens_curve as lens_curve
from .stream._massive_activations import (
    MassiveActivations as MassiveActivations,
    massive_activations as massive_activations,
)
from .stream._patch_crossing import PatchCrossing as PatchCrossing, patch_crossing as patch_crossing
from .stream.modulation import modulation_atlas as modulation_atlas
from .stream.modulation_result import ModulationAtlas as ModulationAtlas
