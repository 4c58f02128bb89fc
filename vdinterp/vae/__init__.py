"""From pixels to latents and back."""

from __future__ import annotations

from typing import Any

from vdinterp.vae.diffusers_vae import DiffusersVAE
from vdinterp.vae.identity import IdentityVAE
from vdinterp.vae.protocol import VAE
from vdinterp.vae.stats import LatentStats
from vdinterp.vae.tiny_codec import TinyConvCodec

__all__ = ["VAE", "DiffusersVAE", "IdentityVAE", "LatentStats", "TinyConvCodec", "build"]


def build(config: dict[str, Any]) -> VAE:
    """The VAE that a `config` describes, as written by its `.config`; weights are loaded by the caller.

    Kinds: `identity` (channels), `tiny_conv` (TinyConvCodec's arguments), `diffusers` (`class` with `config`, or
    `pretrained` with `options`). ValueError for another kind or for arguments it does not take.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind == "diffusers":
        if "pretrained" in options:
            return DiffusersVAE.from_pretrained(
                options["pretrained"], options.get("class", "AutoencoderKL"), **options.get("options", {})
            )
        if "class" not in options or "config" not in options:
            raise ValueError(f"a diffusers VAE needs 'class' and 'config', or 'pretrained'; got {sorted(options)}")
        return DiffusersVAE.from_config(options["class"], options["config"])
    kinds = {"identity": IdentityVAE, "tiny_conv": TinyConvCodec}
    if kind not in kinds:
        raise ValueError(f"unknown kind of VAE {kind!r}; choose one of {sorted([*kinds, 'diffusers'])}")
    if "widths" in options:  # JSON knows no tuples
        options["widths"] = tuple(options["widths"])
    try:
        return kinds[kind](**options)
    except TypeError as error:
        raise ValueError(f"VAE of kind {kind!r}: {error}") from error
