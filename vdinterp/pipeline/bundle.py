"""The format of a trained pipeline on disk: `model.json`, `model.safetensors` and `checkpoints/step-NNNNN.safetensors`.

Weights are stored as float16 under `model.*` and `vae.*` (checkpoints hold `model.*` only) and loaded as float32.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vdinterp import store
from vdinterp.checks.settings import read_json
from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.models.loading import assemble, check_filled, check_weights, shapes_of
from vdinterp.models.weights import check_saves
from vdinterp.pipeline.video_diffusion import VideoDiffusion
from vdinterp.vae import VAE, LatentStats, build
from vdinterp.vae.diffusers_vae import check_hub_options
from vdinterp.vae.protocol import vae_module

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
        ValueError: `meta` uses a reserved name or is no JSON, a weight does not fit float16, a checkpoint is of another
            model, or the model's layers were replaced or wrapped (an adapter, quantisation), so that its tensors are
            not all of it.
    """
    if not isinstance(pipe, VideoDiffusion) or not isinstance(path, str | Path):
        given = f"{type(path).__name__}, {type(pipe).__name__}"
        raise ValueError(f"save_bundle(path, pipe) takes a folder and a VideoDiffusion, in this order; got {given}")
    if meta is not None and not isinstance(meta, Mapping):
        raise ValueError(f"meta is a {type(meta).__name__}; a dictionary of what is known of the model is wanted")
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
    if _is_pretrained(settings["vae"]):
        check_hub_options(settings["vae"].get("options", {}))
    try:
        text = json.dumps(settings, indent=1)
    except (TypeError, ValueError) as error:  # an object of its own, a mapping that holds itself
        raise ValueError(f"meta and the VAE's config are written as JSON, which these are not: {error}") from error
    model = pipe.model.state_dict()
    tensors = {f"model.{key}": value for key, value in model.items()}
    module = vae_module(pipe.vae)
    if module is not None and not _is_pretrained(settings["vae"]):  # those come from the hub again
        tensors |= {f"vae.{key}": value for key, value in module.state_dict().items()}
    files: dict[str, store.Content] = {SETTINGS: text + "\n"}
    files[WEIGHTS] = store.tensors_file(_half(tensors))
    for step, state in (checkpoints or {}).items():
        state = state.state_dict() if isinstance(state, nn.Module) else state
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in model.items()}:
            raise ValueError(f"the checkpoint of step {step} is of another model: its tensors differ in name or shape")
        halves = _half({f"model.{k}": v for k, v in state.items()})
        files[f"checkpoints/step-{int(step):05d}.safetensors"] = store.tensors_file(halves)
    return store.write_files(path, files)


def bundle_checkpoints(path: str | Path) -> list[int]:
    """Training steps of which the folder of a bundle holds a checkpoint, ascending; of none if there is no such."""
    found = (_STEP.match(file.name) for file in (Path(path) / "checkpoints").glob("*.safetensors"))
    return sorted(int(match.group(1)) for match in found if match)


def load_bundle(
    path: str | Path, checkpoint: int | None = None, vae: VAE | Literal["hub"] | None = None
) -> VideoDiffusion:
    """Read a folder written by `save_bundle`; `checkpoint` takes the model's weights from that training step.

    `vae`: one to take instead of the stored one; "hub" fetches the one that the folder only names (nothing else here
    ever goes to a network).

    Raises:
        FileNotFoundError: no such folder or file.
        KeyError: no checkpoint of that step.
        ValueError: a truncated file, another format, weights that do not fit the configuration or are none (NaN,
            integers, all zero), or a VAE that would have to be fetched.
    """
    path = Path(path)
    store.settle(path)
    for name in (SETTINGS, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} holds no {name}; a model folder has {SETTINGS} and {WEIGHTS}")
    settings = _read_settings(path / SETTINGS)
    cfg = VideoDiTConfig.from_dict(settings["config"])
    diffusion = DiffusionConfig.from_dict(settings["diffusion"])
    stats = LatentStats.from_dict(settings["latent_stats"])
    weights = path / WEIGHTS
    if checkpoint is not None:
        steps = bundle_checkpoints(path)
        if checkpoint not in steps:
            have = f"those of steps {steps}" if steps else "none"
            raise KeyError(f"{path.name} has no checkpoint of step {checkpoint!r}; it has {have}")
        weights = next(f for f in (path / "checkpoints").glob("*.safetensors") if _step_of(f) == checkpoint)
    model = _read_model(cfg, weights)
    if vae is None or vae == "hub":
        vae = _read_vae(path, settings["vae"], fetch=vae == "hub")
    meta = {key: value for key, value in settings.items() if key not in _RESERVED}
    meta |= {"name": path.name, "checkpoint": checkpoint}
    return VideoDiffusion(model, vae, diffusion, stats, meta)


def _read_model(cfg: VideoDiTConfig, file: Path) -> HookedVideoDiT:
    what = f"the model in {file}"
    given = _header(file)
    unknown = [key for key in given if not key.startswith(("model.", "vae."))]
    if unknown:
        raise ValueError(f"{file} has tensors that belong to neither model nor VAE: {_some(unknown)}")
    # The number of layers before anything is made of them: what a layer holds, its file does too.
    layers = {key.split(".")[2] for key in given if key.startswith("model.blocks.")}
    if cfg.n_layers > len(layers):
        missing = [f"blocks.{layer}" for layer in range(cfg.n_layers) if str(layer) not in layers]
        raise ValueError(f"the weights do not fit {what}: {len(missing)} layers missing: {_some(missing)}")
    wanted = shapes_of(cfg)
    _check_fit({key: tuple(shape) for key, shape in wanted.items()}, _part(given, "model."), what)
    tensors = _part(_read_tensors(file, "model."), "model.")
    check_weights(tensors, what)
    check_filled(tensors, what)
    return assemble(cfg, tensors)


def _read_vae(path: Path, config: Any, *, fetch: bool) -> VAE | None:
    """The VAE that the settings describe, with its weights."""
    given = _part(_header(path / WEIGHTS), "vae.")
    what = f"the VAE in {path}"
    if config is None or (isinstance(config, Mapping) and _is_pretrained(config)):
        if given:
            raise ValueError(f"{path} has VAE weights, but its VAE {reprlib.repr(config)} takes none")
        if config is None:
            return None
        if not fetch:
            raise ValueError(
                f"{path.name} takes its VAE from {config['pretrained']!r} on the Hugging Face hub, and loading a "
                f"folder does not go to the network: load({str(path)!r}, vae='hub') fetches it, and vae= takes one of "
                "yours, such as vdinterp.vae.DiffusersVAE(module)"
            )
        return build(config)
    with torch.device("meta"):
        outline = vae_module(build(config))
    if outline is None and given:
        raise ValueError(f"{path} has VAE weights, but its VAE {config} takes none")
    state = {} if outline is None else outline.state_dict()
    _check_fit({key: tuple(tensor.shape) for key, tensor in state.items()}, given, what)
    vae = build(config)
    if (module := vae_module(vae)) is not None:
        tensors = _part(_read_tensors(path / WEIGHTS, "vae."), "vae.")
        weights = {key: tensor for key, tensor in tensors.items() if state[key].is_floating_point()}
        check_weights(weights, what)  # the rest counts batches
        check_filled(tensors, what)
        module.load_state_dict(tensors)
        module.eval().requires_grad_(False)
    return vae


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file, without reading any. `ValueError` if it is truncated."""
    with _opened(file) as content:
        return {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118


def _read_tensors(file: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, as they are stored."""
    with _opened(file) as content:
        return {key: content.get_tensor(key) for key in content.keys() if key.startswith(prefix)}  # noqa: SIM118


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as content:
            yield content
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or no safetensors file ({error}); copy or download it again") from error


def _check_fit(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise `ValueError` saying what is off: missing keys, unknown keys, other shapes."""
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    shapes = [
        f"{key} {given[key]} instead of {wanted[key]}"
        for key in sorted(wanted.keys() & given.keys())
        if given[key] != wanted[key]
    ]
    parts = [
        f"{len(found)} {label}: {_some(found)}"
        for label, found in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if found
    ]
    if parts:
        raise ValueError(f"the weights do not fit {what}: " + "; ".join(parts))


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        given = settings.get("format") if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"{path} is of format {reprlib.repr(given)}; this version reads format {FORMAT}")
    missing = [name for name in _RESERVED if name not in settings]
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    return settings


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


def _part(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _step_of(file: Path) -> int | None:
    match = _STEP.match(file.name)
    return int(match.group(1)) if match else None


def _some(names: list[str], n: int = 4) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
