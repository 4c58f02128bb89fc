"""Loading pipelines: bundled with the package, from a folder, a reference checkpoint or the Hugging Face hub."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from vdinterp import store
from vdinterp.checks.settings import read_json
from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT
from vdinterp.models.loading import FAMILIES, check_dtype, convert, read_checkpoint
from vdinterp.pipeline.bundle import SETTINGS, WEIGHTS, bundle_checkpoints, load_bundle
from vdinterp.pipeline.checks import check_device
from vdinterp.pipeline.hub import download
from vdinterp.pipeline.video_diffusion import VideoDiffusion
from vdinterp.vae import VAE, LatentStats
from vdinterp.vae.protocol import vae_module

MODELS = Path(__file__).parent.parent / "assets" / "models"
_CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+$")


class Where(NamedTuple):
    """Of the weights that are loaded; None is as stored, and the CPU."""

    dtype: torch.dtype | None
    device: torch.device | None


def list_models() -> list[str]:
    """Names of the models in the package, each of which `load` takes. For reference checkpoints of published
    models see `list_families`."""
    return sorted(file.parent.name for file in MODELS.glob(f"*/{SETTINGS}"))


def list_checkpoints(name: str | Path) -> list[int]:
    """Training steps that `load(name, checkpoint=...)` takes, ascending; for a bundled model or a model folder.

    Raises KeyError for what is neither.
    """
    path = MODELS / str(name) if str(name) in list_models() else store.as_path(name, "name")
    if not (path / SETTINGS).is_file():
        raise _unknown(str(name))
    return bundle_checkpoints(path)


def list_families() -> list[str]:
    """Families of published models whose checkpoints `load(path, family=..., config=...)` converts."""
    return sorted(FAMILIES)


def load(
    name: str | Path,
    checkpoint: int | None = None,
    *,
    family: str | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    filename: str | None = None,
    vae: VAE | Literal["hub"] | None = None,
    diffusion: DiffusionConfig | None = None,
    latent_stats: LatentStats | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> VideoDiffusion:
    """A model ready to run.

    Weights are read one tensor at a time, into the dtype and onto the device where they stay: this takes the memory of
    the model, and of its largest tensor.

    Args:
        name: a bundled model (`list_models`), a folder written by `save_bundle`, a reference checkpoint
            file, or a Hugging Face hub repository `owner/repo` that holds either. What is on this disk never goes to
            the network; a name does only where neither it nor its first part is found here, and the log says so.
        checkpoint: training step, for models with checkpoints along training; None is the finished model.
        family, config: for reference checkpoints: the converter (`list_families`) and the reference's configuration:
            a dictionary, the path of a JSON file, or the name of a published one ("K600", "MCRAFT"; "OASIS_500M").
        filename: which file of a hub repository is the reference checkpoint.
        vae, diffusion, latent_stats: take these instead of the stored ones (reference checkpoints store none; their
            family's published settings are the default, without a VAE). `vae="hub"` fetches the VAE that a folder only
            names.
        dtype: of the parameters, `torch.bfloat16` for example; buffers stay in float32. Default: as the folder was
            saved (the bundled models: float32); float32 for reference checkpoints, whatever they are stored in.
        device: where to put it.

    Raises:
        KeyError: an unknown name or training step; says which are close.
        FileNotFoundError: no such path, or no network where a hub name needs it.
        ValueError: a truncated file, unknown keys, weights that are none (NaN, integers), a checkpoint of another
            architecture, a device that is not there, or a dtype that is none of a model's.
    """
    if not isinstance(name, (str, Path)):
        raise ValueError(f"name is {name!r}; give a model's name or path, for example {list_models()[0]!r}")
    check_dtype(dtype)
    where = Where(dtype, None if device is None else check_device(device))
    text = str(name)
    path = Path(name).expanduser()
    if isinstance(name, str) and text in list_models():
        pipe = _bundle(MODELS / text, checkpoint, family, config, vae, where)
    elif path.is_dir():
        pipe = _bundle(path, checkpoint, family, config, vae, where)
    elif path.is_file():
        pipe = _reference(path, checkpoint, family, config, vae, where)
    elif _is_local(text):
        raise _not_there(path)
    elif _HUB_NAME.match(text):
        pipe = _hub(text, checkpoint, family, config, filename, vae, where)
    else:
        raise _unknown(text)
    if latent_stats is not None or diffusion is not None:
        stats = pipe.latent_stats if latent_stats is None else latent_stats
        pipe = VideoDiffusion(
            pipe.model, pipe.vae, pipe.diffusion if diffusion is None else diffusion, stats, pipe.meta
        )
    if vae is not None and (module := vae_module(pipe.vae)) is not None:  # one of the user's, or from the hub
        module.to(device=where.device, dtype=where.dtype)
    return pipe


def _is_local(name: str) -> bool:
    """Whether a name that nothing here has is one of a file or folder nonetheless: it is written as a path, ends as a
    checkpoint does, or begins with a folder that is here."""
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1:
        return True
    return path.suffix.lower() in _CHECKPOINT_SUFFIXES or (len(path.parts) > 1 and Path(path.parts[0]).exists())


def _not_there(path: Path) -> FileNotFoundError:
    around = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, around, n=3, cutoff=0.5)
    hint = f"{path.parent} has {' and '.join(close)}; " if close else ""
    return FileNotFoundError(f"there is no file or folder {path}; {hint}bundled models are {list_models()}")


def _unknown(name: str) -> KeyError:
    models = list_models()
    close = difflib.get_close_matches(name, models, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return KeyError(
        f"no model is called {name!r}; {hint}bundled are {', '.join(models)}. Besides, load takes a folder or "
        f"checkpoint file (families {', '.join(list_families())}), or a hub name 'owner/repo'"
    )


def _bundle(
    path: Path,
    checkpoint: int | None,
    family: str | None,
    config: object,
    vae: VAE | Literal["hub"] | None,
    where: Where,
) -> VideoDiffusion:
    if not (path / SETTINGS).is_file():
        raise _no_bundle(path)
    if family is not None or config is not None:
        raise ValueError(f"{path.name} states its own architecture; family and config are for reference checkpoints")
    return load_bundle(path, checkpoint, vae, *where)


def _no_bundle(path: Path) -> ValueError | FileNotFoundError:
    """What to say of a folder that `save_bundle` did not write."""
    families = ", ".join(f"{family} (config= a mapping, or {', '.join(m.PRESETS)})" for family, m in FAMILIES.items())
    for name in ("model_index.json", "config.json"):
        if not (path / name).is_file():
            continue
        settings = read_json(path / name)
        kind = settings.get("_class_name") if isinstance(settings, Mapping) else None
        if kind is not None:
            return ValueError(
                f"{path} is a diffusers folder of class {kind}: no converter yet; there are converters for checkpoint "
                f"files of {families}"
            )
    names = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _CHECKPOINT_SUFFIXES)
    files = [name for name in names if name != WEIGHTS]
    if files:
        return ValueError(
            f"{path} holds no {SETTINGS}, which a model folder has, but the checkpoint file {files[0]}"
            + (f" and {len(files) - 1} more" if len(files) > 1 else "")
            + f": load that by its own path, with family= and config=; there are converters for {families}"
        )
    return FileNotFoundError(f"{path} holds no {SETTINGS}; a model folder has {SETTINGS} and {WEIGHTS}")


def _reference(
    path: Path,
    checkpoint: int | None,
    family: str | None,
    config: Mapping[str, Any] | str | Path | None,
    vae: VAE | Literal["hub"] | None,
    where: Where,
) -> VideoDiffusion:
    if checkpoint is not None:
        raise ValueError("checkpoint=... chooses a training step of a model folder; a checkpoint file is one already")
    if family is None or config is None:
        raise ValueError(
            f"{path.name} is a checkpoint file: say which converter reads it and with which configuration, "
            f"load(path, family={' or '.join(map(repr, list_families()))}, config={{...}}). A model folder is loaded "
            "by its folder's name"
        )
    if vae == "hub":
        raise ValueError(f"{path.name} names no VAE; give one, for example vae=vdinterp.vae.DiffusersVAE(module)")
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; converters exist for {list_families()}")
    reference = _configuration(family, config)
    state = read_checkpoint(path)
    model = convert(family, reference, state, *where)
    stats = _stats(state, reference)
    return VideoDiffusion(model, vae, _family_diffusion(family, model), stats, {"name": path.stem, "family": family})


def _configuration(family: str, config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A reference configuration that is given as such, as a published one's name, or as a JSON file."""
    presets = FAMILIES[family].PRESETS
    if isinstance(config, Mapping):
        return config
    if not isinstance(config, str | Path):
        raise ValueError(f"config is a {type(config).__name__}; a dictionary, a JSON file or one of {list(presets)}")
    if isinstance(config, str) and config in presets:
        return presets[config]
    file = Path(config).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no configuration file {file}; published configurations of {family} are {list(presets)}"
        )
    settings = read_json(file)
    if not isinstance(settings, Mapping):
        raise ValueError(f"{file} holds a {type(settings).__name__}; a configuration is a dictionary")
    return settings


def _family_diffusion(family: str, model: HookedVideoDiT) -> DiffusionConfig:
    """The published settings of a family."""
    if family == "oasis":
        return DiffusionConfig(objective="v", schedule="sigmoid")
    if model.cfg.noise_embed == "fourier":  # trained on continuous levels
        return DiffusionConfig("v", "cosine_simple_diffusion", shift=0.125, precond_scale=0.125)
    return DiffusionConfig(objective="v", schedule="cosine")


def _stats(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> LatentStats:
    """Latent statistics that a checkpoint or its configuration states; otherwise latents are taken as they are."""
    for where, source in (("the checkpoint", state), ("the configuration", config)):
        given = [key for key in ("data_mean", "data_std") if key in source]
        if len(given) == 1:
            other = "data_std" if given == ["data_mean"] else "data_mean"
            raise ValueError(f"{where} has {given[0]} but no {other}; latents are normalised by both, or by neither")
        if given:
            return LatentStats(_channels(source, "data_mean"), _channels(source, "data_std"))
    return LatentStats()


def _channels(source: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """One number a channel, however deep they lie in lists."""
    try:
        values = torch.as_tensor(source[key]).flatten()
        return tuple(map(float, values.tolist()))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{key} is {reprlib.repr(source[key])}; one number a channel is wanted") from error


def _hub(
    name: str,
    checkpoint: int | None,
    family: str | None,
    config: Mapping[str, Any] | str | Path | None,
    filename: str | None,
    vae: VAE | Literal["hub"] | None,
    where: Where,
) -> VideoDiffusion:
    if family is not None and filename is None:
        raise ValueError(f"which file of {name} is the checkpoint? Pass filename='...'")
    if family is not None and filename is not None:
        return _reference(download(name, [filename])[0], checkpoint, family, config, vae, where)
    files = [SETTINGS, WEIGHTS]
    if checkpoint is not None:
        files.append(f"checkpoints/step-{checkpoint:05d}.safetensors")
    pipe = load_bundle(download(name, files)[0].parent, checkpoint, vae, *where)
    pipe.meta["name"] = name
    return pipe
