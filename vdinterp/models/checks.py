"""What a forward pass is given, checked before any compute."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vdinterp.conditions import Conditions
from vdinterp.grid import TokenGrid
from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.hooks import Names

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

log = logging.getLogger("vdinterp")


def check_inputs(
    model: HookedVideoDiT,
    latents: torch.Tensor,
    timestep: Any,
    cond: Conditions,
) -> None:
    """Raise `ValueError` when a shape or a dtype does not fit the model."""
    cfg = model.cfg
    check_sizes(cfg, latents)
    say_longer(cfg, latents.shape[1])
    if latents.dtype != model.dtype and not torch.is_autocast_enabled(latents.device.type):
        raise ValueError(
            f"latents are {latents.dtype}, {cfg.model_name} is {model.dtype}: use latents.to(model.dtype)."
        )
    if _seen(latents) and not bool(latents.detach().isfinite().all()):
        raise ValueError(f"latents hold NaN or infinity; {cfg.model_name} takes finite numbers")
    batch, frames = latents.shape[:2]
    shape = list(timestep.shape) if isinstance(timestep, torch.Tensor) else repr(timestep)
    if shape != [batch, frames]:
        raise ValueError(
            f"timestep is {shape}: a tensor with one per frame is needed, [{batch}, {frames}]; of noise levels, shares "
            "in [0, 1], pipe.timestep(noise_levels) makes it"
        )
    check_timesteps(model, timestep)
    cond.check(cfg, batch, frames)


def check_sizes(cfg: VideoDiTConfig, latents: Any, what: str = "latents") -> None:
    """Raise `ValueError` unless `latents` are a tensor `[batch frame channel height width]` of sizes that the model can
    take: any that divide into its patches, or those of its position table."""
    table = cfg.abs_pos == "learned_spatial"
    picture = f"{cfg.height}, {cfg.width}" if table else "height, width"
    wanted = f"[batch, frames, {cfg.in_channels}, {picture}]"
    if not isinstance(latents, torch.Tensor):
        raise ValueError(f"{what} are {type(latents).__name__}: {cfg.model_name} takes a tensor {wanted}")
    if latents.ndim != 5 or latents.shape[2] != cfg.in_channels or not latents.shape[1]:
        raise ValueError(f"{what} {list(latents.shape)} do not fit {cfg.model_name}: it takes {wanted}")
    height, width = latents.shape[-2:]
    if table and (height, width) != (cfg.height, cfg.width):
        raise ValueError(
            f"{what} of {height}x{width}: {cfg.model_name} has learned positions (abs_pos='learned_spatial'), so it "
            f"takes {cfg.height}x{cfg.width}"
        )
    _, patch_h, patch_w = cfg.patch_size
    if not (height and width) or height % patch_h or width % patch_w:
        raise ValueError(
            f"{what} of {height}x{width} do not divide into {cfg.model_name}'s {patch_h}x{patch_w} patches"
        )


def say_longer(cfg: VideoDiTConfig, n_frames: int) -> None:
    """Log once that a model runs beyond the length that it was trained at."""
    if n_frames > cfg.n_frames:
        _say_longer(cfg.model_name, cfg.n_frames, n_frames)


@functools.cache
def _say_longer(model_name: str, trained: int, n_frames: int) -> None:
    log.warning(
        "%s runs on %d frames at once; it was trained on %d (pipe.rollout continues clips in windows of that)",
        model_name,
        n_frames,
        trained,
    )


OLD = {
    "cond_mask": "cond=vd.Conditions(actions=.., dropped=..)",
    "text": "cond=vd.Conditions(text=..)",
    "noise_levels": "timestep=, what the network is fed (pipe.timestep(noise_levels)); pipe.denoise takes noise levels",
}


def check_old(given: Mapping[str, Any]) -> None:
    """Raise `TypeError` for what a forward pass does not take, saying what it is called now."""
    for name in given:
        raise TypeError(f"{name}=: give {OLD[name]}" if name in OLD else f"a forward pass takes no argument {name}=")


def check_timesteps(model: HookedVideoDiT, timestep: torch.Tensor) -> None:
    """Raise `ValueError` unless a network can have been trained to be fed these: real, finite numbers, and where it is
    known to be told one of K whole levels (`model.schedule`) whole ones from -1 (clean) to K - 1.

    Values cannot be looked at inside compiled code or a captured CUDA graph.
    """
    name = model.cfg.model_name
    if timestep.dtype == torch.bool or timestep.is_complex():
        raise ValueError(f"timestep: {timestep.dtype} are none; {name} takes real numbers")
    if not _seen(timestep):
        return
    values = timestep.detach().float()
    low, high = (float(end) for end in torch.aminmax(values))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"timestep: NaN or infinity among them; {name} takes finite numbers")
    if model.schedule is None or not model.schedule.config.told_k:
        return
    n_levels = len(model.schedule)
    if low >= -1 and high < n_levels and bool((values == values.round()).all()):
        return
    takes = f"{name} is fed whole ones, -1 (clean) to {n_levels - 1}"
    if low >= 0 and high <= 1:
        share = float(values[values != values.round()].max())
        raise ValueError(f"timestep: {share:.3g} is a share of noise; {takes}: give pipe.timestep(noise_levels)")
    other = values[(values < -1) | (values >= n_levels) | (values != values.round())]
    raise ValueError(f"timestep: got {float(other[0]):.6g}; {takes}")


def _seen(values: torch.Tensor) -> bool:
    """Whether there are values to look at: none on meta, in compiled code and in a captured CUDA graph."""
    unseen = torch.compiler.is_compiling() or values.device.type == "meta" or not values.numel()
    return not unseen and not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def check_resume(
    cfg: VideoDiTConfig,
    grid: TokenGrid,
    batch: int,
    start: int,
    stop: int | None,
    resid_pre: torch.Tensor | None,
    known: Mapping[str, torch.Tensor] | None,
) -> None:
    """Raise `ValueError` unless these layers exist and a stream to resume from is given where one is needed."""
    n_layers = cfg.n_layers
    for name, layer in (("start_at_layer", start), ("stop_at_layer", stop)):
        if isinstance(layer, bool) or not isinstance(layer, int | None):
            raise ValueError(f"{name}={layer!r}: give the whole number of a block, 0..{n_layers}")
    if not 0 <= start <= n_layers or (stop is not None and not start <= stop <= n_layers):
        raise ValueError(
            f"start_at_layer={start}, stop_at_layer={stop}: {cfg.model_name} has {n_layers} layers, so "
            f"0 <= start <= stop <= {n_layers}."
        )
    if start > 0 and resid_pre is None:
        raise ValueError(f"start_at_layer={start} needs resid_pre, the stream before that block.")
    wanted = (batch, grid.n_tokens, cfg.d_model)
    if resid_pre is not None and tuple(resid_pre.shape) != wanted:
        raise ValueError(f"resid_pre {list(resid_pre.shape)}: the stream of these latents is {list(wanted)}.")
    for name, added in (known or {}).items():
        if resid_pre is None or start == cfg.n_layers or name not in cfg.blocks[start].sublayers:
            raise ValueError(f"known {name!r}: it is of a sublayer of block start_at_layer, and goes with resid_pre.")
        if tuple(added.shape) != wanted:
            raise ValueError(f"known {name!r} is {list(added.shape)}; a sublayer adds {list(wanted)} to the stream.")


# What TransformerLens calls otherwise


def asked_names(names: Names | None, names_filter: Names | None) -> Names | None:
    """What to cache, under either name. Raises `ValueError` for both."""
    if names is not None and names_filter is not None:
        raise ValueError("names= and names_filter= are the same: give one of them")
    return names if names_filter is None else names_filter


def asked_stop(cfg: VideoDiTConfig, stop: int | None) -> int | None:
    """The block to stop before, counted from the start."""
    return stop + cfg.n_layers if stop is not None and -cfg.n_layers <= stop < 0 else stop


def check_habits(pos_slice: Any, remove_batch_dim: bool, latents: torch.Tensor) -> None:
    """Raise `ValueError` for arguments of `run_with_cache` that cannot mean here what they mean there."""
    if pos_slice is not None:
        raise ValueError(
            "pos_slice= is not for running: a pattern needs all keys; choose tokens afterwards, "
            "cache['z', 0][:, cache.grid.tokens(frames=[..])] or cache.decompose_resid(pos_slice=..)"
        )
    if remove_batch_dim and len(latents) != 1:
        raise ValueError(f"remove_batch_dim=True with {len(latents)} clips: it is for one, e.g. latents[:1]")
