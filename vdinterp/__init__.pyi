from . import (
    analysis as analysis,
    data as data,
    diffusion as diffusion,
    explorer as explorer,
    grid as grid,
    interventions as interventions,
    models as models,
    organisms as organisms,
    pipeline as pipeline,
    plotting as plotting,
    report as report,
    results as results,
    studies as studies,
    sweep as sweep,
    training as training,
    vae as vae,
)
from .analysis import (
    Contrast as Contrast,
    NoisedClips as NoisedClips,
    PatchEdges as PatchEdges,
    activation_patch as activation_patch,
    attribution_patch as attribution_patch,
    circuits as circuits,
    direct_attribution as direct_attribution,
    edge_attribution as edge_attribution,
    faithfulness as faithfulness,
    find_induction as find_induction,
    induction_over_training as induction_over_training,
    lens as lens,
    modulation_atlas as modulation_atlas,
    neurons as neurons,
    path_patch as path_patch,
    probes as probes,
    tuned_lens as tuned_lens,
)
from .conditions import NO_CONDITION as NO_CONDITION, Conditions as Conditions
from .diffusion import (
    ClassifierFreeGuidance as ClassifierFreeGuidance,
    ClassifierGuidance as ClassifierGuidance,
    DiffusionConfig as DiffusionConfig,
    HistoryGuidance as HistoryGuidance,
)
from .explorer import AttentionExplorer as AttentionExplorer
from .grid import TokenGrid as TokenGrid
from .interventions import (
    Ablate as Ablate,
    Between as Between,
    Custom as Custom,
    Freeze as Freeze,
    MaskAttention as MaskAttention,
    Patch as Patch,
    RotateRope as RotateRope,
    SetCondition as SetCondition,
    SetNoiseLevel as SetNoiseLevel,
    Steer as Steer,
    TransferAttention as TransferAttention,
)
from .models import (
    ActivationCache as ActivationCache,
    HookedVideoDiT as HookedVideoDiT,
    VideoDiTConfig as VideoDiTConfig,
)
from .pipeline import (
    VideoDiffusion as VideoDiffusion,
    list_checkpoints as list_checkpoints,
    list_families as list_families,
    list_models as list_models,
    load as load,
)
from .results import Result as Result
from .site import Site as Site, get_act_name as get_act_name

__version__: str
