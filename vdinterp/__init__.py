"""vdinterp: mechanistic interpretability of video diffusion transformers.

The public names below are imported on first use, so that `import vdinterp` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdinterp import (
        analysis,
        data,
        diffusion,
        explorer,
        grid,
        interventions,
        models,
        organisms,
        pipeline,
        plotting,
        report,
        results,
        studies,
        sweep,
        training,
        vae,
    )
    from vdinterp.analysis import (
        Contrast,
        NoisedClips,
        PatchEdges,
        activation_patch,
        attribution_patch,
        circuits,
        direct_attribution,
        edge_attribution,
        faithfulness,
        find_induction,
        induction_over_training,
        lens,
        modulation_atlas,
        neurons,
        path_patch,
        probes,
        tuned_lens,
    )
    from vdinterp.diffusion import ClassifierFreeGuidance, ClassifierGuidance, DiffusionConfig, HistoryGuidance
    from vdinterp.explorer import AttentionExplorer
    from vdinterp.grid import TokenGrid
    from vdinterp.interventions import (
        Ablate,
        Custom,
        Freeze,
        MaskAttention,
        Patch,
        RotateRope,
        SetCondition,
        SetNoiseLevel,
        Steer,
        TransferAttention,
    )
    from vdinterp.models import ActivationCache, HookedVideoDiT, VideoDiTConfig, get_act_name
    from vdinterp.pipeline import VideoDiffusion, list_checkpoints, list_families, list_models, load
    from vdinterp.results import Result

_HOME = {
    "Contrast": "analysis",
    "NoisedClips": "analysis",
    "PatchEdges": "analysis",
    "activation_patch": "analysis",
    "attribution_patch": "analysis",
    "circuits": "analysis",
    "direct_attribution": "analysis",
    "edge_attribution": "analysis",
    "faithfulness": "analysis",
    "find_induction": "analysis",
    "induction_over_training": "analysis",
    "lens": "analysis",
    "modulation_atlas": "analysis",
    "neurons": "analysis",
    "tuned_lens": "analysis",
    "path_patch": "analysis",
    "probes": "analysis",
    "ClassifierFreeGuidance": "diffusion",
    "ClassifierGuidance": "diffusion",
    "DiffusionConfig": "diffusion",
    "HistoryGuidance": "diffusion",
    "AttentionExplorer": "explorer",
    "TokenGrid": "grid",
    "Ablate": "interventions",
    "Custom": "interventions",
    "Freeze": "interventions",
    "MaskAttention": "interventions",
    "Patch": "interventions",
    "RotateRope": "interventions",
    "SetCondition": "interventions",
    "SetNoiseLevel": "interventions",
    "Steer": "interventions",
    "TransferAttention": "interventions",
    "ActivationCache": "models",
    "HookedVideoDiT": "models",
    "VideoDiTConfig": "models",
    "get_act_name": "models",
    "VideoDiffusion": "pipeline",
    "list_checkpoints": "pipeline",
    "list_families": "pipeline",
    "list_models": "pipeline",
    "load": "pipeline",
    "Result": "results",
}
_SUBMODULES = (
    "analysis",
    "data",
    "diffusion",
    "explorer",
    "grid",
    "interventions",
    "models",
    "organisms",
    "pipeline",
    "plotting",
    "report",
    "results",
    "studies",
    "sweep",
    "training",
    "vae",
)

__all__ = [
    "Ablate",
    "ActivationCache",
    "AttentionExplorer",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Contrast",
    "Custom",
    "DiffusionConfig",
    "Freeze",
    "HistoryGuidance",
    "HookedVideoDiT",
    "MaskAttention",
    "NoisedClips",
    "Patch",
    "PatchEdges",
    "Result",
    "RotateRope",
    "SetCondition",
    "SetNoiseLevel",
    "Steer",
    "TokenGrid",
    "TransferAttention",
    "VideoDiTConfig",
    "VideoDiffusion",
    "activation_patch",
    "analysis",
    "attribution_patch",
    "circuits",
    "data",
    "diffusion",
    "direct_attribution",
    "edge_attribution",
    "explorer",
    "faithfulness",
    "find_induction",
    "get_act_name",
    "grid",
    "induction_over_training",
    "interventions",
    "lens",
    "list_checkpoints",
    "list_families",
    "list_models",
    "load",
    "models",
    "modulation_atlas",
    "neurons",
    "organisms",
    "path_patch",
    "pipeline",
    "plotting",
    "probes",
    "report",
    "results",
    "studies",
    "sweep",
    "training",
    "tuned_lens",
    "vae",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"vdinterp.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"vdinterp.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version("vdinterp")
    raise AttributeError(f"module 'vdinterp' has no attribute {name!r}; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
