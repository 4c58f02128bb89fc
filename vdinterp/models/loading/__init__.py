"""Reference checkpoints to `HookedVideoDiT`: one file a family, each a config translation and a table of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.loading import dfot, oasis
from vdinterp.models.loading.keys import assemble, shapes_of, translate
from vdinterp.models.loading.read import read_checkpoint
from vdinterp.models.loading.values import check_dtypes, check_filled, check_weights

FAMILIES = {"dfot": dfot, "oasis": oasis}

__all__ = [
    "FAMILIES",
    "assemble",
    "check_dtypes",
    "check_filled",
    "check_weights",
    "convert",
    "convert_config",
    "preset",
    "read_checkpoint",
    "shapes_of",
]


def preset(family: str, config: Mapping[str, Any] | str) -> Mapping[str, Any]:
    """A published configuration by its name; a mapping is one already. `ValueError` for unknown families or names."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; converters exist for {', '.join(FAMILIES)}")
    if not isinstance(config, str):
        return config
    presets = FAMILIES[family].PRESETS
    if config not in presets:
        raise ValueError(f"{family} has no published configuration {config!r}; there are {', '.join(presets)}")
    return presets[config]


def convert_config(family: str, config: Mapping[str, Any] | str) -> VideoDiTConfig:
    """The architecture a reference configuration, or a published one of that name, describes.

    Raises `ValueError` for unknown families or settings.
    """
    settings = preset(family, config)
    return FAMILIES[family].convert_config(settings)


def convert(
    family: str, config: Mapping[str, Any] | str, state_dict: Mapping[str, torch.Tensor]
) -> tuple[VideoDiTConfig, dict[str, torch.Tensor]]:
    """Architecture and weights under our names.

    Every key of `state_dict` is consumed; unknown, missing and wrong-shaped ones raise `ValueError`, as do tensors that
    are no weights.
    """
    cfg = convert_config(family, config)
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is a {type(state_dict).__name__}; a dictionary of tensors by name is wanted")
    module = FAMILIES[family]
    weights = module.prepare(cfg, dict(state_dict))
    return cfg, translate(weights, module.key_table(cfg, weights), cfg)
