"""From pixels to latents and back."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from vdinterp.checks.settings import pick
from vdinterp.vae.diffusers_vae import DiffusersVAE, check_hub_options
from vdinterp.vae.frames import FrameMap
from vdinterp.vae.identity import IdentityVAE
from vdinterp.vae.protocol import VAE
from vdinterp.vae.stats import LatentStats
from vdinterp.vae.tiny_codec import TinyConvCodec

__all__ = ["VAE", "DiffusersVAE", "FrameMap", "IdentityVAE", "LatentStats", "TinyConvCodec", "build"]


def build(config: Mapping[str, Any]) -> VAE:
    """The VAE that a `config` describes, as written by its `.config`; weights are loaded by the caller.

    Kinds: `identity` (channels), `tiny_conv` (TinyConvCodec's arguments), `diffusers` (`class` with `config`, or
    `pretrained` with `options`, which fetches weights from the Hugging Face hub). ValueError for another kind, for
    arguments it does not take, and for options of a fetch other than `HUB_OPTIONS`.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"a VAE is described by a dictionary with its 'kind'; got {reprlib.repr(config)}")
    options = dict(config)
    kind = options.pop("kind", None)
    what = f"VAE of kind {reprlib.repr(kind)}"
    if kind == "diffusers":
        if "pretrained" in options:
            given = pick(options, what, {"pretrained": str}, options=dict[str, str | bool], **{"class": str})
            fetch = given.get("options", {})
            check_hub_options(fetch)
            return DiffusersVAE.from_pretrained(given["pretrained"], given.get("class", "AutoencoderKL"), **fetch)
        if "class" not in options or "config" not in options:
            raise ValueError(f"a diffusers VAE needs 'class' and 'config', or 'pretrained'; got {sorted(options)}")
        given = pick(options, what, {"class": str, "config": Mapping})
        return DiffusersVAE.from_config(given["class"], given["config"])
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "identity": (IdentityVAE, {"channels": int}),
        "tiny_conv": (
            TinyConvCodec,
            {"in_channels": int, "latent_channels": int, "widths": tuple[int, int, int], "noise": float},
        ),
    }
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"unknown kind of VAE {kind!r}; choose one of {sorted([*kinds, 'diffusers'])}")
    make, hints = kinds[kind]
    if unknown := options.keys() - hints.keys():
        raise ValueError(f"{what} takes {', '.join(hints)}; not {', '.join(sorted(map(str, unknown)))}")
    return make(**pick(options, what, {}, **hints))
