"""Any autoencoder of the `diffusers` library, image or video. `diffusers` is imported when one is built."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from vdinterp.vae.frames import FrameMap
from vdinterp.vae.protocol import MOST, check_frames, evaluating

HUB_OPTIONS = ("subfolder", "revision", "variant", "use_safetensors")  # what may stand in a file about a download
MOST_LAYERS = 100  # of a block
BLOCKWISE = ("AutoencoderKLAllegro", "AutoencoderKLMiniMaxH3")  # not causal: every latent frame is a block of frames


class DiffusersVAE(FrameMap):
    """Wraps an `AutoencoderKL` (frame by frame) or a video autoencoder such as `AutoencoderKLCogVideoX`,
    `AutoencoderKLWan`.

    Latents are the mode of the posterior, unnormalised and unscaled (`scaling_factor` belongs into `LatentStats`).
    Video autoencoders may compress time as well, so that latents have fewer frames than pixels; by how much they say
    themselves (`temporal_compression_ratio`, or the blocks that halve time).

    `vae`: the module. `source`: what `vdinterp.vae.build` needs to make it again, where it came from a hub.
    """

    def __init__(self, vae: nn.Module, source: dict[str, Any] | None = None) -> None:
        for name in ("encode", "decode", "config"):
            if not hasattr(vae, name):
                raise ValueError(f"{type(vae).__name__} has no {name!r}: expected an autoencoder of diffusers")
        self.vae: Any = vae.eval().requires_grad_(False)
        self._source = source
        first = next((m for m in vae.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
        if first is None:
            raise ValueError(f"{type(vae).__name__} has no convolution: image and video autoencoders of diffusers do")
        self.is_video = isinstance(first, nn.Conv3d)
        self.time_compression = _time_compression(self.vae) if self.is_video else 1
        self.causal = type(vae).__name__ not in BLOCKWISE
        self._wants_frames = "num_frames" in inspect.signature(self.vae.decode).parameters

    @classmethod
    def from_pretrained(cls, name: str, class_name: str = "AutoencoderKL", **options: Any) -> DiffusersVAE:
        """Downloads weights from the Hugging Face hub. `options` (e.g. `subfolder`, `revision`) go to diffusers; a
        pipeline saved with this VAE keeps them, and can be loaded again where they are among `HUB_OPTIONS`.

        FileNotFoundError when there is no network or no such model.
        """
        kind = _diffusers_class(class_name)
        try:
            vae = kind.from_pretrained(name, **options)
        except OSError as error:
            raise FileNotFoundError(f"no weights for {name!r} ({class_name}): {error}") from error
        return cls(vae, {"class": class_name, "pretrained": name, "options": options})

    @classmethod
    def from_config(cls, class_name: str, config: Mapping[str, Any]) -> DiffusersVAE:
        """Random weights, to be filled by `load_state_dict`. ValueError where diffusers builds nothing from it."""
        kind = _diffusers_class(class_name)
        _check_sizes(config, class_name)
        try:
            return cls(kind.from_config(dict(config)))
        except Exception as error:  # diffusers checks nothing, so anything can fail in there
            raise ValueError(f"no {class_name} can be built from its config: {error}") from error

    @property
    def config(self) -> dict[str, Any]:
        if self._source is not None:
            return {"kind": "diffusers", **self._source}
        settings = {key: value for key, value in dict(self.vae.config).items() if not key.startswith("_")}
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return {"kind": "diffusers", "class": type(self.vae).__name__, "config": config}

    @property
    def latent_channels(self) -> int:
        config = self.vae.config
        return int(config["latent_channels"] if "latent_channels" in config else config["z_dim"])

    @property
    def in_channels(self) -> int:
        return int(self.vae.config.get("in_channels", 3))

    @torch.no_grad()
    def encode(
        self, video: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]:
        """Pixels in [0, 1] -> mode of the posterior. ValueError for another shape, and for frames that make no whole
        latent ones (diffusers would drop the last)."""
        check_frames("video", video, self.in_channels)
        self.latent_frames(video.shape[1])
        pixels = video.to(self._dtype) * 2 - 1
        with evaluating(self.vae):
            posterior = self.vae.encode(pixels.transpose(1, 2) if self.is_video else pixels.flatten(0, 1)).latent_dist
        latents = posterior.mode()
        if self.is_video:
            return latents.transpose(1, 2).to(video.dtype)
        return latents.unflatten(0, video.shape[:2]).to(video.dtype)

    @torch.no_grad()
    def decode(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]:
        """Latents -> pixels clamped to [0, 1]. ValueError for another shape."""
        check_frames("latents", latents, self.latent_channels)
        values = latents.to(self._dtype)
        with evaluating(self.vae):
            if self.is_video:
                pixels = self.vae.decode(values.transpose(1, 2)).sample.transpose(1, 2)
            else:
                extra = {"num_frames": latents.shape[1]} if self._wants_frames else {}
                pixels = self.vae.decode(values.flatten(0, 1), **extra).sample.unflatten(0, latents.shape[:2])
        return ((pixels + 1) / 2).clamp(0, 1).to(latents.dtype)

    def to(self, *args: Any, **kwargs: Any) -> DiffusersVAE:
        """Moves the wrapped module, as `nn.Module.to` does."""
        self.vae.to(*args, **kwargs)
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.vae.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.vae.load_state_dict(state)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype


def _time_compression(vae: Any) -> int:
    """How many video frames a latent frame of a video autoencoder is made of."""
    config = vae.config
    for name in ("temperal_downsample", "temporal_downsample"):  # Wan and Qwen spell it so
        if name in config:
            return 2 ** sum(map(bool, config[name]))
    for name in ("temporal_compression_ratio", "temporal_compress_times"):
        found = config.get(name) or getattr(vae, name, None)
        if found:
            return int(found)
    if "temporal_expansions" in config:
        return math.prod(config["temporal_expansions"])
    raise ValueError(
        f"{type(vae).__name__} does not say how many frames it makes one of; set its temporal_compression_ratio"
    )


def _diffusers_class(name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None or not name.startswith("Autoencoder"):
        known = [n for n in dir(diffusers) if n.startswith("AutoencoderKL")]
        raise ValueError(f"diffusers has no autoencoder {name!r}; there are {', '.join(known)}")
    return kind


def check_hub_options(options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for options of a download that a file must not decide (proxies, mirrors, remote code)."""
    if other := sorted(set(options) - set(HUB_OPTIONS)):
        raise ValueError(f"a stored VAE's options are {', '.join(HUB_OPTIONS)}; not {', '.join(map(str, other))}")


def _check_sizes(config: Any, name: str, layers: bool = False) -> None:
    """Raise `ValueError` for counts that no autoencoder has, which building one would take for memory and time."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            _check_sizes(value, f"{name}.{key}", layers or "layer" in str(key))
    elif isinstance(config, list | tuple):
        for value in config:
            _check_sizes(value, name, layers)
        config = len(config)
    most = MOST_LAYERS if layers else MOST
    if isinstance(config, int) and config > most:
        raise ValueError(f"{name} is {config}, more than any autoencoder has; at most {most} is read")
