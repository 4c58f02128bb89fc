"""Key tables: which reference tensors make up each of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.loading.values import check_dtypes, check_filled, check_weights

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

# our key -> the reference keys whose tensors, laid one below the other, are it
KeyTable = Mapping[str, tuple[str, ...]]


def translate(source: dict[str, torch.Tensor], table: KeyTable, cfg: VideoDiTConfig) -> dict[str, torch.Tensor]:
    """Our state dict. Raises `ValueError` naming keys that are missing, left over, of another shape, or no weights."""
    wanted = {key for sources in table.values() for key in sources}
    _complain("is missing", wanted - source.keys(), cfg)
    _complain("has keys that nothing reads:", source.keys() - wanted, cfg)
    what = f"the checkpoint for {cfg.model_name}"
    check_dtypes({key: getattr(tensor, "dtype", type(tensor)) for key, tensor in source.items()}, what)
    shapes = shapes_of(cfg)
    _complain("does not say what to put into", shapes.keys() - table.keys(), cfg)
    for target, sources in table.items():
        parts, shape = [source[key] for key in sources], shapes[target]
        # Fused parts lie below one another: all but the first axis must agree, and that one adds up.
        rows = sum(part.shape[0] if part.ndim else 0 for part in parts)
        if rows != shape[0] or any(part.shape[1:] != shape[1:] for part in parts):
            given = " + ".join(f"{key} {list(part.shape)}" for key, part in zip(sources, parts, strict=True))
            raise ValueError(
                f"{given}: this configuration of {cfg.model_name} needs {list(shape)}. "
                "Is it a checkpoint of another architecture?"
            )
    check_weights(source, what)
    converted = {target: torch.cat([source[key] for key in sources]) for target, sources in table.items()}
    check_filled(converted, what)
    return converted


def shapes_of(cfg: VideoDiTConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of a model, which takes no memory to find out."""
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in HookedVideoDiT(cfg).state_dict().items()}


def assemble(cfg: VideoDiTConfig, weights: Mapping[str, torch.Tensor]) -> HookedVideoDiT:
    """The model of these weights, in float32; their names and shapes have been checked. Nothing is initialised first:
    a configuration alone never takes memory."""
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

    with torch.device("meta"):
        model = HookedVideoDiT(cfg)
    model.load_state_dict({key: tensor.detach().float() for key, tensor in weights.items()}, assign=True)
    return model.eval()


def _complain(what: str, keys: set[str], cfg: VideoDiTConfig) -> None:
    if keys:
        shown = sorted(keys)
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        raise ValueError(f"The checkpoint for {cfg.model_name} {what} {', '.join(shown[:6])}{more}.")


def linear(target: str, *sources: str, bias: bool = True) -> dict[str, tuple[str, ...]]:
    """Table rows of one linear layer: weight and, unless there is none, bias."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{target}.{kind}": tuple(f"{source}.{kind}" for source in sources) for kind in kinds}


def head_width(d_model: int, n_heads: int) -> int:
    """Channels of one head. `ValueError` where the model's do not divide among its heads."""
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(f"hidden_size {d_model} does not divide into num_heads {n_heads}")
    return d_model // n_heads


def mlp_width(d_model: int, ratio: float) -> int:
    """Neurons of an MLP. `ValueError` for a ratio that no network has."""
    if not 0 < ratio <= 1_000:
        raise ValueError(f"mlp_ratio is {ratio}; a number above 0, at most 1000 is wanted")
    return int(d_model * ratio)
