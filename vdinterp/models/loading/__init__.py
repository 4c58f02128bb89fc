"""Reference checkpoints to `HookedVideoDiT`: one file a family, each a config translation and a table of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.loading import dfot, oasis
from vdinterp.models.loading.keys import translate
from vdinterp.models.loading.read import read_checkpoint

FAMILIES = {"dfot": dfot, "oasis": oasis}

__all__ = ["FAMILIES", "convert", "convert_config", "read_checkpoint"]


def convert_config(family: str, config: Mapping[str, Any]) -> VideoDiTConfig:
    """The architecture a reference configuration describes. Raises `ValueError` for unknown families or settings."""
    if family not in FAMILIES:
        raise ValueError(f"Unknown family {family!r}; converters exist for {', '.join(FAMILIES)}.")
    return FAMILIES[family].convert_config(config)


def convert(
    family: str, config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]
) -> tuple[VideoDiTConfig, dict[str, torch.Tensor]]:
    """Architecture and weights under our names.

    Every key of `state_dict` is consumed; unknown, missing and wrong-shaped ones raise `ValueError`.
    """
    cfg = convert_config(family, config)
    module = FAMILIES[family]
    weights = module.prepare(cfg, dict(state_dict))
    return cfg, translate(weights, module.key_table(cfg, weights), cfg)
