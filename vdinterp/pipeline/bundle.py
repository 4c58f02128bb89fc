"""The format of a trained pipeline on disk: `model.json`, `model.safetensors` and `checkpoints/step-NNNNN.safetensors`.

Weights lie under `model.*` and `vae.*` (checkpoints hold `model.*` only), and nothing of them is lost: each is loaded
in the dtype that it was saved in, of which the settings name those that are not float32 (`dtype`, `other_dtypes`).
A float32 tensor whose values float16 holds exactly is stored as float16, half the file.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vdinterp import store
from vdinterp.checks.settings import read_json
from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.models.loading import Tensors, all_in, check_dtype, fill, outlined, read_safetensors, some
from vdinterp.models.loading.keys import check_fit
from vdinterp.models.loading.values import FLOATS
from vdinterp.models.weights import check_saves
from vdinterp.pipeline.video_diffusion import VideoDiffusion
from vdinterp.vae import VAE, LatentStats, build
from vdinterp.vae.diffusers_vae import check_hub_options
from vdinterp.vae.protocol import vae_module

FORMAT = 1
SETTINGS = "model.json"
WEIGHTS = "model.safetensors"
_NEEDED = ("format", "config", "diffusion", "vae", "latent_stats")
_RESERVED = (*_NEEDED, "dtype", "other_dtypes")
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
Put = Callable[[nn.Module, str, Tensors, str], None]  # fills a module with what its prefix names in the file
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

    What `load` makes of it predicts bitwise the same. Round a float32 model first to halve its folder:
    `pipe.to(torch.float16).to(torch.float32)`.

    Raises:
        ValueError: `meta` uses a reserved name or is no JSON, a checkpoint is of another model, weights are offloaded
            or in a dtype that is none of a model's, or parts of the model were replaced or wrapped (an adapter, a
            quantised layer, a module of your own), so that its tensors are not all of it.
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
    model, vae = pipe.model.state_dict(), vae_module(pipe.vae)
    about = None if pipe.vae is None else dict(pipe.vae.config)
    tensors = {f"model.{key}": value for key, value in model.items()}
    if vae is not None and not _is_pretrained(about):  # those come from the hub again
        tensors |= {f"vae.{key}": value for key, value in vae.state_dict().items()}
    settings = {
        "format": FORMAT,
        "config": pipe.model.cfg.to_dict(),
        "diffusion": pipe.diffusion.to_dict(),
        "vae": about,
        "latent_stats": pipe.latent_stats.to_dict(),
        **_dtypes_to_settings(tensors),
        **{key: value for key, value in meta.items() if key not in ("name", "checkpoint")},
    }
    if about is not None and _is_pretrained(about):
        check_hub_options(about.get("options", {}))
    try:
        text = json.dumps(settings, indent=1)
    except (TypeError, ValueError) as error:  # an object of its own, a mapping that holds itself
        raise ValueError(f"meta and the VAE's config are written as JSON, which these are not: {error}") from error
    files: dict[str, store.Content] = {SETTINGS: text + "\n"}
    files[WEIGHTS] = store.tensors_file({key: _compact(value) for key, value in tensors.items()})
    for step, state in (checkpoints or {}).items():
        state = state.state_dict() if isinstance(state, nn.Module) else state
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in model.items()}:
            raise ValueError(f"the checkpoint of step {step} is of another model: its tensors differ in name or shape")
        stored = {f"model.{key}": _compact(value) for key, value in state.items()}
        files[f"checkpoints/step-{int(step):05d}.safetensors"] = store.tensors_file(stored)
    return store.write_files(path, files)


def bundle_checkpoints(path: str | Path) -> list[int]:
    """Training steps of which the folder of a bundle holds a checkpoint, ascending; of none if there is no such."""
    found = (_STEP.match(file.name) for file in (Path(path) / "checkpoints").glob("*.safetensors"))
    return sorted(int(match.group(1)) for match in found if match)


def load_bundle(
    path: str | Path,
    checkpoint: int | None = None,
    vae: VAE | Literal["hub"] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> VideoDiffusion:
    """Read a folder written by `save_bundle`; `checkpoint` takes the model's weights from that training step.

    `vae`: one to take instead of the stored one; "hub" fetches the one that the folder only names (nothing else here
    ever goes to a network).
    `dtype`, `device`: of the model and its VAE; default: the dtypes that were saved, on the CPU.

    Raises:
        FileNotFoundError: no such folder or file.
        KeyError: no checkpoint of that step.
        ValueError: a truncated file, another format, weights that do not fit the configuration or are none (NaN,
            integers, all zero), or a VAE that would have to be fetched.
    """
    check_dtype(dtype)
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
    source = read_safetensors(weights)
    if stray := [key for key in source if not key.startswith(("model.", "vae."))]:
        raise ValueError(f"{weights} has tensors that belong to neither model nor VAE: {some(stray)}")
    stored = _dtypes_from_settings(settings, path / SETTINGS)

    def put(module: nn.Module, prefix: str, source: Tensors, what: str) -> None:
        """Fill a module, in `dtype`, or each tensor in the one that it was saved in."""
        names = module.state_dict()
        dtypes = {name: stored[f"{prefix}{name}"] for name in names} if dtype is None else all_in(module, dtype)
        fill(module, source, {name: (name,) for name in names}, what, dtypes, device)

    model = _read_model(cfg, source, f"the model in {weights}", put)
    if vae is None or vae == "hub":
        source = source if checkpoint is None else read_safetensors(path / WEIGHTS)
        vae = _read_vae(path, settings["vae"], source, vae == "hub", put)
    meta = {key: value for key, value in settings.items() if key not in _RESERVED}
    meta |= {"name": path.name, "checkpoint": checkpoint}
    return VideoDiffusion(model, vae, diffusion, stats, meta)


def _read_model(cfg: VideoDiTConfig, source: Tensors, what: str, put: Put) -> HookedVideoDiT:
    source = _part(source, "model.")
    # The number of layers before anything is made of them: what a layer holds, its file does too.
    layers = {key.split(".")[1] for key in source if key.startswith("blocks.")}
    if cfg.n_layers > len(layers):
        missing = [f"blocks.{layer}" for layer in range(cfg.n_layers) if str(layer) not in layers]
        raise ValueError(f"{what} does not fit its configuration: {len(missing)} layers missing: {some(missing)}")
    model = outlined(cfg)
    put(model, "model.", source, what)
    return model


def _read_vae(path: Path, config: Any, source: Tensors, fetch: bool, put: Put) -> VAE | None:
    """The VAE that the settings describe, with its weights."""
    source = _part(source, "vae.")
    if config is None or (isinstance(config, Mapping) and _is_pretrained(config)):
        if source:
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
    what = f"the VAE in {path}"
    with torch.device("meta"):
        outline = vae_module(build(config))
    if outline is None and source:
        raise ValueError(f"{path} has VAE weights, but its VAE {config} takes none")
    if outline is not None:
        shapes = {key: value.shape for key, value in outline.state_dict().items()}
        check_fit(shapes, {key: (key,) for key in shapes}, source.outline, what)
    from accelerate import init_empty_weights

    with init_empty_weights():  # tables that no file holds are made, parameters are not
        vae = build(config)
    if (module := vae_module(vae)) is not None:
        put(module, "vae.", source, what)
        module.requires_grad_(False)
    return vae


def _dtypes_to_settings(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What has to be said so that every tensor is loaded in its own dtype: nothing where all are float32."""
    dtypes = {
        key: str(value.dtype).removeprefix("torch.") for key, value in tensors.items() if value.is_floating_point()
    }
    if odd := [key for key, dtype in dtypes.items() if dtype not in _DTYPES]:
        raise ValueError(f"{some(odd)} in {dtypes[odd[0]]}: weights are saved in {', '.join(_DTYPES)}")
    most = Counter(dtypes.values()).most_common(1)[0][0]
    other = {key: dtype for key, dtype in dtypes.items() if dtype != most}
    return ({} if most == "float32" and not other else {"dtype": most}) | ({"other_dtypes": other} if other else {})


def _dtypes_from_settings(settings: Mapping[str, Any], file: Path) -> Mapping[str, torch.dtype]:
    most, other = settings.get("dtype", "float32"), settings.get("other_dtypes", {})
    for name in (most, *(other.values() if isinstance(other, dict) else [other])):
        if not isinstance(name, str) or name not in _DTYPES:
            raise ValueError(f"{file} names the dtype {reprlib.repr(name)}; weights are in {', '.join(_DTYPES)}")
    return defaultdict(lambda: _DTYPES[most], {key: _DTYPES[name] for key, name in other.items()})


def _compact(value: torch.Tensor) -> torch.Tensor:
    """As float16 where that holds every value exactly."""
    if value.dtype != torch.float32:
        return value
    half = value.detach().half()
    return half if torch.equal(half.float(), value) else value


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        given = settings.get("format") if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"{path} is of format {reprlib.repr(given)}; this version reads format {FORMAT}")
    missing = [name for name in _NEEDED if name not in settings]
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    return settings


def _is_pretrained(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "pretrained" in config


def _part(source: Tensors, prefix: str) -> Tensors:
    return source.renamed({key.removeprefix(prefix): key for key in source if key.startswith(prefix)})


def _step_of(file: Path) -> int | None:
    match = _STEP.match(file.name)
    return int(match.group(1)) if match else None
