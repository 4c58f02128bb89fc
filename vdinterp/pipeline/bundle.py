"""The format of a trained pipeline on disk: `model.json`, `model.safetensors` and `checkpoints/step-NNNNN.safetensors`.

Weights are stored as float16 under `model.*` and `vae.*` (checkpoints hold `model.*` only) and loaded as float32.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.models.weights import check_saves
from vdinterp.pipeline.video_diffusion import VideoDiffusion
from vdinterp.vae import LatentStats, build

FORMAT = 1
SETTINGS = "model.json"
WEIGHTS = "model.safetensors"
_RESERVED = ("format", "config", "diffusion", "vae", "latent_stats")
_STEP = re.compile(r"step-(\d+)\.safetensors$")


def save_bundle(
    path: str | Path,
    pipe: VideoDiffusion,
    meta: Mapping[str, Any] | None = None,
    checkpoints: Mapping[int, Mapping[str, torch.Tensor] | nn.Module] | None = None,
) -> Path:
    """Write a pipeline to the folder `path`.

    Args:
        pipe: what to store.
        meta: what is known of the model, JSON-able: usually `data`, `recipe`, `figures`, `license`. Default
            `pipe.meta`.
        checkpoints: by training step, the model or its state dict at that step.

    Raises:
        ValueError: `meta` uses a reserved name, a weight does not fit float16, a checkpoint is of another model, or the
            model's layers were replaced or wrapped (an adapter, quantisation), so that its tensors are not all of it.
    """
    check_saves(pipe.model)
    meta = dict(pipe.meta if meta is None else meta)
    taken = sorted(set(meta) & set(_RESERVED))
    if taken:
        raise ValueError(f"meta must not use the names {taken}: the format writes them itself")
    settings = {
        "format": FORMAT,
        "config": pipe.model.cfg.to_dict(),
        "diffusion": pipe.diffusion.to_dict(),
        "vae": None if pipe.vae is None else dict(pipe.vae.config),
        "latent_stats": pipe.latent_stats.to_dict(),
        **{key: value for key, value in meta.items() if key not in ("name", "checkpoint")},
    }
    text = json.dumps(settings, indent=1)
    model = pipe.model.state_dict()
    tensors = {f"model.{key}": value for key, value in model.items()}
    module = _vae_module(pipe.vae)
    if module is not None and not _is_pretrained(settings["vae"]):  # those come from the hub again
        tensors |= {f"vae.{key}": value for key, value in module.state_dict().items()}
    halves = {WEIGHTS: _half(tensors)}
    for step, state in (checkpoints or {}).items():
        state = state.state_dict() if isinstance(state, nn.Module) else state
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in model.items()}:
            raise ValueError(f"the checkpoint of step {step} is of another model: its tensors differ in name or shape")
        halves[f"checkpoints/step-{int(step):05d}.safetensors"] = _half({f"model.{k}": v for k, v in state.items()})
    path = Path(path)
    for name, content in halves.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(content, path / f"{name}.part")
        os.replace(path / f"{name}.part", path / name)
    (path / f"{SETTINGS}.part").write_text(text + "\n")
    os.replace(path / f"{SETTINGS}.part", path / SETTINGS)
    return path


def bundle_checkpoints(path: str | Path) -> list[int]:
    """Training steps of which the folder of a bundle holds a checkpoint, ascending; of none if there is no such."""
    found = (_STEP.match(file.name) for file in (Path(path) / "checkpoints").glob("*.safetensors"))
    return sorted(int(match.group(1)) for match in found if match)


def load_bundle(path: str | Path, checkpoint: int | None = None) -> VideoDiffusion:
    """Read a folder written by `save_bundle`; `checkpoint` takes the model's weights from that training step.

    Raises:
        FileNotFoundError: no such folder or file.
        KeyError: no checkpoint of that step.
        ValueError: a truncated file, another format, or weights that do not fit the configuration.
    """
    path = Path(path)
    for name in (SETTINGS, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} holds no {name}; a model folder has {SETTINGS} and {WEIGHTS}")
    settings = _read_settings(path / SETTINGS)
    tensors = read_tensors(path / WEIGHTS)
    if checkpoint is not None:
        steps = bundle_checkpoints(path)
        if checkpoint not in steps:
            have = f"those of steps {steps}" if steps else "none"
            raise KeyError(f"{path.name} has no checkpoint of step {checkpoint!r}; it has {have}")
        file = next(f for f in (path / "checkpoints").glob("*.safetensors") if _step_of(f) == checkpoint)
        tensors = {k: v for k, v in tensors.items() if k.startswith("vae.")} | read_tensors(file)
    model = HookedVideoDiT(VideoDiTConfig.from_dict(settings["config"]))
    vae = None if settings["vae"] is None else build(settings["vae"])
    unknown = [key for key in tensors if not key.startswith(("model.", "vae."))]
    if unknown:
        raise ValueError(f"{path} has tensors that belong to neither model nor VAE: {_some(unknown)}")
    fill(model, _part(tensors, "model."), f"the model in {path}")
    module = _vae_module(vae)
    if module is None and _part(tensors, "vae."):
        raise ValueError(f"{path} has VAE weights, but its VAE {settings['vae']} takes none")
    if module is not None:
        if not _is_pretrained(settings["vae"]):
            fill(module, _part(tensors, "vae."), f"the VAE in {path}")
        module.eval().requires_grad_(False)
    meta = {key: value for key, value in settings.items() if key not in _RESERVED}
    meta |= {"name": path.name, "checkpoint": checkpoint}
    return VideoDiffusion(
        model.eval(),
        vae,
        DiffusionConfig.from_dict(settings["diffusion"]),
        LatentStats.from_dict(settings["latent_stats"]),
        meta,
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file as float32 (integer tensors as they are). `ValueError` if it is truncated."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); copy or download it again") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def fill(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """`load_state_dict`, strict, with an error that says what is off: missing keys, unknown keys, other shapes."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = sorted(set(wanted) - set(state))
    unknown = sorted(set(state) - set(wanted))
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {wanted[key]}"
        for key in sorted(set(wanted) & set(state))
        if tuple(state[key].shape) != wanted[key]
    ]
    if missing or unknown or shapes:
        parts = [
            f"{len(found)} {label}: {_some(found)}"
            for label, found in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
            if found
        ]
        raise ValueError(f"the weights do not fit {what}: " + "; ".join(parts))
    module.load_state_dict(dict(state))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        given = settings.get("format") if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"{path} is of format {given!r}; this version reads format {FORMAT}")
    missing = [name for name in _RESERVED if name not in settings]
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    return settings


def _vae_module(vae: Any) -> nn.Module | None:
    """The module that holds a VAE's weights: itself, the one it wraps, or none."""
    if isinstance(vae, nn.Module):
        return vae
    inner = getattr(vae, "vae", None)
    return inner if isinstance(inner, nn.Module) else None


def _is_pretrained(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "pretrained" in config


def _half(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for key, value in tensors.items():
        value = value.detach().cpu()
        if value.is_floating_point():
            if not bool(torch.isfinite(value.half()).all()):
                raise ValueError(f"{key} does not fit float16: its largest magnitude is {float(value.abs().max()):.3g}")
            value = value.half()
        out[key] = value.contiguous().clone()
    return out


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _step_of(file: Path) -> int | None:
    match = _STEP.match(file.name)
    return int(match.group(1)) if match else None


def _some(names: list[str], n: int = 4) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
