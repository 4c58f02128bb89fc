from .attention import MaskAttention as MaskAttention, TransferAttention as TransferAttention
from .base import (
    Acting as Acting,
    HookPair as HookPair,
    Intervention as Intervention,
    Place as Place,
    Run as Run,
    check_choice as check_choice,
    check_interventions as check_interventions,
    hooks_of as hooks_of,
)
from .condition import SetCondition as SetCondition, SetNoiseLevel as SetNoiseLevel
from .levels import Between as Between
from .places import Pass as Pass
from .replace import Ablate as Ablate, Custom as Custom, Freeze as Freeze, Patch as Patch, Steer as Steer
from .rope import RotateRope as RotateRope
from .serialize import from_json as from_json, to_json as to_json
from .site import CHANNEL_AXES as CHANNEL_AXES, SAMPLE_AXES as SAMPLE_AXES, SiteIntervention as SiteIntervention
from .stored import check_stored as check_stored, fitted as fitted
