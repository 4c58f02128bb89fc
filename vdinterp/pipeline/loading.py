"""Loading pipelines: bundled with the package, from a folder, a reference checkpoint or the Hugging Face hub."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT
from vdinterp.models.loading import FAMILIES, read_checkpoint
from vdinterp.pipeline.bundle import SETTINGS, WEIGHTS, bundle_checkpoints, load_bundle
from vdinterp.pipeline.video_diffusion import VideoDiffusion
from vdinterp.vae import VAE, LatentStats

MODELS = Path(__file__).parent.parent / "assets" / "models"
_CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+$")


def list_models() -> list[str]:
    """Names of the models in the package, each of which `load` takes. For reference checkpoints of published
    models see `list_families`."""
    return sorted(file.parent.name for file in MODELS.glob(f"*/{SETTINGS}"))


def list_checkpoints(name: str | Path) -> list[int]:
    """Training steps that `load(name, checkpoint=...)` takes, ascending; for a bundled model or a model folder.

    Raises KeyError for what is neither.
    """
    path = MODELS / str(name) if str(name) in list_models() else Path(name)
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
    vae: VAE | None = None,
    diffusion: DiffusionConfig | None = None,
    latent_stats: LatentStats | None = None,
    device: str | torch.device | None = None,
) -> VideoDiffusion:
    """A model ready to run.

    Args:
        name: a bundled model (`list_models`), a folder written by `save_bundle`, a reference checkpoint
            file, or a Hugging Face hub repository `owner/repo` that holds either.
        checkpoint: training step, for models with checkpoints along training; None is the finished model.
        family, config: for reference checkpoints: the converter (`list_families`) and the reference's
            configuration, as a dictionary or the path of a JSON file.
        filename: which file of a hub repository is the reference checkpoint.
        vae, diffusion, latent_stats: take these instead of the stored ones (reference checkpoints store none; their
            family's published settings are the default, without a VAE).
        device: where to put it.

    Raises:
        KeyError: an unknown name or training step; says which are close.
        FileNotFoundError: no such path, or no network where a hub name needs it.
        ValueError: a truncated file, unknown keys, or a checkpoint of another architecture.
    """
    if not isinstance(name, (str, Path)):
        raise ValueError(f"name is {name!r}; give a model's name or path, for example {list_models()[0]!r}")
    text = str(name)
    path = Path(name).expanduser()
    if isinstance(name, str) and text in list_models():
        pipe = _bundle(MODELS / text, checkpoint, family, config)
    elif path.is_dir():
        pipe = _bundle(path, checkpoint, family, config)
    elif path.is_file():
        pipe = _reference(path, checkpoint, family, config)
    elif path.suffix.lower() in _CHECKPOINT_SUFFIXES or path.is_absolute() or text.startswith((".", "~")):
        raise FileNotFoundError(f"there is no file or folder {path}; bundled models are {list_models()}")
    elif _HUB_NAME.match(text):
        pipe = _hub(text, checkpoint, family, config, filename)
    else:
        raise _unknown(text)
    if vae is not None:
        pipe.vae = vae
    if latent_stats is not None:
        pipe.latent_stats = latent_stats
    if diffusion is not None:
        pipe = VideoDiffusion(pipe.model, pipe.vae, diffusion, pipe.latent_stats, pipe.meta)
    return pipe if device is None else pipe.to(device)


def _unknown(name: str) -> KeyError:
    models = list_models()
    close = difflib.get_close_matches(name, models, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return KeyError(
        f"no model is called {name!r}; {hint}Bundled are {models}. Besides, load takes a folder or checkpoint file "
        f"(families {list_families()}), or a hub name 'owner/repo'"
    )


def _bundle(path: Path, checkpoint: int | None, family: str | None, config: object) -> VideoDiffusion:
    if family is not None or config is not None:
        raise ValueError(f"{path.name} states its own architecture; family and config are for reference checkpoints")
    return load_bundle(path, checkpoint)


def _reference(
    path: Path, checkpoint: int | None, family: str | None, config: Mapping[str, Any] | str | Path | None
) -> VideoDiffusion:
    if checkpoint is not None:
        raise ValueError("checkpoint=... chooses a training step of a model folder; a checkpoint file is one already")
    if family is None or config is None:
        raise ValueError(
            f"{path.name} is a checkpoint file: say which converter reads it and with which configuration, "
            f"load(path, family={' or '.join(map(repr, list_families()))}, config={{...}}). A model folder is loaded "
            "by its folder's name"
        )
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; converters exist for {list_families()}")
    if not isinstance(config, Mapping):
        file = Path(config).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"there is no configuration file {file}")
        config = json.loads(file.read_text())
    reference: Mapping[str, Any] = config  # type: ignore[assignment]
    state = read_checkpoint(path)
    model = HookedVideoDiT.from_state_dict(family, reference, state)
    stats = _stats(state, reference)
    return VideoDiffusion(
        model.eval(), None, _family_diffusion(family, model), stats, {"name": path.stem, "family": family}
    )


def _family_diffusion(family: str, model: HookedVideoDiT) -> DiffusionConfig:
    """The published settings of a family."""
    if family == "oasis":
        return DiffusionConfig(objective="v", schedule="sigmoid")
    if model.cfg.noise_embed == "fourier":  # trained on continuous levels
        return DiffusionConfig("v", "cosine_simple_diffusion", shift=0.125, precond_scale=0.125)
    return DiffusionConfig(objective="v", schedule="cosine")


def _stats(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> LatentStats:
    """Latent statistics that a checkpoint or its configuration states; otherwise latents are taken as they are."""
    for source in (state, config):
        if "data_mean" in source and "data_std" in source:
            mean, std = (torch.as_tensor(source[key]).flatten().tolist() for key in ("data_mean", "data_std"))
            return LatentStats(tuple(mean), tuple(std))
    return LatentStats()


def _hub(
    name: str,
    checkpoint: int | None,
    family: str | None,
    config: Mapping[str, Any] | str | Path | None,
    filename: str | None,
) -> VideoDiffusion:
    if family is not None and filename is None:
        raise ValueError(f"which file of {name} is the checkpoint? Pass filename='...'")
    if family is not None and filename is not None:
        return _reference(_download(name, filename), checkpoint, family, config)
    files = [SETTINGS, WEIGHTS]
    if checkpoint is not None:
        files.append(f"checkpoints/step-{checkpoint:05d}.safetensors")
    paths = [_download(name, file) for file in files]
    pipe = load_bundle(paths[0].parent, checkpoint)
    pipe.meta["name"] = name
    return pipe


def _download(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, file))
    except HFValidationError as error:
        raise _unknown(name) from error
    except (OSError, HfHubHTTPError) as error:  # offline, no such repository, no such file
        raise FileNotFoundError(
            f"{name}/{file} could not be fetched from the Hugging Face hub ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}). {name!r} is no local path "
            f"either. Without a network these work: bundled models {list_models()}, or a downloaded folder or file"
        ) from error
