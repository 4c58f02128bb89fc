"""What a pipeline is given, checked before any compute."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from numbers import Real
from typing import Any

import torch

from vdinterp.checks.counts import check_indices
from vdinterp.diffusion import DiffusionConfig
from vdinterp.diffusion.schedule import NoiseSchedule
from vdinterp.models import HookedVideoDiT
from vdinterp.models.checks import check_sizes
from vdinterp.models.config import VideoDiTConfig
from vdinterp.vae import VAE, LatentStats


def check_parts(model: Any, vae: Any, diffusion: Any, latent_stats: Any) -> None:
    """Raise `ValueError` unless these are the parts of a pipeline, and fit together."""
    whole = getattr(model, "_orig_mod", model)  # torch.compile wraps it
    if not isinstance(whole, HookedVideoDiT):
        kind = type(model)
        raise ValueError(
            f"model is a {kind.__module__}.{kind.__qualname__}; a pipeline needs a HookedVideoDiT, whose activations "
            "have names. Weights of the families in vdinterp.list_families() become one: "
            "HookedVideoDiT.from_state_dict(family, config, state_dict)"
        )
    if vae is not None and not isinstance(vae, VAE):
        raise ValueError(
            f"vae is a {type(vae).__name__}; None, or something with encode, decode, config and latent_channels is "
            "needed: an autoencoder of diffusers as vdinterp.vae.DiffusersVAE(module)"
        )
    if not isinstance(diffusion, DiffusionConfig):
        raise ValueError(f"diffusion is a {type(diffusion).__name__}; a vdinterp.DiffusionConfig is needed")
    if latent_stats is not None and not isinstance(latent_stats, LatentStats):
        raise ValueError(f"latent_stats is a {type(latent_stats).__name__}; a vdinterp.vae.LatentStats is needed")
    if latent_stats is not None and len(latent_stats.mean) not in (1, whole.cfg.in_channels):
        raise ValueError(
            f"latent_stats are of {len(latent_stats.mean)} channels; {whole.cfg.model_name} takes latents of "
            f"{whole.cfg.in_channels}"
        )


def check_device(device: Any) -> torch.device:
    """A device that is there. `ValueError` for one that is not."""
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch's way to say that it was built without it
        found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(f"device {str(device)!r} is not to be had here; there are {', '.join(found)}") from error
    return target


def levels_k(noise_levels: Any, batch: int, frames: int, schedule: NoiseSchedule) -> torch.Tensor:
    """The levels `k` `[batch frame]` of noise levels, one share for all frames or one for each. `ValueError` for what
    is none."""
    if not isinstance(noise_levels, torch.Tensor | Real):
        raise ValueError(
            f"noise levels are a {type(noise_levels).__name__}: a share of noise in [0, 1] is needed, or a tensor of "
            f"them, [batch frame] = [{batch} {frames}]"
        )
    shape = list(noise_levels.shape) if isinstance(noise_levels, torch.Tensor) else []
    if shape not in ([], [batch, frames]):
        raise ValueError(f"noise levels of shape {shape}: expected [batch frame] = [{batch} {frames}]")
    return schedule.k(noise_levels).expand(batch, frames)


def check_latents(latents: torch.Tensor, cfg: VideoDiTConfig, what: str = "latents") -> None:
    """Raise `ValueError` unless `latents` is a float `[batch frame channel height width]` that fits the model."""
    check_sizes(cfg, latents, what)
    if not latents.is_floating_point():
        raise ValueError(f"{what} must be floating point, got {latents.dtype}; encode a video with pipe.encode first")
    if 0 in latents.shape:
        raise ValueError(f"{what} of shape {list(latents.shape)} are empty")
    if not bool(latents.detach().isfinite().all()):
        raise ValueError(f"{what} hold NaN or infinity; give finite numbers")


def check_mask(mask: torch.Tensor | Sequence[int], batch: int, frames: int) -> torch.Tensor:
    """`mask` as `[batch frame]` long. Raises `ValueError` for other shapes or values outside -1, 0, 1, 2."""
    mask = torch.as_tensor(mask)
    if mask.is_complex() or (mask.is_floating_point() and not bool((mask == mask.round()).all())):
        raise ValueError("mask values are whole: -1 (padding), 0 (generate), 1 (ground truth), 2 (generated history)")
    if mask.ndim == 1:
        mask = mask[None].expand(batch, -1)
    if mask.shape != (batch, frames):
        raise ValueError(
            f"mask of shape {list(mask.shape)}: expected [frame] = [{frames}] or [batch frame] = [{batch} {frames}]"
        )
    mask = mask.long()
    if bool(((mask < -1) | (mask > 2)).any()):
        raise ValueError("mask values are -1 (padding), 0 (generate), 1 (ground truth), 2 (generated history)")
    return mask


def check_steps_used(at_steps: Iterable[int] | None, n_steps: int, what: str = "at_steps") -> frozenset[int] | None:
    """`at_steps` as a set. Raises `ValueError` unless it is None or holds whole numbers, at least one, and if it names
    a step that does not happen; a range may reach beyond the last step, as in `range(4, 1000)`."""
    if at_steps is None:
        return None
    if not isinstance(at_steps, Iterable) or isinstance(at_steps, (str, bytes)):
        raise ValueError(f"{what} is {at_steps!r}; give a list or a range of steps, 0 the noisiest")
    if not isinstance(at_steps, Collection):
        at_steps = list(at_steps)
    check_indices(what, at_steps)
    wanted = frozenset(int(step) for step in at_steps)
    outside = sorted(step for step in wanted if not 0 <= step < n_steps)
    if outside and (not isinstance(at_steps, range) or len(outside) == len(wanted)):
        raise ValueError(f"{what} names the steps {outside[:12]}; this run has steps 0 to {n_steps - 1}")
    return wanted
