"""Reference checkpoints to `HookedVideoDiT`: one file a family, each a config translation and a table of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.loading import dfot, oasis
from vdinterp.models.loading.fill import all_in, fill, outlined
from vdinterp.models.loading.keys import some
from vdinterp.models.loading.read import Tensors, read_checkpoint, read_safetensors
from vdinterp.models.loading.values import check_dtype

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

FAMILIES = {"dfot": dfot, "oasis": oasis}

__all__ = [
    "FAMILIES",
    "Tensors",
    "all_in",
    "check_dtype",
    "convert",
    "convert_config",
    "fill",
    "outlined",
    "preset",
    "read_checkpoint",
    "read_safetensors",
    "some",
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
    family: str,
    config: Mapping[str, Any] | str,
    state_dict: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> HookedVideoDiT:
    """The model of reference weights, its parameters in `dtype` (default: float32) and on `device`.

    Every key of `state_dict` is consumed; unknown, missing and wrong-shaped ones raise `ValueError`, as do tensors that
    are no weights.
    """
    check_dtype(dtype)
    cfg = convert_config(family, config)
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is a {type(state_dict).__name__}; a dictionary of tensors by name is wanted")
    module = FAMILIES[family]
    source, model = module.prepare(cfg, Tensors.of(state_dict)), outlined(cfg)
    dtypes = all_in(model, torch.float32 if dtype is None else dtype)
    fill(model, source, module.key_table(cfg, source), f"the checkpoint for {cfg.model_name}", dtypes, device)
    return model
