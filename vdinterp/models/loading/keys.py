"""Key tables: which reference tensors make up each of ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vdinterp.models.config import VideoDiTConfig

# our key -> the reference keys whose tensors, laid one below the other, are it
KeyTable = Mapping[str, tuple[str, ...]]


def translate(source: dict[str, torch.Tensor], table: KeyTable, cfg: VideoDiTConfig) -> dict[str, torch.Tensor]:
    """Our state dict. Raises `ValueError` naming keys that are missing, left over, or of another shape."""
    wanted = {key for sources in table.values() for key in sources}
    _complain("is missing", wanted - source.keys(), cfg)
    _complain("has keys that nothing reads:", source.keys() - wanted, cfg)
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in HookedVideoDiT(cfg).state_dict().items()}
    _complain("does not say what to put into", shapes.keys() - table.keys(), cfg)
    converted = {}
    for target, sources in table.items():
        parts, wanted = [source[key] for key in sources], shapes[target]
        # Fused parts lie below one another: all but the first axis must agree, and that one adds up.
        rows = sum(part.shape[0] if part.ndim else 0 for part in parts)
        if rows != wanted[0] or any(part.shape[1:] != wanted[1:] for part in parts):
            given = " + ".join(f"{key} {list(part.shape)}" for key, part in zip(sources, parts, strict=True))
            raise ValueError(
                f"{given}: this configuration of {cfg.model_name} needs {list(wanted)}. "
                "Is it a checkpoint of another architecture?"
            )
        converted[target] = torch.cat(parts)
    return converted


def _complain(what: str, keys: set[str], cfg: VideoDiTConfig) -> None:
    if keys:
        shown = sorted(keys)
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        raise ValueError(f"The checkpoint for {cfg.model_name} {what} {', '.join(shown[:6])}{more}.")


def linear(target: str, *sources: str, bias: bool = True) -> dict[str, tuple[str, ...]]:
    """Table rows of one linear layer: weight and, unless there is none, bias."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{target}.{kind}": tuple(f"{source}.{kind}" for source in sources) for kind in kinds}
